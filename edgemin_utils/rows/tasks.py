"""What a task is: its columns, its labels in id order and its dev splits."""

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from edgemin_utils.errors import SettingError
from edgemin_utils.rows.labels import find_classes, label_texts
from edgemin_utils.rows.tables import Table, read_table
from edgemin_utils.settings import Settings, nearest


@dataclass(frozen=True)
class Task:
    """A classification task over one text or a pair: `name` for settings and the hub ("sst2"), `title` for tables and
    GLUE's folders ("SST-2"); columns as on the hub, `tsv_columns` (texts, then label) as in GLUE's TSV files; labels in
    id order; dev splits, the main one first."""

    name: str
    title: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    label_column: str = "label"
    dev_splits: tuple[str, ...] = ("dev",)
    tsv_columns: tuple[str, ...] = ()
    is_own: bool = False

    @property
    def main_dev_split(self) -> str:
        """The dev split that a single number is taken from."""
        return self.dev_splits[0]

    def column_names(self, column: str) -> list[str]:
        """The names under which `column` may stand in a file: that of GLUE's TSV files first."""
        names = dict(zip((*self.text_columns, self.label_column), self.tsv_columns, strict=False))
        return list(dict.fromkeys((names.get(column, column), column)))


_MNLI_LABELS, _MNLI_DEV = ("entailment", "neutral", "contradiction"), ("dev_matched", "dev_mismatched")
_MNLI_TSV, _QQP_TSV = ("sentence1", "sentence2", "gold_label"), ("question1", "question2", "is_duplicate")
TASKS: dict[str, Task] = {
    "sst2": Task("sst2", "SST-2", ("sentence",), ("negative", "positive")),
    "mnli": Task("mnli", "MNLI", ("premise", "hypothesis"), _MNLI_LABELS, "label", _MNLI_DEV, _MNLI_TSV),
    "qqp": Task("qqp", "QQP", _QQP_TSV[:2], ("not_duplicate", "duplicate"), tsv_columns=_QQP_TSV),
}


def check_task_name(settings: Settings, name: str) -> None:
    """Raises SettingError, with the nearest known name, unless a task is called `name`; reads no row."""
    own = own_task_name(settings.task_file or "") if settings.data_source == "file" else ""
    if name not in ([own] if own else TASKS):
        way = f"the task that {settings.task_file} makes is called {own!r}" if own else nearest(name, TASKS)
        raise SettingError(f"unknown task {name!r}; {way}")


def own_task_name(path: str) -> str:
    """The name of the task that a file makes: its name without the ending, letters and digits of any script."""
    stem = unicodedata.normalize("NFC", Path(path).stem)
    kept = "".join(mark if mark in "_-" or unicodedata.category(mark)[0] in "LMN" else " " for mark in stem)
    return "-".join(kept.split()).strip("-")[:60] or f"task-{hashlib.sha256(stem.encode()).hexdigest()[:6]}"


def own_tables(settings: Settings) -> dict[str, Table]:
    """The tables of a task of one's own: train, and dev where `dev_file` is given."""
    files = {"train": settings.task_file, "dev": settings.dev_file}
    return {split: read_table([Path(name).expanduser()], settings.encoding) for split, name in files.items() if name}


def resolve_task(settings: Settings, name: str) -> Task:
    """The task called `name`: one of GLUE's, or that of `task_file`. Raises SettingError where there is none or columns
    contradict each other, DataError where its file cannot be read or makes no task."""
    check_task_name(settings, name)
    if settings.data_source != "file":
        return TASKS[name]
    texts, label = tuple(settings.text_columns), settings.label_column
    if len({*texts, label}) <= len(texts):
        raise SettingError(f"text_columns {', '.join(texts)} and label_column {label} must be different columns")
    if {"label", "row"} & set(texts):
        raise SettingError("a text column cannot be called 'label' or 'row' (used inside); rename it in the file")
    for table in (tables := own_tables(settings)).values():
        for column in (*texts, label):
            table.find(column)
    found = label_texts(tables["train"], label, settings.fold_labels)
    labels = find_classes(found, f"{settings.task_file}: column {label!r}")
    return Task(name, Path(settings.task_file or "").stem, texts, labels, label, is_own=True)
