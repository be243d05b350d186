"""Where rows come from (embedded corpora, a folder, the hub, a file of one's own), all brought to one shape.

Every reader returns `SourceRows`: split name -> pandas frame with the task's text columns (str), `label` (int, in the
task's id order) and `row` (int, position in the source split, counted from 0 and over the rows left out as well).
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemin_utils.config import Settings, nearest, path_setting
from edgemin_utils.content_hash import file_hash
from edgemin_utils.errors import DataError
from edgemin_utils.row_files import READERS, RowFile, check_file, label_text, read_rows
from edgemin_utils.tasks import Task

if TYPE_CHECKING:
    import datasets
    import pandas

GLUE_ON_HUB = "nyu-mll/glue"
GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # pinned: a later upload cannot change the rows
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer; without it the libraries retry for most of a minute."""


@dataclass(frozen=True)
class SourceRows:
    """What a source holds for one task.

    Attributes:
        splits: split name -> frame with the task's text columns, `label` and `row`.
        description: one sentence on where the rows come from.
        notes: what was missing or left out, one sentence each.
    """

    splits: "dict[str, pandas.DataFrame]"
    description: str
    notes: tuple[str, ...] = ()


def read_source(settings: Settings, task: Task) -> SourceRows:
    """The rows of `task` from the source that the settings choose.

    Raises:
        DataError: the rows cannot be read, or do not make a classification task.
    """
    if settings.data_source == "embedded":
        source = read_embedded(task, settings.corpus_seed)
    elif settings.data_source == "folder":
        source = read_folder(task, path_setting(settings, "data_dir"))
    elif settings.data_source == "hub":
        source = read_hub(task)
    else:
        source = read_file(task, path_setting(settings, "task_file"), _dev_path(settings))
    _check_labels(task, source)
    return source


def source_identity(settings: Settings, task: Task) -> list[str]:
    """Texts that change when, and only when, the source's rows may change; paths are no part of them.

    Raises:
        DataError: a file or folder is missing.
    """
    if settings.data_source == "embedded":
        from edgemin_utils.corpus import CORPUS_VERSION

        return ["embedded", str(CORPUS_VERSION), str(settings.corpus_seed)]
    if settings.data_source == "hub":
        return ["hub", GLUE_ON_HUB, GLUE_REVISION, task.hub_config]
    if settings.data_source == "folder":
        found = find_split_files(task, path_setting(settings, "data_dir"))
        return ["folder", *(f"{split} {_content_hash(path)}" for split, path in found.items())]
    files = [path_setting(settings, "task_file"), _dev_path(settings)]
    return [
        "file",
        *(_content_hash(check_file(path)) for path in files if path),
        *settings.text_columns,
        settings.label_column,
    ]


def file_identity(path: str) -> str:
    """What stands for a file in a fingerprint: its content, whatever its path.

    Raises:
        DataError: it is missing, or of a kind that cannot be read.
    """
    return f"file-{_content_hash(check_file(Path(path).expanduser()))[:16]}"


def read_embedded(task: Task, seed: int) -> SourceRows:
    """The synthetic corpus of `task`, drawn from `seed`."""
    from edgemin_utils.corpus import CORPUS_VERSION, embedded_corpus

    frames = embedded_corpus(task.name, seed=seed)
    rows = {split: RowFile(f"embedded {task.name} {split}", frame.to_dict("list")) for split, frame in frames.items()}
    return _assemble(
        task,
        rows,
        f"synthetic corpus of this project in the schema of {task.title} (version {CORPUS_VERSION}, seed {seed})",
    )


def read_folder(task: Task, data_dir: Path) -> SourceRows:
    """The splits of `task` in `data_dir`/<task folder>/, in any of the layouts that `find_split_files` knows.

    Raises:
        DataError: a folder, file or column is missing, or a row cannot be read.
    """
    found = find_split_files(task, data_dir)
    rows = {split: _read_saved(path, task) if path.is_dir() else read_rows(path) for split, path in found.items()}
    missing = [
        f"{split}: not in the folder, so not measured (looked for {_wanted(split)})"
        for split in task.splits
        if split not in found
    ]
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in found.values())
    return _assemble(task, rows, f"{task.title} rows from a folder ({names})", missing)


def find_split_files(task: Task, data_dir: Path) -> dict[str, Path]:
    """Split -> its file, or its folder where `datasets.save_to_disk` wrote it.

    The task's folder may be called by its GLUE name or its task name, in any case; a split's file `train.*`, `dev.*`
    or `validation.*` (for MNLI `dev_matched.*` and so on), ending in .tsv, .csv, .jsonl, .json or .parquet. Dev splits
    after the main one may be missing.

    Raises:
        DataError: the folder, the train split or the main dev split is missing, or a split is there twice.
    """
    folder = _task_folder(task, data_dir)
    found = {}
    for split in task.splits:
        names = _split_names(split)
        paths = sorted(
            path
            for path in folder.iterdir()
            if (path.stem.lower() in names and path.suffix.lower() in READERS and path.is_file())
            or (path.name.lower() in names and (path / "state.json").is_file())
        )
        if len(paths) > 1:
            raise DataError(
                f"{folder} holds the {split} split more than once ({', '.join(path.name for path in paths)}); keep one"
            )
        if paths:
            found[split] = paths[0]
    for split in ("train", task.main_dev_split):
        if split not in found:
            there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise DataError(
                f"no {split} split of {task.title} in {folder}: looked for {_wanted(split)}; there is {there}"
            )
    return found


def read_hub(task: Task) -> SourceRows:
    """The splits of `task` from `nyu-mll/glue` at the pinned revision, or from the local cache without a network.

    Raises:
        DataError: the hub cannot be reached and nothing is cached, or the data set is not as expected.
    """
    import datasets

    reachable = reach_hub(GLUE_ON_HUB, "dataset")
    rows = {}
    try:
        with contextlib.nullcontext() if reachable else _datasets_offline():
            for split in task.splits:
                loaded = datasets.load_dataset(
                    GLUE_ON_HUB, task.hub_config, revision=GLUE_REVISION, split=split.replace("dev", "validation")
                )
                _check_revision(loaded, reachable)
                rows[split] = rows_of_dataset(loaded, task, f"{GLUE_ON_HUB} {task.hub_config} {split}")
    except DataError:
        raise
    except Exception as error:  # the libraries beneath raise whatever their HTTP client raises
        why = "cannot be downloaded" if reachable else "is not in the cache and the hub cannot be reached"
        raise DataError(
            f"data set {GLUE_ON_HUB} ({task.hub_config}) {why} ({type(error).__name__}); give GLUE's files with "
            "--data-dir, or take the demo profile, which needs no network"
        ) from error
    return _assemble(task, rows, f"{task.title} from {GLUE_ON_HUB} ({task.hub_config}, revision {GLUE_REVISION[:8]})")


def read_file(task: Task, train_path: Path, dev_path: Path | None = None) -> SourceRows:
    """The rows of a task of one's own: a train file, and a dev file or none (then only `train` is returned).

    Raises:
        DataError: a file or column is missing, a row cannot be read, or dev holds a label that train lacks.
    """
    rows = {"train": read_rows(train_path)}
    if dev_path:
        rows["dev"] = read_rows(dev_path)
    names = " and ".join(path.name for path in (train_path, dev_path) if path)
    return _assemble(task, rows, f"task {task.name} from {names}")


def read_texts(path: Path, task: Task) -> "pandas.DataFrame":
    """The texts of a file without labels: the task's text columns and `row`; rows with an empty text are left out.

    Raises:
        DataError: the file or a text column is missing, or no text is left.
    """
    import pandas

    rows = read_rows(path)
    frame = pandas.DataFrame(
        {column: _texts(rows, rows.find_column(task.column_names(column))) for column in task.text_columns}
        | {"row": range(len(rows))}
    )
    frame = frame[(frame[list(task.text_columns)].apply(lambda texts: texts.str.strip()) != "").all(axis=1)]
    if frame.empty:
        raise DataError(f"{rows.name}: no text in its {len(rows)} rows")
    return frame


def rows_of_dataset(dataset: "datasets.Dataset", task: Task, name: str) -> RowFile:
    """A `datasets.Dataset` as rows; labels with names in its features come out as those names."""
    import datasets

    wanted = {name for column in (*task.text_columns, task.label_column) for name in task.column_names(column)}
    kept = [column for column in dataset.column_names if column in wanted]
    columns = dataset.select_columns(kept)[:] if kept else {column: [] for column in dataset.column_names}
    for column in kept:
        feature = dataset.features[column]
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            columns[column] = [
                feature.names[label] if label is not None and label >= 0 else None for label in columns[column]
            ]
    return RowFile(name, columns)


def reach_hub(repository: str, kind: str = "model") -> bool:
    """Whether the hub answers for `repository` ("model" or "dataset"); False when there is no way to it.

    Raises:
        huggingface_hub.errors.RepositoryNotFoundError: the hub answers that there is no such repository.
        huggingface_hub.errors.HFValidationError: no repository can be called that.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().repo_info(repository, repo_type=kind, timeout=HUB_TIMEOUT)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.HFValidationError):
        raise
    except Exception:  # whatever the HTTP client raises: no route, no name, timeout, offline mode
        return False
    return True


def normalize_rows(rows: RowFile, task: Task, split: str) -> "tuple[pandas.DataFrame, list[str]]":
    """`rows` as a frame with the task's text columns, `label` and `row`, and notes on the rows left out.

    Labels may be names or, for GLUE's tasks, ids. Left out and counted: rows with an empty text, and rows that the
    data set marks as having no agreed label (MNLI's "-").

    Raises:
        DataError: a column is missing, a label is unknown, a text is not text, or no row is left.
    """
    import pandas

    texts = {column: _texts(rows, rows.find_column(task.column_names(column))) for column in task.text_columns}
    raw_labels = rows.columns[rows.find_column(task.column_names(task.label_column)[::-1])]
    ids = {name: index for index, name in enumerate(task.labels)}
    if not task.is_from_file:
        ids |= {str(index): index for index in range(len(task.labels))}
    labels, unlabelled = [], 0
    for index, value in enumerate(raw_labels):
        label = label_text(value)
        if label == task.unlabelled:
            unlabelled += 1
            labels.append(-1)
        elif label in ids:
            labels.append(ids[label])
        else:
            raise DataError(_unknown_label(rows, task, index, label))
    frame = pandas.DataFrame({**texts, "label": labels, "row": range(len(rows))})
    empty = functools.reduce(
        lambda left, right: left | right, (frame[column].str.strip() == "" for column in task.text_columns)
    ) & (frame["label"] >= 0)
    frame = frame[(frame["label"] >= 0) & ~empty].reset_index(drop=True)
    notes = (
        [f"{split}: {_count(unlabelled, 'row')} without an agreed label ({task.unlabelled!r}) left out"]
        if unlabelled
        else []
    )
    if empty.any():
        notes.append(f"{split}: {_count(int(empty.sum()), 'row')} with an empty text left out")
    if frame.empty:
        raise DataError(f"{rows.name}: no usable row is left; {'; '.join(notes)}")
    return frame, notes


def _assemble(task: Task, rows: dict[str, RowFile], description: str, notes: list[str] | None = None) -> SourceRows:
    splits, notes = {}, list(notes or [])
    for split, content in rows.items():
        splits[split], split_notes = normalize_rows(content, task, split)
        notes += split_notes
    return SourceRows(splits, description, tuple(notes))


def _check_revision(loaded: "datasets.Dataset", reachable: bool) -> None:
    # Without the hub, `datasets` takes whatever revision lies in its cache, in a folder named after it.
    if not reachable and any(GLUE_REVISION not in Path(file["filename"]).parts for file in loaded.cache_files):
        raise DataError(
            f"the cache holds another revision of {GLUE_ON_HUB} than {GLUE_REVISION} and the hub cannot be "
            "reached; give GLUE's files with --data-dir, or take the demo profile, which needs no network"
        )


def _texts(rows: RowFile, column: str) -> list[str]:
    texts = []
    for index, value in enumerate(rows.columns[column]):
        if isinstance(value, list | dict | bytes):
            raise DataError(
                f"{rows.name}, {rows.place(index)}: column {column!r} holds a {type(value).__name__}, "
                "where text is needed"
            )
        texts.append("" if value is None or value != value else str(value))
    return texts


def _unknown_label(rows: RowFile, task: Task, index: int, label: str) -> str:
    where = f"{rows.name}, {rows.place(index)}"
    known = ", ".join(task.labels)
    if not label:
        return f"{where}: no label; known labels: {known}"
    if task.is_from_file:
        return f"{where}: label {label!r} occurs in no train row; labels there: {known}"
    hint = nearest(label, task.labels)
    hint = f" ({hint})" if hint.startswith("did you mean") else ""
    return f"{where}: unknown label {label!r}{hint}; known labels: {known} or 0 to {len(task.labels) - 1}"


def _check_labels(task: Task, source: SourceRows) -> None:
    """Every label of a dev row must occur in train, and train must hold at least two."""
    trained = set(source.splits["train"]["label"])
    if len(trained) < 2:
        raise DataError(
            f"{source.description}: all train rows have the label {task.labels[min(trained)]!r}; a "
            "classifier needs at least two"
        )
    for split, frame in source.splits.items():
        unseen = sorted(set(frame["label"]) - trained)
        if unseen:
            raise DataError(
                f"{source.description}: label {task.labels[unseen[0]]!r} occurs in {split} but in no train row"
            )


def _task_folder(task: Task, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise DataError(
            f"no folder {data_dir}; --data-dir takes a folder with one sub-folder a task "
            f"({task.folder}/ for {task.title})"
        )
    names = {task.folder.lower(), task.name.lower()}
    folders = sorted(path for path in data_dir.iterdir() if path.is_dir() and path.name.lower() in names)
    if len(folders) > 1:
        raise DataError(
            f"{data_dir} holds {' and '.join(path.name for path in folders)}; keep one of them for {task.title}"
        )
    if not folders:
        there = ", ".join(sorted(path.name for path in data_dir.iterdir())) or "nothing"
        raise DataError(
            f"no folder for {task.title} in {data_dir}: looked for {task.folder} or {task.name}, in any "
            f"case; there is {there}"
        )
    return folders[0]


def _split_names(split: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((split, split.replace("dev", "validation"))))


def _wanted(split: str) -> str:
    return " or ".join(f"{name}.tsv" for name in _split_names(split)) + " (or .csv, .jsonl, .parquet)"


def _dev_path(settings: Settings) -> Path | None:
    return Path(settings.dev_file).expanduser() if settings.dev_file else None


def _read_saved(folder: Path, task: Task) -> RowFile:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets, pyarrow and json each raise their own when a file is missing or cut
        raise DataError(f"{folder} is not a data set saved with save_to_disk, or is incomplete ({error})") from error
    return rows_of_dataset(loaded, task, str(folder))


def _content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of those of a saved data set's row files."""
    if path.is_file():
        try:
            return file_hash(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    parts = [_content_hash(part) for part in sorted(path.glob("*.arrow"))]  # each holds its column types too
    if not parts:
        raise DataError(f"{path} is not a data set saved with save_to_disk, or is incomplete (no .arrow file)")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def _datasets_offline() -> Iterator[None]:
    """Makes `datasets` look into its cache only, instead of retrying an unreachable hub."""
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
