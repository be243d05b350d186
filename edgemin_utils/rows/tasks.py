"""What a task is, and its rows in one shape: of the embedded corpora, a folder, the hub, or files of one's own."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgemin_utils.corpus import embedded
from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.rows import tables
from edgemin_utils.rows.tables import Table, read_table
from edgemin_utils.settings import Settings, nearest

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS_VERSION = 3  # raised whenever other rows are chosen from the same files; part of every fingerprint
GLUE_ON_HUB = "nyu-mll/glue"
GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # pinned: a later upload cannot change the rows


@dataclass(frozen=True)
class Task:
    """A classification task over one text or a pair: `name` for settings and the hub, `title` for tables and GLUE's
    folders, `in_tsv` what its TSV files call a column; labels in id order; dev splits, the main one first."""

    name: str
    title: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    label_column: str = "label"
    dev_splits: tuple[str, ...] = ("dev",)
    in_tsv: Mapping[str, str] = field(default_factory=dict)
    is_own: bool = False


_MNLI_LABELS, _MNLI_DEV = ("entailment", "neutral", "contradiction"), ("dev_matched", "dev_mismatched")
_MNLI_TSV = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
_QQP_TSV = {"label": "is_duplicate"}
TASKS: dict[str, Task] = {
    "sst2": Task("sst2", "SST-2", ("sentence",), ("negative", "positive")),
    "mnli": Task("mnli", "MNLI", ("premise", "hypothesis"), _MNLI_LABELS, "label", _MNLI_DEV, _MNLI_TSV),
    "qqp": Task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), in_tsv=_QQP_TSV),
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


def resolve_task(settings: Settings, name: str) -> Task:
    """The task called `name`, one of GLUE's or that of `task_file`; raises SettingError or DataError if none is."""
    check_task_name(settings, name)
    if settings.data_source != "file":
        return TASKS[name]
    texts, label = tuple(settings.text_columns), settings.label_column
    if len({*texts, label}) <= len(texts):
        raise SettingError(f"text_columns {', '.join(texts)} and label_column {label} must be different columns")
    if {"label", "row"} & set(texts):
        raise SettingError("a text column cannot be called 'label' or 'row' (used inside); rename it in the file")
    table = read_table([_own_files(settings)["train"]], settings.encoding)
    found = tables.label_texts(table, table.find(label), settings.fold_labels)
    labels = tables.find_classes(found, f"{table.name}: column {label!r}")
    return Task(name, Path(table.name).stem, texts, labels, label, is_own=True)


def _own_files(settings: Settings) -> dict[str, Path]:
    files = {"train": settings.task_file, "dev": settings.dev_file}
    return {split: Path(file).expanduser() for split, file in files.items() if file}


def read_splits(settings: Settings, task: Task) -> "tuple[dict[str, DataFrame], str, list[str]]":
    """Split -> frame of text columns (str), `label` (id) and `row` (position in the source); their source; notes."""
    notes, fold = list[str](), settings.fold_labels
    if settings.data_source == "embedded":
        drawn = f"version {embedded.CORPUS_VERSION}, seed {settings.corpus_seed}"
        source = f"synthetic corpus of this project in the schema of {task.title} ({drawn})"
        corpus = embedded.make_corpus(task.name, settings.corpus_seed).items()
        found = {name: Table(name, {each: [row[each] for row in rows] for each in rows[0]}) for name, rows in corpus}
    elif task.is_own:
        own = _own_files(settings)
        found = {split: read_table([file], settings.encoding) for split, file in own.items()}
        source = f"task {task.name} from {' and '.join(file.name for file in own.values())}"
    else:
        hub = settings.data_source == "hub"
        shards = _find_files(task, _download_glue(task) if hub else settings.data_dir or "")
        found = {split: read_table(paths, settings.encoding) for split, paths in shards.items()}
        files = ", ".join(paths[0].name for paths in shards.values())
        source = f"{task.title} from {f'{GLUE_ON_HUB} ({GLUE_REVISION[:8]})' if hub else f'a folder ({files})'}"
        notes += [f"{split}: not in the folder, so not measured" for split in task.dev_splits if split not in found]
    return {split: read_frame(table, task, split, notes, fold) for split, table in found.items()}, source, notes


def read_frame(table: Table, task: Task, split: str, notes: list[str], fold: bool = False) -> "DataFrame":
    """A table's rows, of transfer without labels; `notes` gets those left out. Raises DataError for what is no text."""
    import pandas

    labelled, columns = split != "transfer", dict[str, list[str]]()
    called = [*task.text_columns, *[task.label_column] * labelled]
    found = {column: table.find(task.in_tsv.get(column, column), column) for column in called}
    for column in task.text_columns:
        values = table.columns[found[column]]
        columns[column] = ["" if value is None or value != value else str(value) for value in values]
        for index, (value, text) in enumerate(zip(values, columns[column], strict=True)):
            if isinstance(value, list | dict | bytes) or re.search("[\ud800-\udfff]", text):  # half a surrogate pair
                raise DataError(f"{table.place(index)}: column {column!r} holds {text[:40]!a}, where text is needed")
    labels, ids = [""] * len(table), [tables.NO_LABEL] * len(table)
    if labelled:
        labels = tables.label_texts(table, found[task.label_column], fold)
        ids = tables.label_ids(table, labels, task.labels, not task.is_own)
        notes += tables.spelling_notes(labels, split) if task.is_own else []
    frame = pandas.DataFrame({**columns, "label": ids, "row": range(len(ids))})
    empty = (frame[list(task.text_columns)].map(str.strip) == "").any(axis=1)
    missing = (frame["label"] == tables.NO_LABEL) & labelled
    marks = ", ".join(sorted({repr(label) for label, out in zip(labels, missing, strict=True) if out}))
    why = {f"without a label ({marks}; a class called so needs another name)": missing, "with an empty text": empty}
    said = [f"{split}: {out.sum():,} of {len(ids):,} rows {each} left out" for each, out in why.items() if out.any()]
    frame = frame[~missing & ~empty].reset_index(drop=True)
    if frame.empty:
        raise DataError(f"{table.name}: no usable row is left; {'; '.join(said)}")
    notes += said
    return frame


def _find_files(task: Task, data_dir: str | Path) -> dict[str, list[Path]]:
    """Split -> its file (`dev`, `validation` and so on) or shards, in the folder called by the task's title or name."""
    there = sorted(Path(data_dir).expanduser().glob("*"))
    folders = [path for path in there if path.is_dir() and path.name.lower() in (task.title.lower(), task.name)]
    if len(folders) != 1:
        listed, called = ", ".join(path.name for path in folders or there) or "nothing", f"{task.title} or {task.name}"
        raise DataError(f"{data_dir} needs one folder for {task.title}, called {called}; there is {listed}")
    files, found = sorted(folders[0].iterdir()), {}
    names = {path: path.stem for path in files if path.suffix.lower() in tables.READERS}
    saved = sorted(folders[0].glob("*/data-*.arrow"))  # of datasets.save_to_disk
    names |= {path: path.parent.name + path.stem.removeprefix("data") for path in saved}
    for split in ("train", *task.dev_splits):
        other = split.replace("dev", "validation")
        pattern = re.compile(rf"(?:{split}|{other})(?:-\d+-of-(\d+))?", re.IGNORECASE)
        shards = {path: int(match[1] or 1) for path, name in names.items() if (match := pattern.fullmatch(name))}
        listed = ", ".join(path.name for path in shards or files) or "nothing"
        if shards:
            found[split] = list(shards)
            if set(shards.values()) != {len(shards)}:
                raise DataError(f"{folders[0]}: {split} is there twice or lacks shards ({listed}); keep one whole set")
        elif split in ("train", task.dev_splits[0]):
            wanted = f"looked for {split}.tsv or {other}.parquet and the like"
            raise DataError(f"{folders[0]}: no {split} split; {wanted}; there is {listed}")
    return found


def _download_glue(task: Task) -> str:
    import huggingface_hub

    reachable = reach_hub(GLUE_ON_HUB, "dataset")
    wanted = {"repo_type": "dataset", "revision": GLUE_REVISION, "allow_patterns": f"{task.name}/*"}
    try:
        return huggingface_hub.snapshot_download(GLUE_ON_HUB, local_files_only=not reachable, **wanted)
    except Exception as error:  # whatever its HTTP client raises
        why = "cannot be downloaded" if reachable else "is not in the cache and the hub cannot be reached"
        way = f"({type(error).__name__}); give GLUE's files with --data-dir, or take the demo profile"
        raise DataError(f"{GLUE_ON_HUB} ({task.name}) {why} {way}") from None


def reach_hub(repository: str, kind: str = "model") -> bool:
    """Whether the hub answers; raises huggingface_hub's RepositoryNotFoundError or HFValidationError if it has none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=5.0)  # or it retries for most of a minute
    except (HFValidationError, RepositoryNotFoundError):
        raise
    except Exception:  # whatever the HTTP client raises: no route, no name, timeout, offline mode
        return False
    return True


def rows_fingerprint(settings: Settings, name: str) -> str:
    """16 hex digits of a task, its files' content and the settings that draw rows; raises SettingError or DataError."""
    check_task_name(settings, name)
    source = [settings.encoding, str(settings.fold_labels)]
    if settings.data_source == "embedded":
        source = ["embedded", str(embedded.CORPUS_VERSION), str(settings.corpus_seed)]
    elif settings.data_source == "hub":
        source = ["hub", GLUE_ON_HUB, GLUE_REVISION]
    elif settings.data_source == "folder":
        found = _find_files(TASKS[name], settings.data_dir or "")
        source += [f"{split} {_file_hash(path)}" for split, paths in found.items() for path in paths]
    else:
        source += [*map(_file_hash, _own_files(settings).values()), *settings.text_columns, settings.label_column]
    drawn = [settings.train_fraction, settings.train_rows, settings.dev_rows, settings.holdout_fraction]
    return hashlib.sha256(json.dumps([ROWS_VERSION, name, source, drawn]).encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
