import json
import re

import numpy as np
import pandas as pd
import pytest
from example_study import (
    COST,
    DISTILLED,
    NONE,
    NONE_PRUNED,
    NONE_PRUNED_INT8,
    PRUNED,
    PRUNED_INT8,
    TEACHER,
    WRONG,
    write_chain,
)
from scipy import stats

from edgemin_utils import tables
from edgemin_utils.tables.factorial import factorial_effect
from edgemin_utils.tables.findings import effect_words
from edgemin_utils.tables.layout import latex_escape
from edgemin_utils.tables.summary import _latency_of_seeds


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """sst2 with one seed, qqp with two, mnli with two dev splits and one model missing."""
    folder = tmp_path_factory.mktemp("study")
    write_chain(folder, "sst2")
    write_chain(folder, "mnli", splits=("dev_matched", "dev_mismatched"), leave_out=(NONE_PRUNED_INT8,))
    write_chain(folder, "qqp", 0)
    write_chain(folder, "qqp", 1, wrong=WRONG | {TEACHER: 2, DISTILLED: 2, PRUNED: 6})
    return folder


@pytest.fixture(scope="module")
def summary(study):
    return tables.summarize(study).set_index(["task", "split", "key"])


def test_rows_stand_in_the_order_of_the_pipeline(study):
    frame = tables.main_results(study)
    assert list(frame.loc[frame["task"] == "sst2", "model"]) == [
        "Teacher",
        "Student without distillation",
        "Distilled (MiniLMv2)",
        "Distilled + pruned",
        "Distilled + pruned + INT8",
        "Distilled + INT8",
        "Undistilled + INT8",
        "Undistilled + pruned",
        "Undistilled + pruned + INT8",
    ]
    assert list(dict.fromkeys(frame["task"])) == ["sst2", "mnli", "qqp"]


def test_matched_and_mismatched_are_rows_of_their_own(study):
    frame = tables.main_results(study)
    shown = tables.readable(frame)["Task"]
    assert set(shown) == {"sst2", "mnli matched", "mnli mismatched", "qqp"}
    assert (shown == "mnli matched").sum() == (shown == "mnli mismatched").sum() == 8


def test_one_seed_has_the_records_interval_and_a_paired_test(summary):
    row = summary.loc[("sst2", "dev", PRUNED)]
    # 40 rows, 8 wrong after 6 wrong of the dense student, the same ones and two more.
    assert row["accuracy"] == pytest.approx(80.0)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((70.0, 85.0))
    assert row["kept"] == pytest.approx(100 * 0.80 / 0.90)
    assert row["difference"] == pytest.approx(-5.0)
    assert row["p_value"] == pytest.approx(0.5)  # two discordant rows, both one way: 2 * 0.5 ** 2
    assert row["compared_with"] == "Distilled (MiniLMv2)"
    assert row["seeds"] == 1


def test_mcnemar_of_a_student_without_distillation(summary):
    row = summary.loc[("sst2", "dev", NONE)]
    # 14 wrong against the teacher's 4: ten discordant rows, all one way.
    assert row["p_value"] == pytest.approx(2 * 0.5**10)
    assert row["compared_with"] == "Teacher"


def test_several_seeds_have_mean_and_t_interval(summary):
    row = summary.loc[("qqp", "dev", TEACHER)]
    # accuracies 90 and 95: mean 92.5, standard error 2.5, t(1 degree of freedom) = 12.706
    assert row["accuracy"] == pytest.approx(92.5)
    assert row["accuracy_high"] - row["accuracy"] == pytest.approx(2.5 * 12.7062, rel=1e-4)
    assert row["seeds"] == 2


def test_speed_ups_of_several_seeds_are_a_geometric_mean_with_an_interval_of_their_logarithms():
    timed = {"iqr_ms": 0.1, "p90_ms": 5.0, "bound_ms": 1.0, "of_bound": 4.0, "runs": 30, "noisy": False}
    ends = {"speed_up_low": 0.0, "speed_up_high": 99.0}
    group = pd.DataFrame(
        [{"median_ms": ms, "speed_up": ratio, **timed, **ends} for ms, ratio in ((4.0, 4.0), (6.0, 9.0))]
    )
    row = _latency_of_seeds(group)
    factor = np.exp(12.7062 * np.log(9 / 4) / 2)  # t of one degree of freedom times half the distance of the logarithms
    assert (row["median_ms"], row["runs"], row["speed_up"]) == pytest.approx((5.0, 60, 6.0))
    assert (row["speed_up_low"], row["speed_up_high"]) == pytest.approx((6 / factor, 6 * factor), rel=1e-3)


def test_paired_difference_over_seeds(summary):
    row = summary.loc[("qqp", "dev", DISTILLED)]
    # differences to the teacher: -5 (36 against 34 right) and 0
    assert row["difference"] == pytest.approx(-2.5)
    assert row["p_value"] == pytest.approx(float(2 * stats.t.sf(1.0, 1)))
    assert row["test"] == "t over seeds"
    assert row["kept"] == pytest.approx((100 * 34 / 36 + 100) / 2)


def test_no_p_value_without_a_source(summary):
    assert np.isnan(summary.loc[("qqp", "dev", TEACHER), "p_value"])
    # equal differences (-5 points with each seed) leave no spread to test against
    assert np.isnan(summary.loc[("qqp", "dev", NONE_PRUNED), "p_value"])
    assert summary.loc[("qqp", "dev", NONE_PRUNED), "difference"] == pytest.approx(-5.0)


def test_cost_is_worked_out_from_sizes_and_times(summary):
    row = summary.loc[("sst2", "dev", PRUNED_INT8)]
    assert row["parameters"] == 400_000
    assert row["megabytes"] == pytest.approx(0.4)
    assert row["smaller"] == pytest.approx(4.0 / 0.4)
    assert row["fewer"] == pytest.approx(2.5)
    assert row["macs_1x128"] == 10 * 400_000 * 128
    assert row["latency_1x128"] == pytest.approx(2.0)
    assert row["latency_1x32"] == pytest.approx(1.0)
    assert (row["speed_up_1x128"], row["speed_up_1x128_low"], row["speed_up_1x128_high"]) == pytest.approx(
        (6.0, 5.9, 6.2)
    )
    assert row["peak_memory"] == pytest.approx(154.0)
    assert row["memory_baseline"] == pytest.approx(150.0)


def test_each_row_names_a_folder_that_holds_its_record(study):
    for table in (tables.main_results(study), tables.cost_table(study), tables.latency_table(study)):
        for task, folder in zip(table["task"], table["folder"], strict=True):
            for seed in ("0", "1") if task == "qqp" else ("0",):
                assert (study / folder.replace("{0,1}", seed) / "record.json").is_file()


def test_a_missing_model_leaves_no_row_and_no_effects(study):
    frame = tables.main_results(study)
    assert "Undistilled + pruned + INT8" not in set(frame.loc[frame["task"] == "mnli", "model"])
    assert "mnli" not in set(tables.factorial_effects(study)["task"])


def test_a_chain_without_measurement_gives_blanks_and_a_note(tmp_path):
    write_chain(tmp_path, leave_out=(COST,))
    records = tables.read_study(tmp_path)
    assert "sst2, seed 0: latency and memory are not measured" in records.notes
    write_chain(tmp_path, "sst2", 4, leave_out=(COST,))
    again = tables.read_study(tmp_path)
    assert "sst2, seeds 0, 4: latency and memory are not measured" in again.notes
    cost = tables.readable(tables.cost_table(tmp_path))
    assert set(cost["Memory (MB)"]) == {""}
    assert tables.latency_table(tmp_path).empty
    assert tables.as_text(tables.latency_table(tmp_path)) == "(no rows)"
    assert "not measured" in tables.latency_note(records)
    assert any("latency and memory are not measured" in sentence for sentence in tables.findings(tmp_path))


def test_a_missing_teacher_leaves_blanks(tmp_path):
    write_chain(tmp_path, leave_out=(TEACHER,))
    cells = tables.readable(tables.main_results(tmp_path)).set_index("Model")
    assert set(cells["Kept %"]) == {""}
    assert cells.loc["Distilled (MiniLMv2)", "Difference"] == ""
    assert cells.loc["Distilled + pruned", "Difference"] == "-5.0 [-12.5, 0.0]"
    tables.findings(tmp_path)
    tables.write_tables(tmp_path, tmp_path / "tables")


@pytest.mark.parametrize("keep", [(), (TEACHER,), (COST,)])
def test_hardly_any_records_do_not_stop_the_tables(tmp_path, keep):
    write_chain(
        tmp_path, leave_out=tuple(key for key in (*WRONG, COST, "pruning/minilmv2+head-scan") if key not in keep)
    )
    written = {path.name for path in tables.write_tables(tmp_path, tmp_path / "tables")}
    assert {"main_results.csv", "main_results.md", "main_results.tex"} <= written
    assert {table.name for table in tables.every_table(tmp_path) if len(table.frame)} | {"main_results"} == {
        name.split(".")[0] for name in written
    }
    tables.findings(tmp_path)
    assert len(tables.main_results(tmp_path)) == (1 if TEACHER in keep else 0)


def test_a_model_made_from_an_earlier_one_is_left_out(tmp_path):
    write_chain(tmp_path)
    path = tmp_path / "sst2" / "seed-0" / DISTILLED / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"fingerprint": "made anew"}))
    records = tables.read_study(tmp_path)
    assert PRUNED not in records.chains[0].models and PRUNED_INT8 not in records.chains[0].models
    assert any(PRUNED_INT8 in note and "earlier" in note for note in records.notes)
    frame = tables.summarize(records).set_index("key")
    assert np.isnan(frame.loc[DISTILLED, "latency_1x128"])  # the old model was timed, not this one
    assert frame.loc[NONE_PRUNED, "latency_1x128"] == 5.0
    assert any("not timed" in note and DISTILLED in note for note in records.notes)


def test_factorial_effects_by_hand(study):
    effects = tables.factorial_effects(study)
    rows = effects[effects["task"] == "sst2"].set_index("effect")
    # right answers of 40: (none, minilmv2) x (dense, pruned) x (FP32, INT8)
    right = {
        (0, 0, 0): 26,
        (1, 0, 0): 34,
        (0, 1, 0): 24,
        (1, 1, 0): 32,
        (0, 0, 1): 25,
        (1, 0, 1): 33,
        (0, 1, 1): 22,
        (1, 1, 1): 32,
    }
    distilled = (
        2.5
        * (
            sum(value for place, value in right.items() if place[0])
            - sum(value for place, value in right.items() if not place[0])
        )
        / 4
    )
    assert rows.loc["distilled", "accuracy_effect"] == pytest.approx(distilled)
    both = 2.5 * sum(value * (1 if place[1] == place[2] else -1) for place, value in right.items()) / 4
    assert rows.loc["pruned x quantized", "accuracy_effect"] == pytest.approx(both)
    assert rows.loc["quantized", "size_ratio"] == pytest.approx(0.25)
    # 6, 5, 3, 2 ms: ratio of geometric means sqrt(3 * 2) / sqrt(6 * 5)
    assert rows.loc["quantized", "latency_ratio"] == pytest.approx(np.sqrt(6 / 30))
    assert rows.loc["pruned x quantized", "latency_ratio"] == pytest.approx(np.sqrt((6 * 2) / (5 * 3)))


def test_factorial_effect_agrees_with_least_squares():
    generator = np.random.default_rng(3)
    places = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    frame = pd.DataFrame(places.astype(bool), columns=["distilled", "pruned", "quantized"])
    frame["y"] = generator.normal(size=8)
    codes = 2 * places - 1
    design = np.column_stack(
        [
            np.ones(8),
            codes,
            codes[:, 0] * codes[:, 1],
            codes[:, 0] * codes[:, 2],
            codes[:, 1] * codes[:, 2],
            codes.prod(axis=1),
        ]
    )
    coefficients = np.linalg.lstsq(design, frame["y"], rcond=None)[0]
    assert factorial_effect(frame, ("pruned",), "y") == pytest.approx(2 * coefficients[2])
    assert factorial_effect(frame, ("pruned", "quantized"), "y") == pytest.approx(2 * coefficients[6])


def test_text_fits_a_terminal_and_holds_every_column(study):
    for frame in (tables.main_results(study), tables.cost_table(study), tables.latency_table(study)):
        text = tables.as_text(frame)
        assert max(map(len, text.splitlines())) <= 120
        for header in tables.readable(frame).columns:
            assert header in text
    narrow = tables.as_text(tables.cost_table(study), width=80)
    assert max(map(len, narrow.splitlines())) <= 80


def test_main_table_is_one_block(study):
    assert "\n\n" not in tables.as_text(tables.main_results(study))


def test_a_table_in_a_terminal_says_what_its_data_are(study):
    text = tables.as_text(tables.main_table(study))
    assert text.startswith("Accuracy per task and model (synthetic data)")
    assert "seeds 0, 1" in text and max(map(len, text.splitlines())) <= 120


def test_noisy_times_are_marked(study):
    cells = tables.readable(tables.latency_table(study))
    noisy = cells[cells["1x128 (ms)"].str.endswith("*")]
    assert set(noisy["Model"]) == {"Student without distillation"}
    assert set(noisy["Threads"]) == {"1"}
    note = next(table for table in tables.every_table(study) if table.name == "latency").notes
    assert any(text.startswith("* noisy") for text in note)
    assert any("quick" in text for text in note)


def test_notes_name_source_seeds_and_processor(study):
    notes = " ".join(tables.table_notes(study))
    assert "synthetic corpus in the schema of" in notes and "seeds 0, 1" in notes and "Test CPU 100%" in notes
    assert all("synthetic data" in table.title for table in tables.every_table(study))


def test_csv_holds_the_numbers(study, tmp_path):
    tables.write_tables(study, tmp_path)
    frame = pd.read_csv(tmp_path / "main_results.csv")
    row = frame[(frame["task"] == "sst2") & (frame["model"] == "Distilled + pruned")].iloc[0]
    assert row["accuracy"] == 80.0 and row["compared_with"] == "Distilled (MiniLMv2)"
    assert row["folder"] == f"sst2/seed-0/{PRUNED}"
    latency = pd.read_csv(tmp_path / "latency.csv")
    assert {"latency_1x128_iqr", "latency_1x128_p90", "latency_1x128_runs", "speed_up_dev_rows_low"} <= set(latency)


def test_markdown_rows_have_as_many_cells_as_the_header(study, tmp_path):
    tables.write_tables(study, tmp_path)
    for path in tmp_path.glob("*.md"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert f"mnli/seed-0/{TEACHER}" in (tmp_path / "main_results.md").read_text()


def test_latex_is_a_whole_table(study, tmp_path):
    tables.write_tables(study, tmp_path)
    assert len(list(tmp_path.glob("*.tex"))) > 4
    for path in tmp_path.glob("*.tex"):
        text = path.read_text()
        code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        assert re.findall(r"\\begin\{(\w+)\}", code) == re.findall(r"\\end\{(\w+)\}", code)[::-1]
        assert code.count("{") - code.count(r"\{") == code.count("}") - code.count(r"\}")
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", code)[1])
        body = code[code.index(r"\toprule") : code.index(r"\bottomrule")]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
        for special in ("%", "_", "#", "$"):
            found = re.findall(rf"(?<!\\){re.escape(special)}", code)
            # the % that ends the resizebox line is a comment sign
            assert len(found) == (1 if special == "%" else 0), (path.name, special)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("100 %", r"100 \%"),
        ("a_b & c", r"a\_b \& c"),
        ("\\{}", r"\textbackslash{}\{\}"),
        ("<0.001", r"\textless{}0.001"),
        ("[1, 2]", "{[}1, 2{]}"),
    ],
)
def test_latex_escape(text, escaped):
    assert latex_escape(text) == escaped


def test_the_same_records_give_the_same_bytes(study, tmp_path):
    first = {path.name: path.read_bytes() for path in tables.write_tables(study, tmp_path / "one")}
    second = {path.name: path.read_bytes() for path in tables.write_tables(study, tmp_path / "two")}
    assert first == second and len(first) == 30


def test_tables_with_several_cuts_name_them(tmp_path):
    write_chain(tmp_path)
    source = tmp_path / "sst2" / "seed-0" / PRUNED
    other = source.with_name("minilmv2+magnitude-heads-0.5")
    other.mkdir()
    content = json.loads((source / "record.json").read_text())
    (other / "record.json").write_text(
        json.dumps(content | {"variant": other.name, "steps": ["distill:minilmv2", "prune:magnitude-heads-0.5"]})
    )
    models = set(tables.main_results(tmp_path)["model"])
    assert {"Distilled + pruned (gradient-heads-0.25)", "Distilled + pruned (magnitude-heads-0.5)"} <= models


def test_students_of_a_checkpoint_and_of_two_objectives_have_names_of_their_own(tmp_path):
    write_chain(tmp_path)
    for source, student in ((NONE, "none-pretrained"), (DISTILLED, "soft-targets")):
        folder = tmp_path / "sst2" / "seed-0" / source
        other = folder.with_name(student)
        other.mkdir()
        content = json.loads((folder / "record.json").read_text())
        (other / "record.json").write_text(
            json.dumps(
                content
                | {"variant": student, "student": student, "steps": [f"distill:{student}"] if content["steps"] else []}
            )
        )
    models = list(tables.main_results(tmp_path)["model"])
    assert models[:5] == [
        "Teacher",
        "Student without distillation",
        "Undistilled from checkpoint",
        "Distilled (soft-targets)",
        "Distilled (MiniLMv2)",
    ]
    assert "Distilled (MiniLMv2) + pruned + INT8" in models and len(set(models)) == len(models) == 11


def test_findings_name_gains_and_negative_results(study):
    sentences = tables.findings(study)
    helped = next(text for text in sentences if text.startswith("sst2: distillation"))
    assert "helped: +20.0 points" in helped and "p 0.008" in helped  # 8 discordant rows: 2 * 0.5 ** 8
    assert any("sst2: quantization made no difference" in text for text in sentences)
    assert any("synthetic" in text for text in sentences)
    assert any("6.00 times as fast" in text for text in sentences)
    # 2 * 6 / (5 * 3) of what the two gains multiplied give
    together = next(text for text in sentences if text.startswith("sst2: pruned and quantized together"))
    assert re.search(r"needs 0\.80( \[\d\.\d\d, \d\.\d\d\])? times the latency .* by the quick protocol\.$", together)


def test_distillation_that_harms_is_said_to(tmp_path):
    write_chain(tmp_path, wrong=WRONG | {DISTILLED: 20, NONE: 6})
    text = next(text for text in tables.findings(tmp_path) if text.startswith("sst2: distillation"))
    assert "did not help, accuracy fell: -35.0 points" in text


def test_a_teacher_without_a_right_answer_leaves_blanks(tmp_path):
    write_chain(tmp_path, wrong=WRONG | {TEACHER: 40})
    frame = tables.summarize(tmp_path)
    assert frame.loc[frame["key"] == TEACHER, "accuracy"].item() == 0 and frame["kept"].isna().all()
    tables.write_tables(tmp_path, tmp_path / "tables")


def test_effect_words():
    assert effect_words("distillation", 1.0, 0.2) == "did not help measurably"
    assert effect_words("distillation", 0.0, float("nan")) == "did not help measurably"
    assert "moved accuracy by as much in every seed" in effect_words("quantization", -1.0, float("nan"))
    assert effect_words("pruning", -1.0, 0.01) == "cost accuracy"
    assert effect_words("quantization", 1.0, 0.01) == "raised accuracy"


def test_time_table_and_chains(study):
    times = tables.training_time_table(study).set_index(["task", "model"])
    assert times.loc[("sst2", "Distilled (MiniLMv2)"), "training_seconds"] == 40.0
    assert times.loc[("sst2", "Distilled (MiniLMv2)"), "examples_per_second"] == pytest.approx(1000.0)
    assert times.loc[("sst2", "Teacher"), "stage_seconds"] == 30.0
    chains = tables.chains_table(study).set_index(["task", "seed"])
    assert chains.loc[("sst2", 0), "models"] == 9 and chains.loc[("mnli", 0), "models"] == 8
    assert chains.loc[("qqp", 1), "stage_seconds"] == 11 * 30.0


def test_html_table_escapes_and_hides_the_index(study):
    html = tables.as_html(tables.main_results(study)).to_html()
    assert "Distilled (MiniLMv2)" in html and "row_heading" not in html
