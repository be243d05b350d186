r"""Importance of heads, neurons and layers: the criteria.

With :math:`a_h` the activations of unit h that a mask multiplies (see `units`) and :math:`g_h` the gradient of a row's
loss by them, the first three are the mean over rows of a score of a and g. Rows should be new to the model: where the
loss is near zero, gradients tell little. A criterion of one's own is a function:

    def activation(asked):
        return asked.expected(lambda activations, gradients, real: activations.square().sum((1, 3)).sqrt())

    register_criterion("activation", activation)     # now heads-0.2,criterion=activation is a cut
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.names import register_method
from edgemin_utils.pruning.units import captured_activations, full_masks, masked_units, unit_count, unit_width
from edgemin_utils.settings import Settings, nearest
from edgemin_utils.training import Batch, LossFunction, batches, evaluation_mode, label_loss

Importance = list[np.ndarray]  # one float64 array (units,) a layer
# (activations, gradients, attention mask) -> scores (rows, units); the first two are (rows, tokens, units, width), the
# mask is (rows, tokens); gradients of padding are zero.
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Question:
    """What a criterion is asked: how much each of the `units` ("heads", "neurons" or "layers") of a model matters on
    tokenized rows. `loss` is a batch's mean, `draw` the seed of what is drawn at random."""

    model: PreTrainedModel
    units: str
    rows: Dataset
    tokenizer: PreTrainedTokenizerBase | None
    batch_size: int
    loss: LossFunction
    draw: int

    def expected(self, score: Score) -> Importance:
        """Mean over rows of `score`; one backward pass a batch gives every row's gradients."""
        width = unit_width(self.model, self.units)
        sums = [np.zeros(unit_count(layer, self.units)) for layer in encoder_layers(self.model)]
        with evaluation_mode(self.model), captured_activations(self.model, self.units) as seen:
            for positions, batch in self._batches():
                seen.clear()
                value, _ = self.loss(self.model, batch)
                # The batch's loss is a mean; a row's own gradient is `count` times its share.
                gradients = torch.autograd.grad(value * len(positions), [felt_at for _, felt_at in seen])
                real = batch["attention_mask"].to(value.dtype)
                for total, (added, _), gradient in zip(sums, seen, gradients, strict=True):
                    added, gradient = (states.unflatten(-1, (-1, width)) for states in (added, gradient))
                    total += score(added, gradient, real).sum(0).double().cpu().numpy()
        return [total / len(self.rows) for total in sums]

    def mean_loss(self) -> float:
        """The loss, mean over the rows."""
        with evaluation_mode(self.model), torch.inference_mode():
            total = sum(float(self.loss(self.model, batch)[0]) * len(positions) for positions, batch in self._batches())
        return total / len(self.rows)

    def _batches(self) -> Iterator[tuple[Any, Batch]]:
        return batches(self.rows, self.tokenizer, self.batch_size, next(self.model.parameters()).device)


Criterion = Callable[[Question], Importance]


def importance(
    criterion: str,
    model: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    units: str = "heads",
    batch_size: int = 64,
    draw: int = 0,
    loss: LossFunction = label_loss,
) -> Importance:
    """How much each unit of a model matters by a criterion, one float64 array (units,) a layer; arguments are those of
    `Question`. Raises SettingError for an unknown criterion, MethodRefused where it does not serve these units."""
    if criterion not in _CRITERIA:
        raise SettingError(f"unknown pruning criterion {criterion!r}; {nearest(criterion, _CRITERIA)}")
    return _CRITERIA[criterion](Question(model, units, rows, tokenizer, batch_size, loss, draw))


def importance_by(
    settings: Settings, rows: Dataset, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Callable[[PreTrainedModel, str], Importance]:
    """(model, units) -> importance by the settings' criterion on the first `importance_rows` of `rows`."""
    chosen, size = rows.select(range(min(settings.importance_rows, len(rows)))), settings.evaluation_batch_size
    draw = 1000 * seed + settings.draw
    return lambda model, units: importance(settings.criterion, model, chosen, tokenizer, units, size, draw)


def gradient(asked: Question) -> Importance:
    r"""Expected sensitivity of the loss to a unit's mask (Michel, Levy and Neubig 2019, equation 2),
    :math:`I_h = E_x |\partial L(x) / \partial \xi_h| = E_x |\langle a_h, g_h \rangle|`, in units of the loss."""
    return asked.expected(lambda activations, gradients, real: (activations * gradients).sum((1, 3)).abs())


def gradient_l2(asked: Question) -> Importance:
    r"""Expected length of the loss's gradient by a unit's activations, over all tokens and dimensions of a unit,
    :math:`I_h = E_x \|\partial L(x) / \partial a_h\|_2`, the form that the EdgeMIN literature review gives."""
    return asked.expected(lambda activations, gradients, real: gradients.square().sum((1, 3)).sqrt())


def taylor(asked: Question) -> Importance:
    r"""First-order Taylor estimate of the loss's change when a unit's activations go to zero (Molchanov et al. 2017,
    equation 8), :math:`I_h = E_x \left| \frac{1}{M} \sum_m a_{h,m} \, g_{h,m} \right|`, with M the row's real tokens
    times the unit's width. Where all rows are equally long it ranks as `gradient` does."""

    def score(activations: torch.Tensor, gradients: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        count = real.sum(1, keepdim=True) * activations.shape[-1]
        return ((activations * gradients).sum((1, 3)) / count).abs()

    return asked.expected(score)


def leave_one_out(asked: Question) -> Importance:
    r"""What the mean loss really rises by when one unit is masked, :math:`I_h = E_x [L(x; \xi_h = 0) - L(x)]` (Michel
    et al. 2019, section 3.2), at a pass over the rows a unit. Raises MethodRefused for neurons, which are too many."""
    if asked.units == "neurons":
        raise MethodRefused("leave-one-out passes over the rows for every unit, and neurons are too many; take taylor")
    whole, result = asked.mean_loss(), [np.zeros(len(mask)) for mask in full_masks(asked.model, asked.units)]
    for layer, rises in enumerate(result):
        for unit in range(len(rises)):
            masks = full_masks(asked.model, asked.units)
            masks[layer][unit] = 0.0
            with masked_units(asked.model, masks, asked.units):
                rises[unit] = asked.mean_loss() - whole
    return result


def magnitude(asked: Question) -> Importance:
    """Euclidean norm of a unit's weights: a head's rows of query, key and value and columns of the attention output, a
    neuron's row of the first feed-forward matrix and column of the second, a layer's six matrices."""

    def squares(linear: nn.Linear, dimension: int) -> torch.Tensor:
        return linear.weight.detach().double().square().sum(dimension)

    result = []
    for layer in encoder_layers(asked.model):
        attention = sum(squares(one, 1) for one in (layer.query, layer.key, layer.value))
        heads = (attention + squares(layer.attention_output, 0)).view(-1, layer.head_size).sum(1)
        neurons = squares(layer.feed_forward_in, 1) + squares(layer.feed_forward_out, 0)
        whole = (heads.sum() + neurons.sum()).view(1)
        result.append({"heads": heads, "neurons": neurons, "layers": whole}[asked.units].sqrt().cpu().numpy())
    return result


def random_draw(asked: Question) -> Importance:
    """Uniform draws from the seed `draw`: what a criterion has to beat."""
    generator = np.random.default_rng(asked.draw)
    return [generator.random(unit_count(layer, asked.units)) for layer in encoder_layers(asked.model)]


_CRITERIA: dict[str, Criterion] = {"gradient": gradient, "gradient-l2": gradient_l2, "taylor": taylor}
_CRITERIA |= {"magnitude": magnitude, "leave-one-out": leave_one_out, "random": random_draw}


def register_criterion(name: str, criterion: Criterion) -> None:
    """Makes a function of one's own known by name; the same name again replaces it."""
    register_method(name, "criterion", criterion)
    _CRITERIA[name] = criterion
