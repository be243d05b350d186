"""Scans: accuracy as units are masked one after another, without any training in between."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.pruning.cut import layer_removal_order, removal_order
from edgemin_utils.pruning.importance import importance
from edgemin_utils.pruning.units import full_masks, masked_units
from edgemin_utils.settings import Settings
from edgemin_utils.training import predict


def scan_units(
    model: Model, units: str, rows: Dataset, held_out: Dataset, tokenizer: Tokenizer, settings: Settings, seed: int = 0
) -> dict[str, Any]:
    """A scan by every criterion of `scan_criteria` and by random draws, of layers also from the top and leave-one-out:
    units, their total, rows, importance (criterion -> layers x units; of neurons none) and curves (criterion,
    "random-<draw>" or "top" -> points of `accuracy_as_units_go`)."""
    size, ranked = settings.evaluation_batch_size, layer_removal_order if units == "layers" else removal_order
    rows = rows.select(range(min(settings.importance_rows, len(rows))))
    held_out = held_out.select(range(min(settings.scan_rows, len(held_out))))
    criteria = dict.fromkeys([*settings.scan_criteria, *(["leave-one-out"] if units == "layers" else [])])
    if units == "neurons":  # too many for a pass over the rows each
        criteria.pop("leave-one-out", None)
    found = {name: importance(name, model, rows, tokenizer, units, size) for name in criteria}
    orders = {name: ranked(values) for name, values in found.items()}
    if units == "layers":
        orders["top"] = [(number, 0) for number in range(len(encoder_layers(model)) - 1, 0, -1)]
    for draw in range(1, settings.random_draws + 1):
        drawn = importance("random", model, rows, tokenizer, units, size, 1000 * seed + draw)
        orders[f"random-{draw}"] = ranked(drawn)
    result = {"units": units, "total": sum(map(len, full_masks(model, units))), "rows": len(held_out)}
    listed = {name: [each.tolist() for each in values] for name, values in found.items() if units != "neurons"}
    more = (size, units, 20 if units == "neurons" else 40)
    curves = {name: accuracy_as_units_go(model, held_out, tokenizer, order, *more) for name, order in orders.items()}
    return {**result, "importance": listed, "curves": curves}


def accuracy_as_units_go(
    model: Model,
    rows: Dataset,
    tokenizer: Tokenizer,
    order: Sequence[tuple[int, int]],
    batch_size: int,
    units: str = "heads",
    most_points: int = 40,
) -> list[dict[str, Any]]:
    """[{"removed": units gone, "accuracy": fraction}] as units are masked one after another in `order`, (layer, unit),
    from none to the last, at most `most_points` evenly spaced."""
    labels, masks = np.asarray(rows["labels"]), full_masks(model, units)
    points, gone = [], 0
    for stop in sorted(set(np.linspace(0, len(order), min(most_points, len(order)) + 1).round().astype(int).tolist())):
        for layer, unit in order[gone:stop]:
            masks[layer][unit] = 0.0
        gone = stop
        with masked_units(model, masks, units):
            predictions = predict(model, rows, tokenizer, batch_size).argmax(axis=1)
        points.append({"removed": stop, "accuracy": float((predictions == labels).mean())})
    return points
