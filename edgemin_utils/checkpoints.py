"""Classifiers on disk: a plain transformers folder, or one whose layers were cut to unequal shapes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgemin_utils.encoders import (
    FAMILIES,
    empty_model,
    family_of,
    fill_parameters,
    has_equal_shapes,
    layer_shapes,
    set_dropout,
    set_labels,
)
from edgemin_utils.errors import ModelError
from edgemin_utils.library_messages import quiet_transformers

PRUNED_WEIGHTS_FILE = "pruned_model.safetensors"
PRUNED_MODEL_TYPE = "pruned by EdgeMIN: load this folder with edgemin_utils.checkpoints.load_model(folder)"


def save_model(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Writes a model, and its tokenizer, as a folder that `load_model` reads.

    A model of equal layers is a plain transformers folder. One whose layers were cut carries its shapes in
    config.json under `edgemin`, and a model type that says how to load it, which is what a stock `from_pretrained`
    then prints.
    """
    folder = Path(folder)
    with quiet_transformers():
        model.save_pretrained(folder)
    if not has_equal_shapes(model):
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["edgemin"] = {"model_type": config["model_type"], **layer_shapes(model)}
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
    """A classifier from a hub id, a transformers folder or a folder of `save_model`, in evaluation mode.

    Args:
        labels: label names in id order; needed for a checkpoint without a classification head of that size, whose
            head is then new (random, from torch's global generator).
        attention_implementation: "sdpa" or "eager".
        dropout: probability to train with; None keeps the checkpoint's.

    Raises:
        ModelError: the hub cannot be reached or does not know the id, the folder has no config, the weights are
            truncated, or the family is not supported.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir() and (folder / PRUNED_WEIGHTS_FILE).is_file():
        model = _load_cut_model(folder, attention_implementation)
        if dropout is not None:
            model = _with_dropout(model, dropout)
        return model.eval()
    config = load_config(name_or_folder)
    family_of(config)
    if labels is not None:
        set_labels(config, labels)
    if dropout is not None:
        set_dropout(config, dropout)
    with _load_errors(name_or_folder), quiet_transformers():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(folder) if folder.is_dir() else str(name_or_folder),
            config=config,
            dtype=torch.float32,
            attn_implementation=attention_implementation,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_loaded(name_or_folder, config, report, new_head=labels is not None)
    return model.eval()


def _check_loaded(name: str | Path, config: PretrainedConfig, report: Mapping[str, Any], new_head: bool) -> None:
    """Refuses a model of which more than a new classification head would be random."""
    absent = {*report["missing_keys"], *(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])}
    encoder = f"{family_of(config).encoder}."
    if new_head:
        absent = {key for key in absent if key.startswith(encoder) and not key.startswith(f"{encoder}pooler.")}
    if absent:
        raise ModelError(
            f"the weights of {name} do not fit its config: {len(absent)} of them are missing or of "
            f"another shape, such as {min(absent)}"
        )


def load_config(name_or_folder: str | Path) -> PretrainedConfig:
    """The config of a hub id or folder; raises ModelError as `load_model` does."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"folder {folder} holds no config.json, so it is not a model; give the folder that save_pretrained wrote"
        )
    if not folder.is_dir() and (folder.is_absolute() or str(name_or_folder).startswith((".", "~"))):
        raise ModelError(f"there is no model folder {folder}; check the path")
    with _load_errors(name_or_folder):
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else str(name_or_folder))


def cut_config(folder: Path) -> tuple[PretrainedConfig, dict[str, list[int]]]:
    """The transformers config and the layer shapes from a cut model's config.json.

    Raises:
        ModelError: config.json is missing, damaged or does not describe a supported family.
    """
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        extra = content.pop("edgemin")
        content.pop("model_type")
        family = FAMILIES[extra["model_type"]]
        return family.config_class.from_dict(content), {name: extra[name] for name in ("heads", "intermediate_sizes")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} does not describe a cut model ({error!r}); make the folder anew") from error


def _load_cut_model(folder: Path, attention_implementation: str) -> PreTrainedModel:
    config, shapes = cut_config(folder)
    model = empty_model(config, shapes, attention_implementation)
    with _load_errors(folder):
        fill_parameters(model, load_file(folder / PRUNED_WEIGHTS_FILE))
    return model


def _with_dropout(model: PreTrainedModel, dropout: float) -> PreTrainedModel:
    set_dropout(model.config, dropout)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


@contextmanager
def _load_errors(name: str | Path) -> Iterator[None]:
    """Turns what transformers, the hub and safetensors raise into one sentence."""
    try:
        yield
    except ModelError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {name} are truncated or damaged ({error}); fetch or make them anew"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        text = str(error)
        if "does not recognize" in text or "model type" in text.lower():
            raise ModelError(f"{name}: {text.splitlines()[0]}; supported families: {', '.join(FAMILIES)}") from error
        if Path(name).expanduser().is_dir():
            reason = text.splitlines()[0] if text else repr(error)
            raise ModelError(f"{name} cannot be loaded as a model: {reason}") from error
        raise ModelError(
            f"model {name!r} cannot be had: either the hub cannot be reached from here or it knows no such id. Check "
            "the spelling, or give a folder that holds config.json, model.safetensors and the tokenizer"
        ) from error
