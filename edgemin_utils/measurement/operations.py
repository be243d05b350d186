"""Multiply-accumulates (MACs, two FLOPs each) of one forward's matrix products, by two tools and by the closed formula,
which must agree. The tools miss fused attention: fvcore gets a handler here, torch's counter runs eager attention."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from edgemin_utils.encoders import encoder_layers, is_exported, structure_of
from edgemin_utils.measurement.parameters import part_of
from edgemin_utils.quantization.schemes import is_packed, stored_sizes

UNSEEN = "No tool sees inside quantized layers or ONNX Runtime; the formula holds, and the float model has all counts."


class Product(NamedTuple):
    """`number` matrix products (rows, inputs) x (inputs, outputs) of a forward: "linear" with weights, or "attention";
    in "fp32" or "int8"."""

    kind: str
    precision: str
    number: int
    rows: int
    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        """Of all of them."""
        return self.number * self.rows * self.inputs * self.outputs


def products_of(model: PreTrainedModel, batch: int, length: int) -> list[Product]:
    """Every matrix product of one forward of `batch` rows of `length` tokens, by the shapes of the model's own layers.
    The head sees the first token alone. Attention is a product a head for the scores and one for the weighted sum
    (Vaswani et al. 2017, table 1), which no scheme quantizes."""
    sizes = stored_sizes(model) if is_exported(model) else {}  # of integers: under two bytes a weight
    modules, found = structure_of(model), []
    for name, module in modules.named_modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            weights, size = sizes.get(f"{name}.weight", (0, 0))
            precision = "int8" if is_packed(module) or size < 2 * weights else "fp32"
            tokens = batch * (1 if part_of(f"{name}.weight") == "head" else length)
            found.append(Product("linear", precision, 1, tokens, module.in_features, module.out_features))
    for layer in encoder_layers(modules):
        heads, width = ("attention", "fp32", batch * layer.num_heads, length), layer.head_size
        found += [Product(*heads, width, length), Product(*heads, length, width)]
    return found


def closed_formula_macs(model: PreTrainedModel, batch: int, length: int) -> int:
    """MACs of one forward by `products_of`, FP32 or quantized."""
    return sum(product.macs for product in products_of(model, batch, length))


def count_operations(model: PreTrainedModel, batch: int, length: int) -> dict[str, Any]:
    """The three counts of one forward: macs (the closed formula's), fvcore and torch (the tools', None of a quantized
    model), fvcore_ratio and torch_ratio (theirs / the formula's), int8_macs (in quantized layers), note."""
    products = products_of(model, batch, length)
    macs, integer = (sum(each.macs for each in products if each.precision in kinds) for kinds in ("fp32 int8", "int8"))
    found = {"macs": macs, "int8_macs": integer, "note": UNSEEN}
    if is_exported(model) or integer:
        return found | dict.fromkeys("fvcore torch fvcore_ratio torch_ratio".split())
    fvcore, by_torch = _by_tools(model, batch, length)
    ratios = {"fvcore_ratio": fvcore / macs, "torch_ratio": by_torch / macs}
    return {**found, "note": "", "fvcore": fvcore, "torch": by_torch, **ratios}


def _by_tools(model: PreTrainedModel, batch: int, length: int) -> tuple[int, int]:
    """By fvcore without layer norms, on which it puts 5 an element, and by torch, whose FLOPs are halved."""
    tokens = torch.full((batch, length), 2, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of constants that are constant here
        analysis = FlopCountAnalysis(model, (tokens,))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        found, before = analysis.by_operator(), model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=tokens)
    finally:
        model.set_attn_implementation(before)
    return int(sum(found.values()) - found.get("layer_norm", 0)), counter.get_total_flops() // 2


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = (item.type().sizes() for item in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
