"""What refuses a bundle before torch is imported, by JSON, paths and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemin_utils.bundle.classify import BUNDLE_FILE
from edgemin_utils.errors import ModelError, SettingError, StageError, StorageError
from edgemin_utils.names import METHODS
from edgemin_utils.rows.tables import folded
from edgemin_utils.rows.tasks import Task, own_task_name, resolve_task
from edgemin_utils.rows.tokens import check_fit, load_tokenizer, read_config
from edgemin_utils.settings import Settings, load_settings
from edgemin_utils.study import Record, open_chain_folder, read_record, require_writable

SCHEMES = [name for name in METHODS if name.startswith("edge-")]
DEFAULT_SCHEME = "edge-int8"


def check_source(
    model: str, task: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Record | tuple[Settings, str]:
    """The record of a stage's folder; of another folder or a hub id the settings and the task to judge it by. Raises
    ModelError for no float model with the task's labels, SettingError for no task, StageError for another's stage."""
    folder = Path(model).expanduser()
    if (folder / "record.json").is_file():
        record = read_record(folder.resolve())
        if asked := [f"task {task}"] * (task not in (None, record.task)) + list(overrides or {}):
            raise StageError(f"{folder}, a stage on {record.task}, knows its own rows; leave out {', '.join(asked)}")
        if record.refused or record.kind == "scan":
            raise ModelError(f"{folder} holds no model ({record.refused or 'a scan'}); name a trained or pruned one")
        source, _, scheme = record.model.rpartition("+")
        if record.kind == "quantization" and not scheme.startswith("edge-"):
            raise ModelError(f"{folder} holds integers; bundle its float model: {record.folder.parent / source}")
        open_chain_folder(record.folder.parent)
        return record
    if not folder.is_dir():
        load_tokenizer(model)  # what is no folder and no checkpoint of the hub is refused before all else
    settings = load_settings("demo", {"max_length": 128, "holdout_fraction": 0, **(overrides or {})})
    task = task or (own_task_name(settings.task_file) if settings.task_file else None)
    if task is None:
        raise SettingError(f"{model} is no stage of a study; name the rows to judge it on with --task or --task-file")
    if folder.is_dir():
        config = read_config(folder)
        if scheme := (config.get("edgemin") or {}).get("scheme"):
            raise ModelError(f"{model} was quantized by {scheme} already; bundle the float model that it came from")
        labels_of_outputs(config, resolve_task(settings, task), model)
        check_fit(load_tokenizer(str(folder)), config, settings.max_length, [])
    return settings, task


def labels_of_outputs(config: Mapping[str, Any], task: Task, name: str) -> tuple[tuple[str, ...], str]:
    """The task's label names in the order of the outputs of the model `name`, and a note where they are LABEL_1 and the
    like. Raises ModelError where they are not the task's, or not numbered from 0."""
    given = config.get("id2label") or {number: f"LABEL_{number}" for number in range(config.get("num_labels", 2))}
    names = {int(number) if str(number).isdigit() else number: str(label) for number, label in given.items()}
    if set(names) != {*range(len(names))}:
        found = ", ".join(f"{number} {label}" for number, label in names.items())
        raise ModelError(f"config.json of {name} numbers its labels {found}; correct id2label, so that they start at 0")
    outputs = [names[number] for number in range(len(names))]
    numbered = {f"LABEL_{number}": label for number, label in enumerate(task.labels)}
    if sorted(outputs) == sorted(numbered):
        meant = ", ".join(f"{label} is {numbered[label]}" for label in outputs)
        return tuple(numbered[label] for label in outputs), f"labels of {name}, taken by their numbers: {meant}"
    # Spelling counts only where the task tells labels apart by it.
    key = folded if len({folded(label) for label in task.labels}) == len(task.labels) else str
    known = {key(label): label for label in task.labels}
    if sorted(map(key, outputs)) != sorted(known):
        said = f"{name} answers with {', '.join(outputs)}, and the labels of {task.title} are {', '.join(task.labels)}"
        raise ModelError(f"{said}; name its own rows with --task or --task-file")
    return tuple(known[key(label)] for label in outputs), ""


def check_target(output: Path, scheme: str) -> None:
    """Raises SettingError for no scheme of `SCHEMES`, StorageError where `output` holds something that is no bundle, or
    nothing can be written beside it."""
    if scheme not in SCHEMES:
        raise SettingError(f"a bundle cannot be made by scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / BUNDLE_FILE).is_file()):
        raise StorageError(f"{output} is there and holds no bundle; name another --output")
    require_writable(output.absolute().parent)
