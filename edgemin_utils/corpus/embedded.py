"""The embedded corpora: synthetic data sets with the schemas of GLUE's SST-2, MNLI and QQP, from three grammars written
for this project. Numbers measured on them say how the methods behave, not how they do on English."""

from collections.abc import Callable
from random import Random
from typing import Any

from edgemin_utils.corpus import mnli, qqp, sst2
from edgemin_utils.errors import DataError

CORPUS_VERSION = 2
"""Raised whenever the rows that a seed gives change; part of the fingerprint of every run on embedded rows."""

COLUMNS = dict(
    sst2=("sentence", "label"), mnli=("premise", "hypothesis", "label"), qqp=("question1", "question2", "label")
)
EMBEDDED_TASKS = tuple(COLUMNS)
TRAIN_ROWS, DEV_ROWS = 10_000, 800
LABEL_NOISE = 0.04
"""Share of the rows of every split that carry a wrong label, so that no model can reach 100 %."""

GRAMMARS: dict[str, tuple[tuple[float, ...], dict[str, Callable[[Random, int], tuple[str, ...]]]]] = {
    "sst2": (sst2.SHARES, {"dev": sst2.draw, "train": sst2.draw}),
    "mnli": (mnli.SHARES, {"dev_matched": mnli.draw, "dev_mismatched": mnli.draw_mismatched, "train": mnli.draw}),
    "qqp": (qqp.SHARES, {"dev": qqp.draw, "train": qqp.draw}),
}
"""Share of each label, and split -> drawing function; the dev splits are drawn first."""


def make_corpus(task_name: str, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Split -> rows of a task, `train` first, the same from a seed on every machine; a row holds the task's `COLUMNS`,
    labels numbered as in GLUE. No text (or pair, in either order) comes twice. Raises DataError for another task."""
    if task_name not in GRAMMARS:
        raise DataError(f"no embedded corpus for task {task_name!r}: choose one of {', '.join(EMBEDDED_TASKS)}")
    (shares, draws), seen = GRAMMARS[task_name], set[tuple[str, ...]]()
    splits: dict[str, list[dict[str, Any]]] = {"train": []}
    for split, draw in draws.items():
        random, count = Random(f"{task_name} {split} {seed}"), TRAIN_ROWS if split == "train" else DEV_ROWS
        labels = [label for label, share in enumerate(shares) for _ in range(1 + int(share * count))][:count]
        offsets = [1 + place % (len(shares) - 1) if place < LABEL_NOISE * count else 0 for place in range(count)]
        random.shuffle(labels)
        random.shuffle(offsets)
        splits[split] = []
        for label, offset in zip(labels, offsets, strict=True):
            texts = draw(random, label)
            while tuple(sorted(texts)) in seen or len(set(texts)) < len(texts):
                texts = draw(random, label)
            seen.add(tuple(sorted(texts)))
            splits[split].append(dict(zip(COLUMNS[task_name], (*texts, (label + offset) % len(shares)), strict=True)))
    return splits
