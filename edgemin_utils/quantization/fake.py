"""Fake quantization: a float model that computes with the numbers its quantized form will have.
Quantization-aware training runs under it (Jacob et al. 2018, section 3): the forward pass rounds, the backward pass
takes rounding for the identity, where something was clipped for a constant (straight-through, Bengio et al. 2013).
Products stay float32, also under autocast: in bfloat16 numbers would leave their grid."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from edgemin_utils.errors import SettingError
from edgemin_utils.quantization.integers import Grid, activation_grid, grouped_int4_grid, symmetric_int8_grid
from edgemin_utils.settings import nearest


class NumberFormat(NamedTuple):
    """The grids of a quantized linear layer's weights and inputs; None leaves inputs float32."""

    weights: Callable[[torch.Tensor], Grid]
    activations: Callable[[torch.Tensor], Grid] | None


INT8, INT4 = NumberFormat(symmetric_int8_grid, activation_grid), NumberFormat(grouped_int4_grid, None)
FORMATS: Mapping[str, NumberFormat] = {"int8": INT8, "int4": INT4}  # as the schemes called so


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, grid: Grid) -> torch.Tensor:
        context.save_for_backward(grid.inside(values))
        return grid.values(grid.integers(values))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * context.saved_tensors[0], None


def rounded_to(grid: Grid, values: torch.Tensor) -> torch.Tensor:
    """`values`, of any shape, on the grid's numbers, float32, with straight-through gradients to `values` alone."""
    return _StraightThrough.apply(values.float(), grid)


@contextmanager
def fake_quantization(model: nn.Module, number_format: str, layers: Collection[str] | None = None) -> Iterator[None]:
    """While open, a float model's linear layers (those named by `layers`, or all) compute with the numbers that scheme
    `int8` or `int4` rounds to; "" changes nothing. Raises SettingError for an unknown format or layer."""
    if number_format not in ("", *FORMATS):
        raise SettingError(f"unknown number format {number_format!r}; {nearest(number_format, FORMATS)}")
    linear = linear_layers(model)
    for name in set(layers or ()) - linear.keys():
        raise SettingError(f"the model has no linear layer {name!r}; {nearest(name, linear)}")
    chosen = [linear[name] for name in (linear if layers is None else layers)] if number_format else []
    for module in chosen:
        vars(module)["forward"] = functools.partial(_fake_linear, module, FORMATS[number_format])
    try:
        yield
    finally:
        for module in chosen:
            del module.forward  # the class's own again


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _fake_linear(module: nn.Linear, numbers: NumberFormat, inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        weight, inputs = rounded_to(numbers.weights(module.weight), module.weight), inputs.float()
        if numbers.activations is not None:
            inputs = rounded_to(numbers.activations(inputs), inputs)
        return functional.linear(inputs, weight, module.bias)
