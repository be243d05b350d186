"""Fake quantization: a float model that computes with the numbers its quantized form will have.

Quantization-aware training runs under it (Jacob et al. 2018, section 3): the forward pass rounds, the backward pass
treats rounding as the identity where nothing was clipped and as a constant where something was (the straight-through
estimator, Bengio et al. 2013). The weights that are trained stay float32.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgemin_utils.config import nearest
from edgemin_utils.errors import SettingError
from edgemin_utils.quantization.integers import Grid, activation_grid, grouped_int4_grid, symmetric_int8_grid


@dataclass(frozen=True)
class NumberFormat:
    """How the linear layers of a quantized model see weights and inputs; None leaves them float32."""

    weights: Callable[[torch.Tensor], Grid]
    activations: Callable[[torch.Tensor], Grid] | None


FORMATS: Mapping[str, NumberFormat] = {
    "int8": NumberFormat(symmetric_int8_grid, activation_grid),  # as scheme dynamic-int8
    "int4": NumberFormat(grouped_int4_grid, None),  # as scheme weight-int4
}


class _StraightThrough(torch.autograd.Function):
    """Rounds to a grid; gradients pass where nothing is clipped and are zero elsewhere."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, grid: Grid) -> torch.Tensor:
        context.save_for_backward(grid.inside(values))
        return grid.values(grid.integers(values))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None


def rounded_to(grid: Grid, values: torch.Tensor) -> torch.Tensor:
    """`values`, of any shape that the grid's scale fits, on its numbers, float32, with straight-through gradients to
    `values` (none to the scale)."""
    return _StraightThrough.apply(values.float(), grid)


@contextmanager
def fake_quantization(model: nn.Module, number_format: str, layers: Collection[str] | None = None) -> Iterator[None]:
    """While open, linear layers of `model` compute with rounded weights and inputs.

    Args:
        model: any float model; its parameters are not touched.
        number_format: "int8" (weights symmetric with one scale a matrix, inputs affine over the batch: exactly what
            `dynamic-int8` computes), "int4" (weights in groups as `weight-int4`, inputs float32) or "" (nothing).
        layers: names of the linear layers; None takes all.

    Raises:
        SettingError: unknown format, or a layer that the model does not have.
    """
    if not number_format:
        yield
        return
    if number_format not in FORMATS:
        raise SettingError(f"unknown number format {number_format!r}; {nearest(number_format, FORMATS)}")
    linear = linear_layers(model)
    for name in set(layers or ()) - linear.keys():
        raise SettingError(f"the model has no linear layer {name!r}; {nearest(name, linear)}")
    chosen = [linear[name] for name in (linear if layers is None else layers)]
    for module in chosen:
        setattr(module, "forward", functools.partial(_fake_linear, module, FORMATS[number_format]))  # noqa: B010
    try:
        yield
    finally:
        for module in chosen:
            del module.forward  # the class's own again


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _fake_linear(module: nn.Linear, numbers: NumberFormat, inputs: torch.Tensor) -> torch.Tensor:
    weight = rounded_to(numbers.weights(module.weight), module.weight)
    if numbers.activations is not None:
        inputs = rounded_to(numbers.activations(inputs), inputs)
    return functional.linear(inputs, weight, module.bias)
