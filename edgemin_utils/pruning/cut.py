"""Cutting heads, neurons, layers and tokens out for good, in rounds; scans: accuracy as units are masked one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from edgemin_utils.encoders import encoder_layers, model_with_layers, require_whole_layers, word_table
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.pruning.importance import Importance, Ranking, full_masks, importance, masked_units, unit_count
from edgemin_utils.pruning.vocabulary import keep_vocabulary, share_rows
from edgemin_utils.settings import Settings, nearest, whole_share
from edgemin_utils.training import Phase, predict

Order = list[tuple[int, int]]  # (layer, unit), the least important first


@dataclass
class Cut:
    """A model after `round` (from 1) of `rounds`. `removed` holds the source's numbers of what is gone, a list a layer
    for heads and neurons, else one list; `phase` trains this round, if it is not recovery."""

    model: Model
    units: str
    rounds: int = 1
    round: int = 0
    removed: list[list[int]] = field(default_factory=list)
    parameters_removed: int = 0
    phase: Phase | None = None

    def remove(self, units: str, numbers: Sequence[Any]) -> None:
        """Takes heads or neurons out, a list of numbers a layer, or layers, one list; raises ModelError as `count`."""
        before, layers = self.model.num_parameters(), encoder_layers(self.model)
        if units == "layers":
            by_formula = 6 * self.model.config.hidden_size * len(numbers)  # output biases and two norms
            for kind in ("heads", "neurons"):
                whole = [range(unit_count(layers[number], kind)) for number in numbers]
                by_formula += parameters_of_units(self.model, whole, kind)
            self.model = model_with_layers(self.model, [at for at in range(len(layers)) if at not in numbers])
        else:
            by_formula = parameters_of_units(self.model, numbers, units)
            remove_units(self.model, numbers, units)
        self.count(before, by_formula)

    def count(self, before: int, by_formula: int) -> None:
        """Adds what a model that had `before` parameters lost; raises ModelError where that is not `by_formula`."""
        if (lost := before - self.model.num_parameters()) != by_formula:
            raise ModelError(f"the cut of {self.units} removed {lost} parameters where the formula says {by_formula}")
        self.parameters_removed += by_formula

    def describe(self) -> dict[str, Any]:
        """For a record; of neurons and tokens, which are many, `removed` is how many."""
        about = {name: getattr(self, name) for name in ("units", "rounds", "parameters_removed")}
        many = self.units in ("neurons", "vocabulary")
        return {**about, "removed": list(map(len, self.removed)) if many else self.removed}


def rounds(
    model: Model, units: str, value: str, settings: Settings, by: Ranking, kept_tokens: Sequence[int] = ()
) -> Iterator[Cut]:
    """The same `Cut` after each round, its model cut already; between rounds the caller trains it. Heads and neurons
    go by a ratio, in `settings.rounds` rounds, each by importance asked anew; at once "layers" by `plan_layers`'s
    `which`, "vocabulary" to `kept_tokens`, "uncut", the control, not at all. Raises ModelError as `Cut.count`, and
    MethodRefused as `require_whole_layers`."""
    if units not in ("uncut", "vocabulary"):
        require_whole_layers(model, "the cut")
    ranked = units in ("heads", "neurons")
    cut = Cut(model, units, settings.rounds if ranked else 1)
    counts = [unit_count(layer, units) for layer in encoder_layers(model)] if ranked else []
    left = [list(range(count)) for count in counts]
    for turn in range(1, cut.rounds + 1):
        cut.round, values = turn, by(cut.model, units) if ranked or value.startswith("least") else []
        if ranked:
            planned = plan_removal(values, float(value), settings.scope, settings.multiple, counts, (turn, cut.rounds))
            cut.remove(units, planned)
            left = [np.delete(here, gone).tolist() for here, gone in zip(left, planned, strict=True)]
            cut.removed = [sorted({*range(count)} - {*here}) for count, here in zip(counts, left, strict=True)]
        elif units == "layers":
            cut.removed = [plan_layers(value, len(encoder_layers(model)), values)]
            cut.remove(units, cut.removed[0])
        elif units == "vocabulary":
            before, table = model.num_parameters(), word_table(model)
            cut.removed = [sorted(set(range(table.num_embeddings)) - set(kept_tokens))]
            (share_rows if settings.vocabulary_nearest else keep_vocabulary)(model, kept_tokens)
            cut.count(before, len(cut.removed[0]) * table.embedding_dim * (not settings.vocabulary_nearest))
        yield cut


def remove_units(model: Model, removed: Sequence[Sequence[int]], units: str = "heads") -> None:
    """Cuts the numbered heads or neurons out of each layer, in place: the matrices become smaller."""
    for layer, numbers in zip(encoder_layers(model), removed, strict=True):
        if numbers:
            kept = [unit for unit in range(unit_count(layer, units)) if unit not in set(numbers)]
            (layer.keep_heads if units == "heads" else layer.keep_neurons)(kept)


def parameters_of_units(model: Model, removed: Sequence[Sequence[int]], units: str = "heads") -> int:
    """What `remove_units` takes away: at a hidden size of H, 4 d H + 3 d of a head of size d, 2 H + 1 of a neuron."""
    hidden, size = model.config.hidden_size, encoder_layers(model)[0].head_size
    return sum(map(len, removed)) * (4 * size * hidden + 3 * size if units == "heads" else 2 * hidden + 1)


def plan_removal(
    importance: Importance,
    ratio: float,
    scope: str = "layer",
    multiple: int = 1,
    counts: Sequence[int] = (),
    rounds: tuple[int, int] = (1, 1),
) -> list[list[int]]:
    """Which units go, sorted, a list a layer: the least important, ties to the lower number; one a layer stays. Scope
    "layer" takes int(ratio * units) of each layer, "global" of all together; round r of n goes up to r / n of the first
    `counts`; what stays is rounded up to a `multiple`. Importance is (units,) a layer. Raises SettingError."""
    if not 0 <= ratio < 1:
        raise SettingError(f"prune ratio {ratio} must be at least 0 and under 1")
    present = [len(values) for values in importance]
    counts = counts or present

    def due(count: int, left: int) -> int:
        return max(0, whole_share(ratio, count) * rounds[0] // rounds[1] - (count - left))

    if scope == "layer":
        shares = map(due, counts, present)
        planned = [np.argsort(values, kind="stable")[:n].tolist() for values, n in zip(importance, shares, strict=True)]
    elif scope == "global":
        going = removal_order(importance)[: due(sum(counts), sum(present))]
        planned = [[unit for at, unit in going if at == layer] for layer in range(len(importance))]
    else:
        raise SettingError(f"unknown pruning scope {scope!r}; {nearest(scope, ('layer', 'global'))}")
    kept = [-(-(count - len(units)) // multiple) * multiple for count, units in zip(present, planned, strict=True)]
    return [sorted(units[: max(0, n - keep)]) for n, units, keep in zip(present, planned, kept, strict=True)]


def removal_order(importance: Importance) -> Order:
    """(layer, unit) from least to most important over all layers, without the last unit of any layer. Each layer's
    importance is divided by its Euclidean norm first (Molchanov et al. 2017, as Michel et al. 2019 use it)."""
    ranked = [values / max(float(np.linalg.norm(values)), np.finfo(float).tiny) for values in importance]
    last = [int(np.argmax(values)) for values in ranked]
    pairs = [(float(value), layer, unit) for layer, values in enumerate(ranked) for unit, value in enumerate(values)]
    return [(layer, unit) for _, layer, unit in sorted(pairs) if unit != last[layer]]


def plan_layers(which: str, count: int, importance: Sequence[np.ndarray] = ()) -> list[int]:
    """Which of `count` layers to drop, from 0, sorted: "top-2" (the last two), "least-2" (of least importance), numbers
    ("0-2-4"), or "spaced-0.5": int(0.5 * layers), so that those that stay, the last among them, are evenly spaced.
    Raises MethodRefused where none would stay or go, or there is no such layer. Importance is (1,) a layer."""
    order, _, amount = which.partition("-")
    if order == "spaced":
        # For a half every other one, the way that DistilBERT is made from BERT (Sanh et al. 2019).
        left = count - whole_share(float(amount), count)
        gone = set(range(count)) - {(place + 1) * count // left - 1 for place in range(left)}
        if not gone:
            raise MethodRefused(f"layers {which}: int({amount} x {count}) is no layer; ask for a larger share")
    elif order in ("top", "least"):
        ranked = range(count)[::-1] if order == "top" else np.argsort(np.concatenate(importance), kind="stable")
        gone = {int(number) for number in ranked[: int(amount)]}
    else:
        gone = {int(number) for number in which.split("-")}
        if max(gone) >= count:
            raise MethodRefused(f"layer {max(gone)} cannot be dropped from a model of {count} layers (from 0)")
    if len(gone) >= count:
        raise MethodRefused(f"layers {which}: of the model's {count} layers at least one must stay")
    return sorted(gone)


def layer_removal_order(importance: Importance) -> Order:
    """(layer, 0) from the least to the second most important layer: one stays. Importance is (1,) a layer."""
    return [(int(layer), 0) for layer in np.argsort(np.concatenate(importance), kind="stable")[:-1]]


def scan_units(
    model: Model, units: str, rows: Dataset, tokenizer: Tokenizer, settings: Settings, seed: int = 0
) -> dict[str, Any]:
    """A scan by every criterion of `scan_criteria` and by random draws, of layers also from the top and leave-one-out;
    its importance is layers x units, of neurons none, its curves are points of `accuracy_as_units_go`."""
    size, ranked = settings.evaluation_batch_size, layer_removal_order if units == "layers" else removal_order
    most, total = (20 if units == "neurons" else 40), sum(map(len, full_masks(model, units)))
    asked, shown = (rows.select(range(min(n, len(rows)))) for n in (settings.importance_rows, settings.scan_rows))
    criteria = dict.fromkeys([*settings.scan_criteria, *["leave-one-out"] * (units == "layers")])
    question = (model, asked, tokenizer, units, size)
    found = {name: importance(name, *question) for name in criteria if (units, name) != ("neurons", "leave-one-out")}
    orders = {name: ranked(values) for name, values in found.items()}
    if units == "layers":
        orders["top"] = [(number, 0) for number in range(total - 1, 0, -1)]
    for draw in range(1, settings.random_draws + 1):
        orders[f"random-{draw}"] = ranked(importance("random", *question, 1000 * seed + draw))
    listed = {name: [each.tolist() for each in values] for name, values in found.items() if units != "neurons"}
    shared = (model, shown, tokenizer)
    curves = {name: accuracy_as_units_go(*shared, order, size, units, most) for name, order in orders.items()}
    return {"units": units, "total": total, "rows": len(shown), "importance": listed, "curves": curves}


def accuracy_as_units_go(
    model: Model, rows: Dataset, tokenizer: Tokenizer, order: Order, batch_size: int, units: str, most_points: int = 40
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
