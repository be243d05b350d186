"""Size of a model: weights counted three ways, and bytes on disk. `model.parameters()` does not list the weights of
dynamically quantized layers: a count taken there shrinks to embeddings and norms, though nothing was removed."""

from pathlib import Path
from typing import Any

from torch import nn

from edgemin_utils.errors import ModelError
from edgemin_utils.quantization.schemes import stored_sizes

WEIGHT_SUFFIXES = ".safetensors .bin .pt .pth .onnx .data".split()
TOKENIZER_FILES = """tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt vocab.json
    merges.txt spiece.model sentencepiece.bpe.model""".split()
PARTS = "embeddings attention feed_forward norms head".split()
# What names of weights share in all families, and the part they are of; the first that fits counts.
_MARKS = {"norm": "norms", "classifier": "head", ".pooler": "head", ".embeddings": "embeddings"}
_MARKS |= {".attention.": "attention", ".layer.": "feed_forward"}


def stored_weights(model: nn.Module) -> int:
    """Weights and biases wherever they are stored: parameters, and those packed inside quantized layers."""
    return sum(count for count, _ in stored_sizes(model).values())


def paper_parameters(model: nn.Module) -> int:
    """What the paper's counting reports for a model once its linear layers are dynamically quantized: the framework's
    list without the weights and biases of linear layers, the same before and after quantization."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    in_linear = {parameter for module in linear for parameter in module.parameters(recurse=False)}
    return sum(parameter.numel() for parameter in {*model.parameters()} - in_linear)


def size_of(model: nn.Module, folder: Path | None = None) -> dict[str, Any]:
    """All sizes of a model: framework_parameters, stored_weights, paper_parameters; parts (their weights) and
    bytes_per_part (as stored, with scales); integer_bytes (of integers and their scales alone); fp32_bytes (if all were
    FP32); of a saved one what `saved_bytes` says."""
    parts, stored, sizes = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0), stored_sizes(model)
    for name, (count, size) in sizes.items():
        parts[part_of(name)] += count
        stored[part_of(name)] += size
    listed = sum(parameter.numel() for parameter in model.parameters())
    weights, integers = sum(parts.values()), sum(size for count, size in sizes.values() if size < 2 * count)
    return {
        **{"framework_parameters": listed, "stored_weights": weights},
        **{"paper_parameters": paper_parameters(model), "parts": parts, "bytes_per_part": stored},
        **{"integer_bytes": integers, "fp32_bytes": 4 * weights, **(saved_bytes(folder) if folder else {})},
    }


def part_of(parameter_name: str) -> str:
    """The part of an encoder classifier that a weight belongs to, by its name. Raises ModelError where it fits none."""
    for mark, part in _MARKS.items():
        if mark in f".{parameter_name.lower()}":
            return part
    raise ModelError(f"weight {parameter_name!r} belongs to no part of an encoder with a classification head")


def saved_bytes(folder: str | Path) -> dict[str, int]:
    """Bytes of a saved classifier: file_bytes (weights and config.json) and tokenizer_bytes; a stage's record and
    predictions do not count. Raises ModelError where the folder holds no file of weights."""
    files = [path for path in Path(folder).glob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHT_SUFFIXES]
    if not weights:
        raise ModelError(f"{folder} holds no model weights ({', '.join(WEIGHT_SUFFIXES)}); give a saved model's folder")
    tokenizer = sum(path.stat().st_size for path in files if path.name in TOKENIZER_FILES)
    weighed = sum(path.stat().st_size for path in files if path in weights or path.name == "config.json")
    return {"file_bytes": weighed, "tokenizer_bytes": tokenizer}
