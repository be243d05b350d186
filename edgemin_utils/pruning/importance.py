r"""Importance of heads, neurons and layers: the criteria.

Most of them ask the data. With :math:`a_h` the activations of unit h that a mask multiplies (a head's output before the
output projection, a neuron's activation, a layer's output minus its input; see `units`) and :math:`g_h` the gradient of
one row's loss by them, the first three are the mean over rows of a score of a and g. A new one is a function
`<name>_importance` here and its name in `config.PRUNING_CRITERIA`.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from edgemin_utils.config import PRUNING_CRITERIA, nearest
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.pruning.units import captured_activations, full_masks, masked_units, unit_count, unit_width
from edgemin_utils.training import LossFunction, batches, evaluation_mode

Importance = list[np.ndarray]  # one float64 array (units,) a layer
# (activations, gradients, attention mask) -> scores (rows, units); the first two are (rows, tokens, units, width), the
# mask is (rows, tokens).
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def find_criterion(name: str) -> Callable[..., Importance]:
    """The importance function of that name; raises SettingError with the nearest known name."""
    if name not in PRUNING_CRITERIA:
        raise SettingError(f"unknown pruning criterion {name!r}; {nearest(name, PRUNING_CRITERIA)}")
    return getattr(sys.modules[__name__], f"{name.replace('-', '_')}_importance")


def gradient_importance(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossFunction,
    batch_size: int,
    units: str = "heads",
    seed: int = 0,
) -> Importance:
    r"""Expected sensitivity of the loss to a unit's mask,
    :math:`I_h = E_x |\partial L(x) / \partial \xi_h| = E_x |\langle a_h, g_h \rangle|`.

    Michel, Levy and Neubig 2019, equation 2: the absolute value is taken for each row, then averaged.

    Args:
        loss: mean loss of a batch, as a training phase uses it.
        units: "heads", "neurons" or "layers".

    Returns:
        One float64 array (units,) a layer, in units of the loss.
    """
    return _expected(
        model,
        rows,
        tokenizer,
        loss,
        batch_size,
        units,
        lambda activations, gradients, real: (activations * gradients).sum((1, 3)).abs(),
    )


def gradient_l2_importance(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossFunction,
    batch_size: int,
    units: str = "heads",
    seed: int = 0,
) -> Importance:
    r"""Expected length of the loss's gradient by a unit's activations,
    :math:`I_h = E_x \|\partial L(x) / \partial a_h\|_2`.

    The form that the EdgeMIN literature review gives; the norm runs over all tokens and dimensions of a unit. It asks
    how steep the loss is at a unit, not how much the unit contributes. Arguments as `gradient_importance`.
    """
    return _expected(
        model,
        rows,
        tokenizer,
        loss,
        batch_size,
        units,
        lambda activations, gradients, real: gradients.square().sum((1, 3)).sqrt(),
    )


def taylor_importance(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossFunction,
    batch_size: int,
    units: str = "heads",
    seed: int = 0,
) -> Importance:
    r"""First-order Taylor estimate of the loss's change when a unit's activations go to zero,
    :math:`I_h = E_x \left| \frac{1}{M} \sum_m a_{h,m} \, g_{h,m} \right|`.

    Molchanov et al. 2017, equation 8: the signed products of a row are averaged over the M activations of the unit
    (here the row's real tokens times the unit's width), then the absolute value is taken, then the mean over rows.
    Where all rows are equally long it ranks as `gradient` does; else longer rows count for less. Arguments as
    `gradient_importance`.
    """

    def score(activations: torch.Tensor, gradients: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        signed = (activations * gradients).sum((1, 3))
        return (signed / (real.sum(1, keepdim=True) * activations.shape[-1])).abs()

    return _expected(model, rows, tokenizer, loss, batch_size, units, score)


def leave_one_out_importance(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossFunction,
    batch_size: int,
    units: str = "heads",
    seed: int = 0,
) -> Importance:
    r"""What the mean loss really rises by when one unit is masked, :math:`I_h = E_x [L(x; \xi_h = 0) - L(x)]`.

    What the gradient criteria estimate to first order (Michel et al. 2019, section 3.2, ablate heads so). The estimate
    is poor for a whole layer; this costs a pass over the rows for every unit. Negative where the model does better
    without the unit. Arguments as `gradient_importance`.

    Raises:
        MethodRefused: for neurons, which are too many.
    """
    if units == "neurons":
        raise MethodRefused(
            "leave-one-out passes over the rows once for every unit, and neurons are too many for "
            "that; rank them by gradient, gradient-l2, taylor or magnitude"
        )
    whole, result = _mean_loss(model, rows, tokenizer, loss, batch_size), []
    for number, mask in enumerate(full_masks(model, units)):
        rises = np.zeros(len(mask))
        for unit in range(len(mask)):
            masks = full_masks(model, units)
            masks[number][unit] = 0.0
            with masked_units(model, masks, units):
                rises[unit] = _mean_loss(model, rows, tokenizer, loss, batch_size) - whole
        result.append(rises)
    return result


def magnitude_importance(
    model: nn.Module,
    rows: Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    loss: LossFunction | None = None,
    batch_size: int = 0,
    units: str = "heads",
    seed: int = 0,
) -> Importance:
    """Euclidean norm of all weights that belong to a unit.

    For a head: its rows of query, key and value and its columns of the attention output; for a neuron: its row of
    the first feed-forward matrix and its column of the second; for a layer: all six matrices. Biases and norms do not
    count, and the data arguments are not looked at.
    """
    result = []
    for layer in encoder_layers(model):
        attention = _squares((layer.query, layer.key, layer.value), layer.attention_output)
        feed_forward = _squares((layer.feed_forward_in,), layer.feed_forward_out)
        squares = {
            "heads": attention.view(-1, layer.head_size).sum(1),
            "neurons": feed_forward,
            "layers": (attention.sum() + feed_forward.sum()).view(1),
        }[units]
        result.append(squares.sqrt().cpu().numpy())
    return result


def random_importance(
    model: nn.Module,
    rows: Dataset | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    loss: LossFunction | None = None,
    batch_size: int = 0,
    units: str = "heads",
    seed: int = 0,
) -> Importance:
    """Uniform draws from `seed`: what a criterion has to beat."""
    generator = np.random.default_rng(seed)
    return [generator.random(unit_count(layer, units)) for layer in encoder_layers(model)]


def normalized_by_layer(importance: Importance) -> Importance:
    """Each layer's importance divided by its Euclidean norm, so that layers can be ranked together (Molchanov et
    al. 2017, as Michel et al. 2019 use it)."""
    return [values / max(float(np.linalg.norm(values)), np.finfo(float).tiny) for values in importance]


def _expected(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    loss: LossFunction,
    batch_size: int,
    units: str,
    score: Score,
) -> Importance:
    """Mean over rows of `score`; one backward pass a batch gives every row's gradients."""
    width = unit_width(model, units)
    sums = [np.zeros(unit_count(layer, units)) for layer in encoder_layers(model)]
    with evaluation_mode(model), captured_activations(model, units) as seen:
        for positions, batch in batches(rows, tokenizer, batch_size, next(model.parameters()).device):
            seen.clear()
            value, _ = loss(model, batch)
            # The batch's loss is a mean; a row's own gradient is `count` times its share.
            gradients = torch.autograd.grad(value * len(positions), [layer.felt_at for layer in seen])
            real = batch["attention_mask"].to(value.dtype)
            for total, layer, gradient in zip(sums, seen, gradients, strict=True):
                added, gradient = (states.unflatten(-1, (-1, width)) for states in (layer.added, gradient))
                total += score(added, gradient, real).sum(0).double().cpu().numpy()
    return [total / len(rows) for total in sums]


def _mean_loss(
    model: nn.Module, rows: Dataset, tokenizer: PreTrainedTokenizerBase, loss: LossFunction, batch_size: int
) -> float:
    with evaluation_mode(model), torch.inference_mode():
        total = sum(
            float(loss(model, batch)[0]) * len(positions)
            for positions, batch in batches(rows, tokenizer, batch_size, next(model.parameters()).device)
        )
    return total / len(rows)


def _squares(with_rows: tuple[nn.Linear, ...], with_columns: nn.Linear) -> torch.Tensor:
    """Summed squares (units * width,) of the matrices' rows and of the last matrix's columns, in float64."""
    total = with_columns.weight.detach().double().square().sum(0)
    for linear in with_rows:
        total = total + linear.weight.detach().double().square().sum(1)
    return total
