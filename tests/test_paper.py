"""The paper's numbers come out of its own configurations, and verdicts follow from intervals by one rule."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from example_study import write_study

from edgemin_utils import paper, statistics
from edgemin_utils.names import LISTS
from edgemin_utils.paper import NOT_REPRODUCED, PAPER_ONLY, REPRODUCED, UNDECIDED, Check, exact, judge
from edgemin_utils.results.table import Frames, read_frames
from edgemin_utils.statistics import Estimate

LATENCY_MS = {"teacher": 40.0, "student": 24.0, "pruned": 22.0, "int8": 12.0, "final": 11.0, "honest": 3.0}


@pytest.fixture(scope="module")
def models():
    return paper.build_models()


@pytest.fixture(scope="module")
def counts(models):
    return paper.count(models)


def costs(noise=0.001, processes=3):
    rng = np.random.default_rng(0)
    every = itertools.product(LATENCY_MS.items(), (("1x32", 0.4), ("1x128", 1.0)), range(processes))
    latency = [
        {"model": model, "input": name, "threads": 1, "median_ms": ms * share * (1 + noise * rng.standard_normal())}
        for (model, ms), (name, share), _ in every
    ]
    peaks = {"teacher": 680e6, "final": 500e6, "honest": 80e6}
    return {"latency": latency, "memory": [{"model": model, "peak_bytes": peak} for model, peak in peaks.items()]}


def test_parameters_are_those_of_the_papers_configurations(models, counts):
    both = counts["teacher"]["stored"], counts["student"]["stored"]
    assert both == (66_955_010, 33_360_770) == paper.PAPERS_PARAMETERS
    # 24 heads of size 32 in hidden size 384: rows of q, k, v with their biases, columns of the output.
    assert counts["pruned"]["stored"] == 33_360_770 - 24 * (4 * 32 * 384 + 3 * 32) == counts["final"]["stored"]
    assert counts["final"]["stored"] == 32_178_818


def test_what_the_paper_counted_are_tables_and_norms(models, counts):
    assert counts["final"]["listed"] == 30522 * 384 + 512 * 384 + 2 * 384 + 25 * 2 * 384 == 11_937_024
    assert paper.listed_after_quantization(models) == {
        "word embeddings": 30522 * 384,
        "position embeddings": 512 * 384,
        "token type embeddings": 2 * 384,
        "layer norms": 25 * 2 * 384,
    }
    assert counts["int8"]["ff_listed"] == 0
    assert counts["int8"]["feed_forward"] == 12 * (2 * 384 * 1536 + 1536 + 384) == counts["student"]["feed_forward"]


def test_files_are_the_papers_in_mebibytes(counts):
    """Measured as 65.07 MiB with a state dict, 65.09 with the pickled module; the claim says 65.09 MB and 1.96x."""
    student, final = counts["student"]["pickled"], counts["final"]["pickled"]
    assert final / 2**20 == pytest.approx(65.09, abs=0.05) and final / 1e6 == pytest.approx(68.26, abs=0.05)
    assert student / final == pytest.approx(1.957, abs=0.003)
    assert counts["int8_embeddings"]["pickled"] / 2**20 == pytest.approx(33, abs=0.2)


def test_operations_are_those_of_the_closed_formula_by_hand(counts):
    def macs(layers, hidden, inner, heads_width, tokens):
        products = 4 * hidden * heads_width + 2 * hidden * inner
        return layers * (tokens * products + 2 * tokens**2 * heads_width) + hidden * hidden + 2 * hidden

    assert counts["teacher"]["macs"]["128"] == macs(6, 768, 3072, 768, 128)
    assert counts["student"]["macs"]["128"] == macs(12, 384, 1536, 384, 128)
    assert counts["final"]["macs"]["128"] == macs(12, 384, 1536, 320, 128)


def test_the_honest_model_is_as_small_as_the_paper_said(counts):
    honest = counts["honest"]
    hidden, inner = 384, 768
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    tables = (11_000 + 512 + 2) * hidden + 2 * hidden
    assert honest["stored"] == tables + 6 * layer + hidden * hidden + hidden + 2 * hidden + 2 < 11_940_000
    assert honest["pickled"] < 33e6
    assert counts["teacher"]["macs"]["128"] / honest["macs"]["128"] > 2.6


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Estimate(80, 65, 95), UNDECIDED),  # its upper end reaches 89.8, and that is no proof
        (Estimate(89.9, 89.2, 90.4), REPRODUCED),
        (Estimate(84.4, 83.3, 85.5), NOT_REPRODUCED),
        (Estimate(89.8, None, None), UNDECIDED),  # one process has no interval
        (None, UNDECIDED),
        (exact(89.8), REPRODUCED),
    ],
)
def test_verdicts_follow_from_intervals(found, verdict):
    assert judge(found, [(88.8, 90.8)]) == verdict
    # Of two ranges one must hold the whole interval: an interaction needs a size.
    apart = [(0, 0.98), (1.02, float("inf"))]
    for wanted, low, high in ((NOT_REPRODUCED, 0.995, 1.006), (REPRODUCED, 1.03, 1.07), (UNDECIDED, 0.99, 1.11)):
        assert judge(Estimate(1, low, high), apart) == wanted


def test_the_papers_counting_counts_where_ours_does_not_bear_the_claim_out():
    check = Check("C3", "parameters (M)", 11.94, [(11.935, 11.945)], exact(32.18), 11.937)
    assert check.verdict == PAPER_ONLY
    assert dataclasses.replace(check, counted=12.1).verdict == NOT_REPRODUCED
    assert dataclasses.replace(check, ours=exact(11.94)).verdict == REPRODUCED


@pytest.fixture(scope="module")
def numbers(counts):
    return {"counts": counts, "costs": costs()}


def claims_of(table):
    return table.drop_duplicates("number").set_index("number")["claim"].to_dict()


def test_all_fifteen_claims_have_a_verdict(numbers):
    found = claims_of(paper.claims_table(paper.claim_checks(numbers)))
    assert list(found) == [f"C{number}" for number in range(1, 16)]
    assert [found[name] for name in ("C1", "C2")] == [REPRODUCED] * 2
    assert [found[name] for name in ("C3", "C4", "C9", "C11")] == [PAPER_ONLY] * 4
    assert [found[name] for name in ("C5", "C8", "C14")] == [NOT_REPRODUCED] * 3
    assert [found[name] for name in ("C6", "C13")] == [REPRODUCED] * 2  # 73 % under the teacher, 54 % under the student
    assert [found[name] for name in ("C7", "C12", "C15")] == [UNDECIDED] * 3


def test_what_was_not_measured_or_is_noisy_is_undecided(counts):
    for measured in (None, costs(processes=1), costs(noise=0.05)):
        found = claims_of(paper.claims_table(paper.claim_checks({"counts": counts, "costs": measured})))
        assert found["C10"] == UNDECIDED
    assert claims_of(paper.claims_table(paper.claim_checks({"counts": counts, "costs": None})))["C14"] == UNDECIDED


def test_the_interaction_is_that_of_the_four_models(numbers):
    found = paper.interaction(numbers["costs"])
    assert found.value == pytest.approx(24 * 11 / (22 * 12), abs=0.01) and found.low < 1 < found.high
    assert claims_of(paper.claims_table(paper.claim_checks(numbers)))["C10"] == NOT_REPRODUCED


def test_the_honest_model_is_held_against_the_claims(numbers):
    table = paper.claims_table(paper.honest_checks(numbers), paper.MADE_TRUE)
    found = claims_of(table)
    assert [found[name] for name in ("C3", "C4, C11", "C5", "C6", "C13", "C14")] == ["made true"] * 6
    assert found["C7, C12"] == UNDECIDED


def test_a_table_shows_both_countings(numbers):
    table = paper.claims_table(paper.claim_checks(numbers))
    row = table[table["quantity"] == "final parameters (M)"].iloc[0]
    assert row["claimed"] == row["counted"] == "11.94" and row["ours"] == "32.18"
    assert table.loc[table["number"] == "C13", "ours"].str.contains(r"^3\.6\d \[3\.\d\d, 3\.\d\d\]$").all()
    assert paper.counts_table(numbers).set_index("model").loc["final", "parameters"] == 32_178_818
    drawn = paper.claimed_numbers(paper.claim_checks(numbers))
    assert list(drawn) == ["number", "quantity", "claimed", "ours", "low", "high"]


def real(folder, parameters=None, **more) -> Frames:
    frames = read_frames(write_study(folder, source="GLUE from the hub", timed=False, **more))
    for model, count in (parameters or {}).items():
        frames.results.loc[frames.results["model"] == model, "parameters"] = count
    return frames


def test_a_share_is_tested_by_any_teacher_and_an_accuracy_by_the_papers_models_alone(numbers, tmp_path):
    frames = real(tmp_path / "other")
    checks = {check.number: check for check in paper.claim_checks(numbers, frames)}
    right = frames.right_rows("sst2", "dev", "teacher", "minilmv2+heads-0.2+int8")
    kept = statistics.share_kept(right[0], right[1])
    assert tuple(checks["C12"].ours) == pytest.approx(tuple(100 * end for end in kept))
    assert checks["C12"].quantity.endswith("sst2") and checks["C7"].ours is None
    papers = real(tmp_path / "papers", dict(zip(("teacher", "minilmv2"), paper.PAPERS_PARAMETERS, strict=True)))
    accuracy = next(check for check in paper.claim_checks(numbers, papers) if check.number == "C7").ours
    assert accuracy.value == pytest.approx(77.5) and accuracy.low < 77.5 < accuracy.high


def test_synthetic_rows_say_nothing_of_the_paper(numbers, tmp_path):
    frames = read_frames(write_study(tmp_path / "synthetic", seeds=(0,), timed=False))
    checks = [check for check in paper.claim_checks(numbers, frames) if check.number in ("C7", "C12")]
    assert [check.ours for check in checks] == [None, None]


def test_the_honest_models_accuracy_is_read_by_its_name(numbers, tmp_path):
    frames = real(tmp_path / "honest", seeds=(0, 1))
    assert [check for check in paper.honest_checks(numbers, frames) if check.number == "C7, C12"][0].ours is None
    for frame in (frames.results, frames.predictions):
        frame["model"] = frame["model"].astype(str).replace("minilmv2+onnx-int8", LISTS["honest"][0])
    again = Frames(frames.results, frames.predictions, frames.times, frames.study)
    found = [check for check in paper.honest_checks(numbers, again) if check.number == "C7, C12"][0]
    assert found.ours.value == pytest.approx(100 * 34 / 36)


def test_counts_are_kept_and_read_again(tmp_path, monkeypatch, numbers):
    kept = {"counts": numbers["counts"], "listed": {}, "costs": None}
    (tmp_path / "paper.json").write_text(json.dumps(kept))
    monkeypatch.setattr(paper, "build_models", lambda: pytest.fail("counted again"))
    assert paper.read_or_measure(tmp_path, "none")["counts"] == json.loads(json.dumps(numbers["counts"]))
