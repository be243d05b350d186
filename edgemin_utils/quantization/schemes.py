"""Quantization schemes by name, quantized models on disk, and what their weights take."""

import contextlib
import copy
import io
import json
import logging
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from edgemin_utils import checkpoints
from edgemin_utils.encoders import empty_model, fill_parameters, layer_shapes, longest_input, structure_of
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.names import SCHEME_CLASSES, register_method
from edgemin_utils.settings import nearest

WEIGHTS_FILE = "quantized_model.safetensors"
QUANTIZED_MODEL_TYPE = f"quantized by EdgeMIN: load this folder with {__name__}.load_model(folder)"
Rows = Sequence[Mapping[str, torch.Tensor]]


class Scheme:
    """A way of quantizing a classifier, `calibrated` where it looks at training rows. What it makes is called like the
    float model. One of one's own, see `register_scheme`, needs `quantize` alone where plain parameters come out."""

    calibrated = False

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        """The quantized form of a float classifier, the scheme's own to change; see the function `quantize`."""
        raise NotImplementedError

    def pack(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """What a quantized module is stored as, tensors of any shape, `weight_scale` among them; nothing for others."""
        return packed_tensors(module)

    def unpack(self, module: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """The quantized form of a module, from what `pack` gave. Only the shapes of its weights are looked at; what the
        scheme leaves as it was, such as a bias, `load` takes from what `pack` gave."""
        raise NotImplementedError

    def save(self, quantized: nn.Module, folder: Path) -> None:
        """Writes the weights into `folder`, without pickle."""
        tensors: dict[str, torch.Tensor] = {}
        for name, module in quantized.named_modules():
            own = self.pack(module) or dict(module.named_parameters(recurse=False))
            tensors |= {f"{name}.{part}".lstrip("."): value.detach().contiguous() for part, value in own.items()}
        save_file(tensors, folder / WEIGHTS_FILE)

    def load(self, folder: Path, config: PretrainedConfig, saved: Mapping[str, Any]) -> nn.Module:
        """What `save` wrote; `saved` are config.json's `edgemin` entries. May raise anything where it is damaged."""
        model, tensors = empty_model(config, saved), load_file(folder / WEIGHTS_FILE)
        for start in [name.removesuffix("weight_scale") for name in tensors if name.endswith(".weight_scale")]:
            own = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
            module = self.unpack(model.get_submodule(start[:-1]), own)
            model.set_submodule(start[:-1], module)
            whole = {part: own[part] if value.is_meta else value for part, value in module.named_parameters()}
            tensors |= {f"{start}{part}": value.detach() for part, value in whole.items()}
        fill_parameters(model, tensors)
        return model


def _made(scheme: str, **options: Any) -> Scheme:
    return pkgutil.resolve_name(f"{__package__}.{scheme}")(**options)


# Made when they are asked for: a scheme of PyTorch loads no ONNX.
SCHEMES: dict[str, Callable[[], Scheme]] = {
    name: partial(_made, found, **options) for name, (found, options) in SCHEME_CLASSES.items()
}


def register_scheme(name: str, scheme: Scheme) -> None:
    """Makes a scheme of one's own known by name, also to models' names; the same name again replaces it."""
    register_method(name, "quantization", type(scheme), ("calibration_rows",) if scheme.calibrated else ())
    SCHEMES[name] = lambda: scheme


def find_scheme(name: str) -> Scheme:
    """The scheme of that name; raises SettingError where there is none, MethodRefused where packages are missing."""
    if name not in SCHEMES:
        raise SettingError(f"unknown quantization scheme {name!r}; {nearest(name, SCHEMES)}")
    with _refusals(name):
        return SCHEMES[name]()


def quantize(model: PreTrainedModel, scheme: str, rows: Rows = (), longest: int | None = None) -> nn.Module:
    """A quantized copy of a float model, for the CPU. A calibrated scheme sees `rows`, inputs (1, tokens); edge graphs
    drop positions beyond `longest`. Raises SettingError for an unknown scheme or no rows, MethodRefused if it fails."""
    chosen = find_scheme(scheme)
    if chosen.calibrated and not rows:
        raise SettingError(f"scheme {scheme} is calibrated on training rows; give at least one (calibration_rows)")
    longest = min(longest or longest_input(model), longest_input(model))
    with _refusals(scheme), torch.no_grad():
        return chosen.quantize(copy.deepcopy(model).cpu().eval(), rows, longest)


def save_quantized(model: PreTrainedModel, folder: str | Path, scheme: str, tokenizer: Tokenizer | None = None) -> None:
    """Writes a quantized model as a folder that `load_model` reads: weights without pickle, config.json, tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    find_scheme(scheme).save(model, folder)
    config = model.config.to_dict()
    notes = {"notes": model.notes} if hasattr(model, "notes") else {}
    about = {"model_type": config["model_type"], "scheme": scheme, **layer_shapes(structure_of(model)), **notes}
    config |= {"edgemin": about, "model_type": QUANTIZED_MODEL_TYPE, "_name_or_path": ""}  # no folder of one's own
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_model(folder: str | Path, attention_implementation: str = "sdpa") -> PreTrainedModel:
    """Any model that a stage left, in evaluation mode; raises ModelError as that of `checkpoints`, or if damaged."""
    saved = quantized_entries(folder)
    if not saved:
        return checkpoints.load_model(folder, attention_implementation=attention_implementation)
    config, _ = checkpoints.cut_config(Path(folder))
    chosen = find_scheme(saved["scheme"])
    try:
        return chosen.load(Path(folder), config, saved).eval()
    except MethodRefused:
        raise
    except Exception as error:  # each back end has its own kinds
        why = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(f"the weights of {folder} are truncated or damaged ({why}); quantize anew") from error


def quantized_entries(folder: str | Path) -> dict[str, Any]:
    """What config.json says of a quantized model, its `scheme` among it; nothing of a float model or of no folder."""
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("edgemin") or {}
    except (OSError, ValueError, AttributeError):
        return {}
    return found if "scheme" in found else {}


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError, RuntimeError) as error:
        why = (str(error) or repr(error)).splitlines()[0]
        raise MethodRefused(f"{name} does not work with this model, machine or versions: {why}") from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the quantizers' advice and torch.ao's notices."""
    unprinted = contextlib.redirect_stdout(io.StringIO())
    with contextlib.ExitStack() as stack, warnings.catch_warnings(action="ignore"), unprinted:
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(max(logging.root.manager.disable, logging.WARNING))
        yield


def stored_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (weights, bytes with scales and zero points), shared ones once; a module may bring `stored_sizes`."""
    sizes = {name: (one.numel(), one.nbytes) for name, one in model.named_parameters()}
    for prefix, module in model.named_modules():
        own = getattr(module, "stored_sizes", {})
        if packed := packed_tensors(module):
            grid = sum(packed.pop(part).nbytes for part in ("weight_scale", "weight_zero_point") if part in packed)
            own = {name: (one.numel(), one.nbytes + grid * (name == "weight")) for name, one in packed.items()}
        sizes |= {f"{prefix}.{name}".lstrip("."): size for name, size in own.items()}
    return sizes


def is_packed(module: nn.Module) -> bool:
    """Whether a layer is one of torch.ao, of which methods read the weight and the bias."""
    weight = getattr(module, "weight", None)
    return callable(weight) and not isinstance(weight, nn.Module)


def packed_tensors(module: Any) -> dict[str, torch.Tensor]:
    """What a layer of torch.ao stores, of any shape: weight (integers), scale, zero points, bias; nothing of others."""
    if not is_packed(module):
        return {}
    weight, bias = module.weight(), module.bias() if hasattr(module, "bias") else None
    stored = {"weight": weight.int_repr()} | ({} if bias is None else {"bias": bias})
    if weight.qscheme() == torch.per_tensor_affine:
        return {**stored, "weight_scale": torch.tensor(weight.q_scale(), dtype=torch.float64)}
    zero_points = weight.q_per_channel_zero_points()
    return {**stored, "weight_scale": weight.q_per_channel_scales(), "weight_zero_point": zero_points}
