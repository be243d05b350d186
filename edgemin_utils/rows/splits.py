"""The splits of a task, ready to tokenize: subsampled, as `datasets.Dataset`, with a hold-out that shares no text."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemin_utils.errors import DataError, MethodRefused
from edgemin_utils.rows.tables import NO_LABEL, read_table
from edgemin_utils.rows.tasks import Task, read_frame, read_splits, resolve_task, rows_fingerprint
from edgemin_utils.settings import Settings, whole_share

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

DEV_SHARE, DEV_SEED = 0.2, 0  # of a task without a dev file; one seed, so that chains compare row by row
FEWEST_WORDS = 4  # a shorter text is shared only as a whole: "very good" stands in every other review


@dataclass(frozen=True)
class TaskData:
    """One task's rows under one seed: data sets of text columns, `label` (`ClassLabel`) and `row` (place in the source
    split); transfer texts have no label (-1); `unused` are the texts of the other train rows, each of a pair alone."""

    task: Task
    train: "Dataset"
    holdout: "Dataset"
    dev: "dict[str, Dataset]"
    transfer: "Dataset"
    source: str
    notes: tuple[str, ...]
    fingerprint: str
    unused: Sequence[str] = ()

    @property
    def texts(self) -> list[str]:
        """The texts trained on, each of a pair by itself."""
        return [text for column in self.task.text_columns for text in self.train[column]]


def load_task_data(settings: Settings, task_name: str, seed: int, transfer: bool = False) -> TaskData:
    """A task's splits: train, shuffled by `seed` and cut to floor(`train_fraction` x rows), then `train_rows`; hold-out
    rows of those left over, or else in use. Raises SettingError, DataError or, if `transfer`, MethodRefused."""
    from datasets import ClassLabel, Dataset, Features, Value

    task = resolve_task(settings, task_name)
    dev, source, notes = read_splits(settings, task)
    train, columns = dev.pop("train"), list(task.text_columns)
    if not dev:
        rest, share, _ = hold_out(_shuffled(train, DEV_SEED), DEV_SHARE, columns)
        if share.empty:
            raise DataError(f"{source}: every label has a single row, so none can be dev; add rows or give a dev file")
        notes.append(f"dev: {len(share):,} of {len(train):,} rows, since no dev file was given")
        train, dev = rest.sort_values("row"), {"dev": share.sort_values("row")}
    torn = (train.groupby(columns)["label"].nunique() > 1).sum() if task.is_own else 0
    notes += [f"train: different labels stand at the same text ({torn:,} times); one of each is wrong"] if torn else []
    for split, frame in dev.items():
        for unseen in set(frame["label"]) - set(train["label"]):
            raise DataError(f"{source}: label {task.labels[unseen]!r} occurs in {split} but in no train row")
        repeated = frame.set_index(columns).index.isin(train.set_index(columns).index).sum()
        if repeated and task.is_own:
            notes.append(f"{split}: {repeated:,} of {len(frame):,} rows have the text of a train row, which flatters")
        if settings.dev_rows and settings.dev_rows < len(frame):
            dev[split] = _shuffled(frame, DEV_SEED).iloc[: settings.dev_rows].sort_values("row")
            notes.append(f"{split}: {settings.dev_rows:,} of {len(frame):,} rows used")
    used, holdout, unused = _draw_train(_shuffled(train, seed), settings, task, notes)
    frames = {"train": used, "holdout": holdout, **dev}
    for split, frame in frames.items():
        missing = [repr(name) for label, name in enumerate(task.labels) if label not in set(frame["label"])]
        if missing and len(frame):
            notes.append(f"{split}: no row with label {', '.join([*missing[:9], *['...'] * (len(missing) > 9)])}")
    frames["transfer"] = _transfer_texts(settings, task, frames, unused, notes) if transfer else used.iloc[:0]
    features = Features({column: Value("string") for column in columns})
    features |= {"label": ClassLabel(names=list(task.labels)), "row": Value("int64")}
    made = {name: Dataset.from_pandas(rows, features, preserve_index=False) for name, rows in frames.items()}
    ours = made["train"], made["holdout"], {split: made[split] for split in dev}, made["transfer"]
    left = [text for column in columns for text in unused[column]]
    return TaskData(task, *ours, source, tuple(notes), rows_fingerprint(settings, task_name), left)


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


def _draw_train(shuffled: "DataFrame", settings: Settings, task: Task, notes: list[str]) -> "tuple[DataFrame, ...]":
    """The train rows in use, the hold-out rows, and those that are neither."""
    rows, columns = len(shuffled), list(task.text_columns)
    count = min(whole_share(settings.train_fraction, rows), settings.train_rows or rows)
    used, unused, holdout = shuffled.iloc[:count], shuffled.iloc[count:], shuffled.iloc[:0]
    if used["label"].nunique() < 2:
        few = f"the {count:,} train rows drawn out of {rows:,} hold fewer than two labels"
        raise DataError(f"{task.title}: {few}; raise train_fraction or train_rows, or bring rows of other labels")
    wanted, repeated = round(settings.holdout_fraction * count), 0
    if 0 < wanted <= len(unused):
        shared = SharedTexts(shuffled, columns)
        apart = shared.sentences(shared.apart_from(range(count, rows), range(count)))[:wanted]
        if len(apart) >= min(wanted, 200):
            holdout, unused = shuffled.iloc[apart], unused.drop(shuffled.index[apart])
    if settings.holdout_fraction and holdout.empty:
        used, holdout, repeated = hold_out(used, settings.holdout_fraction, columns)
    notes.append(f"train: {len(used):,} of {rows:,} rows trained on, {len(holdout):,} held out to choose settings")
    if len(holdout) < 0.8 * wanted:
        notes.append(f"holdout: {len(holdout):,} rows instead of {wanted:,}; others share text with train")
    if repeated:
        notes.append(f"holdout: {repeated:,} of {len(holdout):,} rows share text with train, which flatters")
    return used, holdout, unused


def _shuffled(frame: "DataFrame", seed: int) -> "DataFrame":
    import numpy

    return frame.iloc[numpy.random.default_rng(seed).permutation(len(frame))]


def _transfer_texts(
    settings: Settings, task: Task, frames: "dict[str, DataFrame]", unused: "DataFrame", notes: list[str]
) -> "DataFrame":
    """Unused and `transfer_file`'s texts that no train row has and that share none with hold-out and dev."""
    import pandas

    texts, columns = unused.iloc[: settings.transfer_rows].assign(label=NO_LABEL), list(task.text_columns)
    if settings.transfer_rows and texts.empty:
        raise MethodRefused(f"every train row of {task.title} is in use; lower train_fraction, or give a transfer_file")
    if settings.transfer_file:
        table = read_table([settings.transfer_file], settings.encoding)
        texts = pandas.concat([texts, read_frame(table, task, "transfer", notes)])
    new = texts[~texts.set_index(columns).index.isin(frames["train"].set_index(columns).index)]
    shared = SharedTexts(pandas.concat([new, *(frames[split] for split in frames if split != "train")]), columns)
    kept = new.iloc[shared.apart_from(range(len(new)), range(len(new), len(shared.rows)))]
    if len(texts):
        notes.append(f"transfer: {len(kept):,} of {len(texts):,} texts without labels; labelled rows hold the others")
    return kept


class SharedTexts:
    """Which texts of a frame lie, word for word, in others: (part, whole) in `inside`, by their numbers in `rows`."""

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
                    fits = start + length <= len(words)  # or a long text that repeats itself would take for ever
                    part = numbers.get(" ".join(words[start : start + length])) if fits else None
                    if part not in (None, whole):
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
