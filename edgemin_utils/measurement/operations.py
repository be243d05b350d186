"""Sizes of a model; multiply-accumulates (MACs, two FLOPs each) of a forward by formula and two tools; the roofline."""

import functools
import math
import timeit
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from edgemin_utils.encoders import describe_model, encoder_layers, is_exported, longest_input, structure_of
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.latency import timing_conditions
from edgemin_utils.quantization.schemes import is_packed, stored_sizes

WEIGHT_SUFFIXES = ".safetensors .bin .pt .pth .onnx .data".split()
PARTS = "embeddings attention feed_forward norms head".split()
# What names of weights share in all families, and the part they are of; the first that fits counts.
_MARKS = {"norm": "norms", "classifier": "head", ".pooler": "head", ".embeddings": "embeddings"}
_MARKS |= {".attention.": "attention", ".layer.": "feed_forward"}


def paper_parameters(model: nn.Module) -> int:
    """What the paper counts, before quantization and after: what the framework lists, without linear layers."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    in_linear = {parameter for module in linear for parameter in module.parameters(recurse=False)}
    return sum(parameter.numel() for parameter in {*model.parameters()} - in_linear)


def size_of(model: nn.Module, folder: Path | None = None) -> dict[str, Any]:
    """All sizes: framework_parameters (listed), stored_weights, paper_parameters, parts (weights of each),
    bytes_per_part (as stored), integer_bytes (of integers and their scales) and, of a saved model, file_bytes."""
    parts, stored, sizes = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0), stored_sizes(model)
    for name, (count, size) in sizes.items():
        parts[part_of(name)] += count
        stored[part_of(name)] += size
    listed = sum(parameter.numel() for parameter in model.parameters())
    counts = {"framework_parameters": listed, "stored_weights": sum(parts.values())}
    counts |= {"paper_parameters": paper_parameters(model)} | ({"file_bytes": saved_bytes(folder)} if folder else {})
    integers = sum(size for count, size in sizes.values() if size < 2 * count)
    return {**counts, "parts": parts, "bytes_per_part": stored, "integer_bytes": integers}


def part_of(parameter_name: str) -> str:
    """The part of an encoder classifier that a weight belongs to, by its name. Raises ModelError where it fits none."""
    for mark, part in _MARKS.items():
        if mark in f".{parameter_name.lower()}":
            return part
    raise ModelError(f"weight {parameter_name!r} belongs to no part of an encoder with a classification head")


def saved_bytes(folder: str | Path) -> int:
    """Bytes of a saved classifier's weights and config.json. Raises ModelError where the folder holds no weights."""
    weights = [path for path in Path(folder).glob("*") if path.suffix in WEIGHT_SUFFIXES]
    if not weights:
        raise ModelError(f"{folder} holds no model weights ({', '.join(WEIGHT_SUFFIXES)}); give a saved model's folder")
    return sum(path.stat().st_size for path in (*weights, *Path(folder).glob("config.json")))


class Product(NamedTuple):
    """`number` products (rows, inputs) x (inputs, outputs): "linear" with weights, or "attention"; "fp32" or "int8"."""

    kind: str
    precision: str
    number: int
    rows: int
    inputs: int
    outputs: int


def products_of(model: PreTrainedModel, batch: int, length: int) -> list[Product]:
    """Every matrix product of one forward of `batch` rows of `length` tokens, by the shapes of the layers. Attention is
    a product a head for the scores and one for the weighted sum (Vaswani et al. 2017, table 1), never quantized; behind
    it the last layer of a bundle's graph, like the head of all, sees the first token alone."""
    sizes = stored_sizes(model) if is_exported(model) else {}  # of integers: under two bytes a weight
    modules, found = structure_of(model), []
    parts = "attention_output feed_forward_in feed_forward_out".split()
    late = [getattr(encoder_layers(modules)[-1], part) for part in parts]
    late = late if getattr(model, "notes", {}).get("last_layer_first_token") else []
    for name, module in modules.named_modules():
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            weights, size = sizes.get(f"{name}.weight", (0, 0))
            precision = "int8" if is_packed(module) or size < 2 * weights else "fp32"
            tokens = batch * (1 if part_of(f"{name}.weight") == "head" or module in late else length)
            found.append(Product("linear", precision, 1, tokens, module.in_features, module.out_features))
    for layer in encoder_layers(modules):
        heads, width = ("attention", "fp32", batch * layer.num_heads, length), layer.head_size
        found += [Product(*heads, width, length), Product(*heads, length, width)]
    return found


def closed_formula_macs(model: PreTrainedModel, batch: int, length: int) -> int:
    """MACs of one forward by `products_of`, FP32 or quantized."""
    return macs_of(products_of(model, batch, length))["macs"]


def macs_of(products: Iterable[Product]) -> dict[str, int]:
    """macs of all the products, and int8_macs of those in INT8."""
    counts = [(math.prod(sizes), precision == "int8") for _, precision, *sizes in products]
    return {"macs": sum(count for count, _ in counts), "int8_macs": sum(count for count, integer in counts if integer)}


def count_operations(model: PreTrainedModel, batch: int, length: int) -> dict[str, Any]:
    """`macs_of` a forward; fvcore and torch (what these tools count) and their ratios, None of a quantized model."""
    found = macs_of(products_of(model, batch, length))
    if is_exported(model) or found["int8_macs"]:
        return {**found, **dict.fromkeys("fvcore torch fvcore_ratio torch_ratio".split())}
    tokens = torch.full((batch, length), 2, dtype=torch.int64, device=next(model.parameters()).device)
    before = model.config._attn_implementation  # perhaps fused, which both tools miss
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of constants that are constant here
            analysis = FlopCountAnalysis(model, (tokens,)).tracer_warnings("none")
            counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
            with FlopCounterMode(display=False) as counter:
                model(input_ids=tokens)
    finally:
        model.set_attn_implementation(before)
    # fvcore puts 5 an element on layer norms, which are no products; of two FLOPs one is a MAC.
    tools = {"fvcore": int(sum(counts.values()) - counts.get("layer_norm", 0)), "torch": counter.get_total_flops() // 2}
    return {**found, **tools, **{f"{tool}_ratio": count / found["macs"] for tool, count in tools.items()}}


def describe_costs(model: PreTrainedModel, lengths: Iterable[int], folder: Path | None = None) -> dict[str, Any]:
    """model (see `describe_model`), size (see `size_of`), operations ("1x32" -> see `count_operations`; what fits)."""
    operations = {f"1x{each}": count_operations(model, 1, each) for each in lengths if each <= longest_input(model)}
    return {"model": describe_model(model), "size": size_of(model, folder), "operations": operations}


def roofline_bound(products: Iterable[Product], bytes_read: int) -> float:
    """The least milliseconds on one thread of this machine: for the products of a forward, or to read its weights."""
    with timing_conditions(1):  # what fits in a cache is read from there
        return 1e3 * max(sum(_best_time(product) for product in products), _best_time(bytes_read))


@functools.cache
def _best_time(work: Product | int) -> float:
    """Seconds, the least of many calls, so that a busy machine does not raise the bound."""
    return min(timeit.repeat(_kernel(work), number=1, repeat=30))


def _kernel(product: Product | int) -> Callable[[], Any]:
    """What computes the product, or reads so many bytes: oneDNN's, in INT8 as fast as ONNX Runtime's MatMulInteger."""
    if isinstance(product, int):
        return torch.ones(product // 4 + 1).sum
    _, precision, number, rows, inputs, outputs = product
    if precision == "int8":
        whole, weights = torch.ones(rows, inputs, dtype=torch.int8), torch.ones(outputs, inputs, dtype=torch.int8).t()
        return lambda: torch._int_mm(whole, weights)
    states, factors = torch.randn(number, rows, inputs), torch.randn(number, inputs, outputs)
    return (lambda: torch.bmm(states, factors)) if number > 1 else (lambda: torch.mm(states[0], factors[0]))
