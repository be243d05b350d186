"""Cutting heads, neurons, layers and tokens out for good: which go, by how many parameters, in how many rounds.
for cut in rounds(model, "heads", "0.2", settings, importance_by(settings, rows, tokenizer)):
    train(cut.model, ...)  # recovery, for 1 / cut.rounds of its epochs"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from edgemin_utils.encoders import encoder_layers, model_with_layers
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.pruning.importance import Importance
from edgemin_utils.pruning.units import unit_count
from edgemin_utils.pruning.vocabulary import keep_vocabulary, parameters_of_vocabulary
from edgemin_utils.settings import Settings, nearest, whole_share


@dataclass
class Cut:
    """A model under the knife, after `round` (from 1) of `rounds`. `removed` holds the source's numbers of what is
    gone, a list a layer for heads and neurons, else one list; `importance` is what decided the first round, if any."""

    model: PreTrainedModel
    units: str
    rounds: int = 1
    round: int = 0
    removed: list[list[int]] = field(default_factory=list)
    parameters_removed: int = 0
    importance: Importance = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """For a record; of neurons and tokens, which are many, `removed` is how many, and importance is left out."""
        about = {name: getattr(self, name) for name in ("units", "rounds", "parameters_removed")}
        if self.units in ("neurons", "vocabulary"):
            return {**about, "removed": list(map(len, self.removed)), "importance": []}
        return {**about, "removed": self.removed, "importance": [values.tolist() for values in self.importance]}


def rounds(
    model: PreTrainedModel,
    units: str,
    value: str,
    settings: Settings,
    importance_by: Callable[[PreTrainedModel, str], Importance] | None = None,
    kept_tokens: Sequence[int] = (),
) -> Iterator[Cut]:
    """The same `Cut` after each round, its model cut already; between rounds the caller trains it. Heads and neurons
    go by a ratio, in `settings.rounds` rounds, each by importance asked anew; at once "layers" by `plan_layers`'s
    `which`, "vocabulary" to `kept_tokens` (see `tokens_in_use`), "uncut", the control, not at all. Raises ModelError if
    the parameters that went are not those of the formula."""
    ranked = units in ("heads", "neurons")
    cut = Cut(model, units, settings.rounds if ranked else 1)
    left = [list(range(unit_count(layer, units))) for layer in encoder_layers(model)] if ranked else []
    counts = tuple(map(len, left))
    for number in range(1, cut.rounds + 1):
        cut.round, before, by_formula = number, _parameters(cut.model), 0
        values = importance_by(cut.model, units) if importance_by and (ranked or value.startswith("least")) else []
        if ranked:
            how = (settings.scope, settings.multiple, counts, (number, cut.rounds))
            planned = plan_removal(values, float(value), *how)
            by_formula = parameters_of_units(cut.model, planned, units)
            remove_units(cut.model, planned, units)
            left = [[unit for at, unit in enumerate(here) if at not in set(gone)] for here, gone in zip(left, planned)]  # noqa: B905
            cut.removed = [sorted(set(range(count)) - set(here)) for count, here in zip(counts, left, strict=True)]
        elif units == "layers":
            cut.removed = [plan_layers(value, len(encoder_layers(model)), values)]
            by_formula = parameters_of_layers(model, cut.removed[0])
            cut.model = without_layers(model, cut.removed[0])
        elif units == "vocabulary":
            cut.removed = [sorted(set(range(model.get_input_embeddings().num_embeddings)) - set(kept_tokens))]
            by_formula = parameters_of_vocabulary(model, kept_tokens)
            keep_vocabulary(model, kept_tokens)
        if (counted := before - _parameters(cut.model)) != by_formula:
            raise ModelError(f"the cut of {units} removed {counted} parameters where the formula says {by_formula}")
        cut.parameters_removed += by_formula
        cut.importance = cut.importance or values
        yield cut


def remove_units(model: PreTrainedModel, removed: Sequence[Sequence[int]], units: str = "heads") -> None:
    """Cuts the numbered heads or neurons out of each layer, in place: the matrices become smaller."""
    for layer, numbers in zip(encoder_layers(model), removed, strict=True):
        if numbers:
            kept = [unit for unit in range(unit_count(layer, units)) if unit not in set(numbers)]
            (layer.keep_heads if units == "heads" else layer.keep_neurons)(kept)


def without_layers(model: PreTrainedModel, removed: Sequence[int]) -> PreTrainedModel:
    """A copy of the model without the numbered layers; what goes in passes straight through."""
    return model_with_layers(model, [number for number in range(len(encoder_layers(model))) if number not in removed])


def parameters_of_units(model: PreTrainedModel, removed: Sequence[Sequence[int]], units: str = "heads") -> int:
    """How many parameters `remove_units` takes away: a head of size d in a model of hidden size H holds 4 d H weights
    and 3 d biases; a neuron 2 H weights and 1 bias."""
    hidden, size = model.config.hidden_size, encoder_layers(model)[0].head_size
    return sum(map(len, removed)) * (4 * size * hidden + 3 * size if units == "heads" else 2 * hidden + 1)


def parameters_of_layers(model: PreTrainedModel, removed: Sequence[int]) -> int:
    """How many parameters `without_layers` takes away: a layer's heads and neurons, and output biases of attention and
    feed-forward and two norms, 6 H in all."""
    layers, kinds = [encoder_layers(model)[number] for number in removed], ("heads", "neurons")
    whole = [([range(unit_count(layer, units)) for layer in layers], units) for units in kinds]
    return 6 * model.config.hidden_size * len(removed) + sum(parameters_of_units(model, *one) for one in whole)


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def plan_removal(
    importance: Importance,
    ratio: float,
    scope: str = "layer",
    multiple: int = 1,
    counts: Sequence[int] = (),
    rounds: tuple[int, int] = (1, 1),
) -> list[list[int]]:
    """Which units go, sorted, a list a layer: the least important ones, ties to the lower number; one a layer stays.
    `importance` holds an array (units,) a layer, of those that are there now. Scope "layer" takes int(ratio * units) of
    each layer, as the paper counts (20 % of 12 heads is 2), "global" int(ratio * all units) of all layers ranked
    together; of what layers had at first, `counts`, round r of n takes up to r / n. What a layer keeps is rounded up to
    a `multiple`. Raises SettingError for another ratio or scope."""
    if not 0 <= ratio < 1:
        raise SettingError(f"prune ratio {ratio} must be at least 0 and under 1")
    present = [len(values) for values in importance]
    counts = counts or present
    planned: list[list[int]] = [[] for _ in importance]

    def due(count: int, left: int) -> int:
        return max(0, whole_share(ratio, count) * rounds[0] // rounds[1] - (count - left))

    if scope == "layer":
        for units, values, before in zip(planned, importance, counts, strict=True):
            units += np.argsort(values, kind="stable")[: due(before, len(values))].tolist()
    elif scope == "global":
        for layer, unit in removal_order(importance)[: due(sum(counts), sum(present))]:
            planned[layer].append(unit)
    else:
        raise SettingError(f"unknown pruning scope {scope!r}; {nearest(scope, ('layer', 'global'))}")
    kept = [-(-(count - len(units)) // multiple) * multiple for count, units in zip(present, planned, strict=True)]
    return [sorted(units[: max(0, n - keep)]) for n, units, keep in zip(present, planned, kept, strict=True)]


def removal_order(importance: Importance) -> list[tuple[int, int]]:
    """(layer, unit) from least to most important over all layers, without the last unit of any layer. Each layer's
    importance is divided by its Euclidean norm first (Molchanov et al. 2017, as Michel et al. 2019 use it)."""
    ranked = [values / max(float(np.linalg.norm(values)), np.finfo(float).tiny) for values in importance]
    last = [int(np.argmax(values)) for values in ranked]
    pairs = [(float(value), layer, unit) for layer, values in enumerate(ranked) for unit, value in enumerate(values)]
    return [(layer, unit) for _, layer, unit in sorted(pairs) if unit != last[layer]]


def layer_removal_order(importance: Importance) -> list[tuple[int, int]]:
    """(layer, 0) from the least to the second most important layer: one stays. Importance is (1,) a layer."""
    return [(int(layer), 0) for layer in np.argsort(np.concatenate(importance), kind="stable")[:-1]]


def plan_layers(which: str, count: int, importance: Importance | None = None) -> list[int]:
    """Which of `count` layers to drop, from 0, sorted: "top-2" (the last two), "least-2" (of least importance), numbers
    ("0-2-4"), or "spaced-0.5": int(0.5 * layers), so that those that stay, the last among them, are evenly spaced.
    Raises MethodRefused where no layer would stay, none would go, or there is no such layer."""
    order, _, amount = which.partition("-")
    if order == "spaced":
        # For a half every other one, the way that DistilBERT is made from BERT (Sanh et al. 2019).
        left = count - whole_share(float(amount), count)
        gone = set(range(count)) - {(place + 1) * count // left - 1 for place in range(left)}
        if not gone:
            raise MethodRefused(f"layers {which}: int({amount} x {count}) is no layer; ask for a larger share")
    elif order in ("top", "least"):
        ranked = range(count)[::-1] if order == "top" else np.argsort(np.concatenate(importance or []), kind="stable")
        gone = {int(number) for number in ranked[: int(amount)]}
    else:
        gone = {int(number) for number in which.split("-")}
        if max(gone) >= count:
            raise MethodRefused(f"layer {max(gone)} cannot be dropped from a model of {count} layers (from 0)")
    if len(gone) >= count:
        raise MethodRefused(f"layers {which}: of the model's {count} layers at least one must stay")
    return sorted(gone)
