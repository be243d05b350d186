"""What a bundle is made from: a model of a study's stage or of a plain folder, its dev rows and its answers to them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PretrainedConfig, PreTrainedModel

from edgemin_utils.checkpoints import load_config
from edgemin_utils.errors import ModelError, SettingError, StageError
from edgemin_utils.measurement.evaluate import PREDICTIONS_FILE
from edgemin_utils.quantization.schemes import load_model, scheme_of
from edgemin_utils.rows.labels import folded
from edgemin_utils.rows.splits import TaskData, load_task_data
from edgemin_utils.rows.tasks import Task, own_task_name
from edgemin_utils.rows.tokens import Rows, load_tokenizer, tokenize_rows
from edgemin_utils.settings import Settings, load_settings
from edgemin_utils.study import Record, open_chain_folder, read_record
from edgemin_utils.training import predict

DEFAULTS = {"max_length": 128, "holdout_fraction": 0}  # of a model that is no stage of a study, which would know


@dataclass(frozen=True)
class BundleSource:
    """A float classifier to be bundled, with rows tokenized for it. `labels` are in the order of its outputs; `logits`
    maps dev splits to float32 (rows, labels); `provenance` holds no path of this machine; `graph` is the folder of a
    stage with an edge scheme; `synthetic`: it has learnt from the embedded corpora alone."""

    model: PreTrainedModel
    rows: Rows
    labels: tuple[str, ...]
    logits: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]
    graph: Path | None = None
    scheme: str = ""
    synthetic: bool = False


def open_source(model: str, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> BundleSource:
    """The model in a stage's folder, which knows its rows, or in another or behind a hub id: then `task` and
    `overrides` (settings, as `data_dir`) say which rows it is judged on. Raises ModelError for no float model with the
    task's labels, SettingError where no task is named, StageError for a stage with another or whose rows changed."""
    folder = Path(model).expanduser()
    if (folder / "record.json").is_file():
        record = read_record(folder.resolve())
        if asked := [f"task {task}"] * (task not in (None, record.task)) + list(overrides or {}):
            said = f"is a stage of a study on {record.task} and knows its own rows"
            raise StageError(f"{folder} {said}; leave out {', '.join(asked)}")
        return stage_source(record)
    settings = load_settings("demo", {**DEFAULTS, **(overrides or {})})
    task = task or (own_task_name(settings.task_file) if settings.task_file else None)
    if task is None:
        raise SettingError(f"{model} is no stage of a study; name the rows to judge it on with --task or --task-file")
    if scheme := scheme_of(folder):
        raise ModelError(f"{model} was quantized by {scheme} already; bundle the float model that it came from")
    name = str(folder) if folder.is_dir() else model
    data = load_task_data(settings, task, 0)
    labels, note = labels_of_outputs(load_config(name), data.task, model)
    rows = _rows(loaded := load_model(name), name, data, settings)
    logits = {split: predict(loaded, dev, rows.tokenizer) for split, dev in rows.dev.items()}
    provenance = {"source": folder.name if folder.is_dir() else model, "rows": data.source, "note": note}
    return BundleSource(loaded, rows, labels, logits, provenance)


def stage_source(record: Record) -> BundleSource:
    """The model of a finished stage; of one with an edge scheme its graph, and the float model that it came from.
    Raises ModelError where there is none, StageError where dev rows have changed."""
    chain, folder, scheme = open_chain_folder(record.folder.parent), record.folder, ""
    if record.refused or record.kind == "scan":
        why = record.refused or "a scan leaves none"
        raise ModelError(f"{folder} holds no model ({why}); name the folder of a trained or pruned one")
    if record.kind == "quantization":
        name, _, scheme = record.model.rpartition("+")
        folder, scheme = chain.folder / name, scheme.split(",")[0]
        if not scheme.startswith("edge-"):
            raise ModelError(f"{record.folder} holds integers already; bundle the float model it came from: {folder}")
    model, data = load_model(folder), load_task_data(chain.settings, chain.task, chain.seed)
    rows = _rows(model, str(folder), data, chain.settings)
    stored, logits = pd.read_parquet(folder / PREDICTIONS_FILE), {}
    for split, dev in data.dev.items():
        own = stored[stored["split"] == split]
        if own["row"].tolist() != list(dev["row"]) or own["label"].tolist() != list(dev["label"]):
            raise StageError(f"the rows of {split} are not those that {folder} was judged on; run the study again")
        logits[split] = own.filter(regex=r"^logit_\d+$").to_numpy(dtype=np.float32)
    place, said = (
        f"{chain.task}/seed-{chain.seed}",
        {"rows": data.source, "fingerprint": read_record(folder).fingerprint},
    )
    provenance = {"source": f"{place}/{record.model}", "float_source": f"{place}/{folder.name}", **said}
    graph, synthetic = record.folder if scheme else None, chain.settings.data_source == "embedded"
    return BundleSource(model, rows, data.task.labels, logits, provenance, graph, scheme, synthetic)


def _rows(model: PreTrainedModel, name: str, data: TaskData, settings: Settings) -> Rows:
    few = data.train.select(range(min(settings.calibration_rows, len(data.train))))
    return tokenize_rows(replace(data, train=few), load_tokenizer(name), settings.max_length, configs=[model.config])


def labels_of_outputs(config: PretrainedConfig, task: Task, name: str) -> tuple[tuple[str, ...], str]:
    """The task's label names in the order of the model's outputs, and what is to be said of it: names that say nothing
    (LABEL_1) are taken by their numbers. Raises ModelError where they are not the task's or not numbered from 0."""
    names = {int(number): str(label) for number, label in config.id2label.items()}
    if config.problem_type == "multi_label_classification":
        raise ModelError(f"{name} gives a row several labels at once; a bundle gives it one")
    if sorted(names) != list(range(len(names))):
        found = ", ".join(f"{number} {label}" for number, label in sorted(names.items()))
        raise ModelError(f"config.json of {name} numbers its labels {found}; correct id2label, so that they start at 0")
    given = [names[number] for number in range(len(names))]
    numbers = [int(label[6:]) for label in given if re.fullmatch(r"LABEL_\d+", label)]
    if sorted(numbers) == list(range(len(task.labels))) and len(given) == len(numbers):
        labels = tuple(task.labels[number] for number in numbers)
        meant = ", ".join(f"{label} is {meaning}" for label, meaning in zip(given, labels, strict=True))
        return labels, f"the labels of {name} have no names and were taken by their numbers: {meant}"
    # Spelling counts only where the task tells labels apart by it.
    key = folded if len({folded(label) for label in task.labels}) == len(task.labels) else str
    known = {key(label): label for label in task.labels}
    if sorted(map(key, given)) != sorted(known):
        theirs, ours = ", ".join(given), ", ".join(task.labels)
        said = f"{name} answers with {theirs}, and the labels of {task.title} are {ours}"
        raise ModelError(f"{said}; name its own rows with --task or --task-file")
    return tuple(known[key(label)] for label in given), ""
