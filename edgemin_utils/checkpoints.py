"""Classifiers on disk: a plain transformers folder, or one whose layers were cut to unequal shapes."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from edgemin_utils import encoders
from edgemin_utils.errors import ModelError
from edgemin_utils.rows.tasks import reach_hub

PRUNED_WEIGHTS_FILE = "pruned_model.safetensors"
PRUNED_MODEL_TYPE = "pruned by EdgeMIN: load this folder with edgemin_utils.checkpoints.load_model(folder)"


def save_model(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Writes a plain transformers folder, or, of unequal layers, one whose config.json says them and how to load it."""
    with quiet_transformers():
        model.save_pretrained(folder)
    if not encoders.has_equal_shapes(model):
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["edgemin"] = {"model_type": config["model_type"], **encoders.layer_shapes(model)}
        config["model_type"] = PRUNED_MODEL_TYPE
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "model.safetensors").rename(folder / PRUNED_WEIGHTS_FILE)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_model(
    name_or_folder: str | Path,
    labels: Sequence[str] | None = None,
    attention_implementation: str = "sdpa",
    dropout: float | None = None,
) -> PreTrainedModel:
    """A classifier from a hub id, a transformers folder or a folder of `save_model`, in evaluation mode. With `labels`
    (names in id order) it is made ready for training: a head of that size is kept, in that order; any other is new
    (random). `dropout` None keeps the checkpoint's. Raises ModelError where it cannot be had, read or used."""
    folder = Path(name_or_folder).expanduser()
    if (folder / PRUNED_WEIGHTS_FILE).is_file():
        config, shapes = cut_config(folder)
        model = encoders.empty_model(config, shapes, attention_implementation)
        with _load_errors(folder):
            weights = load_file(folder / PRUNED_WEIGHTS_FILE)
        encoders.fill_parameters(model, weights)
    else:
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ModelError(f"folder {folder} holds no config.json, so it is not a model; give one of save_pretrained")
        if not folder.is_dir() and (folder.is_absolute() or str(name_or_folder).startswith((".", "~"))):
            raise ModelError(f"there is no model folder {folder}; check the path")
        with _load_errors(folder):
            offline = not folder.is_dir() and not reach_hub(str(name_or_folder))  # or the hub would be tried for long
            config = AutoConfig.from_pretrained(folder.as_posix(), local_files_only=offline)
        encoders.parts_of(config.model_type)
        if config.problem_type not in (None, "single_label_classification"):
            raise ModelError(f"{name_or_folder} is made for {config.problem_type}; EdgeMIN's give one label a row")
        names = [str(config.id2label.get(number)) for number in range(len(config.id2label))]
        if labels is not None:
            encoders.set_labels(config, labels)
        elif "None" in names:
            raise ModelError(f"config.json of {name_or_folder} does not number its labels from 0; correct id2label")
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True}
        options |= {"attn_implementation": attention_implementation, "output_loading_info": True}
        with _load_errors(folder), quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(folder.as_posix(), **options)
        _check_weights(str(name_or_folder), model.base_model_prefix, report, new_head=labels is not None)
        names, wanted = ([name.casefold() for name in each] for each in (names, labels or names))
        if names != wanted and sorted(names) == sorted(wanted):  # the same labels in another order
            head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter.copy_(parameter[[names.index(label) for label in wanted]])
    if dropout is not None:
        encoders.set_dropout(model, dropout)
    if bad := next((name for name, weights in model.named_parameters() if not weights.isfinite().all()), ""):
        raise ModelError(f"{name_or_folder} holds NaN or infinity, as in {bad}; its training diverged, train it anew")
    return model.eval()


def _check_weights(name: str, encoder: str, report: Mapping[str, Any], new_head: bool) -> None:
    def inner(keys: Iterable[str]) -> list[str]:
        stems = (f"{encoder}.", "embeddings.", "encoder.", "transformer.")
        return sorted(key for key in keys if key.startswith(stems) and ".pooler." not in key)

    surplus = [key for key in report["unexpected_keys"] if "pooler." not in key]
    absent = {*report["missing_keys"], *(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])}
    if inner(absent):
        raise ModelError(f"the weights of {name} do not fit its config: {inner(absent)[0]} is missing or misshapen")
    if absent and not new_head:
        raise ModelError(f"{name} is not fine-tuned ({min(absent)} is missing); use `edgemin train` first")
    if inner(surplus) or (surplus and not new_head):
        raise ModelError(f"{name} has weights that its family has no place for, as {min(inner(surplus) or surplus)}")


def cut_config(folder: Path) -> tuple[PretrainedConfig, dict[str, list[int]]]:
    """The config and the layer shapes from a cut model's config.json; raises ModelError if missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shapes = content.pop("edgemin")
        content["model_type"] = shapes.pop("model_type")
        return AutoConfig.for_model(content["model_type"]).from_dict(content), shapes
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} does not describe a cut model ({error!r}); make the folder anew") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without load reports, notes on model types, and bars over weight files."""
    with ExitStack() as stack:
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


@contextmanager
def _load_errors(name: str | Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError) as error:
        text = (str(error) or repr(error)).splitlines()[0]
        if isinstance(error, SafetensorError) or "model type" in text.lower() or Path(name).is_dir():
            raise ModelError(f"{name} cannot be loaded as a model, is it truncated or damaged? ({text})") from error
        raise ModelError(f"no hub in reach has model {str(name)!r}. Check the spelling, or give a folder") from error
