"""What a task is: its columns, its labels in id order, its dev splits and the metrics that judge it."""

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from edgemin_utils.config import Settings, nearest, path_setting
from edgemin_utils.errors import DataError, SettingError

METRICS = ("accuracy", "f1", "matthews_correlation")


@dataclass(frozen=True)
class Task:
    """A classification task over one text or a pair of texts.

    Attributes:
        name: name in settings, folders and records, e.g. "sst2".
        title: name in tables and figures, e.g. "SST-2".
        text_columns: one or two columns, as the task's data set on the hub names them.
        label_column: the label's column there. In a loaded `datasets.Dataset` the label is always called "label".
        labels: label names in id order.
        dev_splits: dev splits in reporting order; the first is the main one, the others may be missing.
        metrics: names out of `METRICS`; the first is the headline metric.
        folder: the task's folder in GLUE's TSV layout; empty for a task made from a file.
        hub_config: the task's configuration of `nyu-mll/glue`; empty for a task made from a file.
        tsv_text_columns: `text_columns` as GLUE's TSV files name them.
        tsv_label_column: `label_column` as GLUE's TSV files name it.
        unlabelled: label that marks rows without an agreed label; GLUE leaves them out, and so do we (counted).
    """

    name: str
    title: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    dev_splits: tuple[str, ...]
    metrics: tuple[str, ...]
    folder: str = ""
    hub_config: str = ""
    tsv_text_columns: tuple[str, ...] = ()
    tsv_label_column: str = ""
    unlabelled: str | None = None

    @property
    def main_dev_split(self) -> str:
        """The dev split that a single number is taken from."""
        return self.dev_splits[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """The train split and every dev split."""
        return ("train", *self.dev_splits)

    @property
    def is_from_file(self) -> bool:
        """Whether the task was made from a file of the user's own."""
        return not self.hub_config

    def column_names(self, column: str) -> tuple[str, ...]:
        """The names under which `column` may stand in a file: the hub's first, then that of GLUE's TSV files."""
        names = dict(zip(self.text_columns, self.tsv_text_columns, strict=False))
        names[self.label_column] = self.tsv_label_column
        return tuple(dict.fromkeys(name for name in (column, names.get(column, "")) if name))


TASKS: dict[str, Task] = {
    "sst2": Task(
        name="sst2",
        title="SST-2",
        text_columns=("sentence",),
        label_column="label",
        labels=("negative", "positive"),
        dev_splits=("dev",),
        metrics=("accuracy", "matthews_correlation"),
        folder="SST-2",
        hub_config="sst2",
        tsv_text_columns=("sentence",),
        tsv_label_column="label",
    ),
    "mnli": Task(
        name="mnli",
        title="MNLI",
        text_columns=("premise", "hypothesis"),
        label_column="label",
        labels=("entailment", "neutral", "contradiction"),
        dev_splits=("dev_matched", "dev_mismatched"),
        metrics=("accuracy", "matthews_correlation"),
        folder="MNLI",
        hub_config="mnli",
        tsv_text_columns=("sentence1", "sentence2"),
        tsv_label_column="gold_label",
        unlabelled="-",
    ),
    "qqp": Task(
        name="qqp",
        title="QQP",
        text_columns=("question1", "question2"),
        label_column="label",
        labels=("not_duplicate", "duplicate"),
        dev_splits=("dev",),
        metrics=METRICS,
        folder="QQP",
        hub_config="qqp",
        tsv_text_columns=("question1", "question2"),
        tsv_label_column="is_duplicate",
    ),
}


def find_task(name: str) -> Task:
    """The GLUE task called `name`.

    Raises:
        SettingError: there is none; the nearest known name is given.
    """
    if name not in TASKS:
        raise SettingError(f"unknown task {name!r}; {nearest(name, TASKS)}")
    return TASKS[name]


def custom_task(settings: Settings) -> Task:
    """The task that `settings.task_file` makes: named after the file, with the labels found in it.

    Labels are names or numbers, two or more; their ids follow alphabetical order, or numerical order when all of
    them are numbers. F1 is that of the second label when there are two, else the macro average.

    Raises:
        DataError: the file cannot be read, lacks a column, or its labels cannot be classes.
        SettingError: the column settings contradict each other.
    """
    columns = tuple(settings.text_columns)
    if settings.label_column in columns or len(set(columns)) != len(columns):
        raise SettingError(
            f"text_columns {', '.join(columns)} and label_column {settings.label_column} must be different columns"
        )
    reserved = sorted({"label", "row"} & set(columns))
    if reserved:
        raise SettingError(
            f"a text column cannot be called {reserved[0]!r} (the name is used inside); rename it in the file"
        )
    path = path_setting(settings, "task_file")
    return Task(
        name=_folder_name(path.stem),
        title=path.stem,
        text_columns=columns,
        label_column=settings.label_column,
        labels=_labels_in_file(path, settings.label_column),
        dev_splits=("dev",),
        metrics=METRICS,
    )


def resolve_task(settings: Settings, name: str) -> Task:
    """The task called `name` under these settings: one of GLUE's, or the one that `task_file` makes.

    Raises:
        SettingError: no such task.
        DataError: `task_file` cannot be read.
    """
    if settings.data_source != "file":
        return find_task(name)
    own = _folder_name(path_setting(settings, "task_file").stem)
    if name != own:
        raise SettingError(f"unknown task {name!r}; the task that {settings.task_file} makes is called {own!r}")
    return custom_task(settings)


def sort_labels(labels: set[str]) -> tuple[str, ...]:
    """Label names in id order: by value when all are numbers, else alphabetical."""
    try:
        values = {label: float(label) for label in labels}
    except ValueError:
        return tuple(sorted(labels))
    if not all(math.isfinite(value) for value in values.values()):
        return tuple(sorted(labels))
    return tuple(sorted(labels, key=lambda label: (values[label], label)))


def _folder_name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "task"


def _labels_in_file(path: Path, label_column: str) -> tuple[str, ...]:
    from edgemin_utils.row_files import check_file

    stat = check_file(path).stat()
    return _cached_labels(path, label_column, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _cached_labels(path: Path, label_column: str, size: int, modified: int) -> tuple[str, ...]:
    # Size and time of change are part of the key, so that an edited file is read again.
    from edgemin_utils.row_files import label_text, read_rows

    rows = read_rows(path)
    column = rows.find_column((label_column,))
    labels = {label_text(value) for value in rows.columns[column]}
    if "" in labels:
        first = next(index for index, value in enumerate(rows.columns[column]) if not label_text(value))
        raise DataError(f"{path}, {rows.place(first)}: column {column!r} is empty; every row needs a label")
    if len(labels) < 2:
        raise DataError(f"{path}: column {column!r} holds only the label {labels.pop()!r}; a task needs at least two")
    if len(labels) > 20 and len(labels) > len(rows) / 2:
        raise DataError(
            f"{path}: column {column!r} holds {len(labels)} different values in {len(rows)} rows; these "
            "are not classes (is it the label column?)"
        )
    return sort_labels(labels)
