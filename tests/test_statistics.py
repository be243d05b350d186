"""Intervals and tests against hand-worked values, closed forms and independent resampling."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from edgemin_utils import statistics
from edgemin_utils.errors import DataError
from edgemin_utils.statistics import Estimate


def correct_pair(*counts: int) -> np.ndarray:
    """Two bool arrays with so many rows right under both, the first alone, the second alone, and none."""
    return np.repeat([[True, True, False, False], [True, False, True, False]], counts, axis=1)


def seeds_and_rows(*accuracies: float, seeds: int = 4, rows: int = 300) -> list[np.ndarray]:
    """One bool (seeds, rows) for each accuracy; rows differ in how hard they are, seeds in how good they are."""
    generator = np.random.default_rng(1)
    hard, good = generator.normal(0, 1, (1, rows)), generator.normal(0, 0.3, (len(accuracies), seeds, 1))
    noise = generator.normal(0, 1, (len(accuracies), seeds, rows))
    return [hard + good[place] + noise[place] < stats.norm.ppf(share) for place, share in enumerate(accuracies)]


def resampled(models, statistic, samples: int = 4000) -> np.ndarray:
    """The two-way bootstrap written out: seeds and rows are drawn by number, the same for every model."""
    generator, drawn, (seeds, rows) = np.random.default_rng(7), [], models[0].shape
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


def test_holm_correction_by_hand():
    # Rising: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 which may not fall under 0.06.
    assert statistics.holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm_correction([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert statistics.holm_correction([]) == []
    for wrong in (1.2, float("nan")):
        with pytest.raises(DataError, match="from 0 to 1"):
            statistics.holm_correction([0.1, wrong])


def test_one_seed_has_the_closed_forms_interval_and_mcnemars_binomial_tail():
    pair = correct_pair(1700, 60, 100, 140)
    found = statistics.contrast(pair, [-1, 1])
    # Variance of the mean of differences that are -1, 0 or 1.
    deviation = math.sqrt((160 / 2000 - (40 / 2000) ** 2) / 2000)
    assert found.value == pytest.approx(0.02)
    assert found[1:] == pytest.approx((0.02 - 1.96 * deviation, 0.02 + 1.96 * deviation), abs=0.001)
    assert statistics.p_value(*pair) == pytest.approx(stats.binomtest(60, 160).pvalue)
    assert statistics.p_value(*correct_pair(50, 1, 9, 5)) == pytest.approx(2 * (1 + 10) / 2**10)
    assert statistics.p_value(*correct_pair(4, 0, 0, 4)) == 1.0


def test_two_way_intervals_agree_with_a_resampling_written_out():
    teacher, model, other, both = seeds_and_rows(0.9, 0.85, 0.87, 0.8)
    four, pair = [teacher, model, other, both], [teacher, model]
    cases = [(statistics.share_kept(*pair), lambda means: means[1] / means[0], pair)]
    for models, weights in (([model], [1]), (pair, [-1, 1]), (four, [1, -1, -1, 1])):
        cases.append((statistics.contrast(models, weights), functools.partial(np.dot, weights), models))
    for found, statistic, models in cases:
        assert found.value == pytest.approx(statistic([each.mean() for each in models]))
        assert found[1:] == pytest.approx(resampled(models, statistic), abs=0.008)


def test_seeds_that_differ_are_tested_by_resampling():
    first = np.ones((5, 400), dtype=bool)
    second = np.arange(400) >= np.array([[0], [10], [20], [30], [40]])
    assert statistics.contrast([first, second], [-1, 1]).value == pytest.approx(-20 / 400)
    assert 0 < statistics.p_value(first, second) < 0.05
    # No resample differs: the rule of three, a count of zero among 400 rows.
    assert statistics.contrast([first, first], [-1, 1]) == (0, -3 / 400, 3 / 400)
    assert statistics.p_value(first, first) == 1


def test_factorial_effects_are_the_differences_of_means_over_cells():
    cells = list(itertools.product((False, True), repeat=3))
    weights = statistics.factorial_weights(cells, ["d", "p", "q"])
    assert list(weights) == ["d", "p", "q", "d x p", "d x q", "p x q", "d x p x q"]
    # The mean with d less that without; half the difference of d's effect with p and without it.
    assert 4 * np.array(weights["d"]) == pytest.approx([-1] * 4 + [1] * 4)
    assert 4 * np.array(weights["d x p"]) == pytest.approx([1, 1, -1, -1, -1, -1, 1, 1])
    with pytest.raises(DataError, match="8 cells, not 7"):
        statistics.factorial_weights(cells[1:], ["d", "p", "q"])


def test_models_that_do_not_pair_and_a_teacher_that_is_never_right_are_refused():
    for first, second in (([0, 1], [0]), ([], []), ([[0, 1]], [[0, 1], [1, 1]])):
        with pytest.raises(DataError, match="same seeds and rows"):
            statistics.contrast([first, second], [-1, 1])
    with pytest.raises(DataError, match="nothing to keep"):
        statistics.share_kept([False, False], [True, False])


def test_contrasts_of_latencies_are_geometric_means_over_processes():
    generator = np.random.default_rng(2)
    slow, fast = np.array([[300], [100]]) * [1.0, 1.1, 0.9] * generator.lognormal(0, 0.01, (2, 3))
    found = statistics.contrast_of_latencies([slow, fast], [1, -1])
    assert found.value == pytest.approx(stats.gmean(slow / fast))
    # Student's interval of a mean, widened by the root of 2 for the other mean.
    low, high = stats.t.interval(0.95, 2, np.log(found.value), stats.sem(np.log(slow / fast)) * math.sqrt(2))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert statistics.contrast_of_latencies([slow[:1], fast[:1]], [1, -1])[1:] == (None, None)
    assert statistics.contrast_of_latencies([slow, fast, slow, fast], [1, -1, -1, 1]) == pytest.approx((1, 1, 1))
    for message, other in (("over zero", [1, 0, 1]), ("same processes", fast[:2])):
        with pytest.raises(DataError, match=message):
            statistics.contrast_of_latencies([slow, other], [1, -1])


@pytest.mark.parametrize("processes", [2, 5])
def test_a_second_measurement_lies_in_the_first_ones_interval(processes):
    inside = 0
    for first, second in np.exp(np.random.default_rng(processes).normal(1, 0.03, (400, 2, processes))):
        found = statistics.mean_over_processes(first)
        inside += found.low <= stats.gmean(second) <= found.high
    assert 365 <= inside <= 395


def test_verdicts():
    cases = [(0.001, 0.03, "better", "better"), (-0.03, -0.001, "worse", "worse"), (-0.009, -0.001, "worse", "no loss")]
    cases += [(low, high, "undecided", "undecided") for low, high in ((-0.02, 0.02), (None, None))]
    for low, high, plain, with_margin in [*cases, (-0.009, 0.02, "undecided", "no loss")]:
        found = Estimate(0.0, low, high)
        assert (statistics.verdict(found), statistics.verdict(found, statistics.NO_LOSS_MARGIN)) == (plain, with_margin)
