"""Units that pruning can take away: attention heads, feed-forward neurons and whole layers, and masks over them.

A unit adds something to the states that pass through the model: a head its part of the attention output, a neuron its
part of the feed-forward output, a layer the difference between its output and its input. A mask multiplies that
addition. A mask of zero removes the unit's effect; cutting its rows and columns removes its cost. The two give the
same function, which is what the tests hold the surgery to.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import EncoderLayer, encoder_layers

UNITS = ("heads", "neurons", "layers")


def unit_count(layer: EncoderLayer, units: str) -> int:
    """Attention heads or feed-forward neurons of a layer; 1 where the units are layers."""
    return {"heads": layer.num_heads, "neurons": layer.intermediate_size, "layers": 1}[units]


def unit_width(model: PreTrainedModel, units: str) -> int:
    """Activations of one unit at one token: the size of a head, 1 for a neuron, the hidden size for a layer."""
    return {
        "heads": model.config.hidden_size // model.config.num_attention_heads,
        "neurons": 1,
        "layers": model.config.hidden_size,
    }[units]


# ---- masks -----------------------------------------------------------------------------------------------------


@contextmanager
def masked_units(model: nn.Module, masks: Sequence[torch.Tensor], units: str = "heads") -> Iterator[None]:
    """While open, each layer's units are multiplied by its mask.

    Args:
        masks: one tensor a layer, of shape (units,) for all rows alike or (batch, units) for each row its own;
            gradients reach them.
        units: "heads", "neurons" or "layers"; a layer's mask has one entry.
    """
    width = unit_width(model, units)
    with ExitStack() as hooks:
        for layer, mask in zip(encoder_layers(model), masks, strict=True):
            if units == "layers":
                handle = layer.module.register_forward_hook(
                    lambda _module, inputs, output, mask=mask: _blend(inputs[0], output, mask, width)
                )
            else:
                handle = _projection(layer, units).register_forward_pre_hook(
                    lambda _module, inputs, mask=mask: (_scale_units(inputs[0], mask, width), *inputs[1:])
                )
            hooks.callback(handle.remove)
        yield


def full_masks(model: nn.Module, units: str = "heads") -> list[torch.Tensor]:
    """Masks of ones (units,), one a layer: nothing removed."""
    return [torch.ones(unit_count(layer, units)) for layer in encoder_layers(model)]


def _scale_units(states: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    """(batch, tokens, units * width) with each unit's activations multiplied by the mask's entry."""
    factors = mask.repeat_interleave(width, dim=-1).to(states.dtype)
    return states * (factors if factors.dim() == 1 else factors[:, None, :])


def _blend(before: torch.Tensor, output: Any, mask: torch.Tensor, width: int) -> Any:
    """A layer's output with what the layer added to its input multiplied by the mask."""
    after = _states(output)
    blended = before + _scale_units(after - before, mask, width)
    return (blended, *output[1:]) if isinstance(output, tuple) else blended


# ---- activations -----------------------------------------------------------------------------------------------


@dataclass
class UnitActivations:
    """What the units of one layer add, in the latest forward pass.

    Attributes:
        added: (batch, tokens, units * width); for a layer its output minus its input.
        felt_at: the tensor whose gradient is that of `added`: itself, or a layer's output.
    """

    added: torch.Tensor
    felt_at: torch.Tensor


@contextmanager
def captured_activations(model: nn.Module, units: str) -> Iterator[list[UnitActivations]]:
    """While open, every forward pass fills the list with one entry a layer, first to last."""
    seen: list[UnitActivations] = []
    with ExitStack() as hooks:
        for layer in encoder_layers(model):
            if units == "layers":
                handle = layer.module.register_forward_hook(
                    lambda _module, inputs, output: seen.append(
                        UnitActivations((_states(output) - inputs[0]).detach(), _states(output))
                    )
                )
            else:
                handle = _projection(layer, units).register_forward_pre_hook(
                    lambda _module, inputs: seen.append(UnitActivations(inputs[0].detach(), inputs[0]))
                )
            hooks.callback(handle.remove)
        yield seen


def _projection(layer: EncoderLayer, units: str) -> nn.Module:
    """The projection whose inputs are the units."""
    return layer.attention_output if units == "heads" else layer.feed_forward_out


def _states(output: Any) -> torch.Tensor:
    """The hidden states of a layer's output, which some versions of transformers wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output
