"""Tables that set methods side by side, from hand-made records: which rows, against whom, and with which p-values."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_study import (
    COST,
    DISTILLED,
    NONE,
    PRUNED,
    PRUNED_INT8,
    ROWS,
    TEACHER,
    WRONG,
    add_model,
    write_chain,
    write_compressed_teachers,
)
from scipy import stats

from edgemin_utils import figures, tables
from edgemin_utils.statistics import holm_correction
from edgemin_utils.tables.factorial import latency_gain
from edgemin_utils.tables.method_findings import _without_loss
from edgemin_utils.tables.variants import orders_of_steps

CUT = "gradient-heads-0.25"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_chain(tmp_path_factory.mktemp("study"))
    add_model(folder, DISTILLED, "distillation/logits", ["distill:logits"], 10, student="logits", source=TEACHER)
    add_model(folder, DISTILLED, "distillation/tinybert", ["distill:tinybert"], 0, student="tinybert", source=TEACHER)
    refuse(folder, "distillation/tinybert", "12 heads are not 4")
    add_model(
        folder,
        PRUNED,
        "pruning/minilmv2+random-heads-0.5",
        ["distill:minilmv2", "prune:random-heads-0.5"],
        18,
        source=DISTILLED,
        metrics_after_cut={"dev": {"accuracy": 0.5}},
        size={"stored_weights": 250_000, "framework_parameters": 250_000, "model_bytes": 1_000_000},
    )
    add_model(
        folder,
        PRUNED_INT8,
        f"quantization/minilmv2+{CUT}+onnx-dynamic-int8",
        ["distill:minilmv2", f"prune:{CUT}", "quantize:onnx-dynamic-int8"],
        9,
        source=PRUNED,
        agreement={"dev": 0.975},
    )
    add_model(
        folder,
        PRUNED_INT8,
        f"quantization/none+{CUT}+minilmv2+dynamic-int8",
        [f"prune:{CUT}", "distill:minilmv2", "quantize:dynamic-int8"],
        5,
        student="none",
        source="x",
    )
    return folder


def refuse(folder, key, sentence):
    path = folder / "sst2" / "seed-0" / key / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"results": {"refused": sentence}}))


def test_compared_models_do_not_stand_in_the_main_table(study):
    assert len(tables.main_results(study)) == 9
    assert "Distilled (Soft targets)" not in set(tables.main_results(study)["model"])


def test_objectives_are_held_against_the_student_without_distillation(study):
    frame = tables.objectives_table(study).set_index("method")
    assert list(frame.index) == ["None", "Soft targets", "MiniLMv2", "TinyBERT"]
    # None has the first 14 rows wrong, soft targets the first 10: four discordant rows, all one way.
    assert frame.loc["Soft targets", "difference"] == pytest.approx(100 * 4 / ROWS)
    p_values = [2 * 0.5 ** (WRONG[NONE] - WRONG[DISTILLED]), 2 * 0.5**4]
    assert [frame.loc[name, "p_holm"] for name in ("MiniLMv2", "Soft targets")] == pytest.approx(
        holm_correction(p_values)
    )
    assert np.isnan(frame.loc["None", "p_holm"])
    assert frame.loc["TinyBERT", "refused"] == "12 heads are not 4" and np.isnan(frame.loc["TinyBERT", "accuracy"])
    assert "equal head counts" in frame.loc["TinyBERT", "demands"]
    assert frame.loc["Soft targets", "training_seconds"] == pytest.approx(40.0)  # two phases of 20 s


def test_cuts_are_held_against_the_uncut_student(study):
    frame = tables.cuts_table(study).set_index("method")
    assert list(frame.index) == [CUT, "random-heads-0.5"]
    row = frame.loc["random-heads-0.5"]
    assert row["difference"] == pytest.approx(100 * (WRONG[DISTILLED] - 18) / ROWS)
    assert row["after_cut"] == pytest.approx(50.0) and row["weights_removed"] == pytest.approx(50.0)
    assert frame.loc[CUT, "weights_removed"] == pytest.approx(20.0)  # 500,000 to 400,000


def test_schemes_stand_under_the_model_that_they_start_from(study):
    frame = tables.schemes_table(study).set_index("method")
    assert list(frame.index) == ["float32 (PyTorch)", "dynamic-int8", "onnx-dynamic-int8"]
    assert np.isnan(frame.loc["float32 (PyTorch)", "p_holm"])
    assert frame.loc["onnx-dynamic-int8", "agreement"] == pytest.approx(97.5)
    assert frame.loc["onnx-dynamic-int8", "difference"] == pytest.approx(100 * (WRONG[PRUNED] - 9) / ROWS)


def test_orders_hold_the_papers_and_every_recipes_last_model(study):
    frame = tables.orders_table(study).set_index("method")
    assert list(frame.index) == ["distill, prune, quantize", "prune, distill, quantize"]
    assert frame.loc["prune, distill, quantize", "difference"] == pytest.approx(100 * (WRONG[TEACHER] - 5) / ROWS)


def findings_on_students(folder):
    others = ("not timed", " recipes, ", "told apart by p-values")
    return [sentence for sentence in tables.findings(folder) if not any(words in sentence for words in others)]


def test_the_compressed_teacher_has_its_rows_and_leaves_those_of_the_students_alone(tmp_path):
    folder, cut = write_chain(tmp_path), "gradient-neurons-0.25"
    before = [make(folder) for make in (tables.main_results, tables.factorial_table, tables.factorial_effects)]
    said = findings_on_students(folder)
    pruned, *ends = write_compressed_teachers(folder)
    after = [make(folder) for make in (tables.main_results, tables.factorial_table, tables.factorial_effects)]
    for one, other in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert findings_on_students(folder) == said
    assert list(tables.cuts_table(folder)["method"]) == [CUT] and len(tables.schemes_table(folder)) == 2
    frame = tables.summarize(folder).set_index("key")
    assert list(frame.loc[[pruned, *ends], "model"]) == [
        f"Teacher + pruned ({cut})",
        f"Teacher + pruned ({cut}) + onnx-dynamic-int8",
        "Teacher + onnx-dynamic-int8",
    ]
    assert not frame.loc[[pruned, *ends], ["distilled", "main"]].any(axis=None)
    assert frame.loc[pruned, "compared_with"] == "Teacher"
    # Five and seven of the first rows are wrong where the teacher has four wrong: one and three discordant rows.
    orders = tables.orders_table(folder).set_index("method")
    assert list(orders.index) == ["distill, prune, quantize", "teacher, quantize", "teacher, prune, quantize"]
    rows = orders.loc[["teacher, prune, quantize", "teacher, quantize"]]
    assert rows["difference"].tolist() == pytest.approx([-100 * 3 / ROWS, -100 * 1 / ROWS])
    assert rows["kept"].tolist() == pytest.approx([100 * 33 / 36, 100 * 35 / 36])
    assert rows["steps_taken"].iloc[0] == f"teacher, prune:{cut}, quantize:onnx-dynamic-int8"


def test_orders_of_equal_steps_say_what_sets_them_apart():
    orders = (
        "teacher prune:vocabulary quantize:dynamic-int8",
        "teacher prune:layers-top-1 quantize:dynamic-int8",
        "prune:vocabulary quantize:dynamic-int8",
        "teacher quantize:dynamic-int8",
    )
    assert orders_of_steps([{"steps": order.split()} for order in orders]) == [
        "teacher, prune (vocabulary), quantize",
        "teacher, prune (layers-top-1), quantize",
        "prune, quantize",
        "teacher, quantize",
    ]


def test_a_study_that_compares_nothing_has_only_the_objectives_table(tmp_path):
    names = [table.name for table in tables.comparison_tables(write_chain(tmp_path))]
    assert names == ["objectives"]


def test_comparison_tables_can_be_written_in_every_form(study, tmp_path):
    written = {path.name for path in tables.write_tables(study, tmp_path)}
    for name in ("objectives", "cuts", "orders", "schemes"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= written
    text = (tmp_path / "objectives.md").read_text()
    assert "12 heads are not 4" in text and "Holm" in text


def test_effects_have_intervals_of_rows_and_of_rounds(study):
    rows = tables.factorial_effects(study).set_index("effect")
    # Per row of the eight models: right answers of those with distillation minus those without, over four.
    wrong = {
        "with": [WRONG[key] for key in WRONG if "minilmv2" in key],
        "without": [WRONG[key] for key in WRONG if "/none" in key],
    }
    by_row = [
        25 * (sum(row >= count for count in wrong["with"]) - sum(row >= count for count in wrong["without"]))
        for row in range(ROWS)
    ]
    assert len(wrong["with"]) == len(wrong["without"]) == 4
    low, high = stats.t.interval(0.95, ROWS - 1, np.mean(by_row), stats.sem(by_row))
    assert (
        rows.loc["distilled", "accuracy_effect_low"],
        rows.loc["distilled", "accuracy_effect_high"],
    ) == pytest.approx((low, high))
    assert rows.loc["distilled", "accuracy_effect"] == pytest.approx(np.mean(by_row))
    # All models drift alike from round to round, so that the drift cancels in every contrast of a step.
    quantized = rows.loc["quantized"]
    assert quantized["latency_ratio_low"] == pytest.approx(quantized["latency_ratio"])
    assert quantized["latency_ratio_high"] == pytest.approx(np.sqrt(6 / 30))


def test_effects_and_gains_of_two_seeds_are_means_with_students_interval(tmp_path):
    write_chain(tmp_path, "sst2", 0)
    write_chain(tmp_path, "sst2", 1, wrong=WRONG | {DISTILLED: 2})
    path = tmp_path / "sst2" / "seed-1" / COST / "latency.npz"
    with np.load(path) as raw:
        times = {name: raw[name] / (4 if name.endswith(f"| {PRUNED_INT8}") else 1) for name in raw.files}
    np.savez_compressed(path, **times)
    half = 12.7062 / 2  # t of one degree of freedom; of two values the standard error is half their distance

    # 6 wrong rows of 40 against 2: the four distilled models gain 10 points in all, so their mean 2.5 more.
    first, second = ((sum(WRONG[key] for key in WRONG if "/none" in key) - others) * 2.5 / 4 for others in _distilled())
    found = tables.factorial_effects(tmp_path).set_index("effect").loc["distilled"]
    assert second - first == pytest.approx(2.5) and found["accuracy_effect"] == pytest.approx((first + second) / 2)
    assert found["accuracy_effect_high"] - found["accuracy_effect"] == pytest.approx(2.5 * half, rel=1e-4)

    # 5 to 2 ms, and 5 to 0.5 ms: the geometric mean of 2.5 and 10.
    gain = latency_gain(tmp_path, "sst2", PRUNED, PRUNED_INT8, "1x128")
    assert gain.value == pytest.approx(5) and np.log(gain.high / 5) == pytest.approx(np.log(4) * half, rel=1e-4)
    assert latency_gain(tmp_path, "sst2", PRUNED, "quantization/none+unknown", "1x128") is None
    alone = latency_gain(write_chain(tmp_path / "alone"), "sst2", PRUNED, PRUNED_INT8, "1x128")
    assert alone == pytest.approx((2.5, 2.5, 2.5))  # the models drift alike


def _distilled():
    """Wrong rows of the four distilled models, with seed 0 and with seed 1."""
    wrong = sum(WRONG[key] for key in WRONG if "minilmv2" in key)
    return wrong, wrong - 4


def test_a_loss_that_only_the_correction_hides_is_not_called_harmless():
    rows = pd.DataFrame(
        {
            "method": ["deep", "shallow"],
            "difference": [-2.2, -0.5],
            "difference_low": [-3.8, -1.4],
            "difference_high": [-0.6, 0.4],
            "p_holm": [0.2, 1.0],
            "accuracy": [82.7, 84.4],
            "accuracy_low": [82.1, 83.5],
            "accuracy_high": [83.3, 85.3],
            "seeds": 3,
            "folder": "folder",
            "saved": [10.0, 2.0],
        }
    )
    assert _without_loss("cuts", rows, "saved", lambda most: "wins").startswith("cuts, shallow wins without a loss")
    assert "every one costs accuracy" in _without_loss("cuts", rows[:1], "saved", lambda most: "wins")


def test_seeds_that_were_not_timed_take_no_interval_from_the_one_that_was(study, tmp_path):
    columns = ["latency_ratio", "latency_ratio_low", "latency_ratio_high"]
    alone = tables.factorial_effects(study).set_index("effect")[columns]
    more = shutil.copytree(study, tmp_path / "more")
    write_chain(more, "sst2", 1, leave_out=(COST,))
    together = tables.factorial_effects(more).set_index("effect")[columns]
    assert alone.notna().all(axis=None)
    pd.testing.assert_frame_equal(together, alone)


def test_methods_are_drawn_with_intervals_and_cost_and_refused_ones_say_so(study):
    frame = tables.objectives_table(study)
    figure = figures.method_comparison(frame)
    accuracy, cost = figure.axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == list(frame["method"])
    drawn = {round(float(line.get_xdata()[0]), 6) for line in accuracy.get_lines() if len(line.get_xdata()) == 1}
    assert {round(value, 6) for value in frame["accuracy"].dropna()} <= drawn
    assert [bar.get_width() for bar in cost.patches] == pytest.approx(frame["training_seconds"].fillna(0).tolist())
    assert "training (s)" in cost.get_xlabel() and [text.get_text() for text in accuracy.texts] == ["refused"]


def test_the_names_of_long_recipes_leave_room_for_what_is_drawn(study):
    frame = tables.orders_table(study)
    cut = "gradient-neurons-0.25-multiple-32-vocabulary-all-rows-most-16000"
    steps = f"teacher, prune ({cut}), quantize (onnx-dynamic-int8)"
    figure = figures.method_comparison(frame.assign(method=[steps, *frame["method"][1:]]))
    figure.draw_without_rendering()
    label = figure.axes[0].get_yticklabels()[0]
    assert "".join(label.get_text().split()) == "".join(steps.split()) and "\n" in label.get_text()
    assert all(axes.get_window_extent().width > 0.2 * figure.bbox.width for axes in figure.axes)
    heights = [one.get_window_extent() for one in figure.axes[0].get_yticklabels()]
    assert not heights[0].overlaps(heights[1])


def test_nothing_to_compare_is_a_note(study):
    assert "no methods" in figures.method_comparison(tables.cuts_table(study).iloc[:0]).texts[0].get_text()


def test_method_findings_name_the_best_and_what_can_be_told_apart(study):
    said = tables.findings(study)
    # None has the first 14 of 40 rows wrong, MiniLMv2 the first 6: 8 rows, all one way, 2 * 0.5 ** 8 = 0.0078; soft
    # targets (10 wrong) 2 * 0.5 ** 4 = 0.125. Holm: 2 * 0.0078 = 0.016 and 0.125.
    objectives = next(text for text in said if text.startswith("sst2: of 2 other students"))
    assert "MiniLMv2 gains most: +20.0 points" in objectives and "p (Holm) 0.016" in objectives
    assert (
        objectives.endswith("Clearly better: MiniLMv2.") and "1 seed, `sst2/seed-0/distillation/minilmv2`" in objectives
    )
    # Cuts: 8 and 18 wrong against 6: p 0.5 and 2 * 0.5 ** 12, so only the first is harmless.
    cuts = next(text for text in said if text.startswith("sst2: of 2 cuts"))
    assert f"{CUT} takes most (20.0 % of the weights)" in cuts and cuts.endswith("Clearly worse: random-heads-0.5.")
    # Schemes: both within a row or none of the FP32 model, equally large.
    schemes = next(text for text in said if text.startswith("sst2: of 2 quantization schemes"))
    assert "dynamic-int8 makes the smallest file (0.40 MB)" in schemes
    assert schemes.endswith("None of them can be told apart from it.")
    # Orders need two beside the paper's to be compared.
    assert not any(" recipes, " in text for text in said)


def test_methods_of_fewer_seeds_than_others_stand_in_the_tables_alone(study, tmp_path):
    folder = write_chain(Path(shutil.copytree(study, tmp_path / "study")), "sst2", 1)
    assert not any("cuts held against" in text for text in tables.findings(folder))  # one of two has both seeds
    assert tables.cuts_table(folder).set_index("method")["seeds"].to_dict() == {CUT: 2, "random-heads-0.5": 1}
    # The only one that keeps enough is the order that prunes first, which the second seed does not have.
    assert len(tables.budget_models(study)) and tables.budget_models(folder).empty


def test_method_findings_of_orders_hold_them_against_the_papers(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "study")
    add_model(
        folder,
        PRUNED_INT8,
        "quantization/minilmv2+dynamic-int8+again",
        ["distill:minilmv2", "quantize-aware:int8", "quantize:dynamic-int8"],
        20,
        source="x",
    )
    orders = next(text for text in tables.findings(folder) if " recipes, " in text)
    # 8 wrong in the paper's order, 5 and 20 in the others: p 0.25, and 2 * 0.5 ** 12 doubled.
    assert orders.startswith("sst2: of 3 recipes, prune, distill, quantize keeps most: 87.5 %")
    assert "which is +7.5 points" in orders and "against the paper's at 80.0 %" in orders
    assert orders.endswith("Clearly worse: distill, quantize-aware, quantize.")
