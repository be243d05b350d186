"""Differences, intervals and verdicts, against numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from example_study import CUT, FACTORIAL, MODELS, frames_of, write_frames

from edgemin_utils import statistics
from edgemin_utils.results import comparisons
from edgemin_utils.results.comparisons import factorial_effects, factorial_models, process_medians, source_of, summary

frames = frames_of()


@pytest.fixture(scope="module")
def rows(frames):
    return summary(frames).set_index("model")


def test_accuracies_and_shares_are_means_with_intervals_over_seeds_and_rows(frames, rows):
    row = rows.loc["minilmv2"]
    assert [row[name] for name in ("seeds", "accuracy", "kept")] == pytest.approx([3, 34 / 40, 34 / 36])
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    right = frames.right_rows("sst2", "dev", "teacher", "minilmv2")
    assert (row["kept"], row["kept_low"], row["kept_high"]) == tuple(statistics.share_kept(*right))
    assert row["smaller"] == row["fewer"] == 2 and math.isnan(rows.loc["teacher", "kept"])


def test_what_a_model_is_held_against():
    known = [*MODELS, "tinybert+heads-0.5"]
    wanted = {"teacher": "", "none": "teacher", "minilmv2": "none", f"minilmv2+{CUT}": "minilmv2+uncut"}
    wanted |= {"minilmv2+uncut": "minilmv2", "minilmv2+uncut+int8": "minilmv2+uncut"}
    wanted["tinybert+heads-0.5"] = "tinybert"  # no control there
    assert {name: source_of(name, known) for name in wanted} == wanted
    # A student of changed settings is held against the one without distillation that shares them.
    brief = ["none", "none,distillation_epochs=1", "a,distillation_epochs=1", "a,relation_heads=4"]
    assert [source_of(name, brief) for name in brief[2:]] == ["none,distillation_epochs=1", "none"]
    assert source_of("a,student_layers=3,temperature=4", ["none,student_layers=3", "none"]) == "none,student_layers=3"
    assert source_of("a", ["none,temperature=4", "a"]) == "none,temperature=4"  # nothing fits better
    # A cut that recovers for another while has a control that does, too.
    long = ["a+uncut,recovery_epochs=3", "a+heads-0.2,criterion=random,recovery_epochs=3", "a+uncut"]
    assert source_of(long[1], long) == long[0]


def test_differences_have_verdicts_and_tests_of_one_family(frames, rows):
    row = rows.loc["minilmv2"]
    assert row["compared_with"] == "none" and row["difference"] == pytest.approx(8 / 40)
    # Where nothing differs on 40 rows, up to 3 in 40 may all the same: undecided.
    found = rows.loc[["minilmv2", "none", "minilmv2+uncut"], "verdict"]
    assert row["difference_low"] > 0 and found.tolist() == ["better", "worse", "undecided"]
    family = rows[rows["kind"] == "quantization"]
    pairs = [frames.right_rows("sst2", "dev", other, model) for model, other in family["compared_with"].items()]
    raw = [statistics.p_value(*pair) for pair in pairs]
    assert family["p"].tolist() == pytest.approx(statistics.holm_correction(raw))


def test_a_difference_that_the_test_does_not_bear_out_is_undecided(tmp_path):
    """One seed, one row more right of 40: the bootstrap's interval ends at 0, McNemar's p is 1."""
    one = write_frames(tmp_path / "one", seeds=(0,), models=("teacher", "minilmv2", "minilmv2+uncut", "none"))
    row = summary(one).set_index("model").loc["none"]  # 10 rows are discordant; one of two in its family, the smaller
    assert row["p"] == pytest.approx(2 * 0.5**10 * 2) and row["verdict"] == "worse"
    two = write_frames(tmp_path / "two", seeds=(0,), models=("teacher", "none", "minilmv2", "minilmv2+int8"))
    row = summary(two).set_index("model").loc["minilmv2+int8"]
    assert row["p"] == 1 and row["difference"] == pytest.approx(-1 / 40) and row["verdict"] == "undecided"


def test_speed_ups_are_over_fresh_processes_of_all_seeds(frames, rows):
    model = f"none+{CUT}+int8"  # timed as the distilled one
    teacher, own = process_medians(frames, "sst2", ["teacher", model])
    assert len(teacher) == len(own) == 9  # three seeds, three processes
    np.testing.assert_allclose(teacher / own, 12 / (6 * 0.8 * 0.5), rtol=1e-6)
    assert rows.loc[model, ["faster", "faster_low"]].tolist() == pytest.approx([5.0, 5.0], abs=1e-3)
    assert process_medians(frames, "sst2", ["teacher", "not timed"]) == []


def test_the_factorial_holds_cuts_against_controls(frames, tmp_path):
    eight = factorial_models(frames, "sst2")
    assert sorted(eight.values()) == sorted(FACTORIAL)
    assert eight[False, False, False] == "none+uncut" and eight[True, True, True] == f"minilmv2+{CUT}+int8"
    seven = write_frames(tmp_path / "seven", seeds=(0,), models=[name for name in MODELS if name != "none+uncut+int8"])
    assert factorial_models(seven, "sst2") == {} and factorial_effects(seven).empty


def test_effects_are_contrasts_of_the_eight_models(frames, rows):
    table = factorial_effects(frames).set_index("effect")
    eight = {cell: rows.loc[model, "accuracy"] for cell, model in factorial_models(frames, "sst2").items()}
    for terms in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
        by_hand = sum(value * math.prod(1 if cell[term] else -1 for term in terms) / 4 for cell, value in eight.items())
        name = " x ".join(("distilled", "pruned", "quantized")[term] for term in terms)
        assert table.loc[name, "difference"] == pytest.approx(by_hand, abs=1e-9), name
    assert len(table) == 7
    latency = table.loc[["pruned", "quantized", "pruned x quantized"], "latency"]
    assert latency.tolist() == pytest.approx([0.8, 0.5, 1.0])
    assert table.loc["distilled", "verdict"] == "better" and table.loc["distilled x pruned", "verdict"] == "undecided"


def test_the_front_is_what_pairs_compared_one_by_one_leave():
    costs = np.random.default_rng(0).integers(0, 4, size=(40, 3)).astype(float)
    by_hand = [not any((other <= row).all() and (other < row).any() for other in costs) for row in costs]
    assert comparisons.pareto_front(costs).tolist() == by_hand
    assert comparisons.pareto_front([[1, np.nan], [2, np.inf], [1, 3]]).tolist() == [False, False, True]


def test_candidates_are_ordered_by_accuracy_with_what_nothing_beats_marked(frames):
    every = comparisons.candidates(frames, "sst2")
    assert every["model"].iloc[0] == "teacher" and every["accuracy"].is_monotonic_decreasing
    assert {*every.loc[every["on_front"], "model"]} == {"teacher", "minilmv2+onnx-int8", f"minilmv2+{CUT}+int8"}


def test_a_share_is_kept_by_the_lower_end_before_the_estimate():
    rows = [("teacher", 1, None, 9), ("sure", 0.985, 0.981, 5), ("lucky", 0.99, 0.95, 1), ("small", 0.9, 0.8, 0.1)]
    every = pd.DataFrame(rows, columns=["model", "kept", "kept_low", "bytes"]).assign(seeds=3)
    assert comparisons.least_that_keeps(every, 0.98, "bytes")["model"].item() == "sure"
    assert comparisons.least_that_keeps(every[every["model"] != "sure"], 0.98, "bytes")["model"].item() == "lucky"
    assert comparisons.least_that_keeps(every[every["model"] == "small"], 0.98, "bytes").empty
    # A model of fewer seeds than others does not stand for election, and equal files go by what they keep.
    assert comparisons.least_that_keeps(every.assign(seeds=[3, 1, 3, 3]), 0.98, "bytes")["model"].item() == "lucky"
    same = every.assign(bytes=[9.0, 1.005, 1.0, 1.0], kept_low=[None, 0.985, 0.981, 0.5])
    assert comparisons.least_that_keeps(same, 0.98, "bytes")["model"].item() == "lucky"
