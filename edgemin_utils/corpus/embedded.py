"""The embedded corpora: synthetic rows in GLUE's schemas, on which methods show how they behave, not how on English."""

from collections.abc import Callable
from random import Random
from typing import Any

from edgemin_utils.corpus import mnli, qqp, sst2
from edgemin_utils.errors import DataError

CORPUS_VERSION = 2  # raised whenever the rows that a seed gives change; part of every fingerprint of such rows
COLUMNS = {"sst2": ("sentence",), "mnli": ("premise", "hypothesis"), "qqp": ("question1", "question2")}
TRAIN_ROWS, DEV_ROWS = 10_000, 800
LABEL_NOISE = 0.04  # share of wrong labels in every split, so that no model can reach 100 %
# Share of each label, and split -> drawing function; the dev splits are drawn first.
GRAMMARS: dict[str, tuple[tuple[float, ...], dict[str, Callable[[Random, int], tuple[str, ...]]]]] = {
    "sst2": ((0.5, 0.5), {"dev": sst2.draw, "train": sst2.draw}),
    "mnli": ((1 / 3,) * 3, {"dev_matched": mnli.draw, "dev_mismatched": mnli.draw_mismatched, "train": mnli.draw}),
    "qqp": ((0.63, 0.37), {"dev": qqp.draw, "train": qqp.draw}),
}


def make_corpus(task_name: str, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Split -> rows (`COLUMNS` and `label`, as in GLUE), `train` first, none twice; raises DataError for others."""
    if task_name not in GRAMMARS:
        raise DataError(f"no embedded corpus for task {task_name!r}: choose one of {', '.join(GRAMMARS)}")
    (shares, draws), seen = GRAMMARS[task_name], set[tuple[str, ...]]()
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in ("train", *draws)}
    for split, draw in draws.items():
        random, count = Random(f"{task_name} {split} {seed}"), TRAIN_ROWS if split == "train" else DEV_ROWS
        labels = [label for label, share in enumerate(shares) for _ in range(1 + int(share * count))][:count]
        offsets = [1 + place % (len(shares) - 1) if place < LABEL_NOISE * count else 0 for place in range(count)]
        random.shuffle(labels)
        random.shuffle(offsets)
        for label, offset in zip(labels, offsets, strict=True):
            texts = draw(random, label)
            while tuple(sorted(texts)) in seen or len(set(texts)) < len(texts):
                texts = draw(random, label)
            seen.add(tuple(sorted(texts)))
            row = dict(zip(COLUMNS[task_name], texts, strict=True))
            splits[split].append({**row, "label": (label + offset) % len(shares)})
    return splits
