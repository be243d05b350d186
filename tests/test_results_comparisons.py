"""Differences, intervals and verdicts, against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from example_study import CUT, FACTORIAL, MODELS, write_study

from edgemin_utils import statistics
from edgemin_utils.results.comparisons import (
    factorial_effects,
    factorial_models,
    process_medians,
    source_of,
    speed_up,
    summary,
)
from edgemin_utils.results.table import read_frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return read_frames(write_study(tmp_path_factory.mktemp("comparisons") / "study"))


def row_of(frame, model):
    (row,) = frame[frame["model"] == model].index
    return frame.loc[row]


def test_accuracies_and_shares_are_means_with_intervals_over_seeds_and_rows(frames):
    row = row_of(summary(frames), "minilmv2")
    assert row["seeds"] == 3
    assert row["accuracy"] == pytest.approx(34 / 40) and row["kept"] == pytest.approx(34 / 36)
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    right = frames.right_rows("sst2", "dev", "teacher", "minilmv2")
    assert (row["kept"], row["kept_low"], row["kept_high"]) == tuple(statistics.share_kept(right[0], right[1]))
    assert row["smaller"] == 2 and row["fewer"] == 2
    assert math.isnan(row_of(summary(frames), "teacher")["kept"])


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


def test_differences_have_verdicts_and_tests_of_one_family(frames):
    table = summary(frames)
    row = row_of(table, "minilmv2")
    assert row["compared_with"] == "none" and row["difference"] == pytest.approx(8 / 40)
    assert row["difference_low"] > 0 and row["verdict"] == "better"
    assert row_of(table, "none")["verdict"] == "worse"
    # Nothing differs at all: neither better nor worse, and surely no loss.
    assert row_of(table, "minilmv2+uncut")["verdict"] == "no loss"
    family = table[(table["kind"] == "quantization")]
    pairs = family[["compared_with", "model"]].to_numpy()
    raw = [statistics.compare(*frames.right_rows("sst2", "dev", *pair))["p_value"] for pair in pairs]
    assert family["p"].tolist() == pytest.approx(statistics.holm_correction(raw))


def test_a_difference_that_the_test_does_not_bear_out_is_undecided(tmp_path):
    """One seed, one row more right of 40: the bootstrap's interval ends at 0, McNemar's p is 1."""
    frames = read_frames(
        write_study(tmp_path / "one", seeds=(0,), models=("teacher", "minilmv2", "minilmv2+uncut", "none"))
    )
    row = row_of(summary(frames), "none")
    discordant = 14 - 4
    assert row["p"] == pytest.approx(min(1.0, 2 * 0.5**discordant) * 2)  # one of two in its family, the smaller
    assert row["verdict"] == "worse"
    cut = write_study(tmp_path / "two", seeds=(0,), models=("teacher", "none", "minilmv2", "minilmv2+int8"))
    row = row_of(summary(read_frames(cut)), "minilmv2+int8")
    assert row["p"] == 1 and row["difference"] == pytest.approx(-1 / 40) and row["verdict"] == "undecided"


def test_speed_ups_are_over_fresh_processes_of_all_seeds(frames):
    medians = process_medians(frames, "sst2", ["teacher", f"none+{CUT}+int8"])
    assert medians.shape == (2, 9)  # three seeds, three processes; timed as the distilled one
    np.testing.assert_allclose(medians[0] / medians[1], 12 / (6 * 0.8 * 0.5), rtol=1e-6)
    found = speed_up(frames, "sst2", "teacher", f"none+{CUT}+int8")
    assert found.value == pytest.approx(5.0) and found.low == pytest.approx(5.0, abs=1e-3)
    assert speed_up(frames, "sst2", "teacher", "not timed") is None
    assert speed_up(frames, "sst2", "teacher", "minilmv2", "1x32", threads=0).value == pytest.approx(2.0)


def test_the_factorial_holds_cuts_against_controls(frames):
    eight = factorial_models(frames, "sst2")
    assert sorted(eight.values()) == sorted(FACTORIAL)
    assert eight[False, False, False] == "none+uncut" and eight[True, True, True] == f"minilmv2+{CUT}+int8"


def test_effects_are_contrasts_of_the_eight_models(frames):
    table = factorial_effects(frames).set_index("effect")
    known, models = summary(frames), factorial_models(frames, "sst2")
    eight = {cell: row_of(known, model)["accuracy"] for cell, model in models.items()}
    for terms in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
        by_hand = sum(value * math.prod(1 if cell[term] else -1 for term in terms) / 4 for cell, value in eight.items())
        name = " x ".join(("distilled", "pruned", "quantized")[term] for term in terms)
        assert table.loc[name, "difference"] == pytest.approx(by_hand, abs=1e-9), name
    assert len(table) == 7 and len(eight) == len(set(itertools.product((True, False), repeat=3)))
    latency = table.loc[["pruned", "quantized", "pruned x quantized"], "latency"]
    assert latency.tolist() == pytest.approx([0.8, 0.5, 1.0])
    assert table.loc["distilled", "verdict"] == "better" and table.loc["distilled x pruned", "verdict"] == "undecided"


def test_without_all_eight_there_is_no_factorial(tmp_path):
    models = tuple(model for model in MODELS if model != "none+uncut+int8")
    frames = read_frames(write_study(tmp_path / "seven", seeds=(0,), models=models))
    assert factorial_models(frames, "sst2") == {} and factorial_effects(frames).empty
