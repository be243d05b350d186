"""Fake quantization: a float model computes with the numbers that its quantized form will have, in training too (Jacob
et al. 2018, section 3), where gradients take rounding for the identity, clipping for a constant (straight-through,
Bengio et al. 2013). Products stay float32, also under autocast: in bfloat16 numbers would leave their grid."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from edgemin_utils.errors import SettingError
from edgemin_utils.quantization.integers import Grid, activation_grid, grouped_int4_grid, symmetric_int8_grid
from edgemin_utils.settings import nearest
from edgemin_utils.training import predict

_Grids = Callable[[torch.Tensor], Grid]

# As the schemes called so: the grids of weights and of inputs; None leaves inputs float32.
FORMATS = {"int8": (symmetric_int8_grid, activation_grid), "int4": (grouped_int4_grid, None)}


def rounded_to(grid: Grid, values: torch.Tensor) -> torch.Tensor:
    """`values`, of any shape, on the grid's numbers, float32, with straight-through gradients to `values` alone."""
    values = values.float()
    fixed = values.detach()
    # What is added is 0, and its gradient that of `values` where nothing is clipped.
    return grid.values(grid.integers(fixed)) + (values - fixed) * grid.inside(fixed)


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
    with ExitStack() as stack:
        for module in chosen:
            vars(module)["forward"] = functools.partial(_fake_linear, module, *FORMATS[number_format])
            stack.callback(vars(module).pop, "forward")  # the class's own again
        yield


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _fake_linear(module: nn.Linear, grid: _Grids, input_grid: _Grids | None, inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        weight, inputs = rounded_to(grid(module.weight), module.weight), inputs.float()
        if input_grid is not None:
            inputs = rounded_to(input_grid(inputs), inputs)
        return functional.linear(inputs, weight, module.bias)


def layer_sensitivity(model: PreTrainedModel, rows: Dataset, tokenizer: Tokenizer, batch_size: int) -> dict[str, Any]:
    """Every linear layer rounded alone in every format: accuracy, agreement (share of rows with the float model's
    answer) and divergence (KL of answer probabilities from the float model's, in nats, mean over the rows)."""
    labels, whole = np.asarray(rows["labels"]), predict(model, rows, tokenizer, batch_size)
    reference = functional.log_softmax(torch.from_numpy(whole).double(), dim=1)
    found, pairs = [], list(itertools.product(FORMATS, linear_layers(model)))
    for number_format, name in tqdm(pairs, desc="Sensitivity", unit="layer", leave=False):
        with fake_quantization(model, number_format, [name]):
            logits = predict(model, rows, tokenizer, batch_size)
        other, answers = functional.log_softmax(torch.from_numpy(logits).double(), dim=1), logits.argmax(1)
        shares = {"accuracy": (answers == labels).mean(), "agreement": (answers == whole.argmax(1)).mean()}
        row = {"layer": name, "format": number_format, **{key: float(share) for key, share in shares.items()}}
        divergence = functional.kl_div(other, reference, reduction="batchmean", log_target=True)
        found.append({**row, "divergence": max(0.0, float(divergence))})  # never negative but for rounding
    return {"rows": len(rows), "accuracy": float((whole.argmax(1) == labels).mean()), "layers": found}
