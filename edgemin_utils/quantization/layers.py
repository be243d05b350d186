"""What is and what is not quantized, module by module."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from edgemin_utils.measurement.parameters import stored_sizes


def layer_table(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """One row for every module of `before` that owns weights.

    Args:
        before: the float model.
        after: its quantized form, in PyTorch or ONNX Runtime.

    Returns:
        Rows of name, kind (class name before), quantized, parameters, bytes_before and bytes_after (weights, biases
        and scales as they are stored).
    """
    stored, rows = stored_sizes(after), []
    for name, module in before.named_modules():
        count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if count:
            size = _size_of(name, module, stored)
            rows.append(
                {
                    "name": name,
                    "kind": type(module).__name__,
                    "quantized": size < 4 * count,
                    "parameters": count,
                    "bytes_before": 4 * count,
                    "bytes_after": size,
                }
            )
    return rows


def _size_of(name: str, module: nn.Module, stored: Mapping[str, tuple[int, int]]) -> int:
    return sum(stored[f"{name}.{part}"][1] for part, _ in module.named_parameters(recurse=False))
