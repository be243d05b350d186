import numpy as np
import pytest

from edgemin_utils.errors import DataError
from edgemin_utils.pareto import pareto_front


def dominated(row, others):
    """By the definition: somebody is nowhere worse and somewhere better."""
    for other in others:
        nowhere_worse = all(mine >= theirs for mine, theirs in zip(row, other, strict=True))
        somewhere_better = any(mine > theirs for mine, theirs in zip(row, other, strict=True))
        if nowhere_worse and somewhere_better:
            return True
    return False


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("levels", [3, 1000])  # few levels: many ties
def test_the_front_is_what_nobody_dominates(objectives, levels):
    generator = np.random.default_rng(objectives * levels)
    for count in (1, 2, 17, 40):
        costs = generator.integers(levels, size=(count, objectives)).astype(float)
        costs[generator.random(costs.shape) < 0.05] = np.inf
        assert pareto_front(costs).tolist() == [not dominated(row, costs.tolist()) for row in costs.tolist()]


def test_equal_rows_stay_together():
    assert pareto_front([[1, 2], [1, 2], [2, 1], [2, 2]]).tolist() == [True, True, True, False]
    assert pareto_front([[1, 2], [1, 2], [0, 2]]).tolist() == [False, False, True]


def test_what_was_not_measured_beats_nothing_that_was():
    assert pareto_front([[1, np.inf], [1, 5]]).tolist() == [False, True]
    assert pareto_front([[0, np.inf], [1, 5]]).tolist() == [True, True]


def test_no_rows_have_no_front():
    assert pareto_front(np.empty((0, 3))).tolist() == []


@pytest.mark.parametrize("costs", [[1.0, 2.0], [[1.0, float("nan")]]])
def test_what_cannot_be_placed_is_refused(costs):
    with pytest.raises(DataError, match="Pareto front"):
        pareto_front(costs)
