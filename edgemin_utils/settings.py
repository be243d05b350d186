"""Every setting of the study: default, meaning, unit and the kinds of stage that feel it, which its change makes stale.
What no stage feels changes how fast or where a study runs; rows are fingerprinted by their content."""

import difflib
import functools
import math
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgemin_utils.errors import SettingError

CRITERIA = ["gradient", "gradient-l2", "taylor", "magnitude", "leave-one-out", "random"]  # a notebook may add one
_COMPRESSED = "pruning tuning"
_AFTER_TEACHER = f"distillation {_COMPRESSED}"
_TRAINED = f"teacher {_AFTER_TEACHER}"
FAMILIES = ("bert", "distilbert", "roberta", "electra")  # of teachers
MADE_HERE = ("scratch", "teacher-layers", "pretrained-layers")  # a setting names these, or a hub id or a folder
_PAIRS = "query-query key-key value-value query-key query-value key-query key-value value-query value-key".split()
_FILE = tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))
PROFILES: dict[str, Any] = {"demo": {}, **{name: _FILE["glue"] | _FILE[name] for name in ("laptop", "paper")}}
# Whole numbers are at least 1 and others at least 0, but for these.
_FROM_ZERO = ("transfer_rows", "random_draws", "corpus_seed")
_ANY = ("teacher_layer", "student_layer")


def _s(default: Any, meaning: str, unit: str = "", felt: str = "", choices: Iterable[str] = ()) -> Any:
    metadata = {"meaning": meaning, "unit": unit, "felt": felt.split(), "choices": choices}
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**start, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings, with the demo profile's defaults. Make one with `load_settings`, which checks names and types."""

    profile: str = _s("demo", "the profile these defaults belong to", choices=("demo", "laptop", "paper"))
    models: list[str] = _s(["path", "factorial", "scans", "deeper"], "models or lists of them (`edgemin models`)")
    # Rows
    data_source: str = _s("embedded", "where rows come from", "", "", ("embedded", "folder", "hub", "file"))
    data_dir: str | None = _s(None, "folder with one sub-folder a task: GLUE's TSV layout, tables, hub shards")
    task_file: str | None = _s(None, "table that makes a task of one's own: CSV, TSV, JSONL, JSON, parquet or xlsx")
    dev_file: str | None = _s(None, "dev rows of that task; without it 20 % of its rows are held out")
    text_columns: list[str] = _s([], "the one or two text columns of task_file")
    label_column: str = _s("label", "the label column of task_file")
    encoding: str = _s("utf-8", "encoding of text tables, such as latin-1")
    fold_labels: bool = _s(False, "labels that differ only in upper and lower case are one label")
    corpus_seed: int = _s(0, "seed of the embedded corpora")
    train_fraction: float = _s(1.0, "share of the train rows used", "0..1]")
    train_rows: int | None = _s(None, "train rows used at most, after train_fraction; none: all", "rows")
    dev_rows: int | None = _s(None, "dev rows used at most; none: all", "rows")
    holdout_fraction: float = _s(0.05, "rows kept aside for choosing settings, as a share of those used", "0..1")
    max_length: int = _s(48, "longest input; what is longer is cut and counted", "tokens", _TRAINED)
    # Teacher
    teacher: str = _s("scratch", "teacher encoder: a hub id, a folder, or scratch (teacher_* sizes)", "", "teacher")
    vocabulary_size: int = _s(3000, "most entries of a scratch teacher's vocabulary", "tokens", "teacher")
    teacher_family: str = _s("bert", "architecture of a scratch teacher", "", "teacher", FAMILIES)
    teacher_layers: int = _s(3, "layers of a scratch teacher", "layers", "teacher")
    teacher_hidden_size: int = _s(64, "hidden size of a scratch teacher", "units", "teacher")
    teacher_heads: int = _s(4, "attention heads of a scratch teacher", "heads a layer", "teacher")
    teacher_intermediate_size: int = _s(128, "feed-forward size of a scratch teacher", "units", "teacher")
    initializer_range: float = _s(0.05, "spread of the new weights of scratch models", "", "teacher distillation")
    teacher_epochs: float = _s(5, "fine-tuning length", "epochs", "teacher")
    teacher_learning_rate: float = _s(1e-3, "peak learning rate of fine-tuning", "", "teacher")
    teacher_batch_size: int = _s(32, "batch of fine-tuning", "rows", "teacher")
    # Every training loop
    batch_size: int = _s(32, "training batch after the teacher", "rows", _AFTER_TEACHER)
    warmup_ratio: float = _s(0.1, "share of the steps over which the learning rate rises", "0..1", _TRAINED)
    weight_decay: float = _s(0.01, "AdamW weight decay", "", _TRAINED)
    max_grad_norm: float = _s(1.0, "gradient norm above which it is scaled down", "", _TRAINED)
    dropout: float = _s(0.0, "dropout of every model while it trains", "0..1", _TRAINED)
    length_grouping: bool = _s(True, "batches hold rows of like length (less padding)", "", _TRAINED)
    training_precision: str = _s("float32", "arithmetic of training", "", _TRAINED, ("float32", "bfloat16", "auto"))
    attention_implementation: str = _s("sdpa", "attention kernel of training", "", _TRAINED, ("sdpa", "eager"))
    evaluation_batch_size: int = _s(64, "batch when predicting", "rows")
    # Student
    student: str = _s("scratch", "teacher-layers, pretrained-layers, scratch, a hub id or a folder", "", "distillation")
    student_from_layers: list[int] = _s([0, 2], "teacher layers taken, counted from 0", "layers", "distillation")
    student_layers: int = _s(2, "layers of a scratch student", "layers", "distillation")
    student_hidden_size: int = _s(40, "hidden size of a scratch student", "units", "distillation")
    student_heads: int = _s(5, "attention heads of a scratch student", "heads a layer", "distillation")
    student_intermediate_size: int = _s(80, "feed-forward size of a scratch student", "units", "distillation")
    assistant: str | None = _s(None, "encoder of the teacher assistant; none: as `student`, with assistant_* sizes")
    assistant_layers: int = _s(3, "layers of a scratch assistant; its width is the student's", "layers")
    assistant_from_layers: list[int] = _s([0, 1, 2], "teacher layers a teacher-layers assistant takes", "layers")
    # Distillation
    distillation_epochs: float = _s(1, "first phase: what is matched inside the model", "epochs", "distillation")
    distillation_learning_rate: float = _s(2e-3, "peak learning rate of the first phase", "", "distillation")
    prediction_epochs: float = _s(1, "second phase: answers (an only phase: both's epochs)", "epochs", "distillation")
    prediction_learning_rate: float = _s(2e-3, "peak learning rate of the prediction phase", "", "distillation")
    relation_heads: int = _s(8, "relation heads A_r; divides both hidden sizes", "heads", "distillation")
    teacher_layer: int = _s(-1, "teacher layer whose relations are matched; -1: the last", "number", "distillation")
    student_layer: int = _s(-1, "student layer that matches them", "number", "distillation")
    relation_pairs: list[str] = _s(_PAIRS[:3], "projections whose relations are matched", "", "distillation", _PAIRS)
    relation_weights: list[float] = _s([1.0, 1.0, 1.0], "weight of each relation pair", "", "distillation")
    intermediate_weight: float = _s(1.0, "weight of inner states beside the answers", "", "distillation")
    temperature: float = _s(2.0, "temperature T of the soft targets", "", _AFTER_TEACHER)
    soft_target_weight: float = _s(0.5, "weight alpha of the soft targets; 1 - alpha: labels", "0..1", _AFTER_TEACHER)
    transfer_rows: int = _s(0, "unused train rows that students see with the teacher's answers", "rows", "distillation")
    transfer_file: str | None = _s(None, "table of further texts without labels, for the same use", "", "distillation")
    teacher_cache_gigabytes: float = _s(3.0, "memory for teacher outputs computed once; above it: once an epoch", "GB")
    # Pruning: what a cut removes stands in its name, as in heads-0.2
    criterion: str = _s("gradient", "importance of a head, neuron or layer", "", "pruning", CRITERIA)
    draw: int = _s(1, "which draw, with the criterion random", "number", "pruning")
    scope: str = _s("layer", "shares are taken of each layer, or of all", "", "pruning", ("layer", "global"))
    multiple: int = _s(1, "units that a layer keeps are rounded up to a multiple of this", "units", "pruning")
    rounds: int = _s(1, "rounds of cut and recovery, which share recovery_epochs", "rounds", "pruning")
    importance_rows: int = _s(512, "rows from which importance is taken", "rows", "pruning")
    recovery_epochs: float = _s(0.5, "training after the cut; 0: none", "epochs", "pruning")
    recovery_learning_rate: float = _s(5e-4, "peak learning rate of recovery", "", "pruning")
    recovery_distillation: bool = _s(True, "it uses the soft targets of a distilled model's teacher", "", _COMPRESSED)
    vocabulary_text: str | None = _s(None, "text file whose tokens a vocabulary cut keeps; none: train rows")
    vocabulary_all_rows: bool = _s(False, "also keep the tokens of train rows that are not in use")
    vocabulary_nearest: bool = _s(False, "cut words share the row of the nearest that stays; else shorter pieces")
    scan_criteria: list[str] = _s(["gradient", "magnitude"], "criteria whose order scans follow", "", "scan", CRITERIA)
    scan_rows: int = _s(256, "hold-out rows on which scans and sensitivity look", "rows", "scan")
    random_draws: int = _s(2, "random orders that the scans are held against", "draws", "scan")
    # Tuning and quantization
    tuning_epochs: float = _s(1, "quantization-aware training, or final fine-tuning", "epochs", "tuning")
    tuning_learning_rate: float = _s(5e-4, "its peak learning rate", "", "tuning")
    calibration_rows: int = _s(128, "train rows that calibrated schemes look at", "rows")
    # Measurement
    latency_protocol: str = _s("quick", "30 runs; 100 and 10 s; none", "", "costs", ("quick", "full", "none"))
    latency_threads: list[int] = _s([1, 0], "thread counts timed; 0: all cores", "threads", "costs")
    latency_lengths: list[int] = _s([32, 128], "fixed input lengths timed at batch 1", "tokens", "costs")
    latency_processes: int = _s(2, "fresh processes that each time every model", "processes", "costs")
    memory_runs: int = _s(1, "fresh processes a model for peak memory", "processes", "costs")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name` as a hint, e.g. "did you mean 'temperature'?", or all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


@functools.cache
def setting_fields() -> dict[str, Any]:
    """Name -> dataclass field (with `metadata` keys meaning, unit, felt, choices) of every setting."""
    return {item.name: item for item in fields(Settings)}


def load_settings(profile: str = "demo", overrides: Mapping[str, Any] | None = None) -> Settings:
    """The profile's settings with `overrides` laid over them. A given file or folder decides where rows come from, and
    rows of one's own are all used, unless overrides say otherwise. Raises SettingError for what is unknown or unfit."""
    if profile not in PROFILES:
        raise SettingError(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    if not isinstance(overrides or {}, Mapping):
        raise SettingError(
            f"overrides are {overrides!r}; name settings as in {{'train_rows': 4000}}, for papermill in "
            "-y 'overrides: {train_rows: 4000}'"
        )
    given: dict[str, Any] = {"profile": profile, **(overrides or {})}
    if given["profile"] != profile:
        raise SettingError("the profile is a parameter of its own, not an override")
    if given.get("task_file"):
        given = {"data_source": "file", "train_fraction": 1.0, **given}
    elif given.get("data_dir"):
        given = {"data_source": "folder", **given}
    # Defaults are read like overrides, so that 4 and 4.0 are the same epochs in a fingerprint.
    values = {**asdict(Settings()), **PROFILES[profile], **given}
    settings = Settings(**{name: read_value(name, value) for name, value in values.items()})
    _check(settings)
    return settings


def changed_settings(settings: Settings) -> dict[str, Any]:
    """Name -> value of every setting that differs from its profile's default."""
    default = load_settings(settings.profile)
    decided = ("data_source", "train_fraction") if settings.task_file or settings.data_dir else ()
    return {name: value for name, value in vars(settings).items() if name in decided or value != vars(default)[name]}


def read_value(name: str, value: Any) -> Any:
    """`value`, also as text, in the type of the setting; raises SettingError for an unknown setting or unfit value."""
    if name in _FILE["former"]:
        raise SettingError(f"setting {name!r} is gone; what it said is now {_FILE['former'][name]}")
    if name not in setting_fields():
        raise SettingError(f"unknown setting {name!r}; {nearest(name, setting_fields())}")
    annotation = setting_fields()[name].type
    kinds = typing.get_args(annotation) or (annotation,)
    if types.NoneType in kinds and str(value).lower() in ("none", ""):
        return None
    try:
        if typing.get_origin(annotation) is not list:
            return _read_one(kinds[0], value)
        # A comma before `setting=` is within a model's name.
        items = re.split(r"\s*,(?!\s*\w+=)\s*", value.strip()) if isinstance(value, str) else value
        return [_read_one(kinds[0], item) for item in items if item != ""]
    except (TypeError, ValueError, OverflowError, KeyError):
        wanted = "a list of " * (typing.get_origin(annotation) is list) + kinds[0].__name__
        raise SettingError(f"setting {name!r} takes {wanted}, not {value!r}") from None


def _read_one(kind: type, value: Any) -> Any:
    if kind is bool:
        return {"true": True, "yes": True, "false": False, "no": False}[str(value).lower()]
    if kind is str:
        return os.fspath(value)
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number) or kind(number) != number:
        raise ValueError
    return kind(number)


def project_folder() -> Path:
    """The folder that holds `notebooks/`: the working directory or the nearest parent that has it."""
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / "notebooks" / "01_teacher.ipynb").is_file()), here)


def published_folder() -> Path:
    """The published results: the project's, or else those that were installed with the package."""
    own = project_folder() / "outputs" / "reference"
    return own if own.is_dir() else Path(sys.prefix) / "share" / "edgemin" / "reference"


def study_folder(output_dir: str | os.PathLike | None, profile: str) -> Path:
    """Where a study lies: `output_dir`, or `outputs/<profile>` in the project folder when it is empty."""
    return Path(output_dir).expanduser().absolute() if output_dir else project_folder() / "outputs" / profile


def absolute_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` with absolute paths; a model is one if it is a folder here or starts like one, else a hub id."""
    changed, models = dict(overrides), ("teacher", "student", "assistant")
    for name in ("data_dir", "task_file", "dev_file", "transfer_file", "vocabulary_text", *models):
        value = str(changed.get(name) or "none")
        like_path = name not in models or value.startswith((".", "~", os.sep)) or Path(value).is_dir()
        if like_path and value.lower() != "none":
            changed[name] = os.path.abspath(Path(value).expanduser())
    return changed


def whole_share(share: float, count: int) -> int:
    """floor(share x count). The small term undoes binary rounding: 0.29 x 100 is 28.999... and means 29."""
    return math.floor(share * count + 1e-9)


def _check(settings: Settings) -> None:
    values = asdict(settings)
    for name, item in setting_fields().items():
        choices, chosen = item.metadata["choices"], values[name] if isinstance(values[name], list) else [values[name]]
        if choices and (wrong := [one for one in chosen if one not in choices]):
            raise SettingError(f"setting {name!r} is {wrong[0]!r}; {nearest(wrong[0], choices)}")
    ranges: dict[str, tuple[Any, str]] = {
        **dict.fromkeys("holdout_fraction warmup_ratio dropout".split(), (lambda x: 0 <= x < 1, "at least 0, under 1")),
        "train_fraction": (lambda x: 0 < x <= 1, "over 0 and at most 1"),
        "soft_target_weight": (lambda x: 0 <= x <= 1, "from 0 to 1"),
        "temperature": (lambda x: x > 0, "over 0"),
        "max_length": (lambda x: x >= 4, "at least 4"),  # [CLS], a token of each text of a pair, [SEP]
        "latency_lengths": (lambda x: x and min(x) >= 2, "one number or more, each at least 2"),
        "latency_threads": (lambda x: x and min(x) >= 0, "one number or more, none negative"),
    }
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _ANY:
            least = int(isinstance(value, int) and name not in _FROM_ZERO)
            ranges.setdefault(name, (lambda x, least=least: x >= least, f"at least {least}"))
        if name in ranges and not ranges[name][0](value):
            raise SettingError(f"{name} is {value}; it must be {ranges[name][1]}")
    for model in ("teacher", "student"):
        hidden_size, heads = (values[f"{model}_{name}"] for name in ("hidden_size", "heads"))
        if hidden_size % heads:
            raise SettingError(f"{model}_hidden_size is {hidden_size}: {model}_heads = {heads} does not divide it")
    if len(settings.relation_pairs) != len(settings.relation_weights):
        raise SettingError("relation_pairs and relation_weights differ in length; give one weight a pair")
    for source, needed in (("folder", "data_dir"), ("file", "task_file")):
        if settings.data_source == source and not values[needed]:
            raise SettingError(f"data_source is {source} but {needed} is not set; give --{needed.replace('_', '-')}")
    if settings.data_source == "file" and len(settings.text_columns) not in (1, 2):
        raise SettingError("a task of one's own needs one or two text columns; give them with --text-columns")
