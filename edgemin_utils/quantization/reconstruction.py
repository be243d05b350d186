r"""Weights rounded after training so that modules give out on a few rows what they gave before (MREM, EfficientQAT).

Linear layers alone: every `INT4_GROUP` weights along the input share a float16 step size `s`, here with a zero point
`z`. Inputs stay float32, and products are those of unpacked weights, as in `TorchInt4`, whatever the bits:

.. math:: \hat w = s\,(q - z), \qquad q = \mathrm{clip}(\mathrm{round}(w / s) + \mathrm{round}(z), 0, h)

Gradients by `w`, `s`, `z`: 1, `q - z - w / s`, 0; where `q` is clipped 0, `q - z`, `-s` (Esser et al. 2020, eq. 3).

**MREM** (Bai et al. 2022): module `n`, several layers, learns weights and step sizes by the squared error of its
output, in early steps from a mixture of what the float and the quantized modules before it give out:

.. math:: \|\hat f_n(x) - f_n\|^2, \; x = \lambda f_{n-1} + (1 - \lambda) \hat f_{n-1}, \; \lambda = \max(1 - t / T, 0)

Here `z` is the middle of the range, `T` half of the steps. Modules learn one after another (the paper's MREM-S) but
with the forcing of its parallel form. Deviations: inputs and the table are not quantized; rows are 128. No code is
public; read were the abstract and a book's account of it (there equations 5.11 and 5.12), not the whole paper.

**EfficientQAT** (Chen et al. 2024, section 3; code: OpenGVLab/EfficientQAT, `quantize/`): layer by layer all parameters
learn by the mean squared error of the layer's output, from what quantized layers give; then integers and zero points
are fixed, and step sizes alone learn end to end. Deviations: they learn the float model's logits, not labels; groups of
32, not 64 or 128; ranges are widened to hold 0; 128 rows, not 4096, at larger learning rates.

In both, layers beside the encoder's are rounded too and learn with their neighbours: the last module's error is that of
its states and of the logits. Step sizes learn as multiples of their first value."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from edgemin_utils.encoders import captured_states, encoder_layers, parts_of
from edgemin_utils.quantization.fake import linear_layers, rounded_to
from edgemin_utils.quantization.integers import INT4_GROUP, Grid, spread_scales
from edgemin_utils.quantization.schemes import Rows, Scheme

MODULE_LAYERS = 3  # of MREM: 4 modules of a model of 12 layers
STEPS, END_TO_END_STEPS, BATCH = 256, 128, 16  # for a module; for step sizes alone; rows of a step
WEIGHT_RATE, GRID_RATE = 1e-4, 1e-3  # Adam's in 4 bits, falling to 0; twice as much for each bit less
_Output = tuple[Any, Any]  # states (batch, tokens, hidden_size), logits (batch, labels); None before the first module


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 (bytes,): integers from 0 to 2^bits - 1, of any shape, one behind the other, the lowest bit first."""
    each = np.unpackbits(codes.to(torch.uint8).numpy().reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each, bitorder="little"))


def unpack_bits(packed: torch.Tensor, bits: int, shape: Sequence[int]) -> torch.Tensor:
    """float32 of `shape`: the inverse of `pack_bits`."""
    each = np.unpackbits(packed.numpy(), count=bits * int(np.prod(shape)), bitorder="little").reshape(-1, bits)
    return torch.from_numpy(np.packbits(each, axis=1, bitorder="little")).reshape(*shape).float()


class Rounding(nn.Module):
    """The parametrization of a linear layer's weight (outputs, inputs) in training, from the nearest integers on: step
    sizes are `start * factor`, (outputs, groups) like zero points. Once it is `frozen`, they alone change."""

    frozen: torch.Tensor | None = None  # integers less zero points, of the weight's shape

    def __init__(self, weight: torch.Tensor, bits: int, affine: bool):
        super().__init__()
        groups = functional.pad(weight.detach(), (0, -weight.shape[1] % INT4_GROUP)).unflatten(1, (-1, INT4_GROUP))
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        width = high - low if affine else 2 * torch.maximum(-low, high)
        self.top = 2**bits - (1 if affine else 2)
        self.start = (width / self.top).clamp(min=torch.finfo(torch.float16).tiny)
        self.factor = nn.Parameter(torch.ones_like(self.start))
        zeros = torch.round(-low / self.start) if affine else torch.full_like(low, self.top / 2)
        self.zero_point = nn.Parameter(zeros, requires_grad=affine)

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Step sizes and zero points as they are stored, (outputs, groups), with straight-through gradients."""
        steps = self.start * self.factor
        return steps + (steps.half().float() - steps).detach(), self._whole(self.zero_point)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight on its grid, of the same shape."""
        steps, zeros = (spread_scales(one, weight.shape[1]) for one in self.grid())
        return (self._whole(weight * (1 / steps), zeros) if self.frozen is None else self.frozen) * steps

    def _whole(self, values: torch.Tensor, zeros: float | torch.Tensor = 0.0) -> torch.Tensor:
        return rounded_to(Grid(torch.ones(()), torch.as_tensor(zeros), 0, self.top), values)


@dataclass(frozen=True)
class Reconstruction(Scheme):
    """MREM, or with `end_to_end` EfficientQAT, in so many bits."""

    bits: int
    end_to_end: bool = False
    calibrated = True

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        exact, linear = copy.deepcopy(model), list[Any](linear_layers(model).values())
        for module in model.modules():
            module.requires_grad_(not isinstance(module, nn.Embedding))
        for layer in linear:
            parametrize.register_parametrization(layer, "weight", Rounding(layer.weight, self.bits, self.end_to_end))
        batches = [_together(model, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        nothing: list[_Output] = [(None, None)] * len(batches)
        given = wanted = nothing  # by the modules so far, quantized and float
        layers = [[layer.module for layer in encoder_layers(each)] for each in (model, exact)]
        span = 1 if self.end_to_end else MODULE_LAYERS
        for start in range(0, len(layers[0]), span):
            _set_layers(model, layers[0][start : start + span])
            _set_layers(exact, layers[1][start : start + span])
            forced, wanted = wanted, [_run(exact, *pair) for pair in zip(batches, wanted, strict=True)]
            inputs, last = (given, given if self.end_to_end else forced), start + span >= len(layers[0])
            _train(model, batches, inputs, wanted, (1, int(last)), self.bits, "")
            given = [_run(model, *pair) for pair in zip(batches, given, strict=True)]
        _set_layers(model, layers[0])
        for layer in linear:
            rounding = layer.parametrizations.weight[0]
            rounding.frozen = torch.round(layer.weight / spread_scales(rounding.grid()[0], layer.in_features))
        if self.end_to_end:
            _train(model, batches, (nothing, nothing), wanted, (0, 1), self.bits, "factor")
        for layer in linear:
            (steps, zeros), frozen = layer.parametrizations.weight[0].grid(), layer.parametrizations.weight[0].frozen
            codes = pack_bits(frozen + spread_scales(zeros, layer.in_features), self.bits)
            more = {"packed_zero_point": pack_bits(zeros, self.bits)} if self.end_to_end else {}
            parametrize.remove_parametrizations(layer, "weight")
            self.unpack(layer, {"packed_weight": codes, "weight_scale": steps.half(), **more})
        return model

    def pack(self, module: nn.Module) -> dict[str, torch.Tensor]:
        others = {name: one for name, one in module.named_parameters(recurse=False) if name != "weight"}
        return {**others, **vars(module)["packed"]} if hasattr(module, "packed") else {}

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        shape, steps = module.weight.shape, tensors["weight_scale"]
        codes = unpack_bits(tensors["packed_weight"], self.bits, shape)
        middle = torch.full(steps.shape, 2.0 ** (self.bits - 1) - 1)
        zeros = unpack_bits(tensors["packed_zero_point"], self.bits, steps.shape) if self.end_to_end else middle
        module.weight = nn.Parameter((codes - spread_scales(zeros, shape[1])) * spread_scales(steps, shape[1]))
        module.packed = {name: one for name, one in tensors.items() if name != "bias"}
        module.stored_sizes = {"weight": (codes.numel(), sum(one.nbytes for one in module.packed.values()))}
        return module


def _together(model: PreTrainedModel, rows: Rows) -> dict[str, torch.Tensor]:
    fill = {"input_ids": model.config.pad_token_id or 0}  # by which RoBERTa counts positions
    columns = {name: [row[name][0] for row in rows] for name in rows[0]}
    return {name: nn.utils.rnn.pad_sequence(each, True, fill.get(name, 0)) for name, each in columns.items()}


def _set_layers(model: PreTrainedModel, layers: Sequence[nn.Module]) -> None:
    model.base_model.set_submodule(parts_of(model.config.model_type)["layers"], nn.ModuleList(layers))


def _run(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], before: _Output) -> _Output:
    """What the model gives out whose first layer sees the states before it, if there are any."""
    first, states = encoder_layers(model)[0].module, before[0]
    hook = first.register_forward_pre_hook(lambda _, seen: seen if states is None else (states, *seen[1:]))
    with hook, captured_states(model, ["hidden.-1"]) as found:
        logits = model(**batch).logits
    return found["hidden.-1"], logits


@torch.enable_grad()
def _train(model: PreTrainedModel, rows: Rows, inputs: Any, wanted: Any, matched: Any, bits: int, only: str) -> None:
    """Parameters whose names end so learn to give out the `wanted` states and logits, weighted by `matched`, from the
    first inputs, with which the second are mixed in the first half of the steps."""
    named = {name: one for name, one in model.named_parameters() if one.requires_grad and name.endswith(only)}
    rates = {name: GRID_RATE if name.endswith(("factor", "zero_point")) else WEIGHT_RATE for name in named}
    groups = [{"params": [one], "lr": rates[name] * 2.0 ** (4 - bits)} for name, one in named.items()]
    steps, optimizer = END_TO_END_STEPS if only else STEPS, torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        at = step % len(rows)
        given, forced = (outputs[at][0] for outputs in inputs)
        mixed = None if given is None else torch.lerp(given, forced, max(0.0, 1 - 2 * step / steps))
        states, logits = _run(model, rows[at], (mixed, None))
        real = rows[at]["attention_mask"].bool()
        error = matched[0] * functional.mse_loss(states[real], wanted[at][0][real])
        (error + matched[1] * functional.mse_loss(logits, wanted[at][1])).backward()
        optimizer.step()
        schedule.step()
        model.zero_grad()
