"""Structured pruning: importance of heads and neurons -> a plan of what goes -> surgery that really removes it.

Heads and neurons are both *units*: inputs of a projection (the attention output, or the second feed-forward
matrix). A mask of zeros over a unit's inputs removes its effect; cutting its rows and columns removes its cost. The
two give the same function, which is what the tests hold the surgery to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.config import nearest
from edgemin_utils.encoders import EncoderLayer, encoder_layers
from edgemin_utils.errors import SettingError
from edgemin_utils.training import LossFunction, batches, evaluation_mode, predict

UNITS = ("heads", "neurons")
Importance = list[np.ndarray]  # one array (units,) a layer


def unit_count(layer: EncoderLayer, units: str) -> int:
    """Attention heads or feed-forward neurons of a layer."""
    return layer.num_heads if units == "heads" else layer.intermediate_size


# ---- masks -----------------------------------------------------------------------------------------------------


@contextmanager
def masked_units(model: nn.Module, masks: Sequence[torch.Tensor], units: str = "heads") -> Iterator[None]:
    """While open, each layer's units are multiplied by its mask.

    Args:
        masks: one tensor a layer, of shape (units,) for all rows alike or (batch, units) for each row its own;
            gradients reach them.
        units: "heads" or "neurons".
    """
    with ExitStack() as hooks:
        for layer, mask in zip(encoder_layers(model), masks, strict=True):
            module = layer.attention_output if units == "heads" else layer.feed_forward_out
            width = layer.head_size if units == "heads" else 1
            handle = module.register_forward_pre_hook(
                lambda _module, inputs, mask=mask, width=width: (_scale_units(inputs[0], mask, width), *inputs[1:]))
            hooks.callback(handle.remove)
        yield


def _scale_units(states: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    """(batch, tokens, units * width) with each unit's inputs multiplied by the mask's entry."""
    factors = mask.repeat_interleave(width, dim=-1).to(states.dtype)
    return states * (factors if factors.dim() == 1 else factors[:, None, :])


def full_masks(model: nn.Module, units: str = "heads") -> list[torch.Tensor]:
    """Masks of ones (units,), one a layer: nothing removed."""
    return [torch.ones(unit_count(layer, units)) for layer in encoder_layers(model)]


# ---- importance ------------------------------------------------------------------------------------------------


def gradient_importance(model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, loss: LossFunction,
                        batch_size: int, units: str = "heads", seed: int = 0) -> Importance:
    r"""Expected sensitivity of the loss to a unit's mask, :math:`I_h = E_x |\partial L(x) / \partial \xi_h|`.

    Michel, Levy and Neubig 2019, equation 2: the absolute value is taken for each row, then averaged. Each row has
    its own copy of the masks, so one backward pass a batch gives every row's gradient.

    Args:
        loss: mean loss of a batch, as a training phase uses it.

    Returns:
        One float64 array (units,) a layer, in units of the loss.
    """
    sums = [np.zeros(unit_count(layer, units)) for layer in encoder_layers(model)]
    with evaluation_mode(model):
        for positions, batch in batches(rows, tokenizer, batch_size, next(model.parameters()).device):
            count = len(positions)
            masks = [torch.ones(count, len(total), device=batch["input_ids"].device, requires_grad=True)
                     for total in sums]
            with masked_units(model, masks, units):
                value, _ = loss(model, batch)
            # The batch's loss is a mean; a row's own gradient is `count` times its share.
            for total, gradient in zip(sums, torch.autograd.grad(value * count, masks), strict=True):
                total += gradient.abs().sum(0).double().cpu().numpy()
    return [total / len(rows) for total in sums]


def magnitude_importance(model: nn.Module, rows: Dataset | None = None,
                         tokenizer: PreTrainedTokenizerBase | None = None, loss: LossFunction | None = None,
                         batch_size: int = 0, units: str = "heads", seed: int = 0) -> Importance:
    """Euclidean norm of all weights that belong to a unit.

    For a head: its rows of query, key and value and its columns of the attention output; for a neuron: its row of
    the first feed-forward matrix and its column of the second. The data arguments are not looked at.
    """
    result = []
    for layer in encoder_layers(model):
        if units == "heads":
            rows_of, columns_of, width = (layer.query, layer.key, layer.value), layer.attention_output, layer.head_size
        else:
            rows_of, columns_of, width = (layer.feed_forward_in,), layer.feed_forward_out, 1
        squares = columns_of.weight.detach().double().square().sum(0)
        for linear in rows_of:
            squares = squares + linear.weight.detach().double().square().sum(1)
        result.append(squares.view(-1, width).sum(1).sqrt().cpu().numpy())
    return result


def random_importance(model: nn.Module, rows: Dataset | None = None,
                      tokenizer: PreTrainedTokenizerBase | None = None, loss: LossFunction | None = None,
                      batch_size: int = 0, units: str = "heads", seed: int = 0) -> Importance:
    """Uniform draws: what a criterion has to beat."""
    generator = np.random.default_rng(seed)
    return [generator.random(unit_count(layer, units)) for layer in encoder_layers(model)]


CRITERIA: Mapping[str, Callable[..., Importance]] = {
    "gradient": gradient_importance,
    "magnitude": magnitude_importance,
    "random": random_importance,
}


def find_criterion(name: str) -> Callable[..., Importance]:
    """The importance function of that name; raises SettingError with the nearest known name."""
    if name not in CRITERIA:
        raise SettingError(f"unknown pruning criterion {name!r}; {nearest(name, CRITERIA)}")
    return CRITERIA[name]


def normalized_by_layer(importance: Importance) -> Importance:
    """Each layer's importance divided by its Euclidean norm, so that layers can be ranked together (Molchanov et
    al. 2017, as Michel et al. 2019 use it)."""
    return [values / max(float(np.linalg.norm(values)), np.finfo(float).tiny) for values in importance]


# ---- the plan --------------------------------------------------------------------------------------------------


def plan_removal(importance: Importance, ratio: float, scope: str = "layer") -> list[list[int]]:
    """Which units go: the least important ones, ties to the lower number; at least one a layer stays.

    Args:
        ratio: share removed, 0 <= ratio < 1. With scope "layer", int(ratio * units) of each layer, as the paper
            counts (20 % of 12 heads is 2). With scope "global", int(ratio * all units) of all layers ranked
            together.

    Returns:
        Unit numbers to remove, sorted, one list a layer.

    Raises:
        SettingError: the ratio is outside its range or the scope unknown.
    """
    if not 0 <= ratio < 1:
        raise SettingError(f"prune ratio {ratio} must be at least 0 and under 1 (1 would leave nothing)")
    if scope == "layer":
        return [sorted(np.argsort(values, kind="stable")[:int(ratio * len(values))].tolist())
                for values in importance]
    if scope != "global":
        raise SettingError(f"unknown pruning scope {scope!r}; {nearest(scope, ('layer', 'global'))}")
    order = removal_order(importance)
    removed: list[list[int]] = [[] for _ in importance]
    for layer, unit in order[:int(ratio * sum(map(len, importance)))]:
        removed[layer].append(unit)
    return [sorted(units) for units in removed]


def removal_order(importance: Importance) -> list[tuple[int, int]]:
    """(layer, unit) from least to most important over all layers, without the last unit of any layer."""
    ranked = normalized_by_layer(importance)
    last = [int(np.argmax(values)) for values in ranked]
    pairs = [(float(value), layer, unit) for layer, values in enumerate(ranked)
             for unit, value in enumerate(values) if unit != last[layer]]
    return [(layer, unit) for _, layer, unit in sorted(pairs)]


# ---- surgery ---------------------------------------------------------------------------------------------------


def remove_units(model: nn.Module, removed: Sequence[Sequence[int]], units: str = "heads") -> None:
    """Cuts the numbered units out of each layer, in place: the matrices become smaller.

    Raises:
        ModelError: a layer would lose its last unit, or a number is none of its units.
    """
    for layer, numbers in zip(encoder_layers(model), removed, strict=True):
        if numbers:
            gone = set(numbers)
            kept = [unit for unit in range(unit_count(layer, units)) if unit not in gone]
            (layer.keep_heads if units == "heads" else layer.keep_neurons)(kept)


def parameters_of_units(model: nn.Module, removed: Sequence[Sequence[int]], units: str = "heads") -> int:
    """How many parameters `remove_units` takes away, by formula.

    A head of size d in a model of hidden size H holds 4 d H weights and 3 d biases; a neuron 2 H weights and 1 bias.
    """
    total = 0
    for layer, numbers in zip(encoder_layers(model), removed, strict=True):
        hidden, size = model.config.hidden_size, layer.head_size
        total += len(numbers) * (4 * size * hidden + 3 * size if units == "heads" else 2 * hidden + 1)
    return total


# ---- the scan --------------------------------------------------------------------------------------------------


def accuracy_as_heads_go(model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase,
                         order: Sequence[tuple[int, int]], batch_size: int, most_points: int = 40) -> list[dict]:
    """Accuracy as heads are masked one after another in `order`, without any retraining.

    Returns:
        [{"removed": heads gone, "accuracy": fraction}] from 0 heads on; every head where there are at most
        `most_points`, else evenly spaced, the last one included.
    """
    labels = np.asarray(rows["labels"])
    masks = full_masks(model)
    points, gone = [], 0
    stops = sorted(set(np.linspace(0, len(order), min(most_points, len(order)) + 1).round().astype(int).tolist()))
    for stop in stops:
        for layer, head in order[gone:stop]:
            masks[layer][head] = 0.0
        gone = stop
        with masked_units(model, masks):
            predictions = predict(model, rows, tokenizer, batch_size).argmax(axis=1)
        points.append({"removed": stop, "accuracy": float((predictions == labels).mean())})
    return points
