"""Every scheme by name; quantized models on disk."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils.checkpoints import cut_config
from edgemin_utils.checkpoints import load_model as load_float_model
from edgemin_utils.config import nearest
from edgemin_utils.encoders import layer_shapes, structure_of
from edgemin_utils.errors import EdgeMINError, MethodRefused, ModelError, SettingError
from edgemin_utils.quantization.onnx_int4 import OnnxInt4
from edgemin_utils.quantization.onnx_schemes import OnnxDynamic, OnnxFloat, OnnxStatic
from edgemin_utils.quantization.scheme import Scheme
from edgemin_utils.quantization.torch_dynamic import TorchDynamic
from edgemin_utils.quantization.weight_only import WeightInt4

QUANTIZED_MODEL_TYPE = "quantized by EdgeMIN: load this folder with edgemin_utils.quantization.load_model(folder)"

# config.EVERY_SCHEME names the same, so that settings can be checked without importing torch.
SCHEMES: Mapping[str, Scheme] = {
    "dynamic-int8": TorchDynamic(embeddings=False),
    "dynamic-int8-embeddings": TorchDynamic(embeddings=True),
    "onnx-float32": OnnxFloat(),
    "onnx-dynamic-int8": OnnxDynamic(),
    "onnx-dynamic-int8-channels": OnnxDynamic(per_channel=True),
    "onnx-dynamic-int8-embeddings": OnnxDynamic(embeddings=True),
    "onnx-static-int8-minmax": OnnxStatic("MinMax"),
    "onnx-static-int8-percentile": OnnxStatic("Percentile"),
    "onnx-static-int8-entropy": OnnxStatic("Entropy"),
    "weight-int4": WeightInt4(embeddings=False),
    "weight-int4-embeddings": WeightInt4(embeddings=True),
    "onnx-int4": OnnxInt4(),
    "onnx-int4-embeddings": OnnxInt4(embeddings=True),
    "onnx-int4-gptq-embeddings": OnnxInt4(embeddings=True, calibrated=True),
}


def find_scheme(name: str) -> Scheme:
    """The scheme of that name; raises SettingError with the nearest known name."""
    if name not in SCHEMES:
        raise SettingError(f"unknown quantization scheme {name!r}; {nearest(name, SCHEMES)}")
    return SCHEMES[name]


def quantize(model: nn.Module, scheme: str, rows: Sequence[Mapping[str, torch.Tensor]] = ()) -> nn.Module:
    """A quantized copy of a float model, for the CPU.

    Args:
        rows: inputs of single training rows, tensors (1, tokens), which a calibrated scheme takes its ranges from.

    Raises:
        SettingError: unknown scheme, or no rows for a calibrated one.
        MethodRefused: this machine, these versions or this model do not serve.
    """
    chosen = find_scheme(scheme)
    if chosen.calibrated and not rows:
        raise SettingError(f"scheme {scheme} is calibrated on training rows; give at least one (calibration_rows)")
    with _refusals(scheme, chosen):
        return chosen.quantize(copy.deepcopy(model).cpu().eval(), rows)


def save_quantized(
    model: PreTrainedModel, folder: Path, scheme: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Writes a quantized model as a folder that `load_model` reads: weights without pickle, config.json, tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    find_scheme(scheme).save(model, folder)
    config = model.config.to_dict()
    shapes = {name: [int(value) for value in values] for name, values in layer_shapes(structure_of(model)).items()}
    config["edgemin"] = {"model_type": config["model_type"], "scheme": scheme, **shapes}
    config["model_type"] = QUANTIZED_MODEL_TYPE
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_model(folder: str | Path, attention_implementation: str = "sdpa") -> nn.Module:
    """Any model that a stage left: plain, cut or quantized, in evaluation mode.

    Raises:
        ModelError: as `checkpoints.load_model`, or quantized weights that are damaged or do not fit.
    """
    folder = Path(folder)
    scheme = scheme_of(folder)
    if scheme is None:
        return load_float_model(folder, attention_implementation=attention_implementation)
    config, shapes = cut_config(folder)
    chosen = find_scheme(scheme)
    try:
        return chosen.load(folder, config, shapes, attention_implementation).eval()
    except ImportError as error:
        raise ModelError(f"the model in {folder} needs {', '.join(chosen.needs)} to run ({error})") from error
    except Exception as error:  # each back end has its own kinds
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ModelError(f"the weights of {folder} are truncated or damaged ({reason}); quantize anew") from error


def scheme_of(folder: Path) -> str | None:
    """The scheme that a model's config.json names; None for a float model, or where there is nothing to read."""
    try:
        extra = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("edgemin", {})
        return extra.get("scheme")
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def _refusals(name: str, scheme: Scheme) -> Iterator[None]:
    """Turns what a back end raises where it cannot serve into one sentence."""
    try:
        yield
    except EdgeMINError:
        raise
    except ImportError as error:
        raise MethodRefused(
            f"{name} needs {', '.join(scheme.needs)}, which cannot be imported here ({error})"
        ) from error
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise MethodRefused(f"{name} does not work with this model, machine and library versions: {reason}") from error
