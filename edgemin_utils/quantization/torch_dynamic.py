"""PyTorch's dynamic INT8, as the EdgeMIN paper used it.

The only module that touches `torch.ao`, which is imported when it is used: PyTorch calls its eager quantization
deprecated, and where it is gone the other schemes still work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from edgemin_utils.encoders import empty_model, fill_parameters
from edgemin_utils.errors import MethodRefused
from edgemin_utils.library_messages import quiet_torch_ao
from edgemin_utils.quantization.scheme import Scheme

QUANTIZED_WEIGHTS_FILE = "quantized_model.safetensors"
_STORED = ("weight", "weight_scale", "weight_zero_point", "bias")


@dataclass(frozen=True)
class TorchDynamic(Scheme):
    """Linear layers with signed 8-bit weights, one scale a matrix; activations are quantized as they come
    ("dynamic"), with one scale for the whole batch, so that a row's logits depend a little on the rows beside it.
    Norms, position and token-type embeddings stay in float32.

    Attributes:
        embeddings: whether the word embedding is quantized too (unsigned 8 bit, one scale a row).
    """

    embeddings: bool
    arithmetic = "INT8 products in PyTorch, activations quantized batch by batch"
    needs = ("torch.ao",)

    @property
    def source(self) -> str:
        return "torch.ao dynamic quantization of linear layers, as the EdgeMIN paper did" + (
            ", and of the word embedding" if self.embeddings else ""
        )

    def quantize(self, model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]] = ()) -> nn.Module:
        if not any(engine != "none" for engine in torch.backends.quantized.supported_engines):
            raise MethodRefused(
                "this PyTorch build has no quantized CPU kernels; use an x86 or Arm build of PyTorch, "
                "or a scheme of ONNX Runtime"
            )
        with quiet_torch_ao():
            from torch.ao.quantization import (
                default_dynamic_qconfig,
                float_qparams_weight_only_qconfig,
                quantize_dynamic,
            )

            recipe: dict[Any, Any] = {nn.Linear: default_dynamic_qconfig}
            if self.embeddings:
                recipe.update(dict.fromkeys(_word_embedding_names(model), float_qparams_weight_only_qconfig))
            return quantize_dynamic(model, recipe)

    def save(self, quantized: nn.Module, folder: Path) -> None:
        tensors = {}
        for name, module in quantized.named_modules():
            own = (
                _stored_tensors(module)
                if _is_quantized(module)
                else {part: value.detach().clone() for part, value in module.named_parameters(recurse=False)}
            )
            tensors.update({f"{name}.{part}" if name else part: value.contiguous() for part, value in own.items()})
        save_file(tensors, folder / QUANTIZED_WEIGHTS_FILE)

    def load(
        self, folder: Path, config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str
    ) -> nn.Module:
        model = empty_model(config, shapes, attention_implementation)
        tensors = load_file(folder / QUANTIZED_WEIGHTS_FILE)
        for name in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
            own = {part: tensors.pop(f"{name}.{part}") for part in _STORED if f"{name}.{part}" in tensors}
            model.set_submodule(name, _restored(model.get_submodule(name), own))
        fill_parameters(model, tensors)
        return model


def _is_quantized(module: nn.Module) -> bool:
    return _is_embedding(module) or _is_linear(module)


def _is_embedding(module: nn.Module) -> bool:
    from torch.ao.nn.quantized import Embedding

    return isinstance(module, Embedding)


def _is_linear(module: nn.Module) -> bool:
    from torch.ao.nn.quantized.dynamic import Linear

    return isinstance(module, Linear)


def _stored_tensors(module: Any) -> dict[str, torch.Tensor]:
    """A quantized module's weights as plain tensors: integers, scale, zero point, bias."""
    with quiet_torch_ao():
        weight = module.weight()
        if _is_embedding(module):
            return {
                "weight": weight.int_repr(),
                "weight_scale": weight.q_per_channel_scales(),
                "weight_zero_point": weight.q_per_channel_zero_points(),
            }
        stored = {"weight": weight.int_repr(), "weight_scale": torch.tensor(weight.q_scale(), dtype=torch.float64)}
        bias = module.bias()
    return stored if bias is None else {**stored, "bias": bias.detach()}


def _restored(module: nn.Module, stored: Mapping[str, torch.Tensor]) -> nn.Module:
    """The quantized form of a linear layer or embedding, of whose weights only the shapes are looked at."""
    from torch.ao.nn.quantized import Embedding
    from torch.ao.nn.quantized.dynamic import Linear

    with quiet_torch_ao():
        if isinstance(module, nn.Embedding):
            count, size = module.weight.shape
            return Embedding(
                count,
                size,
                _weight=torch._make_per_channel_quantized_tensor(
                    stored["weight"], stored["weight_scale"], stored["weight_zero_point"], 0
                ),
            )
        restored = Linear(module.in_features, module.out_features)
        restored.set_weight_bias(
            torch._make_per_tensor_quantized_tensor(stored["weight"], float(stored["weight_scale"]), 0),
            stored.get("bias"),
        )
        return restored


def _word_embedding_names(model: PreTrainedModel) -> list[str]:
    """The embedding of tokens. Position and token-type tables are small, and PyTorch's quantized embedding does not
    take the expanded indices that they get."""
    word = model.get_input_embeddings()
    return [name for name, module in model.named_modules() if module is word]
