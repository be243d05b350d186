r"""Importance of heads, neurons and layers: the criteria. With :math:`a_h` the activations of unit h that a mask
multiplies and :math:`g_h` the gradient of a row's loss by them, the first three are the mean over rows of a score of a
and g. Rows should be new to the model: where the loss is near zero, gradients tell little."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.encoders import EncoderLayer, encoder_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.names import register_method
from edgemin_utils.settings import Settings, nearest
from edgemin_utils.training import Batch, LossFunction, batches, evaluation_mode, label_loss


def unit_count(layer: EncoderLayer, units: str) -> int:
    """Attention heads or feed-forward neurons of a layer; 1 where the units are layers."""
    return {"heads": layer.num_heads, "neurons": layer.intermediate_size, "layers": 1}[units]


def full_masks(model: PreTrainedModel, units: str = "heads") -> list[Tensor]:
    """Masks of ones (units,), one a layer: nothing removed."""
    return [torch.ones(unit_count(layer, units)) for layer in encoder_layers(model)]


def masked_units(model: PreTrainedModel, masks: Sequence[Tensor], units: str = "heads") -> AbstractContextManager[None]:
    """While open, each layer's units are multiplied by its mask, (units,), or (batch, units) for each row its own."""

    def change(number: int, before: Tensor | None, states: Tensor) -> Tensor:
        width = states.shape[-1] // masks[number].shape[-1]
        factors = masks[number].repeat_interleave(width, dim=-1).to(states.dtype)[..., None, :]
        return states * factors if before is None else before + (states - before) * factors

    return _hooked(model, units, change)


# (a layer's number, its input or None, states that its units make) -> the states, where they change
Act = Callable[[int, Tensor | None, Tensor], Tensor | None]


@contextmanager
def _hooked(model: PreTrainedModel, units: str, act: Act) -> Iterator[None]:
    """While open, `act` sees what the units make, and may change it."""

    def hook(number: int, _module: nn.Module, inputs: Any, output: Any = None) -> Any:
        if units != "layers":
            return act(number, None, inputs[0])
        # Some versions of transformers wrap a layer's output in a tuple.
        changed = act(number, inputs[0], output[0] if isinstance(output, tuple) else output)
        return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

    with ExitStack() as hooks:
        for number, layer in enumerate(encoder_layers(model)):
            into = {"heads": layer.attention_output, "neurons": layer.feed_forward_out}
            add = into[units].register_forward_pre_hook if units in into else layer.module.register_forward_hook
            hooks.enter_context(add(partial(hook, number)))
        yield


Importance = list[np.ndarray]  # one float64 array (units,) a layer
Ranking = Callable[[PreTrainedModel, str], Importance]  # of a model's "heads", "neurons" or "layers"
# (activations, gradients, both (rows, tokens, units, width), attention mask (rows, tokens)) -> scores (rows, units)
Score = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Question:
    """What a criterion is asked: how much "heads", "neurons" or "layers" matter on tokenized rows; `draw` is a seed."""

    model: PreTrainedModel
    rows: Dataset
    tokenizer: PreTrainedTokenizerBase | None
    units: str = "heads"
    batch_size: int = 64
    draw: int = 0
    loss: LossFunction = label_loss

    def expected(self, score: Score) -> Importance:
        """Mean over rows of `score`; one backward pass a batch gives every row's gradients."""
        seen = list[tuple[Tensor, Tensor]]()
        sums = [np.zeros(unit_count(layer, self.units)) for layer in encoder_layers(self.model)]

        def note(_number: int, before: Tensor | None, states: Tensor) -> None:
            # What the units of a layer add, and the tensor whose gradient is that of it.
            seen.append(((states if before is None else states - before).detach(), states))

        with evaluation_mode(self.model), _hooked(self.model, self.units, note):
            for positions, batch in self._batches():
                seen.clear()
                value, _ = self.loss(self.model, batch)
                # The batch's loss is a mean; a row's own gradient is `count` times its share.
                gradients = torch.autograd.grad(value * len(positions), [felt_at for _, felt_at in seen])
                real = batch["attention_mask"].to(value.dtype)
                for total, (added, _), gradient in zip(sums, seen, gradients, strict=True):
                    added, gradient = (states.unflatten(-1, (len(total), -1)) for states in (added, gradient))
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


def importance(criterion: str, *asked: Any, **more: Any) -> Importance:
    """A criterion's answer to a `Question`; raises SettingError if it is unknown, MethodRefused for other units."""
    if criterion not in _CRITERIA:
        raise SettingError(f"unknown pruning criterion {criterion!r}; {nearest(criterion, _CRITERIA)}")
    return _CRITERIA[criterion](Question(*asked, **more))


def importance_by(settings: Settings, rows: Dataset, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Ranking:
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
    times the unit's width: among rows of one length it ranks as `gradient` does."""
    return asked.expected(lambda a, g, real: ((a * g).sum((1, 3)) / (real.sum(1, keepdim=True) * a.shape[-1])).abs())


def leave_one_out(asked: Question) -> Importance:
    r"""What the mean loss rises by when one unit is masked, :math:`I_h = E_x [L(x; \xi_h = 0) - L(x)]` (Michel et al.
    2019, section 3.2). Raises MethodRefused for neurons."""
    if asked.units == "neurons":
        raise MethodRefused("leave-one-out passes over the rows for every unit, and neurons are too many; take taylor")
    masks, whole = full_masks(asked.model, asked.units), asked.mean_loss()
    result = [np.zeros(len(mask)) for mask in masks]
    with masked_units(asked.model, masks, asked.units):
        for mask, rises in zip(masks, result, strict=True):
            for unit in range(len(mask)):
                mask[unit] = 0.0
                rises[unit] = asked.mean_loss() - whole
                mask[unit] = 1.0
    return result


def magnitude(asked: Question) -> Importance:
    """Euclidean norm of a unit's weights: a head's in four matrices, a neuron's in two, a layer's six matrices."""
    result, parts = [], "query key value attention_output feed_forward_in feed_forward_out".split()
    for layer in encoder_layers(asked.model):
        squares = (getattr(layer, part).weight.detach().double().square() for part in parts)
        query, key, value, output, widen, narrow = squares
        heads = (query.sum(1) + key.sum(1) + value.sum(1) + output.sum(0)).view(-1, layer.head_size).sum(1)
        neurons = widen.sum(1) + narrow.sum(0)
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
