"""Which model to take under a budget."""

import numpy as np
import pandas as pd
import pytest
from example_study import CUT, MODELS, write_study

from edgemin_utils.errors import DataError, SettingError, StageError
from edgemin_utils.results.budgets import bundle_command, candidates, least_that_keeps, pareto_front, recommend_models
from edgemin_utils.results.table import read_frames


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("budgets") / "study", {"sst2": ("dev",), "qqp": ("dev",)}, (0, 1))


@pytest.fixture(scope="module")
def frames(study):
    return read_frames(study)


def test_the_front_is_what_pairs_compared_one_by_one_leave():
    costs = np.random.default_rng(0).integers(0, 4, size=(40, 3)).astype(float)

    def dominates(first, second):
        return (first <= second).all() and (first < second).any()

    by_hand = [not any(dominates(other, row) for other in costs) for row in costs]
    assert pareto_front(costs).tolist() == by_hand
    assert pareto_front([[1, np.inf], [2, np.inf], [1, 3]]).tolist() == [False, False, True]
    for bad in ([[np.nan, 1]], [1, 2]):
        with pytest.raises(DataError):
            pareto_front(bad)


def test_candidates_are_ordered_by_accuracy_with_what_nothing_beats_marked(frames):
    every = candidates(frames, "sst2")
    assert every["model"].iloc[0] == "teacher" and every["accuracy"].is_monotonic_decreasing
    front = set(every.loc[every["on_front"], "model"])
    assert front == {"teacher", "minilmv2+onnx-int8", f"minilmv2+{CUT}+int8"}


def test_a_share_is_kept_by_the_lower_end_before_the_estimate():
    rows = [("teacher", 1.0, None, 9.0), ("sure", 0.985, 0.981, 5.0), ("lucky", 0.99, 0.95, 1.0)]
    rows.append(("small", 0.9, 0.8, 0.1))
    every = pd.DataFrame(rows, columns=["model", "kept", "kept_low", "bytes"]).assign(seeds=3)
    assert least_that_keeps(every, 0.98, "bytes")["model"] == "sure"
    assert least_that_keeps(every[every["model"] != "sure"], 0.98, "bytes")["model"] == "lucky"
    assert least_that_keeps(every[every["model"] == "small"], 0.98, "bytes") is None
    # A model of fewer seeds than others does not stand for election, and equal files go by what they keep.
    assert least_that_keeps(every.assign(seeds=[3, 1, 3, 3]), 0.98, "bytes")["model"] == "lucky"
    same = every.assign(bytes=[9.0, 1.005, 1.0, 1.0], kept_low=[None, 0.985, 0.981, 0.5])
    assert least_that_keeps(same, 0.98, "bytes")["model"] == "lucky"


def rows_of(text):
    """Model -> its line, of each task's table."""
    return {line.split()[0]: line for line in text.splitlines() if "  " in line and line.split()[0] in MODELS}


def test_limits_leave_what_keeps_them_all_and_the_commands_follow(study, frames):
    text, fits = recommend_models(study, "sst2", max_mb=0.6, min_accuracy=70)
    assert fits and text.startswith(f"sst2 (synthetic): 3 of {len(frames.models('sst2')) - 1} models fit\n")
    assert list(rows_of(text)) == ["minilmv2+onnx-int8", f"minilmv2+{CUT}+int8"]
    assert "85.0 [" in text and "0.50" in text and f"bundle {study}/sst2/seed-0/minilmv2 --output" in text
    assert "qqp (synthetic): 12 of 12" in recommend_models(study)[0]


def test_where_nothing_fits_the_nearest_is_named(study):
    text, fits = recommend_models(study, "sst2", max_mb=0.3, min_accuracy=84)
    # Of 0.4 MB at 77.5 % (33 % over, 8 % under) and 0.5 MB at 85 % (67 % over) the first is nearer.
    assert not fits and "nothing fits; the nearest is" in text and list(rows_of(text)) == [f"minilmv2+{CUT}+int8"]


def test_latency_counts_at_the_length_that_is_asked_for(study):
    said = {length: recommend_models(study, "sst2", None, 1.0, None, length) for length in (32, 128, None)}
    assert [fits for _, fits in said.values()] == [True, False, True]


BITS = {"": "", "+int8": "", "+onnx-int4-gptq": "edge-int4", "+edge-int8-int4": "edge-int8-int4"}


@pytest.mark.parametrize("scheme", BITS)
def test_the_command_names_the_float_model_and_its_bits(frames, scheme):
    command = bundle_command(frames, "sst2", f"minilmv2+{CUT}{scheme}")
    folder = frames.study / "sst2" / "seed-0" / f"minilmv2+{CUT}"
    options = f" --scheme {BITS[scheme]}" if BITS[scheme] else ""
    assert command == f"edgemin bundle {folder} --output bundles/sst2-minilmv2+{CUT}{options}"


def test_what_cannot_be_asked_is_refused_in_a_sentence(study, tmp_path):
    bad = [
        ("limit of 0", {"max_mb": 0}),
        ("percent", {"min_accuracy": 0.9}),
        ("limit of inf", {"max_ms": float("inf")}),
    ]
    for message, asked in [*bad, ("did you mean 'sst2'", {"task": "sst"}), ("32 and 128", {"length": 64})]:
        with pytest.raises(SettingError, match=message):
            recommend_models(study, **asked)
    with pytest.raises(StageError):
        recommend_models(tmp_path)
    untimed = write_study(tmp_path / "untimed", seeds=(0,), models=("teacher", "minilmv2"), timed=False)
    with pytest.raises(SettingError, match="05_analysis"):
        recommend_models(untimed, max_ms=5)
    assert "1 of 2 models fit" in recommend_models(untimed, max_mb=3)[0]
