"""Two-sided intervals at 95 % and paired tests. Accuracies are resampled over seeds and rows together, the same for all
models, as in MultiBERTs (Sellam et al. 2022); models are bool (rows,) of one seed or (seeds, rows): right or not."""

import functools
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from edgemin_utils.errors import DataError

RESAMPLES = 2000
NO_LOSS_MARGIN = 0.01  # "no loss" needs an interval whose lower end is above minus this (accuracy in 0..1)


class Estimate(NamedTuple):
    """A number with its 95 % interval; `low` and `high` are None where one process alone was timed."""

    value: float
    low: float | None
    high: float | None


def accuracy_interval(correct: int, total: int) -> Estimate:
    """The accuracy of `correct` of `total` rows with its score interval (Wilson 1927), else DataError."""
    if total < 1 or not 0 <= correct <= total:
        raise DataError(f"{correct} right of {total} rows is no accuracy; give 0 <= right <= rows")
    interval = stats.binomtest(int(correct), int(total)).proportion_ci(0.95, method="wilson")
    return Estimate(correct / total, float(interval.low), float(interval.high))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being a family of tests (Holm 1979), in order. Raises DataError where one is none."""
    values = np.asarray(p_values, dtype=float)
    if values.size and not np.all((values >= 0) & (values <= 1)):
        raise DataError(f"p-values must lie from 0 to 1, not {list(p_values)}")
    order, adjusted = np.argsort(values, kind="stable"), np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted.tolist()


def two_way_bootstrap(models: Sequence[ArrayLike], statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Any number that follows from the mean accuracies of models, with its percentile interval; `statistic` takes
    accuracies (models,) or (models, samples) and gives a number or (samples,)."""
    stacked = _stacked(models)
    low, high = map(float, np.quantile(statistic(_drawn_accuracies(stacked)), [0.025, 0.975]))
    # Where no resample differs: the rule of three, of a count of zero (Hanley and Lippman-Hand 1983).
    spread = 3 / stacked[0].shape[1] if low == high else 0.0
    return Estimate(float(statistic(np.array([one.mean() for one in stacked]))), low - spread, high + spread)


def contrast(models: Sequence[ArrayLike], weights: Sequence[float] | np.ndarray) -> Estimate:
    """Weighted sum of accuracies over (seeds, rows): -1 and 1 give a difference, 1, -1, -1 and 1 an interaction."""
    return two_way_bootstrap(models, lambda means: np.asarray(weights, dtype=float) @ means)


def share_kept(teacher: ArrayLike, model: ArrayLike) -> Estimate:
    """Share of the teacher's accuracy over (seeds, rows) that the model keeps. Raises DataError where that is 0."""
    if not np.any(teacher):
        raise DataError("the first model gets no row right, so there is nothing to keep")
    return two_way_bootstrap([teacher, model], lambda means: means[1] / means[0])


def p_value(first: ArrayLike, second: ArrayLike) -> float:
    """Of equality over (seeds, rows): of one seed McNemar's (1947), else from the share of resamples on a side of 0."""
    one, other = stacked = _stacked([first, second])
    if len(one) == 1:
        discordant = int(np.sum(one != other))
        return float(stats.binomtest(int(np.sum(one & ~other)), discordant, 0.5).pvalue) if discordant else 1.0
    drawn = np.diff(_drawn_accuracies(stacked), axis=0)
    return min(1.0, float(2 * (1 + min(np.sum(drawn <= 0), np.sum(drawn >= 0))) / (1 + RESAMPLES)))


def factorial_weights(cells: Sequence[tuple[bool, ...]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Effect -> weights (cells,): the mean over cells whose code is +1 minus that over the others; a factor's code is 1
    with and -1 without it, an interaction's the product of its factors'. Raises DataError where cells are missing."""
    if len(set(cells)) != 2 ** len(names) or len(cells) != 2 ** len(names):
        raise DataError(f"a design of {', '.join(names)} has {2 ** len(names)} cells, not {len(cells)}")
    signs = np.where(np.array(cells, dtype=bool), 1, -1)
    picks = [pick for size in range(1, len(names) + 1) for pick in combinations(range(len(names)), size)]
    return {" x ".join(names[it] for it in pick): signs[:, pick].prod(axis=1) / (len(cells) / 2) for pick in picks}


def _stacked(models: Sequence[ArrayLike]) -> list[np.ndarray]:
    stacked = [np.atleast_2d(np.asarray(right, dtype=bool)) for right in models]
    shapes = {right.shape for right in stacked}
    if len(shapes) != 1 or stacked[0].ndim != 2 or not stacked[0].size:
        raise DataError(f"paired models need the same seeds and rows, at least one; got (seeds, rows) {sorted(shapes)}")
    return stacked


def _drawn_accuracies(stacked: Sequence[np.ndarray]) -> np.ndarray:
    """(models, samples)."""
    drawn_seeds = _counts(stacked[0].shape[0], 1)
    sums = [_sums(right.shape, np.packbits(right).tobytes()) for right in stacked]
    return np.stack([np.sum(drawn_seeds * each, axis=1) / stacked[0].size for each in sums])


@functools.lru_cache(maxsize=512)  # a model stands in many comparisons
def _sums(shape: tuple[int, int], packed: bytes) -> np.ndarray:
    """(samples, seeds): right rows among the drawn ones; float32 holds counts to 16 million exactly."""
    right = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1]).reshape(shape).astype(np.float32)
    return np.stack([drawn.astype(np.float32) @ right.T for drawn in _counts(shape[1], 0)]).astype(float)


@functools.lru_cache(maxsize=4)
def _counts(number: int, seed: int) -> np.ndarray:
    """(samples, number): how often each of `number` things was drawn in a sample of as many."""
    draw = np.random.default_rng([seed, number]).integers
    drawn = (np.bincount(draw(number, size=number), minlength=number).astype(np.uint8) for _ in range(RESAMPLES))
    return np.stack(list(drawn))


def contrast_of_latencies(models: Sequence[ArrayLike], exponents: Sequence[float] | np.ndarray) -> Estimate:
    r"""Geometric contrast :math:`\prod_i t_i^{w_i}` of the models' median times (processes,): 1 and -1 make a ratio, 1,
    -1, -1 and 1 an interaction. Raises DataError without times."""
    counts = {np.size(times) for times in models}
    if len(counts) != 1 or 0 in counts or np.min(np.asarray(models)) <= 0:
        raise DataError("a ratio of times needs times over zero from the same processes, at least one")
    return mean_over_processes(np.exp(np.log(np.asarray(models)).T @ np.asarray(exponents, dtype=float)))


def mean_over_processes(values: ArrayLike) -> Estimate:
    r"""Geometric mean over (processes,) with the interval in which a second measurement lies: Student's for another
    mean, :math:`t_{P-1} s \sqrt{2 / P}` on the logarithms; none for one process."""
    logs = np.log(np.asarray(values, dtype=float))
    mean, number = float(logs.mean()), len(logs)
    if number == 1:
        return Estimate(float(np.exp(mean)), None, None)
    half = float(stats.t.ppf(0.975, number - 1) * logs.std(ddof=1) * np.sqrt(2 / number))
    return Estimate(*(float(np.exp(end)) for end in (mean, mean - half, mean + half)))


def verdict(estimate: Estimate, margin: float = 0.0) -> str:
    """Of a difference's interval: better, worse, undecided, or "no loss", whose lower end is above `-margin`."""
    if estimate.low is not None and estimate.low > -margin:
        return "better" if estimate.low > 0 else "no loss"
    return "worse" if estimate.high is not None and estimate.high < 0 else "undecided"
