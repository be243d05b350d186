"""The splits of a task, ready to tokenize: subsampled, with a hold-out set apart, as `datasets.Dataset`."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemin_utils.config import Settings
from edgemin_utils.errors import DataError, MethodRefused
from edgemin_utils.setting_values import whole_share
from edgemin_utils.sources import SourceRows, read_source, read_texts, source_identity
from edgemin_utils.tasks import Task, resolve_task

if TYPE_CHECKING:
    import datasets
    import pandas

ROWS_VERSION = 2
"""Raised whenever this module or `sources` chooses other rows from the same files; part of every data fingerprint."""

DEV_SHARE = 0.2
"""Share of a task file's rows that becomes the dev split when no dev file is given."""

DEV_SEED = 0
"""Seed of the dev rows drawn by `dev_rows` or `DEV_SHARE`: the same rows for every chain, so that chains can be
compared row by row."""

NO_LABEL = -1
"""Label of a row without one."""

FINGERPRINTED = ("train_fraction", "train_rows", "dev_rows", "holdout_fraction")


@dataclass(frozen=True)
class TaskData:
    """The rows of one task under one seed.

    Every data set has exactly the task's text columns (str), `label` (int, a `ClassLabel` in the task's order) and
    `row` (int, position in the source split, before rows were left out, shuffled or drawn).

    Attributes:
        task: the task.
        train: rows to train on, shuffled by the seed.
        holdout: train rows kept aside for choosing settings; empty when `holdout_fraction` is 0.
        dev: dev split -> rows in source order; the main split first.
        transfer: texts without labels (`label` is -1) that only a teacher can answer; empty unless asked for.
        source: one sentence on where the rows come from; it says "synthetic" of the embedded corpora.
        notes: what was missing, left out or repeated, one sentence each.
        fingerprint: `data_fingerprint` of the same settings.
    """

    task: Task
    train: "datasets.Dataset"
    holdout: "datasets.Dataset"
    dev: "dict[str, datasets.Dataset]"
    source: str
    notes: tuple[str, ...]
    fingerprint: str
    transfer: "datasets.Dataset | None" = None


def load_task_data(settings: Settings, task_name: str, seed: int, transfer: bool = False) -> TaskData:
    """The splits of a task.

    The train split is shuffled by `seed` and cut to floor(`train_fraction` x its rows) and then to `train_rows`. The
    hold-out has `holdout_fraction` as many rows: from those that the cut left over where they suffice, else a share of
    each label's rows in use (at least one). Dev rows do not depend on `seed`.

    Args:
        settings: the study's settings.
        task_name: "sst2", "mnli", "qqp", or the name of the task that `task_file` makes.
        seed: the chain's seed, not negative.
        transfer: also read the transfer texts that the settings ask for.

    Raises:
        SettingError: no such task.
        DataError: the rows cannot be read, or what is left of train cannot train a classifier.
        MethodRefused: no row is left over for the transfer texts that are asked for.
    """
    task = resolve_task(settings, task_name)
    source = read_source(settings, task)
    notes = list(source.notes)
    train, dev = _train_and_dev(task, source, notes)
    if task.is_from_file:
        notes += _repeated_texts(task, train, dev)
    used, left_over = _draw_used(settings, train, seed)
    _check_used(task, used, len(train), notes)
    wanted = _spare_holdout_rows(settings, len(used), len(left_over))
    train, holdout = (used, left_over.iloc[:wanted]) if wanted else split_by_label(used, settings.holdout_fraction)
    if settings.holdout_fraction and not wanted:
        for label, count in used["label"].value_counts().sort_index().items():
            if count == 1:
                notes.append(f"holdout: no row with label {task.labels[label]!r} (train has one, which it keeps)")
    texts = (
        _transfer_texts(settings, task, left_over.iloc[wanted:], [train, holdout, *dev.values()], notes)
        if transfer
        else train.iloc[:0]
    )
    dev = {split: _draw_dev(frame, settings.dev_rows, split, notes) for split, frame in dev.items()}
    return TaskData(
        task=task,
        train=_to_dataset(train, task),
        holdout=_to_dataset(holdout, task),
        dev={split: _to_dataset(frame, task) for split, frame in dev.items()},
        source=source.description,
        notes=tuple(notes),
        fingerprint=_fingerprint(settings, task),
        transfer=_to_dataset(texts, task),
    )


def unused_texts(settings: Settings, task_name: str, seed: int) -> list[str]:
    """The texts of the train rows that are neither in use nor in the hold-out, each of a pair by itself.

    Raises:
        SettingError, DataError: as `load_task_data`.
    """
    task = resolve_task(settings, task_name)
    train, _ = _train_and_dev(task, read_source(settings, task), [])
    used, left_over = _draw_used(settings, train, seed)
    unused = left_over.iloc[_spare_holdout_rows(settings, len(used), len(left_over)) :]
    return [text for column in task.text_columns for text in unused[column]]


def rows_trained_on(settings: Settings, available: int) -> int:
    """Rows that a teacher or student is trained on, of a train split with so many; up to rounding within a label where
    the hold-out has to come out of the rows in use."""
    used = _rows_used(settings, available)
    if _spare_holdout_rows(settings, used, available - used):
        return used
    return used - round(settings.holdout_fraction * used)


def data_fingerprint(settings: Settings, task_name: str) -> str:
    """16 hex digits that change when, and only when, the settings or files that decide a task's rows change.

    Covers the task, the content of the files (or the corpus version and seed, or the hub revision) and the settings
    that draw rows; neither paths nor the chain's seed.

    Raises:
        SettingError: no such task.
        DataError: a file or folder is missing.
    """
    return _fingerprint(settings, resolve_task(settings, task_name))


def task_statistics(data: TaskData) -> dict[str, dict[str, Any]]:
    """Split -> rows, label counts by name, and quantiles of the words a row (both texts of a pair together).

    Plain numbers and text only, so that it can go into a record; quantiles are None for an empty hold-out.
    """
    return {
        split: _split_statistics(data.task, rows)
        for split, rows in {"train": data.train, "holdout": data.holdout, **data.dev}.items()
    }


def split_by_label(frame: "pandas.DataFrame", fraction: float) -> "tuple[pandas.DataFrame, pandas.DataFrame]":
    """(rest, share): `share` takes the first rows of every label, `fraction` of them, rounded, but at least one.

    A label with a single row stays whole in `rest`; the order of the rows is kept in both. Shuffle `frame` first.
    """
    if not fraction:
        return frame, frame.iloc[:0]
    grouped = frame.groupby("label")["label"]
    counts = grouped.transform("size")
    taken = (counts * fraction).round().clip(lower=1).clip(upper=counts - 1)
    in_share = grouped.cumcount() < taken
    return frame[~in_share], frame[in_share]


def _fingerprint(settings: Settings, task: Task) -> str:
    chosen = {name: getattr(settings, name) for name in FINGERPRINTED}
    content = [ROWS_VERSION, task.name, task.labels, source_identity(settings, task), chosen]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _train_and_dev(
    task: Task, source: SourceRows, notes: list[str]
) -> "tuple[pandas.DataFrame, dict[str, pandas.DataFrame]]":
    """The source's splits; a file without dev rows gives up `DEV_SHARE` of them, the same for every chain."""
    import numpy

    dev = {split: source.splits[split] for split in task.dev_splits if split in source.splits}
    if dev:
        return source.splits["train"], dev
    frame = source.splits["train"]
    order = numpy.random.default_rng(DEV_SEED).permutation(len(frame))
    train, share = split_by_label(frame.iloc[order], DEV_SHARE)
    if share.empty:
        raise DataError(
            f"{source.description}: every label has a single row, so none can be kept as dev rows; add "
            "rows or give a dev file"
        )
    notes.append(f"{task.main_dev_split}: {len(share):,} of {len(frame):,} rows held out, no dev file was given")
    return train.sort_values("row"), {task.main_dev_split: share.sort_values("row")}


def _draw_used(settings: Settings, train: "pandas.DataFrame", seed: int) -> "tuple[pandas.DataFrame, pandas.DataFrame]":
    """(Train rows in use, those left over), both in the order that `seed` draws."""
    import numpy

    shuffled = train.iloc[numpy.random.default_rng(seed).permutation(len(train))]
    count = _rows_used(settings, len(train))
    return shuffled.iloc[:count], shuffled.iloc[count:]


def _spare_holdout_rows(settings: Settings, used: int, left_over: int) -> int:
    """Rows that the hold-out takes from those left over: all of it, or none where they do not suffice."""
    wanted = round(settings.holdout_fraction * used)
    return wanted if wanted <= left_over else 0


def _transfer_texts(
    settings: Settings, task: Task, unused: "pandas.DataFrame", labelled: "list[pandas.DataFrame]", notes: list[str]
) -> "pandas.DataFrame":
    """`transfer_rows` of the unused train rows and the texts of `transfer_file`, without labels and without the texts
    that the labelled rows of any split hold."""
    import pandas

    if settings.transfer_rows and unused.empty:
        raise MethodRefused(
            f"transfer_rows is {settings.transfer_rows}, but every train row of {task.title} is in use; "
            "lower train_fraction or train_rows, or give texts with transfer_file"
        )
    frames = [unused.iloc[: settings.transfer_rows]]
    if settings.transfer_file:
        frames.append(read_texts(Path(settings.transfer_file).expanduser(), task))
    texts = pandas.concat(frames, ignore_index=True).assign(label=NO_LABEL)
    columns = list(task.text_columns)
    known = {row for frame in labelled for row in frame[columns].itertuples(index=False, name=None)}
    new = [row not in known for row in texts[columns].itertuples(index=False, name=None)]
    if not all(new):
        notes.append(f"transfer: {len(new) - sum(new):,} texts left out that labelled rows hold too")
    texts = texts[pandas.Series(new, index=texts.index, dtype=bool)]
    if len(texts):
        notes.append(f"transfer: {len(texts):,} texts without labels")
    return texts


def _rows_used(settings: Settings, available: int) -> int:
    count = whole_share(settings.train_fraction, available)
    return count if settings.train_rows is None else min(count, settings.train_rows)


def _check_used(task: Task, used: "pandas.DataFrame", available: int, notes: list[str]) -> None:
    labels = set(used["label"])
    if len(labels) < 2:
        raise DataError(
            f"{task.title}: the {len(used)} train rows drawn out of {available:,} hold fewer than two "
            "labels; raise train_fraction or train_rows"
        )
    if len(used) < available:
        notes.append(f"train: {len(used):,} of {available:,} rows used")
    for label, name in enumerate(task.labels):
        if label not in labels:
            notes.append(f"train: no row with label {name!r} among those drawn")


def _draw_dev(frame: "pandas.DataFrame", most: int | None, split: str, notes: list[str]) -> "pandas.DataFrame":
    import numpy

    if most is None or most >= len(frame):
        return frame
    chosen = numpy.random.default_rng(DEV_SEED).choice(len(frame), size=most, replace=False)
    notes.append(f"{split}: {most:,} of {len(frame):,} rows used")
    return frame.iloc[numpy.sort(chosen)]


def _repeated_texts(task: Task, train: "pandas.DataFrame", dev: "dict[str, pandas.DataFrame]") -> list[str]:
    columns = list(task.text_columns)
    known = set(train[columns].itertuples(index=False, name=None))
    counts = {
        split: sum(texts in known for texts in frame[columns].itertuples(index=False, name=None))
        for split, frame in dev.items()
    }
    return [
        f"{split}: {count:,} of {len(dev[split]):,} rows have the text of a train row, which flatters the numbers"
        for split, count in counts.items()
        if count
    ]


def _to_dataset(frame: "pandas.DataFrame", task: Task) -> "datasets.Dataset":
    import datasets

    features = datasets.Features(
        {
            **{column: datasets.Value("string") for column in task.text_columns},
            "label": datasets.ClassLabel(names=list(task.labels)),
            "row": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict({name: frame[name].tolist() for name in features}, features=features)


def _split_statistics(task: Task, rows: "datasets.Dataset") -> dict[str, Any]:
    frame = rows.to_pandas()
    words = sum(frame[column].str.split().str.len() for column in task.text_columns)
    return {
        "rows": len(frame),
        "labels": {name: int((frame["label"] == index).sum()) for index, name in enumerate(task.labels)},
        "words": {
            name: float(words.quantile(share)) if len(frame) else None
            for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("longest", 1.0))
        },
    }
