"""Every setting of the study: its default per profile, its unit, its meaning and the stages that it reaches.

`Settings` is one flat, frozen block. A setting's `stages` say which stages run again when it changes
(`chain.py` adds what follows from them); a setting with no stages changes how fast or where the study runs,
not what comes out of it.
"""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgemin_utils.errors import SettingError
from edgemin_utils.objectives import OBJECTIVES, read_student
from edgemin_utils.setting_values import check_ranges, read_value

STAGES = ("teacher", "distillation", "pruning", "tuning", "quantization", "measurement")
EVERY_TRAINED_STAGE = ("teacher", "distillation", "pruning", "tuning")
# Each is a function of pruning/importance.py.
PRUNING_CRITERIA = ("gradient", "gradient-l2", "taylor", "magnitude", "leave-one-out", "random")
PRUNED_LAYERS = re.compile(r"(top|least)-[1-9]\d*|spaced-0\.\d*[1-9]|(0|[1-9]\d*)(-(0|[1-9]\d*))*")
# What `compared_schemes = all` stands for: the names of quantization.SCHEMES.
EVERY_SCHEME = (
    "dynamic-int8",
    "dynamic-int8-embeddings",
    "onnx-float32",
    "onnx-dynamic-int8",
    "onnx-dynamic-int8-channels",
    "onnx-dynamic-int8-embeddings",
    "onnx-static-int8-minmax",
    "onnx-static-int8-percentile",
    "onnx-static-int8-entropy",
    "weight-int4",
    "weight-int4-embeddings",
    "onnx-int4",
    "onnx-int4-embeddings",
    "onnx-int4-gptq-embeddings",
)
# Number formats of quantization-aware training: the names of quantization.FORMATS.
EVERY_FORMAT = ("int8", "int4")


def _setting(
    default: Any, meaning: str, unit: str = "", stages: Iterable[str] = (), choices: Iterable[Any] = ()
) -> Any:
    metadata = {"meaning": meaning, "unit": unit, "stages": tuple(stages), "choices": tuple(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings, with the demo profile's defaults. Make one with `load_settings`, which checks names and types."""

    profile: str = _setting("demo", "the profile these defaults belong to", choices=("demo", "laptop", "paper"))

    # ---- data -------------------------------------------------------------------------------------------
    # Where rows come from is not fingerprinted by its path but by its content (data.data_fingerprint).
    data_source: str = _setting(
        "embedded",
        "where rows come from: embedded (synthetic corpora), folder (data_dir), hub (nyu-mll/glue) or file (task_file)",
        choices=("embedded", "folder", "hub", "file"),
    )
    data_dir: str | None = _setting(
        None,
        "folder with one sub-folder a task: GLUE's TSV layout, named-column "
        "CSV/TSV/JSONL/parquet, or datasets.save_to_disk",
    )
    task_file: str | None = _setting(None, "CSV, TSV, JSONL or parquet file that makes a task of one's own")
    dev_file: str | None = _setting(None, "dev rows of that task; without it 20 % of its rows are held out")
    text_columns: list[str] = _setting([], "the one or two text columns of task_file")
    label_column: str = _setting("label", "the label column of task_file")
    corpus_seed: int = _setting(0, "seed of the embedded corpora")
    train_fraction: float = _setting(1.0, "share of the train rows used", "0..1]")
    train_rows: int | None = _setting(None, "train rows used at most, after train_fraction; none: all", "rows")
    dev_rows: int | None = _setting(None, "dev rows used at most; none: all", "rows")
    holdout_fraction: float = _setting(
        0.05,
        "rows kept aside for choosing settings, as a share of the train rows "
        "used: rows that are not used where there are enough, else of those",
        "0..1",
    )
    max_length: int = _setting(48, "longest input; what is longer is cut and counted", "tokens", EVERY_TRAINED_STAGE)

    # ---- teacher ----------------------------------------------------------------------------------------
    teacher: str = _setting(
        "scratch",
        "teacher encoder: a hub id, a folder, or scratch (random weights, the teacher_* sizes)",
        stages=("teacher",),
    )
    vocabulary_size: int = _setting(
        3000, "most entries of the vocabulary made for a scratch teacher", "tokens", ("teacher",)
    )
    teacher_family: str = _setting(
        "bert",
        "architecture of a scratch teacher",
        stages=("teacher",),
        choices=("bert", "distilbert", "roberta", "electra"),
    )
    teacher_layers: int = _setting(4, "layers of a scratch teacher", "layers", ("teacher",))
    teacher_hidden_size: int = _setting(64, "hidden size of a scratch teacher", "units", ("teacher",))
    teacher_heads: int = _setting(4, "attention heads of a scratch teacher", "heads a layer", ("teacher",))
    teacher_intermediate_size: int = _setting(256, "feed-forward size of a scratch teacher", "units", ("teacher",))
    teacher_epochs: float = _setting(7, "fine-tuning length", "epochs", ("teacher",))
    teacher_learning_rate: float = _setting(5e-4, "peak learning rate of fine-tuning", "", ("teacher",))
    teacher_batch_size: int = _setting(32, "batch of fine-tuning", "rows", ("teacher",))

    # ---- every training loop ----------------------------------------------------------------------------
    batch_size: int = _setting(32, "training batch after the teacher", "rows", EVERY_TRAINED_STAGE[1:])
    warmup_ratio: float = _setting(
        0.1, "share of the steps over which the learning rate rises", "0..1", EVERY_TRAINED_STAGE
    )
    weight_decay: float = _setting(0.01, "AdamW weight decay", "", EVERY_TRAINED_STAGE)
    max_grad_norm: float = _setting(1.0, "gradient norm above which it is scaled down", "", EVERY_TRAINED_STAGE)
    dropout: float = _setting(0.0, "dropout of every model while it trains", "0..1", EVERY_TRAINED_STAGE)
    length_grouping: bool = _setting(
        True, "batches hold rows of like length (less padding)", stages=EVERY_TRAINED_STAGE
    )
    training_precision: str = _setting(
        "float32",
        "arithmetic of training: float32, bfloat16 (autocast), or auto (bfloat16 where the processor "
        "or GPU has it in hardware)",
        stages=EVERY_TRAINED_STAGE,
        choices=("float32", "bfloat16", "auto"),
    )
    attention_implementation: str = _setting(
        "sdpa", "attention kernel while training", stages=EVERY_TRAINED_STAGE, choices=("sdpa", "eager")
    )
    evaluation_batch_size: int = _setting(64, "batch when predicting", "rows")

    # ---- student ----------------------------------------------------------------------------------------
    student: str = _setting(
        "scratch",
        "student encoder: teacher-layers (layers of the fine-tuned teacher), pretrained-layers "
        "(the same layers of the checkpoint the teacher came from), scratch, a hub id or a folder",
        stages=("distillation",),
    )
    student_from_layers: list[int] = _setting(
        [0, 2], "teacher layers a teacher-layers student takes, counted from 0", "layer numbers", ("distillation",)
    )
    student_layers: int = _setting(2, "layers of a scratch student", "layers", ("distillation",))
    student_hidden_size: int = _setting(48, "hidden size of a scratch student", "units", ("distillation",))
    student_heads: int = _setting(6, "attention heads of a scratch student", "heads a layer", ("distillation",))
    student_intermediate_size: int = _setting(192, "feed-forward size of a scratch student", "units", ("distillation",))

    # ---- distillation -----------------------------------------------------------------------------------
    objective: str = _setting("minilmv2", "distillation objective of the main student", stages=("distillation",))
    compared_objectives: list[str] = _setting(
        ["none"],
        "students set beside the main one, by objective: none (no distillation, from the same start as the "
        "main student), none-pretrained (from the pretrained checkpoint's layers), any objective, or all; also "
        "minilmv2-layer-3 (another teacher layer), logits-transfer-5000 (with 5,000 transfer rows) and "
        "minilmv2-by-assistant (through a teacher assistant)",
    )
    intermediate_weight: float = _setting(
        1.0,
        "weight of what is matched inside the model where answers are trained "
        "at once: distilbert's hidden states, pkd's [CLS] vectors, shd's attention",
        "",
        ("distillation",),
    )
    transfer_rows: int = _setting(
        0,
        "train rows not used otherwise that distilled students see without their labels; the teacher's answers serve",
        "rows",
        ("distillation",),
    )
    transfer_file: str | None = _setting(
        None,
        "file of further texts without labels, with the task's text columns, for the same use",
        stages=("distillation",),
    )
    assistant: str | None = _setting(
        None,
        "encoder of the teacher assistant, as student names one; none: of the "
        "student's kind, with the assistant_* sizes",
    )
    assistant_layers: int = _setting(4, "layers of a scratch assistant; its width is the student's (MiniLM)", "layers")
    assistant_from_layers: list[int] = _setting(
        [0, 1, 2, 3], "teacher layers that a teacher-layers assistant takes", "layer numbers"
    )
    distillation_epochs: float = _setting(
        2, "first phase: what is matched inside the model", "epochs", ("distillation",)
    )
    distillation_learning_rate: float = _setting(1e-3, "peak learning rate of the first phase", "", ("distillation",))
    prediction_epochs: float = _setting(
        2,
        "prediction phase: soft targets, or labels alone without distillation "
        "(an objective of one phase also gets the first phase's epochs)",
        "epochs",
        ("distillation",),
    )
    prediction_learning_rate: float = _setting(
        1e-3, "peak learning rate of the prediction phase", "", ("distillation",)
    )
    relation_heads: int = _setting(
        8, "relation heads A_r; divides the teacher's and the student's hidden size", "heads", ("distillation",)
    )
    teacher_layer: int = _setting(
        -1,
        "teacher layer whose relations are matched; negative counts from the last",
        "layer number",
        ("distillation",),
    )
    student_layer: int = _setting(-1, "student layer that matches them", "layer number", ("distillation",))
    relation_pairs: list[str] = _setting(
        ["query-query", "key-key", "value-value"],
        "pairs of projections whose relations are matched",
        stages=("distillation",),
    )
    relation_weights: list[float] = _setting(
        [1.0, 1.0, 1.0], "weight of each relation pair in the loss", stages=("distillation",)
    )
    temperature: float = _setting(2.0, "temperature T of the soft targets", "", ("distillation", "pruning", "tuning"))
    soft_target_weight: float = _setting(
        0.5,
        "weight alpha of the soft targets; 1 - alpha goes to the labels",
        "0..1",
        ("distillation", "pruning", "tuning"),
    )
    teacher_cache_gigabytes: float = _setting(
        3.0, "memory that teacher outputs computed once may take; above it the teacher runs once an epoch", "GB"
    )

    # ---- pruning ----------------------------------------------------------------------------------------
    # What is cut, and how. All of these are in a cut's name (cuts.py).
    pruning_criterion: str = _setting(
        "gradient", "importance of a head, neuron or layer", stages=("pruning",), choices=PRUNING_CRITERIA
    )
    pruning_draw: int = _setting(1, "which draw, with the criterion random", "number", ("pruning",))
    head_prune_ratio: float = _setting(0.2, "share of the attention heads removed", "0..1)", ("pruning",))
    kept_heads_multiple: int = _setting(
        1, "heads that a layer keeps are rounded up to a multiple of this", "heads", ("pruning",)
    )
    feed_forward_prune_ratio: float = _setting(0.0, "share of the feed-forward neurons removed", "0..1)", ("pruning",))
    kept_neurons_multiple: int = _setting(
        1,
        "neurons that a layer keeps are rounded up to a multiple of this, such as "
        "the 16 or 32 that matrix kernels work in",
        "neurons",
        ("pruning",),
    )
    pruning_scope: str = _setting(
        "layer",
        "layer: int(ratio * heads) in each layer, as the paper; global: the "
        "least important of all, at least one head a layer stays",
        stages=("pruning",),
        choices=("layer", "global"),
    )
    pruned_layers: str | None = _setting(
        None,
        "layers dropped whole: top-2 (the last two), least-2 (the two least "
        "important), spaced-0.5 (half of them, what stays evenly spaced), or their "
        "numbers as in 0-2-4; none: none",
        stages=("pruning",),
    )
    prune_vocabulary: bool = _setting(
        False,
        "drop the tokens that no train row (or vocabulary_text) needs; single "
        "characters stay, so that any text still tokenizes",
        stages=("pruning",),
    )
    vocabulary_all_rows: bool = _setting(
        False,
        "also keep the tokens of train rows that are not in use, the hold-out's aside; their labels are not looked at",
        stages=("pruning",),
    )
    vocabulary_occurrences: int = _setting(
        1, "times that a token must be seen there to stay", "occurrences", ("pruning",)
    )
    vocabulary_limit: int | None = _setting(
        None, "tokens that stay at most, those seen most often; none: no limit", "tokens", ("pruning",)
    )
    pruning_rounds: int = _setting(
        1, "rounds of cut and recovery, which share recovery_epochs evenly", "rounds", ("pruning",)
    )
    recovery: bool = _setting(True, "train the cut model again, for recovery_epochs", stages=("pruning",))
    recovery_distillation: bool = _setting(
        True,
        "recovery and tuning of a distilled student, or of a compressed teacher, use the teacher's soft targets",
        stages=("pruning", "tuning"),
    )
    # What is the same for all cuts of a chain.
    vocabulary_text: str | None = _setting(
        None, "text file whose tokens a vocabulary cut keeps; none: the train rows", stages=("pruning",)
    )
    importance_rows: int = _setting(512, "train rows from which importance is taken", "rows", ("pruning",))
    recovery_epochs: float = _setting(0.5, "fine-tuning after the cut", "epochs", ("pruning",))
    recovery_learning_rate: float = _setting(2e-4, "peak learning rate of recovery", "", ("pruning",))
    compared_cuts: list[str] = _setting(
        [],
        "cuts set beside the main one, by name, as in magnitude-heads-0.2, "
        "gradient-neurons-0.25-multiple-16, layers-top-1 or vocabulary-seen-2",
    )
    scan_criteria: list[str] = _setting(
        ["gradient", "gradient-l2", "taylor", "magnitude"], "criteria whose order the scans follow", stages=("pruning",)
    )
    scan_rows: int = _setting(512, "hold-out rows on which the scans mask units one by one", "rows", ("pruning",))
    random_draws: int = _setting(3, "random orders that the importance orders are held against", "draws", ("pruning",))

    # ---- tuning: training a compressed model again ---------------------------------------------------------
    tuning_epochs: float = _setting(1, "quantization-aware training, or final fine-tuning", "epochs", ("tuning",))
    tuning_learning_rate: float = _setting(2e-4, "its peak learning rate", "", ("tuning",))
    quantize_aware_format: str = _setting(
        "int8", "numbers that quantization-aware training imitates", stages=("tuning",), choices=EVERY_FORMAT
    )

    # ---- quantization -----------------------------------------------------------------------------------
    quantization_scheme: str = _setting(
        "dynamic-int8", "scheme of the main row", stages=("quantization",), choices=EVERY_SCHEME
    )
    compared_schemes: list[str] = _setting(
        [], "schemes set beside the main one, on the pruned student, by name, or all"
    )
    calibration_rows: int = _setting(
        128, "train rows from which static quantization takes the ranges of activations", "rows", ("quantization",)
    )
    sensitivity_rows: int = _setting(
        256, "hold-out rows on which layers are quantized one at a time", "rows", ("quantization",)
    )
    recipe: list[str] = _setting(
        [],
        "further recipes: names (paper, proposal, honest, edge), or orders of the steps distill, prune, "
        "quantize-aware, fine-tune and quantize, behind `teacher` where they compress the teacher itself: one as a "
        "list, several each joined by +",
    )
    factorial: bool = _setting(
        True,
        "also prune and quantize what the chain's main path leaves out, so that all "
        "eight of distilled x pruned x quantized exist",
    )

    # ---- measurement ------------------------------------------------------------------------------------
    latency_protocol: str = _setting(
        "quick",
        "quick: 30 runs a variant, marked as quick; full: at least 100 runs and 10 s; none: models' time and memory "
        "are not measured, as for further seeds, whose models have the first one's shapes",
        stages=("measurement",),
        choices=("none", "quick", "full"),
    )
    latency_threads: list[int] = _setting(
        [1, 0], "thread counts timed; 0 stands for all cores", "threads", ("measurement",)
    )
    latency_lengths: list[int] = _setting([32, 128], "fixed input lengths timed at batch 1", "tokens", ("measurement",))
    memory_runs: int = _setting(1, "fresh processes a variant for peak memory", "processes", ("measurement",))
    bootstrap_samples: int = _setting(2000, "resamples behind a bootstrap interval", "samples", ("measurement",))


# What the other profiles change. Laptop and paper follow the paper's protocol: 10 % of GLUE's train rows.
PROFILES: dict[str, dict[str, Any]] = {
    "demo": {},
    "laptop": {
        "dropout": 0.1,
        "relation_heads": 48,
        "recovery_epochs": 1,
        "data_source": "hub",
        "train_fraction": 0.1,
        "max_length": 128,
        "holdout_fraction": 0.15,
        "teacher": "nreimers/MiniLM-L6-H384-uncased",
        "teacher_epochs": 4,
        "teacher_learning_rate": 8e-5,
        "teacher_batch_size": 16,
        "student": "teacher-layers",
        "student_from_layers": [1, 3, 5],
        "assistant_from_layers": [1, 2, 4, 5],
        "compared_objectives": ["none", "none-pretrained"],
        "distillation_epochs": 4,
        "distillation_learning_rate": 2e-4,
        "prediction_epochs": 3,
        "prediction_learning_rate": 5e-5,
        "recovery_learning_rate": 3e-5,
        "tuning_learning_rate": 3e-5,
        "training_precision": "auto",
        "latency_protocol": "full",
        "memory_runs": 3,
        "importance_rows": 1024,
        "scan_criteria": ["gradient", "magnitude"],
    },
    "paper": {
        "dropout": 0.1,
        "recovery_epochs": 1,
        "data_source": "hub",
        "train_fraction": 0.1,
        "max_length": 128,
        "holdout_fraction": 0.15,
        "teacher": "distilbert-base-uncased",
        "teacher_epochs": 3,
        "teacher_learning_rate": 5e-5,
        "student": "microsoft/MiniLM-L12-H384-uncased",
        "student_from_layers": [],
        "assistant": "teacher-layers",
        "assistant_from_layers": [1, 2, 4, 5],
        "compared_objectives": ["none"],
        "relation_heads": 48,
        "distillation_epochs": 3,
        "distillation_learning_rate": 1e-4,
        "prediction_epochs": 3,
        "prediction_learning_rate": 5e-5,
        "recovery_learning_rate": 3e-5,
        "tuning_learning_rate": 3e-5,
        "training_precision": "auto",
        "latency_protocol": "full",
        "memory_runs": 3,
        "importance_rows": 1024,
        "scan_criteria": ["gradient", "magnitude"],
    },
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name` as a hint, e.g. "did you mean 'temperature'?", or all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def setting_fields() -> dict[str, dataclasses.Field]:
    """Name -> dataclass field (with `metadata` keys meaning, unit, stages, choices) of every setting."""
    return {item.name: item for item in fields(Settings)}


def load_settings(profile: str = "demo", overrides: Mapping[str, Any] | None = None) -> Settings:
    """The profile's settings with `overrides` laid over them.

    Values may be strings (as they come from `--set name=value`); they are read as the setting's type: lists as
    comma-separated text, `none` for an optional setting left open.

    Raises:
        SettingError: unknown profile or setting (the nearest known name is given), or a value that does not fit.
    """
    if profile not in PROFILES:
        raise SettingError(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    known = setting_fields()
    types_of = typing.get_type_hints(Settings)
    # Defaults are read like overrides, so that 4 and 4.0 are the same epochs in a fingerprint.
    values = {name: read_value(name, getattr(Settings(), name), types_of[name]) for name in known}
    values |= {name: read_value(name, value, types_of[name]) for name, value in PROFILES[profile].items()}
    values["profile"] = profile
    for name, value in (overrides or {}).items():
        if name not in known:
            raise SettingError(f"unknown setting {name!r}; {nearest(name, known)}")
        if name == "profile" and value != profile:
            raise SettingError("the profile is a parameter of its own, not an override")
        values[name] = read_value(name, value, types_of[name])
    _choose_data_source(values, overrides or {})
    settings = Settings(**values)
    _check(settings)
    return settings


def changed_from_profile(settings: Settings) -> dict[str, Any]:
    """Name -> value of every setting that differs from its profile's default."""
    default = load_settings(settings.profile)
    return {name: value for name, value in dataclasses.asdict(settings).items() if value != getattr(default, name)}


def settings_of_stage(settings: Settings, stage: str) -> dict[str, Any]:
    """Name -> value of the settings that change what `stage` computes.

    Raises:
        SettingError: no such stage; the nearest known one is given.
    """
    if stage not in STAGES:
        raise SettingError(f"unknown stage {stage!r}; {nearest(stage, STAGES)}")
    return {
        name: getattr(settings, name) for name, item in setting_fields().items() if stage in item.metadata["stages"]
    }


def project_folder() -> Path:
    """The folder that holds `notebooks/`: the working directory or the nearest parent that has it."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks" / "01_teacher.ipynb").is_file():
            return folder
    return here


def study_folder(output_dir: str | os.PathLike | None, profile: str) -> Path:
    """Where a study lies: `output_dir`, or `outputs/<profile>` in the project folder when it is empty."""
    return Path(output_dir).expanduser().absolute() if output_dir else project_folder() / "outputs" / profile


def path_setting(settings: Settings, name: str) -> Path:
    """The path that a setting gives, `~` expanded.

    Raises:
        SettingError: it is not set.
    """
    given = getattr(settings, name)
    if not given:
        raise SettingError(f"{name} is not set; give it with --{name.replace('_', '-')}")
    return Path(given).expanduser()


def _choose_data_source(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """A given file or folder decides where rows come from, unless the source was named too."""
    if "data_source" in overrides:
        return
    if values.get("task_file"):
        values["data_source"] = "file"
    elif values.get("data_dir"):
        values["data_source"] = "folder"


def _check(settings: Settings) -> None:
    """Values that cannot work are refused here, before anything is computed."""
    for name, item in setting_fields().items():
        value, choices = getattr(settings, name), item.metadata["choices"]
        if choices and value not in choices:
            raise SettingError(f"setting {name!r} is {value!r}; {nearest(str(value), map(str, choices))}")
    check_ranges(dataclasses.asdict(settings))
    if len(settings.relation_pairs) != len(settings.relation_weights):
        raise SettingError(
            f"relation_pairs has {len(settings.relation_pairs)} entries and relation_weights "
            f"{len(settings.relation_weights)}; give one weight a pair"
        )
    projections = ("query", "key", "value")
    for pair in settings.relation_pairs:
        if len(pair.split("-")) != 2 or any(part not in projections for part in pair.split("-")):
            raise SettingError(
                f"relation_pairs holds {pair!r}; a pair joins two of query, key and value, as in 'query-key'"
            )
    for name in (settings.objective, *settings.compared_objectives):
        if name != "all" and read_student(name) is None:
            raise SettingError(f"unknown objective {name!r}; {nearest(name, (*OBJECTIVES, 'all'))}")
    _check_pruning(settings)
    for name in settings.compared_schemes:
        if name not in (*EVERY_SCHEME, "all"):
            raise SettingError(f"unknown scheme {name!r} in compared_schemes; {nearest(name, (*EVERY_SCHEME, 'all'))}")
    if settings.data_source == "folder" and not settings.data_dir:
        raise SettingError("data_source is folder but data_dir is not set; give the folder with --data-dir")
    if settings.data_source == "file" and not settings.task_file:
        raise SettingError("data_source is file but task_file is not set; give the file with --task-file")
    if settings.data_source == "file" and len(settings.text_columns) not in (1, 2):
        raise SettingError("a task of one's own needs one or two text columns; give them with --text-columns")


def _check_pruning(settings: Settings) -> None:
    ranking = [name for name in PRUNING_CRITERIA if name != "random"]  # random orders are drawn anyway
    for name in settings.scan_criteria:
        if name not in ranking:
            raise SettingError(f"unknown criterion {name!r} in scan_criteria; {nearest(name, ranking)}")
    if settings.pruned_layers is not None and not PRUNED_LAYERS.fullmatch(settings.pruned_layers):
        raise SettingError(
            f"pruned_layers is {settings.pruned_layers!r}; write top-2, least-2, spaced-0.5, numbers as "
            "in 0-2-4, or none"
        )
