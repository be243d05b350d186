"""Intervals and tests against hand-worked values, closed forms and independent resampling."""

import math

import numpy as np
import pytest
from scipy import stats

from edgemin_utils import statistics
from edgemin_utils.errors import DataError


def correct_pair(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bool arrays with the given numbers of rows right under both, one alone, and none."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def test_wilson_interval_is_the_closed_form():
    z, share, rows = 1.959963984540054, 0.8, 10
    center = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    interval = statistics.accuracy_interval(8, 10)
    assert interval == pytest.approx((center - half, center + half), abs=1e-12)
    assert interval == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_exact_interval_is_made_of_beta_quantiles_and_holds_the_wilson_interval_inside_for_a_large_split():
    low, high = statistics.accuracy_interval(8, 10, method="exact")
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, 8, 3), stats.beta.ppf(0.975, 9, 2)), abs=1e-9)
    exact, wilson = (statistics.accuracy_interval(785, 872, method=method) for method in ("exact", "wilson"))
    assert exact.low < wilson.low < 785 / 872 < wilson.high < exact.high


def test_a_perfect_accuracy_still_has_an_interval():
    low, high = statistics.accuracy_interval(20, 20, method="exact")
    assert low == pytest.approx(0.025 ** (1 / 20))  # closed form when all are right
    assert high == 1.0


@pytest.mark.parametrize("correct,total", [(1, 0), (5, 4), (-1, 4)])
def test_impossible_accuracies_are_refused(correct, total):
    with pytest.raises(DataError, match="right of"):
        statistics.accuracy_interval(correct, total)


def test_unknown_interval_method_is_refused():
    with pytest.raises(DataError, match="wald"):
        statistics.accuracy_interval(1, 2, method="wald")


def test_mcnemar_is_the_binomial_tail_of_discordant_rows():
    first, second = correct_pair(both=50, only_first=1, only_second=9, neither=5)
    assert statistics.mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert statistics.mcnemar(second, first) == pytest.approx(2 * (1 + 10) / 2**10)


def test_mcnemar_ignores_concordant_rows_and_is_1_without_discordant_ones():
    few = statistics.mcnemar(*correct_pair(3, 2, 8, 3))
    many = statistics.mcnemar(*correct_pair(3000, 2, 8, 3000))
    assert few == many
    assert statistics.mcnemar(*correct_pair(4, 0, 0, 4)) == 1.0


def predictions_from(correct: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.where(correct, labels, 1 - labels)


def test_compare_predictions_counts_and_signs():
    first, second = correct_pair(both=60, only_first=4, only_second=14, neither=22)
    labels = np.arange(100) % 2
    found = statistics.compare_predictions(predictions_from(first, labels), predictions_from(second, labels), labels)
    assert found["rows"] == 100
    assert (found["first_accuracy"], found["second_accuracy"]) == pytest.approx((0.64, 0.74))
    assert found["difference"] == pytest.approx(0.10)
    assert (found["only_first"], found["only_second"]) == (4, 14)
    assert found["p_value"] == pytest.approx(2 * sum(math.comb(18, k) for k in range(5)) / 2**18)


def test_paired_interval_of_a_difference_matches_the_closed_form_and_is_narrower_than_the_unpaired_one():
    first, second = correct_pair(both=1700, only_first=60, only_second=100, neither=140)
    rows, labels = 2000, np.arange(2000) % 2
    found = statistics.compare_predictions(
        predictions_from(first, labels), predictions_from(second, labels), labels, samples=4000
    )
    # Variance of the mean of differences that are -1, 0 or 1.
    deviation = math.sqrt((160 / rows - (40 / rows) ** 2) / rows)
    assert found["low"] == pytest.approx(0.02 - 1.96 * deviation, abs=0.001)
    assert found["high"] == pytest.approx(0.02 + 1.96 * deviation, abs=0.001)
    unpaired = math.sqrt(0.88 * 0.12 / rows + 0.9 * 0.1 / rows)
    assert found["high"] - found["low"] < 0.8 * 2 * 1.96 * unpaired


def test_compare_predictions_of_a_model_with_itself_is_nothing():
    labels = np.array([0, 1, 2, 1, 0])
    predictions = np.array([0, 1, 1, 1, 2])
    found = statistics.compare_predictions(predictions, predictions, labels)
    assert (found["difference"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)


def test_comparison_is_repeatable_and_follows_the_seed():
    generator = np.random.default_rng(3)
    first, second, labels = (generator.integers(0, 2, 300) for _ in range(3))
    again = [statistics.compare_predictions(first, second, labels, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1]
    assert (again[0]["low"], again[0]["high"]) != (again[2]["low"], again[2]["high"])


def test_one_row_can_be_compared():
    found = statistics.compare_predictions([0], [1], [1])
    assert (found["difference"], found["low"], found["high"]) == (1, 1, 1)


@pytest.mark.parametrize("first,second,labels", [([0, 1], [0, 1], [0]), ([], [], []), ([[0]], [[0]], [[0]])])
def test_unpaired_rows_are_refused(first, second, labels):
    with pytest.raises(DataError, match="paired values"):
        statistics.compare_predictions(first, second, labels)


def test_holm_correction_by_hand():
    # Rising: 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 which may not fall under 0.06.
    assert statistics.holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm_correction([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert statistics.holm_correction([0.2]) == pytest.approx([0.2])
    assert statistics.holm_correction([]) == []


def test_holm_correction_lies_between_no_correction_and_bonferroni():
    values = np.random.default_rng(0).uniform(0, 0.2, 25)
    adjusted = np.array(statistics.holm_correction(values))
    assert np.all(adjusted >= values) and np.all(adjusted <= np.minimum(25 * values, 1) + 1e-12)
    assert np.array_equal(np.argsort(adjusted[np.argsort(values)], kind="stable"), np.arange(25))


def test_holm_correction_refuses_what_is_no_p_value():
    with pytest.raises(DataError, match="from 0 to 1"):
        statistics.holm_correction([0.1, 1.2])
    with pytest.raises(DataError, match="from 0 to 1"):
        statistics.holm_correction([0.1, float("nan")])


def test_ratio_of_medians_keeps_the_pairing_of_rounds():
    generator = np.random.default_rng(1)
    drift = np.cumsum(generator.normal(0, 0.1, 150)) + 10
    paired = statistics.bootstrap_interval_of_ratio_of_medians(2 * drift, drift)
    assert paired == pytest.approx((2, 2, 2))
    broken = statistics.bootstrap_interval_of_ratio_of_medians(2 * drift, generator.permutation(drift))
    assert broken.value == pytest.approx(2)
    assert broken.high - broken.low > 0.02


def test_ratio_of_medians_agrees_with_a_resampling_written_out():
    generator = np.random.default_rng(2)
    a, b = generator.lognormal(1.0, 0.2, 101), generator.lognormal(0.0, 0.2, 101)
    found = statistics.bootstrap_interval_of_ratio_of_medians(a, b, samples=8000)
    assert found.value == np.median(a) / np.median(b)
    ratios = []
    for _ in range(8000):
        rounds = generator.integers(0, 101, 101)
        ratios.append(np.median(a[rounds]) / np.median(b[rounds]))
    assert (found.low, found.high) == pytest.approx(np.percentile(ratios, [2.5, 97.5]), rel=0.01)


def test_ratio_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    inside = 0
    for trial in range(200):
        a, b = 3 * generator.lognormal(0, 0.1, 41), generator.lognormal(0, 0.1, 41)
        interval = statistics.bootstrap_interval_of_ratio_of_medians(a, b, samples=400, seed=trial)
        inside += interval.low <= 3 <= interval.high
    assert 180 <= inside <= 199


def test_ratio_of_medians_refuses_times_that_are_none():
    with pytest.raises(DataError, match="over zero"):
        statistics.bootstrap_interval_of_ratio_of_medians([1.0, 2.0], [0.0, 1.0])
    with pytest.raises(DataError, match="paired values"):
        statistics.bootstrap_interval_of_ratio_of_medians([1.0, 2.0], [1.0])


def test_mean_with_interval_is_students_interval():
    estimate = statistics.mean_with_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2 degrees of freedom) x 1 / sqrt(3)
    assert estimate == pytest.approx((2.0, 2 - half, 2 + half))


def test_mean_of_one_seed_has_no_interval():
    assert statistics.mean_with_interval([0.9]) == (0.9, None, None)
    with pytest.raises(DataError, match="at least one"):
        statistics.mean_with_interval([])


def test_contrasts_agree_with_a_resampling_written_out():
    generator = np.random.default_rng(8)
    times = np.exp(generator.normal([[0.0], [0.3], [0.6], [1.0]], 0.2, (4, 81)))
    whole, first, second, both = times
    found = statistics.bootstrap_interval_of_interaction(whole, first, second, both, samples=6000)
    ratio = statistics.contrasts_of_medians(times, [[0.5, -0.5, 0, 0]], samples=6000)[0]
    drawn = [np.median(times[:, generator.integers(0, 81, 81)], axis=1) for _ in range(6000)]
    interactions = [m[3] * m[0] / (m[1] * m[2]) for m in drawn]
    assert found.value == pytest.approx(np.median(both) * np.median(whole) / np.median(first) / np.median(second))
    assert (found.low, found.high) == pytest.approx(np.percentile(interactions, [2.5, 97.5]), rel=0.015)
    roots = [math.sqrt(m[0] / m[1]) for m in drawn]
    assert (ratio.low, ratio.high) == pytest.approx(np.percentile(roots, [2.5, 97.5]), rel=0.01)


def test_functions_of_medians_agree_with_contrasts_where_both_can_say_it():
    times = np.random.default_rng(0).gamma(50, 1, (3, 40))
    weights = [[1, -1, 0], [0.5, 0.5, -1]]
    wanted = statistics.contrasts_of_medians(times, weights, samples=300, seed=4)
    found = statistics.functions_of_medians(
        times,
        lambda medians: [medians[0] / medians[1], np.sqrt(medians[0] * medians[1]) / medians[2]],
        samples=300,
        seed=4,
    )
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-3)  # quantiles lie between two values, of logarithms there
    (total,) = statistics.functions_of_medians(times, lambda medians: [medians.sum()], samples=300)
    assert total.value == pytest.approx(np.median(times, axis=1).sum()) and total.low < total.value < total.high
    with pytest.raises(DataError, match="have no medians"):
        statistics.functions_of_medians(np.ones(3), lambda medians: [1.0])


def test_what_several_seeds_keep_is_the_mean_of_their_shares():
    right = [np.array([1, 1, 1, 1, 0], dtype=bool), np.array([1, 1, 1, 0, 0], dtype=bool)]
    pairs = [(right[0], right[1]), (right[1], right[1])]  # 3 of 4, and 3 of 3
    found = statistics.retention_over_seeds(pairs)
    half = 12.706 * 0.25 / np.sqrt(2) / np.sqrt(2)  # t of 1 degree of freedom, deviation 0.25 / sqrt(2), 2 values
    assert found == pytest.approx((0.875, 0.875 - half, 0.875 + half), rel=1e-3)
    assert statistics.retention_over_seeds(pairs[:1]) == statistics.retention(*pairs[0])
