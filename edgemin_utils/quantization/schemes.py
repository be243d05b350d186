"""Quantization schemes by name, quantized models on disk, and what their weights take."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils import checkpoints
from edgemin_utils.encoders import empty_model, fill_parameters, layer_shapes, longest_input, structure_of
from edgemin_utils.errors import EdgeMINError, MethodRefused, ModelError, SettingError
from edgemin_utils.names import register_method
from edgemin_utils.settings import nearest

WEIGHTS_FILE = "quantized_model.safetensors"
QUANTIZED_MODEL_TYPE = f"quantized by EdgeMIN: load this folder with {__name__}.load_model(folder)"
Rows = Sequence[Mapping[str, torch.Tensor]]


class Scheme:
    """A way of quantizing a classifier: where it comes from, what layers compute with, whether it sees train rows. What
    it makes is called like the float model. One of one's own needs `quantize` alone where plain parameters come out:

        class Half(Scheme):
            def quantize(self, model, rows, longest):
                return model.to(torch.bfloat16)

        register_scheme("half", Half())  # now minilmv2+half is a model
    """

    source, arithmetic, calibrated = "", "", False

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        """The quantized form of a float classifier, the scheme's own to change; see the function `quantize`."""
        raise NotImplementedError

    def pack(self, module: nn.Module) -> dict[str, torch.Tensor] | None:
        """What a quantized module is stored as, tensors of any shape, `weight_scale` among them; None for others."""
        return None

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """The quantized form of a module, of whose weights only the shapes are looked at, from what `pack` gave."""
        raise NotImplementedError

    def save(self, quantized: nn.Module, folder: Path) -> None:
        """Writes the weights into `folder`, without pickle."""
        tensors: dict[str, torch.Tensor] = {}
        for name, module in quantized.named_modules():
            packed = self.pack(module)
            own = dict(module.named_parameters(recurse=False)) if packed is None else packed
            tensors |= {f"{name}.{part}".lstrip("."): value.detach().contiguous() for part, value in own.items()}
        save_file(tensors, folder / WEIGHTS_FILE)

    def load(self, folder: Path, config: PretrainedConfig, saved: Mapping[str, Any], attention: str) -> nn.Module:
        """What `save` wrote; `saved` are config.json's `edgemin` entries. May raise anything where it is damaged."""
        model, tensors = empty_model(config, saved, attention), load_file(folder / WEIGHTS_FILE)
        for start in [name.removesuffix("weight_scale") for name in tensors if name.endswith(".weight_scale")]:
            own = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
            module = self.unpack(model.get_submodule(start[:-1]), own)
            model.set_submodule(start[:-1], module)
            tensors |= {f"{start}{part}": value.detach() for part, value in module.named_parameters()}
        fill_parameters(model, tensors)
        return model

    def describe(self, quantized: nn.Module) -> dict[str, Any]:
        """What a record says of the method and of this model."""
        return {"source": self.source, "arithmetic": self.arithmetic}


def _torch(kind: str, embeddings: bool) -> Scheme:
    from edgemin_utils.quantization.torch_schemes import TorchInt4, TorchInt8

    return TorchInt8(embeddings) if kind == "int8" else TorchInt4(embeddings)


def _onnx(**options: Any) -> Scheme:
    from edgemin_utils.quantization.onnx_schemes import OnnxScheme

    return OnnxScheme(**options)


# Made when they are asked for: a scheme of PyTorch loads no ONNX.
SCHEMES: dict[str, Callable[[], Scheme]] = {
    **{f"{kind}{more}": partial(_torch, kind, bool(more)) for more in ("", "-embeddings") for kind in ("int8", "int4")},
    "onnx-float32": _onnx,
    "onnx-int8": partial(_onnx, matrices=8),
    "onnx-int8-channels": partial(_onnx, matrices=8, channels=True),
    "onnx-int8-embeddings": partial(_onnx, matrices=8, table=8),
    "onnx-static-minmax": partial(_onnx, matrices=8, ranges="MinMax"),
    "onnx-static-percentile": partial(_onnx, matrices=8, ranges="Percentile"),
    "onnx-static-entropy": partial(_onnx, matrices=8, ranges="Entropy"),
    "onnx-int4": partial(_onnx, matrices=4),
    "onnx-int4-embeddings": partial(_onnx, matrices=4, table=4),
    "onnx-int4-gptq": partial(_onnx, matrices=4, table=4, compensated=True),
    "edge-int8": partial(_onnx, matrices=8, table=8, channels=True, edge=True),
    "edge-int8-int4": partial(_onnx, matrices=8, table=4, channels=True, edge=True),
    "edge-int4": partial(_onnx, matrices=4, table=4, compensated=True, edge=True),
}


def register_scheme(name: str, scheme: Scheme) -> None:
    """Makes a scheme of one's own known by name, also to models' names; the same name again replaces it."""
    register_method(name, "quantization", type(scheme), ("calibration_rows",) if scheme.calibrated else ())
    SCHEMES[name] = lambda: scheme


def find_scheme(name: str) -> Scheme:
    """The scheme of that name; raises SettingError with the nearest known name, MethodRefused where its packages cannot
    be imported."""
    if name not in SCHEMES:
        raise SettingError(f"unknown quantization scheme {name!r}; {nearest(name, SCHEMES)}")
    with _refusals(name):
        return SCHEMES[name]()


def quantize(model: PreTrainedModel, scheme: str, rows: Rows = (), longest: int | None = None) -> nn.Module:
    """A quantized copy of a float model, for the CPU; a calibrated scheme looks at `rows`, inputs of single training
    rows, tensors (1, tokens), and edge graphs drop positions beyond the `longest` input. Raises SettingError for an
    unknown scheme, or no rows for a calibrated one, MethodRefused where machine, versions or model do not serve."""
    chosen = find_scheme(scheme)
    if chosen.calibrated and not rows:
        raise SettingError(f"scheme {scheme} is calibrated on training rows; give at least one (calibration_rows)")
    longest = min(longest or longest_input(model), longest_input(model))
    with _refusals(scheme), torch.no_grad():
        return chosen.quantize(copy.deepcopy(model).cpu().eval(), rows, longest)


def save_quantized(
    model: PreTrainedModel, folder: str | Path, scheme: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Writes a quantized model as a folder that `load_model` reads: weights without pickle, config.json, tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    find_scheme(scheme).save(model, folder)
    config = model.config.to_dict()
    about = {name: list(map(int, values)) for name, values in layer_shapes(structure_of(model)).items()}
    about |= {"notes": model.notes} if hasattr(model, "notes") else {}
    config["edgemin"] = {"model_type": config["model_type"], "scheme": scheme, **about}
    config["model_type"] = QUANTIZED_MODEL_TYPE
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_model(folder: str | Path, attention_implementation: str = "sdpa") -> PreTrainedModel:
    """Any model that a stage left, plain, cut or quantized, in evaluation mode; raises ModelError as
    `checkpoints.load_model`, or where quantized weights are damaged or do not fit."""
    saved = _saved_entries(folder)
    if "scheme" not in saved:
        return checkpoints.load_model(folder, attention_implementation=attention_implementation)
    config, _ = checkpoints.cut_config(Path(folder))
    chosen = find_scheme(saved["scheme"])
    try:
        return chosen.load(Path(folder), config, saved, attention_implementation).eval()
    except Exception as error:  # each back end has its own kinds
        raise ModelError(f"the weights of {folder} are truncated or damaged ({_said(error)}); quantize anew") from error


def scheme_of(folder: str | Path) -> str | None:
    """The scheme that a saved model was quantized by; None for a float model, or where there is none."""
    return _saved_entries(folder).get("scheme")


def _saved_entries(folder: str | Path) -> dict[str, Any]:
    try:
        return dict(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("edgemin") or {})
    except (OSError, ValueError, AttributeError):
        return {}


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except EdgeMINError:
        raise
    except (ImportError, AttributeError, NotImplementedError, RuntimeError) as error:
        works = f"{name} does not work with this model, machine and library versions: {_said(error)}"
        raise MethodRefused(works) from error


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the quantizers' advice and torch.ao's notices; that one of them sets logging up when it is imported is
    undone."""
    root = logging.root
    disabled, level, handlers = root.manager.disable, root.level, list(root.handlers)
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers


def stored_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (number of weights, bytes) of every weight and bias once, also where two modules share it. A module that
    stores its weights otherwise than torch does has a method `stored_sizes` of its own."""
    sizes, seen = dict[str, tuple[int, int]](), set[int]()
    for prefix, module in model.named_modules():
        if hasattr(module, "stored_sizes"):
            own = module.stored_sizes()
        else:
            tensors = {name: one for name, one in module.named_parameters(recurse=False) if id(one) not in seen}
            seen |= set(map(id, tensors.values()))
            tensors |= {part: getattr(module, part)() for part in ("weight", "bias") if is_packed(module, part)}
            own = {name: (one.numel(), tensor_bytes(one)) for name, one in tensors.items() if one is not None}
        sizes |= {f"{prefix}.{name}".lstrip("."): size for name, size in own.items()}
    return sizes


def is_packed(module: nn.Module, kind: str = "weight") -> bool:
    """Whether a layer's weight (or bias) is packed: read by a method of that name."""
    stored = getattr(module, kind, None)
    return callable(stored) and not isinstance(stored, nn.Module)


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements, whatever its shape, and of a quantized one's scales and zero points (64 bits each;
    a symmetric tensor has none)."""
    grid = [0]
    if tensor.is_quantized and tensor.qscheme() == torch.per_tensor_affine:
        grid = [16 if tensor.q_zero_point() else 8]
    elif tensor.is_quantized:
        grid = [one.nbytes for one in (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())]
    return tensor.numel() * tensor.element_size() + sum(grid)


def layer_table(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """One row for every module of the float model `before` that owns weights: name, kind (its class), quantized,
    parameters, bytes_before, and bytes_after as `after`, its quantized form, stores weights, biases and scales."""
    stored, rows = stored_sizes(after), []
    for name, module in before.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if count := sum(value.numel() for value in own.values()):
            size, kind = sum(stored[f"{name}.{part}"][1] for part in own), type(module).__name__
            row = {"name": name, "kind": kind, "quantized": size < 4 * count, "parameters": count}
            rows.append({**row, "bytes_before": 4 * count, "bytes_after": size})
    return rows
