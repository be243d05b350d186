"""Size of a model: weights counted three ways, and bytes on disk.

Why three ways: `model.parameters()` does not list the weights of dynamically quantized layers, which live in
packed buffers. A count taken there shrinks to embeddings and layer norms, although nothing was removed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemin_utils.errors import ModelError

MB = 1_000_000
MIB = 2**20
PARTS = ("embeddings", "attention", "feed_forward", "norms", "head")

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".data")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def framework_parameters(model: nn.Module) -> int:
    """What the framework lists: elements of `model.parameters()`. Blind to packed (quantized) weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def stored_weights(model: nn.Module) -> int:
    """Weights and biases wherever they are stored: parameters, and those packed inside quantized layers."""
    return sum(count for count, _ in stored_sizes(model).values())


def paper_parameters(model: nn.Module) -> int:
    """What the paper's counting reports for a model once its linear layers are dynamically quantized.

    That is the framework's list without the weights and biases of linear layers, the same before and after
    quantization.
    """
    in_linear = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in in_linear)


def weights_by_part(model: nn.Module) -> dict[str, int]:
    """Part (see `part_of`) -> number of weights; the values add up to `stored_weights`."""
    counts = dict.fromkeys(PARTS, 0)
    for name, (count, _) in stored_sizes(model).items():
        counts[part_of(name)] += count
    return counts


def bytes_by_part(model: nn.Module) -> dict[str, int]:
    """Part -> bytes its weights take: 4 a FP32 weight, 1 an INT8 weight, half an INT4 one, and their scales."""
    counts = dict.fromkeys(PARTS, 0)
    for name, (_, size) in stored_sizes(model).items():
        counts[part_of(name)] += size
    return counts


def bytes_by_precision(model: nn.Module) -> dict[str, dict[str, int]]:
    """Part -> {"fp32", "int8"}: the bytes of `bytes_by_part`, apart by how the weights are stored. INT8 holds
    integers with their scales and zero points; what stays in floating point counts as fp32, at its own size."""
    counts = {part: {"fp32": 0, "int8": 0} for part in PARTS}
    for name, (weights, size) in stored_sizes(model).items():
        counts[part_of(name)]["int8" if size < 2 * weights else "fp32"] += size
    return counts


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """All counts of one model: framework, stored, paper (numbers), parts and part_bytes (dicts by part)."""
    return {
        "framework": framework_parameters(model),
        "stored": stored_weights(model),
        "paper": paper_parameters(model),
        "parts": weights_by_part(model),
        "part_bytes": bytes_by_part(model),
    }


def stored_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (number of weights, bytes) of every weight and bias once, also where two modules share it.

    A dynamically quantized layer has methods `weight()` and `bias()` in place of parameters; their tensors are named
    as the parameters were. A module that stores its weights otherwise has a method `stored_sizes` of its own, whose
    names are relative to it. Position numbers and other buffers are no weights.
    """
    sizes, seen = {}, set[int]()
    for prefix, module in model.named_modules():
        for name, size in _sizes_of_module(module, seen):
            sizes[f"{prefix}.{name}" if prefix else name] = size
    return sizes


def _sizes_of_module(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, tuple[int, int]]]:
    own = getattr(module, "stored_sizes", None)
    if own is not None:
        yield from own().items()
        return
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, (parameter.numel(), tensor_bytes(parameter))
    for kind in ("weight", "bias"):
        if is_packed(module, kind) and (tensor := getattr(module, kind)()) is not None:
            yield kind, (tensor.numel(), tensor_bytes(tensor))


def has_packed_weights(model: nn.Module) -> bool:
    """Whether some layer is quantized, so that its weights are no parameters."""
    return any(is_packed(module) for module in model.modules())


def is_packed(module: nn.Module, kind: str = "weight") -> bool:
    """Whether a layer's weight (or bias) is packed: read by a method of that name, not held as a parameter."""
    stored = getattr(module, kind, None)
    return callable(stored) and not isinstance(stored, nn.Module)


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements, whatever its shape, and of a quantized one's scales and zero points.

    One scale for the whole tensor has 64 bits, and so has its zero point unless that is 0 (symmetric INT8).
    """
    size = tensor.numel() * tensor.element_size()
    if not tensor.is_quantized:
        return size
    if tensor.qscheme() == torch.per_tensor_affine:
        return size + (16 if tensor.q_zero_point() else 8)
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return size + sum(values.numel() * values.element_size() for values in (scales, zero_points))


def part_of(parameter_name: str) -> str:
    """The part of an encoder classifier that a weight belongs to, by what names share in all families.

    norms: every layer norm; head: pooler and classifier; embeddings: tables and their projection; attention:
    query, key, value and output projections; feed_forward: what else lies in a layer.

    Raises:
        ModelError: the name fits none, so the model is no encoder with a classification head.
    """
    name = "." + parameter_name.lower()
    if "norm" in name:
        return "norms"
    if "classifier" in name or ".pooler" in name:
        return "head"
    if ".embeddings" in name:
        return "embeddings"
    if ".attention." in name:
        return "attention"
    if ".layer." in name:
        return "feed_forward"
    raise ModelError(
        f"weight {parameter_name!r} belongs to no known part ({', '.join(PARTS)}); "
        "only encoders with a classification head are counted"
    )


def saved_bytes(folder: str | Path) -> dict[str, int]:
    """Bytes of a saved classifier: model_bytes (weights and config.json), tokenizer_bytes, total. Other
    files, such as a stage's record and predictions, are left out.

    Raises:
        ModelError: the folder holds no file of weights.
    """
    files = [path for path in Path(folder).glob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHT_SUFFIXES]
    if not weights:
        raise ModelError(
            f"{folder} holds no model weights ({', '.join(WEIGHT_SUFFIXES)}); give the folder a model was saved in"
        )
    model = sum(path.stat().st_size for path in files if path in weights or path.name == "config.json")
    tokenizer = sum(path.stat().st_size for path in files if path.name in TOKENIZER_FILES)
    return {"model_bytes": model, "tokenizer_bytes": tokenizer, "total": model + tokenizer}


def megabytes(size: int) -> float:
    """Bytes in MB = 10^6 bytes, the unit of the study."""
    return size / MB


def mebibytes(size: int) -> float:
    """Bytes in MiB = 2^20 bytes, the unit that stands behind the paper's "MB"."""
    return size / MIB
