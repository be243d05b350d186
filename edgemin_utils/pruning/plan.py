"""Which units go: from importance to numbers, all at once or spread over rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemin_utils.config import PRUNED_LAYERS, nearest
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.pruning.importance import Importance, normalized_by_layer
from edgemin_utils.setting_values import whole_share


@dataclass(frozen=True)
class Progress:
    """Where an iterative cut stands.

    Attributes:
        counts: units that each layer had before the first round.
        round: this round, counted from 1.
        rounds: rounds in all; after round r, r / rounds of what is to go is gone (rounded down).
    """

    counts: tuple[int, ...]
    round: int = 1
    rounds: int = 1

    def due(self, total: int) -> int:
        """How many of `total` must be gone after this round."""
        return total * self.round // self.rounds


def plan_removal(
    importance: Importance, ratio: float, scope: str = "layer", multiple: int = 1, progress: Progress | None = None
) -> list[list[int]]:
    """Which units go: the least important ones, ties to the lower number; at least one a layer stays.

    Args:
        importance: one array (units,) a layer, of the units that are there now.
        ratio: share removed, 0 <= ratio < 1. With scope "layer", int(ratio * units) of each layer, as the paper
            counts (20 % of 12 heads is 2). With scope "global", int(ratio * all units) of all layers ranked
            together.
        multiple: what a layer keeps is rounded up to a multiple of this, so that less goes than asked for rather
            than more; a layer of fewer units keeps them all.
        progress: of an iterative cut; without it all goes at once.

    Returns:
        Unit numbers to remove, sorted, one list a layer.

    Raises:
        SettingError: the ratio is outside its range, the scope unknown or the multiple under 1.
    """
    if not 0 <= ratio < 1:
        raise SettingError(f"prune ratio {ratio} must be at least 0 and under 1 (1 would leave nothing)")
    if multiple < 1:
        raise SettingError(f"the multiple that a layer keeps is {multiple}; it must be at least 1")
    present = [len(values) for values in importance]
    progress = progress or Progress(tuple(present))
    planned: list[list[int]] = [[] for _ in importance]
    if scope == "layer":
        for units, values, before in zip(planned, importance, progress.counts, strict=True):
            due = progress.due(whole_share(ratio, before)) - (before - len(values))
            units += np.argsort(values, kind="stable")[: max(0, due)].tolist()
    elif scope == "global":
        before = sum(progress.counts)
        due = progress.due(whole_share(ratio, before)) - (before - sum(present))
        for layer, unit in removal_order(importance)[: max(0, due)]:
            planned[layer].append(unit)
    else:
        raise SettingError(f"unknown pruning scope {scope!r}; {nearest(scope, ('layer', 'global'))}")
    return [
        sorted(units[: len(values) - _kept(len(values), len(units), multiple)])
        for values, units in zip(importance, planned, strict=True)
    ]


def removal_order(importance: Importance) -> list[tuple[int, int]]:
    """(layer, unit) from least to most important over all layers, without the last unit of any layer."""
    ranked = normalized_by_layer(importance)
    last = [int(np.argmax(values)) for values in ranked]
    pairs = [
        (float(value), layer, unit)
        for layer, values in enumerate(ranked)
        for unit, value in enumerate(values)
        if unit != last[layer]
    ]
    return [(layer, unit) for _, layer, unit in sorted(pairs)]


def layer_removal_order(importance: Importance) -> list[tuple[int, int]]:
    """(layer, 0) from the least to the second most important layer: one stays. Importance is (1,) a layer."""
    order = np.argsort([values[0] for values in importance], kind="stable")
    return [(int(layer), 0) for layer in order[:-1]]


def plan_layers(
    which: str, present: Sequence[int], importance: Importance | None = None, progress: Progress | None = None
) -> list[int]:
    """Which layers to drop, as numbers of the source's layers, counted from 0, sorted.

    Args:
        which: "top-2" (the last two), "least-2" (the two of least importance), "spaced-0.5" (int(0.5 * layers) of
            them, so that those that stay are evenly spaced and the last one is among them) or numbers, as in "0-2-4".
        present: source numbers of the layers that are there now.
        importance: (1,) for each of them; needed for "least-2", which is decided anew in every round.
        progress: of an iterative cut, with a count of 1 a layer; without it all go at once.

    Raises:
        MethodRefused: no layer would stay, or a number is none of the layers.
        SettingError: `which` is none of the four, or asks for the least important without an importance.
    """
    progress = progress or Progress((1,) * len(present))
    count = len(progress.counts)
    if not PRUNED_LAYERS.fullmatch(which):
        raise SettingError(f"{which!r} names no layers; write top-2, least-2, spaced-0.5 or numbers as in 0-2-4")
    order, _, amount = which.partition("-")
    numbers = _named(which, count) if order not in ("top", "least") else []
    if numbers and numbers[0] >= count:
        raise MethodRefused(f"layer {numbers[0]} cannot be dropped from a model of {count} layers (0 to {count - 1})")
    total = len(numbers) or int(amount)
    if total >= count:
        raise MethodRefused(f"layers {which}: of the model's {count} layers at least one must stay")
    gone, due = count - len(present), progress.due(total)
    if order == "least":
        if importance is None:
            raise SettingError(f"layers {which} need an importance of each layer")
        ranked = np.argsort([values[0] for values in importance], kind="stable")
        return sorted(present[place] for place in ranked[: due - gone])
    return sorted((numbers or range(count - 1, -1, -1))[gone:due])


def _named(which: str, count: int) -> list[int]:
    """The numbers of "0-2-4" or "spaced-0.5", from the last to the first."""
    if not which.startswith("spaced"):
        return sorted({int(number) for number in which.split("-")}, reverse=True)
    share = which.partition("-")[2]
    numbers = _between_spaced(count, float(share))
    if not numbers:
        raise MethodRefused(f"layers {which}: int({share} x {count}) is no layer; ask for a larger share")
    return numbers


def _between_spaced(count: int, share: float) -> list[int]:
    """The int(share * count) layers between those that stay evenly spaced, from the last to the first. For a half they
    are every other one, the way that DistilBERT is made from BERT (Sanh et al. 2019); of 3 layers the middle one."""
    left = count - whole_share(share, count)
    stay = {(place + 1) * count // left - 1 for place in range(left)}
    return [number for number in reversed(range(count)) if number not in stay]


def _kept(count: int, removed: int, multiple: int) -> int:
    """What a layer of `count` units keeps once `removed` of them are asked for."""
    return count if not removed else min(count, -(-(count - removed) // multiple) * multiple)
