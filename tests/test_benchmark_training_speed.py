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
