"""Units that pruning can take away: attention heads, feed-forward neurons and whole layers, and masks over them.
A mask multiplies what a unit adds to the states that pass through: a head to the attention output, a neuron to the
feed-forward output, a layer the difference between its output and its input. A mask of zero equals cutting it out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import EncoderLayer, encoder_layers


def unit_count(layer: EncoderLayer, units: str) -> int:
    """Attention heads or feed-forward neurons of a layer; 1 where the units are layers."""
    return {"heads": layer.num_heads, "neurons": layer.intermediate_size, "layers": 1}[units]


def unit_width(model: PreTrainedModel, units: str) -> int:
    """Activations of one unit at one token: the size of a head, 1 for a neuron, the hidden size for a layer."""
    hidden = model.config.hidden_size
    return {"heads": hidden // model.config.num_attention_heads, "neurons": 1, "layers": hidden}[units]


def full_masks(model: PreTrainedModel, units: str = "heads") -> list[torch.Tensor]:
    """Masks of ones (units,), one a layer: nothing removed."""
    return [torch.ones(unit_count(layer, units)) for layer in encoder_layers(model)]


@contextmanager
def masked_units(model: PreTrainedModel, masks: Sequence[torch.Tensor], units: str = "heads") -> Iterator[None]:
    """While open, each layer's units ("heads", "neurons" or "layers") are multiplied by its mask, (units,) for all rows
    alike or (batch, units) for each row its own; gradients reach the masks."""
    width = unit_width(model, units)

    def change(number: int, before: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        factors = masks[number].repeat_interleave(width, dim=-1).to(states.dtype)
        factors = factors if factors.dim() == 1 else factors[:, None, :]
        return states * factors if before is None else before + (states - before) * factors

    with _hooked(model, units, change):
        yield


@contextmanager
def captured_activations(model: PreTrainedModel, units: str) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """While open, every forward pass adds a pair for each layer, first to last: what its units add, detached, of shape
    (batch, tokens, units * width), and the tensor whose gradient is that of it."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(number: int, before: torch.Tensor | None, states: torch.Tensor) -> None:
        seen.append(((states if before is None else states - before).detach(), states))

    with _hooked(model, units, note):
        yield seen


@contextmanager
def _hooked(
    model: PreTrainedModel, units: str, act: Callable[[int, torch.Tensor | None, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """While open, `act` gets (a layer's number, its input or None, states that its units make) and may change them."""

    def after(number: int, _module: nn.Module, inputs: Any, output: Any) -> Any:
        # Some versions of transformers wrap a layer's output in a tuple.
        changed = act(number, inputs[0], output[0] if isinstance(output, tuple) else output)
        return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

    def before(number: int, _module: nn.Module, inputs: Any) -> Any:
        changed = act(number, None, inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    with ExitStack() as hooks:
        for number, layer in enumerate(encoder_layers(model)):
            if units == "layers":
                handle = layer.module.register_forward_hook(partial(after, number))
            else:
                projection = layer.attention_output if units == "heads" else layer.feed_forward_out
                handle = projection.register_forward_pre_hook(partial(before, number))
            hooks.callback(handle.remove)
        yield
