"""Multiply-accumulates (MACs) of one forward, counted three ways that must agree.

One MAC is one multiplication and one addition: two FLOPs. Matrix products alone are counted. Layer norms,
softmax, activations and biases are well under 1 % of an encoder of usual size. fvcore puts a number on layer
norms (5 an element); it is returned apart, so that published counts which hold it can be traced.

Two tools count traced or executed operations, the third way is the closed formula. Under fused attention
(SDPA) the tools miss the attention products: fvcore gets a handler for it here, torch's counter runs the
model under eager attention. Quantization replaces the arithmetic of linear layers and removes none of their
operations, but no tool sees inside a quantized layer: fvcore cannot trace it, torch's counter counts it as
nothing. For a quantized model both count its *float twin*: the same modules, with a float layer of the same
shape in place of every quantized one. The closed formula reads the quantized model itself.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from edgemin_utils.encoders import encoder_layers, is_exported, structure_of
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.parameters import has_packed_weights, is_packed, part_of, stored_sizes

ONNX_NOTE = (
    "The model is an ONNX graph: neither fvcore nor torch's counter sees inside ONNX Runtime. The closed "
    "formula holds for the layers' shapes as they were exported."
)
QUANTIZED_NOTE = (
    "Linear layers are quantized: fvcore cannot trace them and torch's counter sees no product "
    "in them. Both counted the float twin, a model with float layers of the same shapes; the closed "
    "formula read the quantized model."
)


def count_operations(model: nn.Module, batch: int, length: int) -> dict[str, Any]:
    """The three counts of one forward of `batch` rows of `length` tokens, and how they agree.

    Returns:
        batch, length; macs (the closed formula's) and flops (twice that); closed_formula_macs, fvcore_macs,
        torch_flop_counter_macs; fvcore_with_layer_norms (fvcore's own total); fvcore_ratio and
        torch_flop_counter_ratio (count / closed formula); note. For a quantized model the tools count its float
        twin, and the note says so. For an ONNX graph their counts and ratios are None.
    """
    closed = closed_formula_macs(model, batch, length)
    note = ONNX_NOTE if is_exported(model) else QUANTIZED_NOTE if has_packed_weights(model) else ""
    counts: dict[str, Any] = dict.fromkeys(("fvcore_macs", "torch_flop_counter_macs", "fvcore_with_layer_norms"))
    if not is_exported(model):
        counted = float_twin(model) if has_packed_weights(model) else model
        by_operator = fvcore_by_operator(counted, batch, length)
        counts = {
            "fvcore_macs": _of_matrix_products(by_operator),
            "torch_flop_counter_macs": torch_flop_counter_macs(counted, batch, length),
            "fvcore_with_layer_norms": sum(by_operator.values()),
        }
    ratios = {
        name.replace("_macs", "_ratio"): None if counts[name] is None else counts[name] / closed
        for name in ("fvcore_macs", "torch_flop_counter_macs")
    }
    return {
        "batch": batch,
        "length": length,
        "macs": closed,
        "flops": 2 * closed,
        "closed_formula_macs": closed,
        **counts,
        **ratios,
        "note": note,
    }


def closed_formula_macs(model: nn.Module, batch: int, length: int) -> int:
    """MACs by the shapes of the model's own layers, whatever was cut from them, FP32 or quantized.

    A linear layer costs inputs x outputs for each token it sees: every token inside the encoder, the first
    token alone in the head. In each layer the attention scores and the weighted sum cost length^2 x (heads x
    head size) each (Vaswani et al. 2017, table 1).
    """
    return sum(macs_by_precision(model, batch, length).values())


def macs_by_precision(model: PreTrainedModel, batch: int, length: int) -> dict[str, int]:
    """The closed formula apart by the arithmetic that does it: int8 (linear layers that are quantized) and
    fp32 (the others, and the attention products, which no scheme quantizes). Of an exported model, layers whose weights
    take less than two bytes each are the quantized ones."""
    exported = stored_sizes(model) if is_exported(model) else {}
    model = structure_of(model)
    macs = {"fp32": 0, "int8": 0}
    for name, linear in _linear_layers(model):
        tokens = 1 if part_of(f"{name}.weight") == "head" else length
        weights, size = exported.get(f"{name}.weight", (0, 0))
        precision = "int8" if is_packed(linear) or size < 2 * weights else "fp32"
        macs[precision] += tokens * linear.in_features * linear.out_features
    macs["fp32"] += (
        length * length * sum(layer.query.out_features + layer.value.out_features for layer in encoder_layers(model))
    )
    return {precision: batch * count for precision, count in macs.items()}


def float_twin(model: nn.Module) -> nn.Module:
    """A model with the shapes of `model` and a float layer in place of every quantized one, without memory for
    weights (on torch's meta device): for counting only."""
    with torch.device("meta"):
        memo: dict[int, Any] = {id(module): _float_layer(module) for module in model.modules() if is_packed(module)}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(model, memo).to("meta")


def fvcore_by_operator(model: nn.Module, batch: int, length: int) -> dict[str, int]:
    """fvcore's count of the traced model by operator: linear, layer_norm, and matmul (eager attention) or
    scaled_dot_product_attention (fused).

    Raises:
        ModelError: the model is quantized; fvcore cannot trace it.
    """
    _refuse_quantized(model, "fvcore")
    with _evaluated(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of constants that are constant here
        analysis = FlopCountAnalysis(_FromTokens(model), (_tokens(model, batch, length),))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _scaled_dot_product_attention_macs)
        return {operator: int(count) for operator, count in analysis.by_operator().items()}


def torch_flop_counter_macs(model: nn.Module, batch: int, length: int) -> int:
    """MACs by torch's FlopCounterMode (its FLOPs halved) of a forward under eager attention.

    The attention implementation that the model had is put back.

    Raises:
        ModelError: the model is quantized; its linear layers would be counted as nothing.
    """
    _refuse_quantized(model, "torch's FLOP counter")
    with _evaluated(model), _eager_attention(model), FlopCounterMode(display=False) as counter:
        model(input_ids=_tokens(model, batch, length))
    return counter.get_total_flops() // 2


class _FromTokens(nn.Module):
    """A model seen as a function of input_ids alone, as tracing needs it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids).logits


def _scaled_dot_product_attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Scores (rows x queries x keys x query size) and weighted sum (rows x queries x keys x value size)."""
    query, key, value = (item.type().sizes() for item in inputs[:3])
    rows = 1
    for size in query[:-2]:
        rows *= size
    return rows * query[-2] * key[-2] * (query[-1] + value[-1])


def _of_matrix_products(by_operator: dict[str, int]) -> int:
    return sum(count for operator, count in by_operator.items() if operator != "layer_norm")


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, module) of FP32 and quantized linear layers: what has in_features and out_features."""
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            yield name, module


def _tokens(model: PreTrainedModel, batch: int, length: int) -> torch.Tensor:
    """int64 (batch, length): one ordinary token, everywhere; counts do not depend on which."""
    device = next(model.parameters()).device
    return torch.full((batch, length), min(7, model.config.vocab_size - 1), dtype=torch.int64, device=device)


def _float_layer(module: Any) -> nn.Module:
    """A float layer of a quantized one's shape."""
    if hasattr(module, "in_features"):
        return nn.Linear(module.in_features, module.out_features, bias=module.bias() is not None)
    return nn.Embedding(module.num_embeddings, module.embedding_dim)


def _refuse_quantized(model: nn.Module, tool: str) -> None:
    if has_packed_weights(model):
        raise ModelError(f"{tool} cannot count a quantized model; count its float_twin, or use closed_formula_macs")


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the former mode is put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
