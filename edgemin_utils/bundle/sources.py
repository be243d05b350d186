"""What a bundle is made from: a float model of a study's stage, of a folder or of the hub, with its dev rows and its
own answers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils import quantization
from edgemin_utils.checkpoints import load_model
from edgemin_utils.config import Settings, load_settings
from edgemin_utils.data import TaskData, load_task_data
from edgemin_utils.encoders import longest_input
from edgemin_utils.errors import ModelError, StageError
from edgemin_utils.evaluation import read_predictions
from edgemin_utils.records import RECORD_FILE, Record, Run, open_chain, read_record
from edgemin_utils.tasks import Task, custom_task, resolve_task
from edgemin_utils.tokenization import load_tokenizer, tokenize
from edgemin_utils.training import predict

# Of a model that is no stage of a study, which would know both.
DEFAULT_TASK, DEFAULT_MAX_LENGTH = "sst2", 128


@dataclass(frozen=True)
class BundleSource:
    """A model that is to be bundled.

    Attributes:
        model: a float classifier in evaluation mode.
        tokenizer: the model's, cut with its vocabulary where that was cut.
        task: its columns; `labels` below, not the task's, are in the order of the model's outputs.
        labels: label names in the order of the model's outputs.
        max_length: most tokens of an input.
        train: train rows with the task's text columns, to which 4-bit matrices are fitted.
        dev: dev split -> rows with the task's text columns and `label`, a number in the order of `labels`.
        logits: dev split -> what the model answers to those rows, float32 (rows, labels).
        provenance: plain data for bundle.json; no path of this machine is in it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    labels: tuple[str, ...]
    max_length: int
    train: Dataset
    dev: Mapping[str, Dataset]
    logits: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]


def open_source(model: str, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> BundleSource:
    """The model in a stage's folder, in another folder or behind a hub id.

    Args:
        task: whose dev rows the bundle is judged on; None takes the stage's own, or that of `task_file`, or SST-2.
        overrides: settings that say where rows come from, as `data_dir`; a stage has its own.

    Raises:
        ModelError: there is no such model, it is quantized already, or its labels are not the task's.
        SettingError: no such task or setting.
        DataError: the rows cannot be read.
        StageError: a stage's folder is given together with another task or other rows, or its rows have changed.
    """
    folder = Path(model).expanduser()
    run = open_chain(folder.resolve().parents[1]) if (folder / RECORD_FILE).is_file() else None
    if run is not None:
        return _stage_folder_source(run, folder.resolve(), task, dict(overrides or {}))
    settings = load_settings("demo", {"max_length": DEFAULT_MAX_LENGTH, **(overrides or {})})
    chosen = custom_task(settings) if settings.task_file and not task else resolve_task(settings, task or DEFAULT_TASK)
    if quantization.scheme_of(folder):
        raise ModelError(f"{model} holds weights that are integers already; bundle the float model that it came from")
    loaded = quantization.load_model(folder) if folder.is_dir() else load_model(model)
    return _plain_source(
        loaded,
        load_tokenizer(str(folder) if folder.is_dir() else model),
        load_task_data(settings, chosen.name, 0),
        settings,
        {"source": folder.name if folder.is_dir() else model, "steps": [], "fingerprint": None},
    )


def stage_source(run: Run, record: Record) -> BundleSource:
    """The float model that a finished stage left, of these settings or of earlier ones.

    Raises:
        ModelError: the stage holds no model, or a quantized one; the message names what to bundle instead.
        StageError: the chain's dev rows are no longer those that the stage was judged on.
    """
    folder, content = record.folder, record.content
    if record.refused or not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no model{f' ({record.refused})' if record.refused else ''}; name the folder "
            "of a trained or pruned one"
        )
    if quantization.scheme_of(folder):
        raise ModelError(
            f"{folder} holds weights that are integers already; bundle the float model that it came from: "
            f"{run.stage_folder(content['source'])}"
        )
    model, tokenizer = quantization.load_model(folder), load_tokenizer(str(folder))
    data = load_task_data(run.settings, run.task, run.seed)
    longest = content["identity"]["settings"].get("max_length", run.settings.max_length)
    return BundleSource(
        model,
        tokenizer,
        data.task,
        data.task.labels,
        _longest(longest, model, tokenizer),
        data.train,
        data.dev,
        {split: _stored_logits(folder, split, rows) for split, rows in data.dev.items()},
        {
            "source": f"{run.task}/seed-{run.seed}/{record.key}",
            "steps": list(content["steps"]),
            "profile": content["profile"],
            "fingerprint": content["fingerprint"],
            "rows": data.source,
        },
    )


def _stage_folder_source(run: Run, folder: Path, task: str | None, overrides: Mapping[str, Any]) -> BundleSource:
    record = read_record(folder)
    if task not in (None, record.task) or overrides:
        asked = f"task {task}" if task not in (None, record.task) else ", ".join(overrides)
        raise StageError(f"{folder} is a stage of a study on {record.task} and knows its own rows; leave out {asked}")
    return stage_source(run, record)


def _plain_source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    settings: Settings,
    provenance: Mapping[str, Any],
) -> BundleSource:
    labels = labels_of_outputs(model, data.task, provenance["source"])
    numbers = {data.task.labels.index(name): place for place, name in enumerate(labels)}
    dev = {
        split: rows.cast_column("label", Value("int64")).map(lambda row: {"label": numbers[row["label"]]})
        for split, rows in data.dev.items()
    }
    longest = _longest(settings.max_length, model, tokenizer)
    logits = {
        split: predict(model, tokenize(rows, tokenizer, data.task, longest)[0], tokenizer)
        for split, rows in dev.items()
    }
    provenance = {**provenance, "rows": data.source}
    return BundleSource(model, tokenizer, data.task, labels, longest, data.train, dev, logits, provenance)


def labels_of_outputs(model: PreTrainedModel, task: Task, name: str) -> tuple[str, ...]:
    """The task's label names in the order of the model's outputs: checkpoints order MNLI's labels otherwise. A model
    whose labels have no names (LABEL_0, LABEL_1, ...) is taken to have the task's order.

    Raises:
        ModelError: the model has other labels than the task.
    """
    found = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
    known = {label.lower(): label for label in task.labels}
    if len(found) == len(known) and all(label.startswith("LABEL_") for label in found):
        return task.labels
    if len(found) != len(known) or {label.lower() for label in found} != known.keys():
        raise ModelError(
            f"{name} answers with {', '.join(found)}, and the labels of {task.title} are "
            f"{', '.join(task.labels)}; name the model's own task with --task"
        )
    return tuple(known[label.lower()] for label in found)


def _stored_logits(folder: Path, split: str, rows: Dataset) -> np.ndarray:
    """What the stage answered to its dev rows when it was made. Raises StageError if these are other rows."""
    stored = read_predictions(folder, split)
    if stored["row"].tolist() != list(rows["row"]) or stored["label"].tolist() != list(rows["label"]):
        raise StageError(f"the rows of {split} are not those that {folder} was judged on; run the study again")
    columns = [f"logit_{number}" for number in range(sum(name.startswith("logit_") for name in stored))]
    return stored[columns].to_numpy(dtype=np.float32)


def _longest(max_length: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    return min(max_length, longest_input(model), tokenizer.model_max_length)


def texts_of(rows: Dataset, task: Task) -> list[tuple[str, ...]]:
    """The one or two texts of every row, in order."""
    return list(zip(*(rows[column] for column in task.text_columns), strict=True))


def share_right(answers: np.ndarray, labels: Sequence[int]) -> float:
    """Share of rows whose largest logit, of (rows, labels), is that of their label."""
    return float((answers.argmax(axis=1) == np.asarray(labels)).mean())
