"""Scans: accuracy as units are masked one after another, without any training in between."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.pruning.units import full_masks, masked_units
from edgemin_utils.training import predict


def accuracy_as_units_go(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    order: Sequence[tuple[int, int]],
    batch_size: int,
    units: str = "heads",
    most_points: int = 40,
) -> list[dict]:
    """Accuracy as units are masked one after another in `order`, without any retraining.

    Args:
        order: (layer, unit) of what goes first, second, ...

    Returns:
        [{"removed": units gone, "accuracy": fraction}] from 0 units on; every unit where there are at most
        `most_points`, else evenly spaced, the last one included.
    """
    labels = np.asarray(rows["labels"])
    masks = full_masks(model, units)
    points, gone = [], 0
    stops = sorted(set(np.linspace(0, len(order), min(most_points, len(order)) + 1).round().astype(int).tolist()))
    for stop in stops:
        for layer, unit in order[gone:stop]:
            masks[layer][unit] = 0.0
        gone = stop
        with masked_units(model, masks, units):
            predictions = predict(model, rows, tokenizer, batch_size).argmax(axis=1)
        points.append({"removed": stop, "accuracy": float((predictions == labels).mean())})
    return points
