"""Cutting heads, neurons and whole layers out for good, and how many parameters that takes away by formula."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import encoder_layers, model_with_layers
from edgemin_utils.pruning.units import unit_count


def remove_units(model: nn.Module, removed: Sequence[Sequence[int]], units: str = "heads") -> None:
    """Cuts the numbered heads or neurons out of each layer, in place: the matrices become smaller.

    Raises:
        ModelError: a layer would lose its last unit, or a number is none of its units.
    """
    for layer, numbers in zip(encoder_layers(model), removed, strict=True):
        if numbers:
            gone = set(numbers)
            kept = [unit for unit in range(unit_count(layer, units)) if unit not in gone]
            (layer.keep_heads if units == "heads" else layer.keep_neurons)(kept)


def without_layers(model: PreTrainedModel, removed: Sequence[int]) -> PreTrainedModel:
    """A copy of the model without the numbered layers (counted from 0); what goes in passes straight through.

    Raises:
        ModelError: no layer would stay.
    """
    return model_with_layers(model, [number for number in range(len(encoder_layers(model))) if number not in removed])


def parameters_of_units(model: PreTrainedModel, removed: Sequence[Sequence[int]], units: str = "heads") -> int:
    """How many parameters `remove_units` takes away, by formula.

    A head of size d in a model of hidden size H holds 4 d H weights and 3 d biases; a neuron 2 H weights and 1 bias.
    """
    hidden, size = model.config.hidden_size, encoder_layers(model)[0].head_size
    each = 4 * size * hidden + 3 * size if units == "heads" else 2 * hidden + 1
    return each * sum(map(len, removed))


def parameters_of_layers(model: PreTrainedModel, removed: Sequence[int]) -> int:
    """How many parameters `without_layers` takes away, by formula.

    A layer holds its heads and neurons, the output biases of attention and feed-forward (H each) and two norms (a
    weight and a bias of H each): 6 H in all.
    """
    layers = encoder_layers(model)
    heads = [range(layers[number].num_heads) for number in removed]
    neurons = [range(layers[number].intermediate_size) for number in removed]
    return (
        parameters_of_units(model, heads)
        + parameters_of_units(model, neurons, "neurons")
        + len(removed) * 6 * model.config.hidden_size
    )
