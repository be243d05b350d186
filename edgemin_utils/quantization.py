"""Post-training quantization: the schemes, what they touch, and models whose weights are INT8 on disk.

The only module that touches `torch.ao`. PyTorch calls its eager dynamic quantization deprecated; it is here because
the paper used it.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.ao.nn.quantized import Embedding as QuantizedEmbedding
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.ao.quantization import (
    default_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    quantize_dynamic,
)
from transformers import PreTrainedTokenizerBase

from edgemin_utils.checkpoints import cut_config
from edgemin_utils.checkpoints import load_model as load_float_model
from edgemin_utils.config import nearest
from edgemin_utils.encoders import layer_shapes, model_from_shapes
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.library_messages import quiet_torch_ao

QUANTIZED_WEIGHTS_FILE = "quantized_model.safetensors"
QUANTIZED_MODEL_TYPE = "quantized by EdgeMIN: load this folder with edgemin_utils.quantization.load_model(folder)"


@dataclass(frozen=True)
class Scheme:
    """A way of quantizing.

    Attributes:
        linear, embeddings: whether linear layers and the word embedding become INT8.
        source: where it comes from.
    """

    linear: bool
    embeddings: bool
    source: str


SCHEMES: dict[str, Scheme] = {
    "dynamic-int8": Scheme(True, False, "torch.ao dynamic quantization of linear layers, as the EdgeMIN paper did"),
    "dynamic-int8-embeddings": Scheme(True, True, "the same, and the word embedding by rows (unsigned 8 bit)"),
}


def find_scheme(name: str) -> Scheme:
    """The scheme of that name; raises SettingError with the nearest known name."""
    if name not in SCHEMES:
        raise SettingError(f"unknown quantization scheme {name!r}; {nearest(name, SCHEMES)}")
    return SCHEMES[name]


def quantize(model: nn.Module, scheme: str) -> nn.Module:
    """A quantized copy of a float model, for the CPU.

    Weights become signed 8-bit integers with one scale a matrix; activations are quantized as they come ("dynamic"),
    with one scale for the whole batch, so that a row's logits depend a little on the rows beside it. Norms, position
    and token-type embeddings stay in float32.

    Raises:
        SettingError: unknown scheme.
        ModelError: this build of PyTorch has no quantized kernels.
    """
    chosen = find_scheme(scheme)
    if not any(engine != "none" for engine in torch.backends.quantized.supported_engines):
        raise ModelError("this PyTorch build has no quantized CPU kernels; use an x86 or Arm build of PyTorch")
    recipe: dict[Any, Any] = {}
    if chosen.linear:
        recipe[nn.Linear] = default_dynamic_qconfig
    if chosen.embeddings:
        recipe.update(dict.fromkeys(_word_embedding_names(model), float_qparams_weight_only_qconfig))
    with quiet_torch_ao():
        return quantize_dynamic(copy.deepcopy(model).cpu().eval(), recipe)


def layer_table(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """What is and what is not quantized: one row for every module that owns weights.

    Returns:
        Rows of name, kind (class name before), quantized, parameters, bytes_before and bytes_after (weights, biases
        and scales as they are stored).
    """
    modules, rows = dict(after.named_modules()), []
    for name, module in before.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            count = sum(parameter.numel() for parameter in own)
            twin = modules[name]
            quantized = isinstance(twin, QuantizedLinear | QuantizedEmbedding)
            stored = sum(tensor.numel() * tensor.element_size() for tensor in _stored_tensors(twin).values()) \
                if quantized else 4 * count
            rows.append({"name": name, "kind": type(module).__name__, "quantized": quantized, "parameters": count,
                         "bytes_before": 4 * count, "bytes_after": stored})
    return rows


# ---- saving and loading ----------------------------------------------------------------------------------------


def save_quantized(model: nn.Module, folder: Path, scheme: str,
                   tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Writes a quantized model as safetensors (integers and scales, no pickle) with config.json and tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            tensors.update({f"{name}.{part}": value for part, value in _stored_tensors(module).items()})
        else:
            tensors.update({f"{name}.{part}" if name else part: value.detach().clone()
                            for part, value in module.named_parameters(recurse=False)})
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / QUANTIZED_WEIGHTS_FILE)
    config = model.config.to_dict()
    config["edgemin"] = {"model_type": config["model_type"], "scheme": scheme, **_shapes(model)}
    config["model_type"] = QUANTIZED_MODEL_TYPE
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_model(folder: str | Path, attention_implementation: str = "sdpa") -> nn.Module:
    """Any model that a stage left: plain, cut or quantized, in evaluation mode.

    Raises:
        ModelError: as `checkpoints.load_model`, or quantized weights that are truncated or do not fit.
    """
    folder = Path(folder)
    weights = folder / QUANTIZED_WEIGHTS_FILE
    if not weights.is_file():
        return load_float_model(folder, attention_implementation=attention_implementation)
    config, shapes = cut_config(folder)
    scheme = json.loads((folder / "config.json").read_text(encoding="utf-8"))["edgemin"]["scheme"]
    model = quantize(model_from_shapes(config, shapes, attention_implementation), scheme)
    try:
        tensors = load_file(weights)
        for name, module in model.named_modules():
            if isinstance(module, QuantizedLinear | QuantizedEmbedding):
                _restore(module, {part: tensors[f"{name}.{part}"] for part in _stored_tensors(module)})
            else:
                for part, parameter in module.named_parameters(recurse=False):
                    parameter.data.copy_(tensors[f"{name}.{part}" if name else part])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ModelError(f"the weights of {folder} are truncated or damaged ({error}); quantize anew") from error
    return model.eval()


def _stored_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A quantized module's weights as plain tensors: integers, scale, zero point, bias."""
    with quiet_torch_ao():
        weight = module.weight()
        if isinstance(module, QuantizedEmbedding):
            return {"weight": weight.int_repr(), "weight_scale": weight.q_per_channel_scales(),
                    "weight_zero_point": weight.q_per_channel_zero_points()}
        stored = {"weight": weight.int_repr(), "weight_scale": torch.tensor(weight.q_scale(), dtype=torch.float64)}
        bias = module.bias()
    return stored if bias is None else {**stored, "bias": bias.detach()}


def _restore(module: nn.Module, stored: Mapping[str, torch.Tensor]) -> None:
    with quiet_torch_ao():
        if isinstance(module, QuantizedEmbedding):
            module.set_weight(torch._make_per_channel_quantized_tensor(
                stored["weight"], stored["weight_scale"], stored["weight_zero_point"], 0))
        else:
            weight = torch._make_per_tensor_quantized_tensor(stored["weight"], float(stored["weight_scale"]), 0)
            module.set_weight_bias(weight, stored.get("bias"))


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: [int(value) for value in values] for name, values in layer_shapes(model).items()}


def _word_embedding_names(model: nn.Module) -> list[str]:
    """The embedding of tokens. Position and token-type tables are small, and PyTorch's quantized embedding does not
    take the expanded indices that they get."""
    word = model.get_input_embeddings()
    return [name for name, module in model.named_modules() if module is word]
