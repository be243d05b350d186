import pytest

from edgemin_utils.benchmark import training_speed
from edgemin_utils.benchmark.training_speed import VARIANTS, compare_speeds

TINY = {
    "train_rows": 40,
    "dev_rows": 10,
    "teacher_layers": 1,
    "teacher_hidden_size": 16,
    "teacher_heads": 2,
    "teacher_intermediate_size": 16,
    "student_layers": 1,
    "student_hidden_size": 8,
    "student_heads": 2,
    "student_intermediate_size": 8,
    "distillation_epochs": 1,
    "prediction_epochs": 1,
    "relation_heads": 2,
}


def test_speeds_are_compared_on_the_same_rows_and_plain_is_the_unit():
    table = compare_speeds("sst2", "demo", TINY, repeats=2)
    assert len(table) == 2 * len(VARIANTS) and set(table["loop"]) == {"teacher fine-tuning", "distillation"}
    plain = table[table["variant"] == "plain Trainer"]
    assert (plain["ratio"] == 1).all() and (plain["precision"] == "float32").all()
    assert (table["lowest"] <= table["examples_per_second"]).all()
    assert (table["examples_per_second"] <= table["highest"]).all() and (table["lowest"] > 0).all()
    for _, row in table.iterrows():
        base = plain[plain["loop"] == row["loop"]].iloc[0]
        assert base["lowest"] / row["highest"] <= 1 / row["ratio"] * (1 + 1e-9)
    assert table["examples_per_second"].notna().all()


def test_ratios_are_medians_of_the_ratios_within_a_repeat(monkeypatch):
    """The machine slows down: medians of seconds, 2 against 0.5, would give the ratio 4 where it is 2."""
    fine_tuning = {
        "plain Trainer": (1.0, 2.0, 4.0),
        "EdgeMIN, float32": (0.5, 0.5, 4.0),
        "EdgeMIN, auto precision": (0.25, 1.0, 0.5),
    }
    rows_seen = set()

    def variant(settings):
        precision = settings.training_precision if settings.length_grouping else None
        return {None: "plain Trainer", "float32": "EdgeMIN, float32", "auto": "EdgeMIN, auto precision"}[precision]

    def fine_tuning_seconds(run, settings, rows, seed):
        rows_seen.add(len(rows.train))
        return fine_tuning[variant(settings)][seed]

    def distillation_seconds(run, settings, rows, seed):
        return 10 * fine_tuning[variant(settings)][seed], 2.0

    monkeypatch.setattr(training_speed, "fine_tuning_seconds", fine_tuning_seconds)
    monkeypatch.setattr(training_speed, "distillation_seconds", distillation_seconds)
    table = compare_speeds("sst2", "demo", TINY, repeats=3).set_index(["loop", "variant"])
    (rows,) = rows_seen
    # Rows a second are those of 2, 0.5 and 0.5 seconds; two epochs of distillation in ten times as long are a fifth.
    for loop, share in (("teacher fine-tuning", 1), ("distillation", 0.2)):
        for name, median, lowest, highest, ratio in (
            ("plain Trainer", 0.5, 0.25, 1, 1),
            ("EdgeMIN, float32", 2, 0.25, 2, 2),  # of 2, 4 and 1
            ("EdgeMIN, auto precision", 2, 1, 4, 4),  # of 4, 2 and 8
        ):
            row = table.loc[loop, name]
            speeds = [row[column] / (rows * share) for column in ("examples_per_second", "lowest", "highest")]
            assert speeds == pytest.approx([median, lowest, highest]) and row["ratio"] == pytest.approx(ratio)
