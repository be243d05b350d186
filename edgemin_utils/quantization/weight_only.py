"""INT4 weights on disk: half a byte a weight and a scale for every group of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from edgemin_utils.encoders import empty_model, fill_parameters
from edgemin_utils.quantization.integers import grouped_int4_grid, int4_scales, pack_int4, spread_scales, unpack_int4
from edgemin_utils.quantization.scheme import Scheme

INT4_WEIGHTS_FILE = "int4_model.safetensors"


@dataclass(frozen=True)
class WeightInt4(Scheme):
    """Matrices as 4-bit integers, symmetric, with one float16 scale for every 32 weights along the input dimension
    (of an embedding: along a token's vector). Biases, norms and the other embeddings stay in float32.

    A study of size and accuracy: it uses no 4-bit kernels (`onnx_int4` does). Matrices are unpacked when the model is
    loaded and it computes in float32, so its latency and memory are those of the float model.

    Attributes:
        embeddings: whether the word embedding is quantized too.
    """

    embeddings: bool
    source = "round to nearest in groups along the input dimension, own packing of two weights a byte"
    arithmetic = "FP32: weights are unpacked on loading, so latency is that of the FP32 model"

    def quantize(self, model: PreTrainedModel, rows: Sequence[Mapping[str, torch.Tensor]] = ()) -> nn.Module:
        with torch.no_grad():
            for module in self._matrices(model).values():
                grid, scales = grouped_int4_grid(module.weight), int4_scales(module.weight)
                _become_int4(module, pack_int4(grid.integers(module.weight)), scales)
        return model

    def save(self, quantized: nn.Module, folder: Path) -> None:
        packed = self._matrices(quantized)
        tensors: dict[str, torch.Tensor] = {name: value.detach() for name, value in quantized.named_parameters()}
        for name, module in packed.items():
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.packed_weight": module.packed_weight, f"{name}.weight_scale": module.weight_scale}
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / INT4_WEIGHTS_FILE)

    def load(
        self, folder: Path, config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str
    ) -> nn.Module:
        model = empty_model(config, shapes, attention_implementation)
        tensors = load_file(folder / INT4_WEIGHTS_FILE)
        for name, module in self._matrices(model).items():
            _become_int4(module, tensors.pop(f"{name}.packed_weight"), tensors.pop(f"{name}.weight_scale"))
            tensors[f"{name}.weight"] = module.weight.detach()
        fill_parameters(model, tensors)
        return model

    def _matrices(self, model: PreTrainedModel) -> dict[str, Any]:
        word = model.get_input_embeddings() if self.embeddings else None
        return {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) or module is word
        }


class Int4Linear(nn.Linear):
    """A linear layer whose weight was unpacked from INT4; it computes in float32."""

    def stored_sizes(self) -> dict[str, tuple[int, int]]:
        """Name -> (weights, bytes) as they lie on disk."""
        return _stored_sizes(self)


class Int4Embedding(nn.Embedding):
    """An embedding whose table was unpacked from INT4."""

    def stored_sizes(self) -> dict[str, tuple[int, int]]:
        """Name -> (weights, bytes) as they lie on disk."""
        return _stored_sizes(self)


def _become_int4(module: nn.Linear | nn.Embedding, packed: torch.Tensor, scales: torch.Tensor) -> None:
    """Makes a linear layer or an embedding one that stores its matrix as INT4, in place."""
    columns = module.weight.shape[1]
    module.weight = nn.Parameter(unpack_int4(packed, columns).float() * spread_scales(scales, columns).float())
    module.register_buffer("packed_weight", packed, persistent=False)
    module.register_buffer("weight_scale", scales, persistent=False)
    module.__class__ = Int4Linear if isinstance(module, nn.Linear) else Int4Embedding


def _stored_sizes(module: Any) -> dict[str, tuple[int, int]]:
    matrix = sum(buffer.numel() * buffer.element_size() for buffer in (module.packed_weight, module.weight_scale))
    sizes = {"weight": (module.weight.numel(), matrix)}
    bias = getattr(module, "bias", None)
    return sizes if bias is None else {**sizes, "bias": (bias.numel(), 4 * bias.numel())}
