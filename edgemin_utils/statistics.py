"""Intervals and paired tests: what a difference between two measured numbers is worth.

Every interval is two-sided and, unless said otherwise, at 95 %. Every resampling takes a seed, so that the
same numbers give the same interval.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from edgemin_utils.errors import DataError

RESAMPLES = 2000
# Resampling works in blocks of about this many numbers (8 bytes each), so that a long dev split fits in
# memory.
_BLOCK_NUMBERS = 4_000_000


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval, in the unit of the estimate."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A number with its confidence interval. `low` and `high` are None where one value alone was given."""

    value: float
    low: float | None
    high: float | None

    def exponential(self) -> "Estimate":
        """The ratio that a logarithm stands for, and its interval."""
        return Estimate(
            float(np.exp(self.value)), *(None if end is None else float(np.exp(end)) for end in (self.low, self.high))
        )


def accuracy_interval(correct: int, total: int, method: str = "wilson", confidence: float = 0.95) -> Interval:
    """Confidence interval of an accuracy, a binomial proportion in 0..1.

    Args:
        correct: rows predicted right.
        total: rows predicted.
        method: "wilson" (score interval, Wilson 1927) or "exact" (Clopper and Pearson 1934, never too
        narrow).

    Raises:
        DataError: no rows, more right rows than rows, or an unknown method.
    """
    if total < 1 or not 0 <= correct <= total:
        raise DataError(f"{correct} right of {total} rows is no accuracy; give 0 <= right <= rows")
    if method not in ("wilson", "exact"):
        raise DataError(f"unknown interval method {method!r}; take 'wilson' or 'exact'")
    interval = stats.binomtest(int(correct), int(total)).proportion_ci(confidence, method=method)
    return Interval(float(interval.low), float(interval.high))


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> float:
    """p-value of the exact two-sided McNemar test (McNemar 1947) of two models on the same rows.

    Only the discordant rows count: under the null hypothesis each of them is as likely to be right under one
    model as under the other. Without any discordant row the p-value is 1.

    Args:
        first_correct, second_correct: bool (rows,), whether the row was predicted right.
    """
    first, second = _paired(first_correct, second_correct, bool)
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(~first & second))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def compare_predictions(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """How two models differ on the same labelled rows: the second's accuracy minus the first's.

    Args:
        first, second: int (rows,), predicted classes.
        labels: int (rows,), true classes.
        samples: bootstrap resamples of rows; both models are resampled together (paired, percentile
        interval).

    Returns:
        rows, first_accuracy, second_accuracy, difference, low, high (interval of the difference), only_first,
        only_second (rows that one model alone predicts right), p_value (exact McNemar).

    Raises:
        DataError: the three do not have the same length, or are empty.
    """
    first, truth = _paired(first, labels)
    second, truth = _paired(second, labels)
    first_correct, second_correct = first == truth, second == truth
    low, high = _accuracy_difference(first_correct.tobytes(), second_correct.tobytes(), samples, seed, confidence)
    return {
        "rows": len(truth),
        "first_accuracy": float(first_correct.mean()),
        "second_accuracy": float(second_correct.mean()),
        "difference": float(second_correct.mean() - first_correct.mean()),
        "low": low,
        "high": high,
        "only_first": int(np.sum(first_correct & ~second_correct)),
        "only_second": int(np.sum(~first_correct & second_correct)),
        "p_value": mcnemar(first_correct, second_correct),
    }


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being a family of tests (Holm 1979), in the order given.

    The i-th smallest of m (i from 0) is multiplied by m - i; an adjusted value is never under the one before
    it in rising order and never over 1.

    Raises:
        DataError: a value is not from 0 to 1.
    """
    values = np.asarray(p_values, dtype=float)
    if values.size and not np.all((values >= 0) & (values <= 1)):
        raise DataError(f"p-values must lie from 0 to 1, not {list(p_values)}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()


def bootstrap_interval_of_ratio_of_medians(
    a_rounds: ArrayLike, b_rounds: ArrayLike, *, samples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """median(a) / median(b) with its percentile bootstrap interval, resampling whole rounds.

    A round timed both variants one after the other on the same input; drawing rounds keeps that pairing, so
    what slows a whole round down cancels in the ratio. With `a` the baseline, the ratio is b's speed-up.

    Args:
        a_rounds, b_rounds: positive numbers (rounds,), in one unit.

    Raises:
        DataError: unequal lengths, no round, or a value that is not positive.
    """
    a, b = _paired(a_rounds, b_rounds, float)
    if not (np.all(a > 0) and np.all(b > 0)):
        raise DataError("a ratio of times needs times over zero; check the raw values")
    low, high = _bootstrap((a, b), _ratio_of_medians, samples, seed, confidence)
    return Estimate(float(np.median(a) / np.median(b)), low, high)


def bootstrap_interval_of_interaction(
    neither: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    both: ArrayLike,
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """How two steps interact on a time: m(both) m(neither) / (m(first) m(second)), m the median over rounds.

    1: their gains multiply. Over 1: together they gain less than that, under 1: more. The percentile bootstrap draws
    whole rounds, in which all four were timed on the same input.

    Args:
        neither, first, second, both: positive times (rounds,) without either step, with one, with the other, with both.

    Raises:
        DataError: unequal lengths, no round, or a value that is not positive.
    """
    times = [_paired(neither, column, float)[1] for column in (neither, first, second, both)]
    return contrasts_of_medians(times, [[1, -1, -1, 1]], samples=samples, seed=seed, confidence=confidence)[0]


def retention(
    first_correct: ArrayLike,
    second_correct: ArrayLike,
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Share of the first model's accuracy that the second keeps, with its paired bootstrap interval over rows.

    Args:
        first_correct, second_correct: bool (rows,), whether the row was predicted right.

    Raises:
        DataError: unequal lengths, no row, or a first model that gets no row right.
    """
    first, second = _paired(first_correct, second_correct, float)
    if not first.any():
        raise DataError("the first model gets no row right, so there is nothing to keep")
    low, high = _bootstrap((second, first), _ratio_of_means, samples, seed, confidence)
    return Estimate(float(second.mean() / first.mean()), low, high)


def retention_over_seeds(pairs: Sequence[tuple[ArrayLike, ArrayLike]]) -> Estimate:
    """`retention` of one seed's (teacher's right rows, model's right rows); of several seeds the mean of their shares,
    with Student's t-interval over the seeds.

    Raises:
        DataError: no pair, or what `retention` raises.
    """
    if len(pairs) == 1:
        return retention(*pairs[0])
    return mean_with_interval(
        [float(np.asarray(model).mean() / np.asarray(teacher).mean()) for teacher, model in pairs]
    )


def mean_with_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of independent values (one a seed, or one a row) with Student's t-interval; one value alone has none (low
    and high are None).

    Raises:
        DataError: no value.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or numbers.size == 0:
        raise DataError("a mean needs a list of numbers, at least one")
    mean = float(numbers.mean())
    if numbers.size == 1:
        return Estimate(mean, None, None)
    half = float(stats.t.ppf((1 + confidence) / 2, numbers.size - 1) * stats.sem(numbers))
    return Estimate(mean, mean - half, mean + half)


def contrasts_of_medians(
    rounds: ArrayLike, weights: ArrayLike, *, samples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> list[Estimate]:
    r"""Geometric contrasts :math:`\prod_i \mathrm{median}(t_i)^{w_i}` with their percentile bootstrap intervals.

    Whole rounds are drawn, as in `bootstrap_interval_of_ratio_of_medians`, which is the contrast with weights 1 and
    -1; a factorial effect on latency has weights of 1/4 and -1/4.

    Args:
        rounds: positive numbers (variants, rounds), in one unit; a round timed all variants one after the other.
        weights: (contrasts, variants).

    Returns:
        One estimate a contrast; all come from the same drawn rounds.

    Raises:
        DataError: shapes that do not fit, no round, or a value that is not positive.
    """
    times, exponents = np.asarray(rounds, dtype=float), np.asarray(weights, dtype=float)
    if times.ndim != 2 or times.shape[1] == 0 or exponents.shape[1:] != times.shape[:1] or not np.all(times > 0):
        raise DataError(
            f"times of shape {times.shape} and weights of shape {exponents.shape} make no contrast; give "
            "positive times, a row for each column of the weights"
        )
    medians = np.log(_drawn_medians(times, samples, seed))
    low, high = np.exp(np.quantile(medians @ exponents.T, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0))
    values = np.exp(exponents @ np.log(np.median(times, axis=1)))
    return [Estimate(*map(float, ends)) for ends in zip(values, low, high, strict=True)]


def functions_of_medians(
    rounds: ArrayLike,
    functions: Callable[[np.ndarray], Sequence[float]],
    *,
    samples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Estimate]:
    """Any numbers that follow from the variants' median times, with percentile bootstrap intervals over drawn rounds.

    Args:
        rounds: (variants, rounds), as in `contrasts_of_medians`, which is for products of powers.
        functions: takes the medians (variants,) and gives the numbers.

    Returns:
        One estimate a number; all come from the same drawn rounds.

    Raises:
        DataError: no round.
    """
    times = np.asarray(rounds, dtype=float)
    if times.ndim != 2 or times.shape[1] == 0:
        raise DataError(f"times of shape {times.shape} have no medians; give a row of rounds for each variant")
    drawn = [functions(medians) for medians in _drawn_medians(times, samples, seed)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Estimate(*map(float, ends)) for ends in zip(functions(np.median(times, axis=1)), low, high, strict=True)]


def _drawn_medians(times: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """(samples, variants): medians over rounds drawn with replacement, whole rounds at a time."""
    generator, count = np.random.default_rng(seed), times.shape[1]
    return np.array([np.median(times[:, generator.integers(count, size=count)], axis=1) for _ in range(samples)])


def _paired(first: ArrayLike, second: ArrayLike, dtype: type | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both as one-dimensional arrays of the same length, at least 1."""
    one, other = np.asarray(first, dtype=dtype), np.asarray(second, dtype=dtype)
    if one.ndim != 1 or one.shape != other.shape or one.size == 0:
        raise DataError(f"paired values need one row each, at least one; got {one.shape} and {other.shape}")
    return one, other


@functools.lru_cache(maxsize=512)  # several tables and figures show the same pair, and resampling takes a moment
def _accuracy_difference(first: bytes, second: bytes, samples: int, seed: int, confidence: float) -> Interval:
    """Interval of the second's accuracy minus the first's, from the bytes of bool (rows,): which rows are right."""
    one, other = (np.frombuffer(right, dtype=bool).astype(float) for right in (first, second))
    return _bootstrap((other, one), _difference_of_means, samples, seed, confidence)


def _difference_of_means(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(first, axis=axis) - np.mean(second, axis=axis)


def _ratio_of_medians(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.median(first, axis=axis) / np.median(second, axis=axis)


def _ratio_of_means(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(first, axis=axis) / np.mean(second, axis=axis)


def _bootstrap(
    data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], samples: int, seed: int, confidence: float
) -> Interval:
    """Percentile interval of a statistic of paired samples."""
    if len(data[0]) == 1:  # one pair resamples to itself; scipy asks for two
        only = float(statistic(*data))
        return Interval(only, only)
    result = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=samples,
        batch=max(1, _BLOCK_NUMBERS // len(data[0])),
        method="percentile",
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    )
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))
