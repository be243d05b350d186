"""Intervals and tests against hand-worked values, closed forms and independent resampling."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from edgemin_utils import statistics
from edgemin_utils.errors import DataError
from edgemin_utils.statistics import Estimate


def correct_pair(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bool arrays with the given numbers of rows right under both, one alone, and none."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def seeds_and_rows(*accuracies: float, seeds: int = 4, rows: int = 300) -> list[np.ndarray]:
    """One bool (seeds, rows) for each accuracy; rows differ in how hard they are, seeds in how good they are."""
    generator = np.random.default_rng(1)
    hard, good = generator.normal(0, 1, (1, rows)), generator.normal(0, 0.3, (len(accuracies), seeds, 1))
    noise = generator.normal(0, 1, (len(accuracies), seeds, rows))
    return [hard + good[place] + noise[place] < stats.norm.ppf(share) for place, share in enumerate(accuracies)]


def resampled(models, statistic, samples: int = 4000) -> np.ndarray:
    """The two-way bootstrap written out: seeds and rows are drawn by number, the same for every model."""
    generator = np.random.default_rng(7)
    seeds, rows = models[0].shape
    drawn = []
    for _ in range(samples):
        one, other = generator.integers(seeds, size=seeds), generator.integers(rows, size=rows)
        drawn.append(statistic([model[np.ix_(one, other)].mean() for model in models]))
    return np.percentile(drawn, [2.5, 97.5])


def test_wilson_interval_is_the_closed_form():
    z, share, rows = 1.959963984540054, 0.8, 10
    center = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    found = statistics.accuracy_interval(8, 10)
    assert found == pytest.approx((0.8, center - half, center + half), abs=1e-12)
    assert statistics.accuracy_interval(20, 20)[1:] == pytest.approx((20 / (20 + z**2), 1))
    for correct, total in ((1, 0), (5, 4), (-1, 4)):
        with pytest.raises(DataError, match="right of"):
            statistics.accuracy_interval(correct, total)


def test_mcnemar_is_the_binomial_tail_of_discordant_rows():
    first, second = correct_pair(both=50, only_first=1, only_second=9, neither=5)
    assert statistics.mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert statistics.mcnemar(*correct_pair(4, 0, 0, 4)) == 1.0


def test_holm_correction_by_hand():
    # Rising: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 which may not fall under 0.06.
    assert statistics.holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm_correction([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert statistics.holm_correction([]) == []
    for wrong in (1.2, float("nan")):
        with pytest.raises(DataError, match="from 0 to 1"):
            statistics.holm_correction([0.1, wrong])


def test_paired_interval_of_one_seed_matches_the_closed_form():
    first, second = correct_pair(both=1700, only_first=60, only_second=100, neither=140)
    found = statistics.compare(first, second, samples=6000)
    # Variance of the mean of differences that are -1, 0 or 1.
    deviation = math.sqrt((160 / 2000 - (40 / 2000) ** 2) / 2000)
    assert found["difference"] == pytest.approx(0.02)
    assert (found["low"], found["high"]) == pytest.approx((0.02 - 1.96 * deviation, 0.02 + 1.96 * deviation), abs=0.001)
    assert (found["seeds"], found["rows"], found["only_first"], found["only_second"]) == (1, 2000, 60, 100)
    assert found["p_value"] == pytest.approx(stats.binomtest(60, 160).pvalue)


def test_two_way_intervals_agree_with_a_resampling_written_out():
    teacher, model, other, both = seeds_and_rows(0.9, 0.85, 0.87, 0.8)
    four, pair = [teacher, model, other, both], [teacher, model]
    for found, statistic, models in (
        (statistics.mean_accuracy(model, samples=4000), lambda means: means[0], [model]),
        (statistics.accuracy_difference(*pair, samples=4000), lambda m: m[1] - m[0], pair),
        (statistics.share_kept(*pair, samples=4000), lambda m: m[1] / m[0], pair),
        (statistics.contrast(four, [1, -1, -1, 1], samples=4000), lambda m: m[0] - m[1] - m[2] + m[3], four),
    ):
        assert found.value == pytest.approx(statistic([each.mean() for each in models]))
        assert (found.low, found.high) == pytest.approx(resampled(models, statistic), abs=0.006)


def test_seeds_that_differ_are_tested_by_resampling():
    first = np.ones((5, 400), dtype=bool)
    second = np.arange(400) >= np.array([[0], [10], [20], [30], [40]])
    assert statistics.accuracy_difference(first, second).value == pytest.approx(-20 / 400)
    p_value = statistics.compare(first, second)["p_value"]
    assert 0 < p_value < 0.05
    same = statistics.compare(first, first)
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)


def test_factorial_effects_are_the_differences_of_means_over_cells():
    cells = list(itertools.product((False, True), repeat=3))
    models = dict(zip(cells, seeds_and_rows(*np.linspace(0.7, 0.9, 8)), strict=True))
    means = {cell: right.mean() for cell, right in models.items()}
    found = statistics.factorial_effects(models, ["d", "p", "q"])
    assert list(found) == ["d", "p", "q", "d x p", "d x q", "p x q", "d x p x q"]
    with_d, without = ([means[cell] for cell in cells if cell[0] == there] for there in (True, False))
    assert found["d"].value == pytest.approx(np.mean(with_d) - np.mean(without))
    # Half the difference of d's effect with p and without it.
    effect = {p: np.mean([means[True, p, q] - means[False, p, q] for q in (False, True)]) for p in (False, True)}
    assert found["d x p"].value == pytest.approx((effect[True] - effect[False]) / 2)
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in found.values())
    with pytest.raises(DataError, match="8 cells, not 7"):
        statistics.factorial_effects({cell: models[cell] for cell in cells[1:]}, ["d", "p", "q"])


def test_resampling_is_repeatable_and_follows_the_seed():
    first, second = seeds_and_rows(0.8, 0.82)
    again = [statistics.accuracy_difference(first, second, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    assert statistics.accuracy_difference([False], [True]) == (1, 1, 1)


def test_models_that_do_not_pair_and_a_teacher_that_is_never_right_are_refused():
    for first, second in (([0, 1], [0]), ([], []), ([[0, 1]], [[0, 1], [1, 1]])):
        with pytest.raises(DataError, match="same seeds and rows"):
            statistics.accuracy_difference(first, second)
    with pytest.raises(DataError, match="nothing to keep"):
        statistics.share_kept([False, False], [True, False])


def test_ratio_of_latencies_is_the_mean_of_the_processes_ratios():
    generator = np.random.default_rng(2)
    slow = [300 * speed * generator.lognormal(0, 0.01, 51) for speed in (1.0, 1.1, 0.9)]
    fast = [100 * speed * generator.lognormal(0, 0.01, 51) for speed in (1.02, 1.1, 0.9)]
    ratios = [np.median(one) / np.median(other) for one, other in zip(slow, fast, strict=True)]
    found = statistics.ratio_of_latencies(slow, fast)
    assert found.value == pytest.approx(stats.gmean(ratios))
    # Student's interval of a mean, widened by the root of 2 for the other mean.
    low, high = stats.t.interval(0.95, 2, np.log(found.value), stats.sem(np.log(ratios)) * math.sqrt(2))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert statistics.ratio_of_latencies(slow[:1], fast[:1])[1:] == (None, None)
    interaction = statistics.contrast_of_latencies([slow, fast, slow, fast], [1, -1, -1, 1])
    assert interaction == pytest.approx((1, 1, 1))
    with pytest.raises(DataError, match="over zero"):
        statistics.ratio_of_latencies([np.array([1.0])], [np.array([0.0])])
    with pytest.raises(DataError, match="same processes"):
        statistics.ratio_of_latencies(slow, fast[:2])


@pytest.mark.parametrize("processes", [2, 5])
def test_a_second_measurement_lies_in_the_first_ones_interval(processes):
    generator, inside = np.random.default_rng(processes), 0
    for _ in range(400):
        first, second = np.exp(generator.normal(1, 0.03, (2, processes)))
        found = statistics.mean_over_processes(first)
        inside += found.low <= stats.gmean(second) <= found.high
    assert 365 <= inside <= 395


def test_verdicts():
    for low, high, plain, with_margin in (
        (0.001, 0.03, "better", "better"),
        (-0.03, -0.001, "worse", "worse"),
        (-0.02, 0.02, "undecided", "undecided"),
        (-0.009, 0.02, "undecided", "no loss"),
        (-0.009, -0.001, "worse", "no loss"),
        (None, None, "undecided", "undecided"),
    ):
        found = Estimate(0.0, low, high)
        assert (statistics.verdict(found), statistics.verdict(found, statistics.NO_LOSS_MARGIN)) == (plain, with_margin)
