"""PyTorch's schemes: dynamic INT8, as the EdgeMIN paper used it, and INT4 on disk. Only here is `torch.ao`, which
PyTorch calls deprecated, imported, when it is used: where it is gone the other schemes still work."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.errors import MethodRefused
from edgemin_utils.quantization import integers
from edgemin_utils.quantization.schemes import Rows, Scheme, is_packed, quiet_libraries, tensor_bytes


def require_kernels() -> None:
    """Raises MethodRefused where PyTorch was built without quantized kernels; cheap, to be asked before training."""
    try:
        with quiet_libraries():
            one = torch.quantize_per_tensor(torch.ones(1, 1), 1.0, 0, torch.qint8)
            torch.ops.quantized.linear_prepack(one, None)
    except RuntimeError:
        raise MethodRefused("this PyTorch build has no quantized CPU kernels; take a scheme of ONNX Runtime") from None


@dataclass(frozen=True)
class TorchInt8(Scheme):
    """Linear layers with signed 8-bit weights, one scale a matrix, and with `embeddings` the word embedding (unsigned,
    one scale a row). Activations are quantized as they come ("dynamic"), with one scale for the whole batch."""

    embeddings: bool
    source = "torch.ao dynamic quantization, as the EdgeMIN paper did"
    arithmetic = "INT8 products in PyTorch, activations quantized batch by batch"

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        """As the class says. Raises MethodRefused where PyTorch was built without quantized kernels."""
        require_kernels()
        with quiet_libraries():
            from torch.ao import quantization

            recipe: dict[Any, Any] = {nn.Linear: quantization.default_dynamic_qconfig}
            if self.embeddings:
                # By name: PyTorch's quantized embedding does not take the expanded indices that small tables get.
                word = model.get_input_embeddings()
                name = next(name for name, module in model.named_modules() if module is word)
                recipe[name] = quantization.float_qparams_weight_only_qconfig
            return quantization.quantize_dynamic(model, recipe)

    def pack(self, module: Any) -> dict[str, torch.Tensor] | None:
        if not is_packed(module):
            return None
        with quiet_libraries():
            weight, bias = module.weight(), module.bias() if is_packed(module, "bias") else None
            stored = {"weight": weight.int_repr()} | ({} if bias is None else {"bias": bias})
            if weight.qscheme() == torch.per_tensor_affine:
                return {**stored, "weight_scale": torch.tensor(weight.q_scale(), dtype=torch.float64)}
            zero_points = weight.q_per_channel_zero_points()
            return {**stored, "weight_scale": weight.q_per_channel_scales(), "weight_zero_point": zero_points}

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        from torch.ao.nn.quantized import Embedding
        from torch.ao.nn.quantized.dynamic import Linear

        stored, scale = tensors["weight"], tensors["weight_scale"]
        with quiet_libraries():
            if isinstance(module, nn.Embedding):
                zero_points = tensors["weight_zero_point"]
                weight = torch._make_per_channel_quantized_tensor(stored, scale, zero_points, 0)
                return Embedding(module.num_embeddings, module.embedding_dim, _weight=weight)
            layer = Linear(module.in_features, module.out_features)
            weight = torch._make_per_tensor_quantized_tensor(stored, float(scale), 0)
            layer.set_weight_bias(weight, tensors.get("bias"))
            return layer


@dataclass(frozen=True)
class TorchInt4(Scheme):
    """Matrices, and with `embeddings` the word embedding, on `grouped_int4_grid`. They are unpacked when the model
    is loaded, which computes in float32 (`onnx-int4` has 4-bit kernels): a study of size and accuracy."""

    embeddings: bool
    source = "round to nearest in groups along the input dimension, own packing of two weights a byte"
    arithmetic = "FP32: weights are unpacked on loading, so latency is that of the FP32 model"

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        word = model.get_input_embeddings() if self.embeddings else None
        for module in list(model.modules()):
            if isinstance(module, nn.Linear) or module is word:
                self.unpack(module, _packed(module))
        return model

    def pack(self, module: nn.Module) -> dict[str, torch.Tensor] | None:
        # What was unpacked lies on its grid, so that it packs to the same integers.
        return _packed(module) if hasattr(module, "stored_sizes") else None

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        columns, packed, scales = module.weight.shape[1], tensors["packed_weight"], tensors["weight_scale"]
        module.weight = nn.Parameter(integers.unpack_int4(packed, columns) * integers.spread_scales(scales, columns))
        if "bias" in tensors:
            module.bias = nn.Parameter(tensors["bias"].detach())
        module.stored_sizes = partial(_sizes, module)
        return module


def _packed(module: Any) -> dict[str, torch.Tensor]:
    packed = integers.pack_int4(integers.grouped_int4_grid(module.weight).integers(module.weight))
    others = {name: value for name, value in module.named_parameters() if name != "weight"}
    return {**others, "packed_weight": packed, "weight_scale": integers.int4_scales(module.weight)}


def _sizes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (weights, bytes) as they lie on disk."""
    sizes = {name: (one.numel(), tensor_bytes(one)) for name, one in module.named_parameters()}
    rows, columns = module.get_parameter("weight").shape
    return {**sizes, "weight": (rows * columns, rows * (-(-columns // 2) + 2 * -(-columns // integers.INT4_GROUP)))}
