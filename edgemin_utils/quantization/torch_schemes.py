"""PyTorch's schemes: dynamic INT8, as the EdgeMIN paper used it, and INT4 on disk. Only here is `torch.ao`, which
PyTorch calls deprecated, imported, when it is used: where it is gone the other schemes still work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import word_table
from edgemin_utils.errors import MethodRefused
from edgemin_utils.quantization import integers
from edgemin_utils.quantization.schemes import Rows, Scheme, quiet_libraries


def require_kernels() -> None:
    """Raises MethodRefused where PyTorch was built without quantized kernels; cheap, to be asked before training."""
    try:
        with quiet_libraries():
            torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(torch.ones(1, 1), 1.0, 0, torch.qint8), None)
    except RuntimeError:
        raise MethodRefused("this PyTorch build has no quantized CPU kernels; take a scheme of ONNX Runtime") from None


class TorchBfloat16(Scheme):
    """All weights and activations in bfloat16, which some processors multiply faster than float32."""

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        return model.to(torch.bfloat16)


@dataclass(frozen=True)
class TorchInt8(Scheme):
    """Linear layers with signed 8-bit weights, one scale a matrix, and with `embeddings` the word embedding (unsigned,
    one scale a row). Activations are quantized as they come ("dynamic"), with one scale for the whole batch."""

    embeddings: bool

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        require_kernels()
        with quiet_libraries():
            from torch.ao import quantization

            recipe: dict[Any, Any] = {nn.Linear: quantization.default_dynamic_qconfig}
            if self.embeddings:
                # By name: PyTorch's quantized embedding does not take the expanded indices that small tables get.
                word = word_table(model)
                name = next(name for name, module in model.named_modules() if module is word)
                recipe[name] = quantization.float_qparams_weight_only_qconfig
            return quantization.quantize_dynamic(model, recipe)

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        from torch.ao.nn.quantized import Embedding
        from torch.ao.nn.quantized.dynamic import Linear

        require_kernels()
        stored, scale = tensors["weight"], tensors["weight_scale"]
        with quiet_libraries():
            if isinstance(module, nn.Embedding):
                weight = torch._make_per_channel_quantized_tensor(stored, scale, tensors["weight_zero_point"], 0)
                return Embedding(module.num_embeddings, module.embedding_dim, _weight=weight)
            layer = Linear(module.in_features, module.out_features)
            layer.set_weight_bias(torch._make_per_tensor_quantized_tensor(stored, float(scale), 0), tensors.get("bias"))
            return layer


@dataclass(frozen=True)
class TorchInt4(Scheme):
    """Matrices, and with `embeddings` the word embedding, on `grouped_int4_grid`; computes in float32, unpacked."""

    embeddings: bool

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        word = word_table(model) if self.embeddings else None
        for module in list(model.modules()):
            if isinstance(module, nn.Linear) or module is word:
                self.unpack(module, _packed(module))
        return model

    def pack(self, module: nn.Module) -> dict[str, torch.Tensor]:
        # What was unpacked lies on its grid, so that it packs to the same integers.
        return _packed(module) if hasattr(module, "stored_sizes") else {}

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        columns, packed, scales = module.weight.shape[1], tensors["packed_weight"], tensors["weight_scale"]
        module.weight = nn.Parameter(integers.unpack_int4(packed, columns) * integers.spread_scales(scales, columns))
        module.stored_sizes = {"weight": (module.weight.numel(), packed.nbytes + scales.nbytes)}
        return module


def _packed(module: Any) -> dict[str, torch.Tensor]:
    packed = integers.pack_int4(integers.grouped_int4_grid(module.weight).integers(module.weight))
    others = {name: value for name, value in module.named_parameters() if name != "weight"}
    return {**others, "packed_weight": packed, "weight_scale": integers.int4_scales(module.weight)}
