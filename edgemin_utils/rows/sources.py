"""Where rows come from (embedded corpora, a folder, the hub, a file of one's own), all brought to one shape."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgemin_utils.errors import DataError
from edgemin_utils.rows.labels import NO_LABEL, UNKNOWN, label_ids, label_texts, spelling_notes
from edgemin_utils.rows.tables import READERS, Table, read_table
from edgemin_utils.rows.tasks import TASKS, Task, own_tables
from edgemin_utils.settings import Settings

if TYPE_CHECKING:
    from pandas import DataFrame

GLUE_ON_HUB = "nyu-mll/glue"
GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # pinned: a later upload cannot change the rows
HUB_TIMEOUT = 5.0  # seconds; without it the libraries retry for most of a minute


def read_splits(settings: Settings, task: Task) -> "tuple[dict[str, DataFrame], str, list[str]]":
    """Split -> frame with the task's text columns (str), `label` (id) and `row` (position in the source, from 0); where
    they come from; notes on what is missing, odd or left out. Raises DataError where rows cannot be read or trained."""
    notes, fold = list[str](), settings.fold_labels
    if settings.data_source == "embedded":
        from edgemin_utils.corpus.embedded import CORPUS_VERSION, make_corpus

        drawn = f"version {CORPUS_VERSION}, seed {settings.corpus_seed}"
        source = f"synthetic corpus of this project in the schema of {task.title} ({drawn})"
        corpus = make_corpus(task.name, settings.corpus_seed).items()
        tables = {name: Table(name, {each: [row[each] for row in rows] for each in rows[0]}) for name, rows in corpus}
    elif task.is_own:
        tables = own_tables(settings)
        source = f"task {task.name} from {' and '.join(Path(table.name).name for table in tables.values())}"
        for split, table in tables.items():
            notes += spelling_notes(label_texts(table, task.label_column, fold), split)
    else:
        hub = settings.data_source == "hub"
        found = find_split_files(task, _download_glue(task) if hub else Path(settings.data_dir or "").expanduser())
        tables = {split: read_table(paths, settings.encoding) for split, paths in found.items()}
        files = ", ".join(paths[0].name for paths in found.values())
        source = f"{task.title} from {f'{GLUE_ON_HUB} ({GLUE_REVISION[:8]})' if hub else f'a folder ({files})'}"
        notes += [f"{split}: not in the folder, so not measured" for split in task.dev_splits if split not in found]
    splits = {split: read_frame(table, task, split, notes, fold) for split, table in tables.items()}
    trained = set(splits["train"]["label"])
    if len(trained) < 2:
        raise DataError(f"{source}: all train rows have the label {task.labels[min(trained)]!r}; a task needs two")
    for split, frame in splits.items():
        for unseen in set(frame["label"]) - trained:
            raise DataError(f"{source}: label {task.labels[unseen]!r} occurs in {split} but in no train row")
    return splits, source, notes


def read_frame(
    table: Table, task: Task, split: str, notes: list[str], fold: bool = False, labelled: bool = True
) -> "DataFrame":
    """A table's rows as `read_splits` gives them; `notes` gets what was left out: rows without a label (where they are
    `labelled`) or with an empty text. Raises DataError for other labels, or what is no text."""
    import pandas

    columns: dict[str, list] = {}
    for column in task.text_columns:
        values = table.columns[table.find(*task.column_names(column))]
        columns[column] = ["" if value is None or value != value else str(value) for value in values]
        for index, (value, text) in enumerate(zip(values, columns[column], strict=True)):
            if isinstance(value, list | dict | bytes) or re.search("[\ud800-\udfff]", text):  # half a surrogate pair
                raise DataError(f"{table.place(index)}: column {column!r} holds {text[:40]!a}, where text is needed")
    labels, ids = [""] * len(table), [NO_LABEL] * len(table)
    if labelled:
        labels = label_texts(table, table.find(*task.column_names(task.label_column)), fold)
        ids = label_ids(labels, task.labels, not task.is_own)
    if UNKNOWN in ids:
        known = ", ".join(task.labels) + (" in train" if task.is_own else f" or 0 to {len(task.labels) - 1}")
        place, label = table.place(ids.index(UNKNOWN)), labels[ids.index(UNKNOWN)]
        raise DataError(f"{place}: unknown label {label!r}; known: {known}")
    frame = pandas.DataFrame({**columns, "label": ids, "row": range(len(ids))})
    empty = (frame[list(task.text_columns)].map(str.strip) == "").any(axis=1)
    missing = (frame["label"] == NO_LABEL) & labelled
    marks = ", ".join(sorted({repr(label) for label, out in zip(labels, missing, strict=True) if out}))
    why = {f"without a label ({marks}; a class called so needs another name)": missing, "with an empty text": empty}
    said = [f"{split}: {out.sum():,} of {len(ids):,} rows {each} left out" for each, out in why.items() if out.any()]
    frame = frame[~missing & ~empty].reset_index(drop=True)
    if frame.empty:
        raise DataError(f"{table.name}: no usable row is left; {'; '.join(said)}")
    notes += said
    return frame


def find_split_files(task: Task, data_dir: Path) -> dict[str, list[Path]]:
    """Split -> its file (`train`, `dev` or `validation` and so on) or shards, in the folder called by the task's title
    or name. Raises DataError where that, a shard, train or the main dev split is missing, or one is there twice."""
    there = sorted(data_dir.iterdir()) if data_dir.is_dir() else []
    folders = [path for path in there if path.is_dir() and path.name.lower() in (task.title.lower(), task.name)]
    if len(folders) != 1:
        listed, called = ", ".join(path.name for path in folders or there) or "nothing", f"{task.title} or {task.name}"
        raise DataError(f"{data_dir} needs one folder for {task.title}, called {called}; there is {listed}")
    files, found = sorted(folders[0].iterdir()), {}
    for split in ("train", *task.dev_splits):
        other = split.replace("dev", "validation")
        name = re.compile(rf"(?:{split}|{other})(?:-\d+-of-(\d+))?", re.IGNORECASE)
        usable = [path for path in files if path.suffix.lower() in READERS]
        shards = {path: int(match[1] or 1) for path in usable if (match := name.fullmatch(path.stem))}
        saved = [path for one in files if name.fullmatch(one.name) for path in sorted(one.glob("data-*.arrow"))]
        shards |= dict.fromkeys(saved, len(saved))  # of datasets.save_to_disk
        listed = ", ".join(path.name for path in shards or files) or "nothing"
        if shards:
            found[split] = list(shards)
            if set(shards.values()) != {len(shards)}:
                raise DataError(f"{folders[0]}: {split} is there twice or lacks shards ({listed}); keep one whole set")
        elif split in ("train", task.main_dev_split):
            wanted = f"looked for {split}.tsv or {other}.parquet and the like"
            raise DataError(f"{folders[0]}: no {split} split; {wanted}; there is {listed}")
    return found


def _download_glue(task: Task) -> Path:
    import huggingface_hub

    reachable = reach_hub(GLUE_ON_HUB, "dataset")
    wanted = {"repo_type": "dataset", "revision": GLUE_REVISION, "allow_patterns": f"{task.name}/*"}
    try:
        return Path(huggingface_hub.snapshot_download(GLUE_ON_HUB, local_files_only=not reachable, **wanted))
    except Exception as error:  # whatever its HTTP client raises
        why = "cannot be downloaded" if reachable else "is not in the cache and the hub cannot be reached"
        way = f"({type(error).__name__}); give GLUE's files with --data-dir, or take the demo profile"
        raise DataError(f"{GLUE_ON_HUB} ({task.name}) {why} {way}") from None


def reach_hub(repository: str, kind: str = "model") -> bool:
    """Whether the hub answers for `repository`. Raises huggingface_hub's RepositoryNotFoundError or HFValidationError
    where there is none, or cannot be."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=HUB_TIMEOUT)
    except Exception as error:  # whatever the HTTP client raises: no route, no name, timeout, offline mode
        if isinstance(error, RepositoryNotFoundError | HFValidationError):
            raise
        return False
    return True


def source_identity(settings: Settings, name: str) -> list[str]:
    """Texts that change when, and only when, the source's rows of the task may; paths are no part of it."""
    if settings.data_source == "embedded":
        from edgemin_utils.corpus.embedded import CORPUS_VERSION

        return ["embedded", str(CORPUS_VERSION), str(settings.corpus_seed)]
    if settings.data_source == "hub":
        return ["hub", GLUE_ON_HUB, GLUE_REVISION]
    read_as = [settings.encoding, str(settings.fold_labels)]
    if settings.data_source == "folder":
        found = find_split_files(TASKS[name], Path(settings.data_dir or "").expanduser())
        return [*read_as, *(f"{split} {_file_hash(path)}" for split, paths in found.items() for path in paths)]
    files = [_file_hash(Path(path).expanduser()) for path in (settings.task_file, settings.dev_file) if path]
    return [*read_as, *files, *settings.text_columns, settings.label_column]


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
