"""The splits of a task, ready to tokenize: subsampled, as `datasets.Dataset`, with a hold-out set apart. Rows share
text where one holds the other's text, word for word (capitals and punctuation aside)."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemin_utils.errors import DataError, MethodRefused
from edgemin_utils.rows.sources import read_frame, read_splits, source_identity
from edgemin_utils.rows.tables import read_table
from edgemin_utils.rows.tasks import Task, check_task_name, resolve_task
from edgemin_utils.settings import Settings, whole_share

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

ROWS_VERSION = 3  # raised whenever this room chooses other rows from the same files; part of every fingerprint
DEV_SHARE, DEV_SEED = 0.2, 0  # of a task without a dev file; the same dev rows for every chain, to compare row by row
FEWEST_WORDS = 4  # a shorter text is shared only as a whole: "very good" stands in every other review


@dataclass(frozen=True)
class TaskData:
    """The rows of one task under one seed: data sets of the task's text columns, `label` (a `ClassLabel` in the task's
    order) and `row` (position in the source split). Train is shuffled; the hold-out, for choosing settings, shares no
    text with it where that is possible; dev splits keep the source's order, the main one first; transfer holds texts
    without labels (-1) that only a teacher can answer. `source` says where rows come from, `notes` what is odd."""

    task: Task
    train: "Dataset"
    holdout: "Dataset"
    dev: "dict[str, Dataset]"
    transfer: "Dataset"
    source: str
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def texts(self) -> list[str]:
        """The texts trained on, each of a pair by itself."""
        return [text for column in self.task.text_columns for text in self.train[column]]


def load_task_data(settings: Settings, task_name: str, seed: int, transfer: bool = False) -> TaskData:
    """The splits of a task. Train is shuffled by `seed` and cut to floor(`train_fraction` x rows), then `train_rows`;
    the hold-out has `holdout_fraction` as many, of those left over (whole sentences where most are phrases), or else of
    those in use. Raises SettingError or DataError where there are none, MethodRefused without `transfer` texts."""
    task = resolve_task(settings, task_name)
    frames, source, notes = _draw(settings, task, seed)
    texts = _transfer_texts(settings, task, frames, notes) if transfer else frames["train"].iloc[:0]
    made = {split: _to_dataset(frame, task) for split, frame in {**frames, "transfer": texts}.items()}
    dev = {split: made[split] for split in task.dev_splits if split in made}
    train, holdout, texts = (made[name] for name in ("train", "holdout", "transfer"))
    return TaskData(task, train, holdout, dev, texts, source, tuple(notes), rows_fingerprint(settings, task_name))


def unused_texts(settings: Settings, task_name: str, seed: int) -> list[str]:
    """The texts, each of a pair by itself, of the train rows neither in use nor in the hold-out."""
    task = resolve_task(settings, task_name)
    unused = _draw(settings, task, seed)[0]["unused"]
    return [text for column in task.text_columns for text in unused[column]]


def rows_fingerprint(settings: Settings, task_name: str) -> str:
    """16 hex digits that change if, and only if, the task, its files or the settings that draw rows change; reads no
    table. Raises SettingError or DataError where there is no such task, file or folder."""
    check_task_name(settings, task_name)
    drawn = [settings.train_fraction, settings.train_rows, settings.dev_rows, settings.holdout_fraction]
    content = json.dumps([ROWS_VERSION, task_name, source_identity(settings, task_name), drawn])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def task_statistics(data: TaskData) -> dict[str, dict[str, Any]]:
    """Split -> rows, label counts by name, and quantiles of the words a row (None without rows), for a record."""
    found, shares = {}, {"median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
    for split, rows in {"train": data.train, "holdout": data.holdout, **data.dev}.items():
        frame = rows.to_pandas()
        words = sum(frame[column].str.split().str.len() for column in data.task.text_columns)
        quantiles = {name: float(words.quantile(share)) if len(frame) else None for name, share in shares.items()}
        labels = {name: int((frame["label"] == index).sum()) for index, name in enumerate(data.task.labels)}
        found[split] = {"rows": len(frame), "labels": labels, "words": quantiles}
    return found


def _draw(settings: Settings, task: Task, seed: int) -> "tuple[dict[str, DataFrame], str, list[str]]":
    splits, source, notes = read_splits(settings, task)
    columns, train = list(task.text_columns), splits["train"]
    dev = {split: splits[split] for split in task.dev_splits if split in splits}
    if not dev:
        rest, share, _ = hold_out(_shuffled(train, DEV_SEED), DEV_SHARE, columns)
        if share.empty:
            raise DataError(f"{source}: every label has a single row, so none can be dev; add rows or give a dev file")
        notes.append(f"dev: {len(share):,} of {len(train):,} rows, since no dev file was given")
        train, dev = rest.sort_values("row"), {"dev": share.sort_values("row")}
    known = set(train[columns].itertuples(index=False, name=None))
    for split, frame in dev.items():
        repeated = sum(texts in known for texts in frame[columns].itertuples(index=False, name=None))
        if repeated and task.is_own:
            notes.append(f"{split}: {repeated:,} of {len(frame):,} rows have the text of a train row, which flatters")
        if settings.dev_rows and settings.dev_rows < len(frame):
            dev[split] = _shuffled(frame, DEV_SEED).iloc[: settings.dev_rows].sort_values("row")
            notes.append(f"{split}: {settings.dev_rows:,} of {len(frame):,} rows used")
    shuffled = _shuffled(train, seed)
    count = min(whole_share(settings.train_fraction, len(train)), settings.train_rows or len(train))
    used, unused, holdout = shuffled.iloc[:count], shuffled.iloc[count:], shuffled.iloc[:0]
    if used["label"].nunique() < 2:
        few = f"the {count:,} train rows drawn out of {len(train):,} hold fewer than two labels"
        raise DataError(f"{task.title}: {few}; raise train_fraction or train_rows")
    wanted, repeated = round(settings.holdout_fraction * count), 0
    if 0 < wanted <= len(unused):
        shared = SharedTexts(shuffled, columns)
        apart = shared.sentences(shared.apart_from(range(count, len(train)), range(count)))[:wanted]
        if len(apart) >= min(wanted, 200):
            holdout, unused = shuffled.iloc[apart], unused.drop(shuffled.index[apart])
    if settings.holdout_fraction and holdout.empty:
        used, holdout, repeated = hold_out(used, settings.holdout_fraction, columns)
    held = f"{len(holdout):,} held out to choose settings"
    notes.append(f"train: {len(used):,} of {len(train):,} rows trained on, {held}")
    if len(holdout) < 0.8 * wanted:
        notes.append(f"holdout: {len(holdout):,} rows instead of {wanted:,}; others share text with train")
    if repeated:
        notes.append(f"holdout: {repeated:,} of {len(holdout):,} rows share text with train, which flatters")
    frames = {"train": used, "holdout": holdout, **dev}
    for split, frame in frames.items():
        missing = [repr(name) for label, name in enumerate(task.labels) if label not in set(frame["label"])]
        if missing and len(frame):
            more = f" and {len(missing) - 5:,} more" * (len(missing) > 5)
            notes.append(f"{split}: no row with label {', '.join(missing[:5])}{more}")
    return {**frames, "unused": unused}, source, notes


def _shuffled(frame: "DataFrame", seed: int) -> "DataFrame":
    import numpy

    return frame.iloc[numpy.random.default_rng(seed).permutation(len(frame))]


def _transfer_texts(settings: Settings, task: Task, frames: "dict[str, DataFrame]", notes: list[str]) -> "DataFrame":
    """Unused and `transfer_file`'s texts that no train row has and that share none with hold-out and dev."""
    import pandas

    texts, columns = frames["unused"].iloc[: settings.transfer_rows].assign(label=-1), list(task.text_columns)
    if settings.transfer_rows and texts.empty:
        used = f"transfer_rows is {settings.transfer_rows}, but every train row of {task.title} is in use"
        raise MethodRefused(f"{used}; lower train_rows or train_fraction, or give a transfer_file")
    if settings.transfer_file:
        table = read_table([Path(settings.transfer_file).expanduser()], settings.encoding)
        texts = pandas.concat([texts, read_frame(table, task, "transfer", notes, labelled=False)])
    others = [frame for name, frame in frames.items() if name not in ("train", "unused")]
    shared = SharedTexts(pandas.concat([texts, *others]), columns)
    known = set(frames["train"][columns].itertuples(index=False, name=None))
    new = [row not in known for row in texts[columns].itertuples(index=False, name=None)]
    kept = [row for row in shared.apart_from(range(len(texts)), range(len(texts), len(shared.rows))) if new[row]]
    if out := f"{len(texts) - len(kept):,} left out that labelled rows hold too" * bool(len(texts)):
        notes.append(f"transfer: {len(kept):,} texts without labels; {out}")
    return texts.iloc[kept]


def _to_dataset(frame: "DataFrame", task: Task) -> "Dataset":
    import datasets

    features = datasets.Features({column: datasets.Value("string") for column in task.text_columns})
    features |= {"label": datasets.ClassLabel(names=list(task.labels)), "row": datasets.Value("int64")}
    return datasets.Dataset.from_dict({name: frame[name].tolist() for name in features}, features=features)


class SharedTexts:
    """Which texts of a frame lie inside others: `rows` holds the numbers of each row's texts (equal texts have one),
    `inside` (part, whole) for texts of `FEWEST_WORDS` words and more."""

    def __init__(self, frame: "DataFrame", columns: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        normal = [[" ".join(re.findall(r"\w+", text.casefold())) or text for text in frame[name]] for name in columns]
        self.rows = [[numbers.setdefault(text, len(numbers)) for text in texts] for texts in zip(*normal, strict=True)]
        self.words, self.inside = [text.split() for text in numbers], []
        lengths = defaultdict(set)  # first words of a text -> lengths of the texts that begin so
        for words in self.words:
            lengths[" ".join(words[:FEWEST_WORDS])].add(len(words))
        for whole, words in enumerate(self.words):
            for start in range(len(words) - FEWEST_WORDS + 1):
                for length in lengths.get(" ".join(words[start : start + FEWEST_WORDS]), ()):
                    part = numbers.get(" ".join(words[start : start + length]))
                    if part not in (None, whole) and length <= len(words) - start:
                        self.inside.append((part, whole))

    def apart_from(self, rows: Iterable[int], others: Iterable[int]) -> list[int]:
        """Those of `rows` (places in the frame) that share no text with any of `others`."""
        known = {text for row in others for text in self.rows[row]}
        shared = known | {whole for part, whole in self.inside if part in known}
        shared |= {part for part, whole in self.inside if whole in known}
        return [row for row in rows if shared.isdisjoint(self.rows[row])]

    def sentences(self, rows: Iterable[int]) -> list[int]:
        """`rows` without parts of longer ones, where most texts are such parts (SST-2's phrases); else all of them."""
        parts = {part for part, _ in self.inside}
        wholes = {text for text, words in enumerate(self.words) if len(words) >= FEWEST_WORDS and text not in parts}
        return [row for row in rows if len(parts) <= len(wholes) or wholes.issuperset(self.rows[row])]

    def groups(self) -> list[list[int]]:
        """Rows in groups that share no text with one another, in the order of their first rows."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = [*self.inside, *((texts[0], texts[-1]) for texts in self.rows)]
        linked = coo_array(([1] * len(links), tuple(zip(*links, strict=True))), shape=(len(self.words),) * 2)
        groups, (_, group) = defaultdict(list), connected_components(linked, directed=False)
        for row, texts in enumerate(self.rows):
            groups[group[texts[0]]].append(row)
        return list(groups.values())


def hold_out(frame: "DataFrame", fraction: float, columns: Sequence[str]) -> "tuple[DataFrame, DataFrame, int]":
    """(rest, share, how many of the share share text with the rest) of a shuffled frame: of every label the first rows,
    a `fraction`, at least one and never all; those that share text together, unless that leaves under half of them."""
    labels, shared, chosen = list(frame["label"]), SharedTexts(frame, columns), set[int]()
    left = {label: min(count - 1, max(1, round(fraction * count))) for label, count in Counter(labels).items()}
    wanted = sum(left.values())
    for groups in (shared.groups(), [[row] for row in range(len(labels))]):
        for group in groups if 2 * len(chosen) < wanted else []:
            needed = Counter(labels[row] for row in group)
            if chosen.isdisjoint(group) and all(left[label] >= count for label, count in needed.items()):
                chosen.update(group)
                left = {label: count - needed[label] for label, count in left.items()}
    kept = [row for row in range(len(labels)) if row not in chosen]
    return frame.iloc[kept], frame.iloc[sorted(chosen)], len(chosen) - len(shared.apart_from(chosen, kept))
