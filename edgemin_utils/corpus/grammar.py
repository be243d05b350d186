"""What the three grammars share: seeded draws, label quotas, distinct rows, label noise."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from edgemin_utils.errors import DataError

Item = TypeVar("Item")

Text = tuple[str, ...]
"""The text of one row: one sentence, or the two sentences of a pair."""

MAX_REPEATS_IN_A_ROW = 2_000
"""Consecutive draws of known text after which a grammar counts as exhausted."""


def choose(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """Draw one item, each with the same probability."""
    return items[int(rng.integers(len(items)))]


def choose_two(rng: np.random.Generator, items: Sequence[Item]) -> tuple[Item, Item]:
    """Draw two items at different positions, in random order."""
    first = int(rng.integers(len(items)))
    second = int(rng.integers(len(items) - 1))
    return items[first], items[second + (second >= first)]


def zipf_weights(count: int, exponent: float) -> np.ndarray:
    """Probabilities (count,) that fall with the rank r = 1 .. count as r to the power of -exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def choose_common(rng: np.random.Generator, items: Sequence[Item], exponent: float = 1.3) -> Item:
    """Draw one item, the early ones more often, as a language uses its words."""
    edges = np.cumsum(zipf_weights(len(items), exponent))
    return items[min(int(np.searchsorted(edges, rng.random(), side="right")), len(items) - 1)]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Draw True with the given probability."""
    return bool(rng.random() < probability)


def weighted(rng: np.random.Generator, items: Sequence[tuple[Item, float]]) -> Item:
    """Draw one item of (item, weight) pairs with a probability in proportion to its weight."""
    total = sum(weight for _, weight in items)
    mark = rng.random() * total
    for item, weight in items:
        mark -= weight
        if mark < 0:
            return item
    return items[-1][0]


def with_article(noun: str) -> str:
    """Put the indefinite article that fits the spelling before a noun phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def words(text: str) -> tuple[str, ...]:
    """Split a block of whitespace-separated words; an underscore stands for a space inside an entry."""
    return tuple(word.replace("_", " ") for word in text.split())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Split a block of whitespace-separated `left/right` entries; an underscore stands for a space."""
    return tuple((left, right) for left, right in (entry.split("/") for entry in words(text)))


def label_quota(rng: np.random.Generator, rows: int, shares: Sequence[float]) -> np.ndarray:
    """Draw the labels of a split so that each class has its share of the rows.

    Args:
        rng: source of the shuffle.
        rows: length of the result.
        shares: fraction of the rows for the labels 0, 1, ...; sums to 1.

    Returns:
        int64 array of shape (rows,), shuffled; class counts differ from rows * share by less than 1.
    """
    bounds = np.rint(np.cumsum(shares) * rows).astype(np.int64)
    labels = np.repeat(np.arange(len(shares), dtype=np.int64), np.diff(bounds, prepend=0))
    return rng.permutation(labels)


def draw_split(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator, int], Text],
    columns: Sequence[str],
    rows: int,
    shares: Sequence[float],
    noise: float,
    seen: set[tuple[str, ...]],
    repeats: bool = False,
) -> pd.DataFrame:
    """Draw one split, then give a small share of them a wrong label.

    Args:
        rng: source of every draw.
        draw: called with (rng, label), returns the text of a row whose true label that is.
        columns: names of the text columns, in the order of `draw`'s result.
        rows: number of rows, at least 1.
        shares: fraction of each label.
        noise: fraction of the rows whose label is replaced by another one.
        seen: texts that must not come (sorted, so that a pair and its mirror count as one).
        repeats: False draws distinct rows and adds them to `seen`, which keeps later splits apart from this one. True
            lets a row come again, so that constructions with few sentences keep their share in a long split.

    Returns:
        A frame with the text columns, `label` (int64) and `idx` (int64, 0 .. rows - 1).

    Raises:
        DataError: the grammar has no more distinct rows to give.
    """
    labels = label_quota(rng, rows, shares)
    texts: list[Text] = []
    for label in labels:
        for _ in range(MAX_REPEATS_IN_A_ROW):
            text = draw(rng, int(label))
            key = tuple(sorted(text[:2]))
            if key not in seen:
                break
        else:
            raise DataError(
                f"the grammar has no more than about {len(seen)} distinct rows, and {rows} were asked for in one "
                "split: ask for fewer train_rows or dev_rows"
            )
        if not repeats:
            seen.add(key)
        texts.append(text)
    frame = pd.DataFrame(texts, columns=list(columns))
    frame["label"] = with_label_noise(rng, labels, len(shares), noise)
    frame["idx"] = np.arange(rows, dtype=np.int64)
    return frame


def with_label_noise(rng: np.random.Generator, labels: np.ndarray, classes: int, noise: float) -> np.ndarray:
    """Return a copy of the labels in which round(noise * rows) rows carry another label.

    Args:
        rng: source of the rows hit and of their new labels.
        labels: int64 array of shape (rows,).
        classes: number of labels.
        noise: fraction of rows, 0 to 1.
    """
    noisy = labels.copy()
    hit = rng.choice(len(labels), size=round(noise * len(labels)), replace=False)
    noisy[hit] = (noisy[hit] + rng.integers(1, classes, size=len(hit))) % classes
    return noisy
