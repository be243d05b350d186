"""The embedded corpora: synthetic data sets with the schemas of GLUE's SST-2, MNLI and QQP.

They let the whole study run without a network and in minutes. Their sentences come from three grammars written for
this project; no sentence is taken from anywhere. Numbers measured on them say how the methods behave, not how they do
on English, and every table that shows them calls them synthetic.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils.corpus import mnli, qqp, sst2
from edgemin_utils.corpus.grammar import draw_split
from edgemin_utils.corpus.topics import MISMATCHED_TOPICS, TRAINING_TOPICS
from edgemin_utils.errors import DataError

CORPUS_VERSION = 1
"""Raised whenever the rows that a seed gives change; part of the fingerprint of every run on embedded data."""

EMBEDDED_TASKS = ("sst2", "mnli", "qqp")

LABEL_NOISE = 0.02
"""Fraction of the rows of every split that carry a wrong label, so that no model can reach 100 %."""

DEFAULT_TRAIN_ROWS = 20_000
DEFAULT_DEV_ROWS = 500


def embedded_corpus(
    task: str, seed: int = 0, train_rows: int = DEFAULT_TRAIN_ROWS, dev_rows: int = DEFAULT_DEV_ROWS
) -> dict[str, pd.DataFrame]:
    """Draw the synthetic data set of one task.

    The dev splits are drawn first, from their own random streams: they stay the same when `train_rows` changes.

    Args:
        task: `sst2`, `mnli` or `qqp`.
        seed: not negative; the same seed gives the same rows in every process.
        train_rows: rows of the split `train`, at least 1.
        dev_rows: rows of each dev split, at least 1.

    Returns:
        Split name -> frame with a RangeIndex, `label` and `idx` as int64:

        - sst2: `train`, `dev`; sentence, label (0 negative, 1 positive), idx
        - mnli: `train`, `dev_matched`, `dev_mismatched`; premise, hypothesis, genre (the topic), label (0 entailment,
          1 neutral, 2 contradiction), idx. The topics of `dev_mismatched` are in no other split.
        - qqp: `train`, `dev`; question1, question2, label (0 not_duplicate, 1 duplicate), idx

        No text of a dev split occurs twice, or in another split; a training text may come again.

    Raises:
        DataError: the task is unknown, a number is out of range, or the grammar has fewer distinct rows.
    """
    if task not in EMBEDDED_TASKS:
        raise DataError(f"no embedded corpus for task {task!r}: choose one of {', '.join(EMBEDDED_TASKS)}")
    for name, value, least in (("seed", seed, 0), ("train_rows", train_rows, 1), ("dev_rows", dev_rows, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise DataError(f"{name} must be a whole number of at least {least}, not {value!r}")
    grammars: dict[str, tuple[Any, dict[str, Any]]] = {
        "sst2": (sst2, {"dev": sst2.draw, "train": sst2.draw}),
        "mnli": (
            mnli,
            {
                "dev_matched": partial(mnli.draw, topics=TRAINING_TOPICS),
                "dev_mismatched": partial(mnli.draw, topics=MISMATCHED_TOPICS),
                "train": partial(mnli.draw, topics=TRAINING_TOPICS),
            },
        ),
        "qqp": (qqp, {"dev": qqp.draw, "train": qqp.draw}),
    }
    grammar, draws = grammars[task]
    seen: set[tuple[str, ...]] = set()
    splits = {
        split: draw_split(
            np.random.default_rng([seed, EMBEDDED_TASKS.index(task), stream]),
            draw,
            grammar.COLUMNS,
            train_rows if split == "train" else dev_rows,
            grammar.SHARES,
            LABEL_NOISE,
            seen,
            repeats=split == "train",
        )
        for stream, (split, draw) in enumerate(draws.items())
    }
    return {"train": splits.pop("train"), **splits}
