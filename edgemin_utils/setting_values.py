"""Values of settings: read as the type that a setting asks for, and held to the range in which they can work."""

import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

from edgemin_utils.errors import SettingError


def read_value(name: str, value: Any, annotation: Any) -> Any:
    """`value` as the type `annotation` asks for: text is read, lists from comma-separated text, `none` as None.

    Raises:
        SettingError: the value does not fit; names the setting, the type and the value.
    """
    optional = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    if optional:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        annotation = next(item for item in typing.get_args(annotation) if item is not type(None))
    try:
        if typing.get_origin(annotation) is list:
            items = (
                [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
            )
            return [read_value(name, item, typing.get_args(annotation)[0]) for item in items]
        if annotation is bool:
            return _read_bool(value)
        if annotation is int:
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        if annotation is float:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
        if not isinstance(value, str | os.PathLike):
            raise ValueError
        return str(value)
    except (TypeError, ValueError, OverflowError):
        wanted = getattr(annotation, "__name__", str(annotation))
        raise SettingError(f"setting {name!r} takes {wanted}, not {value!r}") from None


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "1"):
        return True
    if isinstance(value, str) and value.lower() in ("false", "no", "0"):
        return False
    raise ValueError(value)


def whole_share(share: float, count: int) -> int:
    """floor(share x count), the whole things in a share of `count`. The small term undoes binary rounding: 0.29 x 100
    is 28.999... and means 29."""
    return math.floor(share * count + 1e-9)


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuses numbers that cannot work, before anything is computed.

    Raises:
        SettingError: a value is out of its range.
    """
    for name in ("head_prune_ratio", "feed_forward_prune_ratio"):
        if not 0 <= values[name] < 1:
            raise SettingError(
                f"{name} is {values[name]}; it must be at least 0 and under 1 (a ratio of 1 would leave nothing)"
            )
    for name in ("train_fraction",):
        if not 0 < values[name] <= 1:
            raise SettingError(f"{name} is {values[name]}; it must be over 0 and at most 1")
    for name in ("holdout_fraction", "warmup_ratio", "dropout"):
        if not 0 <= values[name] < 1:
            raise SettingError(f"{name} is {values[name]}; it must be at least 0 and under 1")
    if not 0 <= values["soft_target_weight"] <= 1:
        raise SettingError(f"soft_target_weight is {values['soft_target_weight']}; it must be from 0 to 1")
    if values["temperature"] <= 0:
        raise SettingError(f"temperature is {values['temperature']}; it must be over 0")
    for name in (
        "batch_size",
        "teacher_batch_size",
        "evaluation_batch_size",
        "max_length",
        "relation_heads",
        "vocabulary_size",
        "teacher_layers",
        "teacher_hidden_size",
        "teacher_heads",
        "teacher_intermediate_size",
        "student_layers",
        "student_hidden_size",
        "student_heads",
        "student_intermediate_size",
        "assistant_layers",
        "importance_rows",
        "pruning_draw",
        "kept_heads_multiple",
        "kept_neurons_multiple",
        "vocabulary_occurrences",
        "pruning_rounds",
        "scan_rows",
        "bootstrap_samples",
        "memory_runs",
        "calibration_rows",
        "sensitivity_rows",
    ):
        if values[name] < 1:
            raise SettingError(f"{name} is {values[name]}; it must be at least 1")
    for name in (
        "teacher_epochs",
        "distillation_epochs",
        "prediction_epochs",
        "recovery_epochs",
        "random_draws",
        "tuning_epochs",
        "tuning_learning_rate",
        "transfer_rows",
        "intermediate_weight",
        "teacher_learning_rate",
        "distillation_learning_rate",
        "prediction_learning_rate",
        "recovery_learning_rate",
        "weight_decay",
        "max_grad_norm",
        "teacher_cache_gigabytes",
        "corpus_seed",
    ):
        if values[name] < 0:
            raise SettingError(f"{name} is {values[name]}; it cannot be negative")
    for model in ("teacher", "student"):
        hidden_size, heads = (values[f"{model}_{name}"] for name in ("hidden_size", "heads"))
        if hidden_size % heads:
            raise SettingError(
                f"{model}_hidden_size is {hidden_size} and {model}_heads is {heads}; every head takes an equal part of "
                "the hidden size"
            )
    if values["max_length"] < 4:  # [CLS], a token of each text of a pair, [SEP]
        raise SettingError(f"max_length is {values['max_length']}; it must be at least 4")
    for name, least in (("latency_lengths", 2), ("latency_threads", 0)):
        if not values[name] or min(values[name]) < least:
            raise SettingError(f"{name} is {values[name]}; give one number or more, each at least {least}")
    for name in ("train_rows", "dev_rows", "vocabulary_limit"):
        if values[name] is not None and values[name] < 1:
            raise SettingError(f"{name} is {values[name]}; it must be at least 1, or none for no limit")
