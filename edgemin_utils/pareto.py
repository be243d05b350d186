"""Which of several things are worth having when more than one quantity counts."""

import numpy as np
from numpy.typing import ArrayLike

from edgemin_utils.errors import DataError


def pareto_front(costs: ArrayLike) -> np.ndarray:
    """Which rows no other row dominates. One row dominates another if it is at least as good in every objective and
    better in one; rows that are equal in all of them do not dominate each other, so both stay.

    Args:
        costs: (n, objectives), float; smaller is better in each column, so what should be large goes in negated.
            Infinity is the worst that can be, and stands for what was not measured.

    Returns:
        (n,), bool.

    Raises:
        DataError: not a matrix, or a value that is not a number.
    """
    costs = np.asarray(costs, dtype=float)
    if costs.ndim != 2:
        raise DataError(f"a Pareto front needs a matrix of rows and objectives, not the shape {costs.shape}")
    if np.isnan(costs).any():
        raise DataError("a Pareto front cannot place what is not a number; give infinity for what was not measured")
    ours, theirs = costs[:, None, :], costs[None, :, :]
    dominates = np.all(ours <= theirs, axis=2) & np.any(ours < theirs, axis=2)
    return ~np.any(dominates, axis=0)
