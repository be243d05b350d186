"""A bag-of-words baseline: what can be had from a task without understanding how its words are put together."""

from collections.abc import Callable, Iterable

import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from edgemin_utils.errors import DataError

TEXT_COLUMNS = {"sst2": ("sentence",), "mnli": ("premise", "hypothesis"), "qqp": ("question1", "question2")}


def grams(text: str) -> list[str]:
    """Words and pairs of neighbouring words of a lower-cased, whitespace-split text."""
    tokens = text.lower().split()
    return tokens + [f"{left} {right}" for left, right in zip(tokens, tokens[1:], strict=False)]


def features(texts: tuple[str, ...]) -> list[str]:
    """Name the features of one row.

    Args:
        texts: one sentence, or the two of a pair.

    Returns:
        For a sentence its words and word pairs. For a pair those of each side under its own prefix, those in both and
        those in only one of them, and the overlap of the two word sets (intersection over union) in tenths.
    """
    if len(texts) == 1:
        return grams(texts[0])
    first, second = (grams(text) for text in texts)
    words_first, words_second = (set(text.lower().split()) for text in texts)
    overlap = len(words_first & words_second) / max(1, len(words_first | words_second))
    return [
        *(f"first:{gram}" for gram in first),
        *(f"second:{gram}" for gram in second),
        *(f"both:{gram}" for gram in sorted(set(first) & set(second))),
        *(f"one:{gram}" for gram in sorted(set(first) ^ set(second))),
        f"overlap:{round(10 * overlap)}",
        f"longer:{(len(first) > len(second)) - (len(first) < len(second))}",
    ]


def bag_of_words_classifier(analyzer: Callable[[tuple[str, ...]], Iterable[str]] = features) -> Pipeline:
    """Build TF-IDF (sublinear term frequency) and a logistic regression (L2, C = 4)."""
    return make_pipeline(
        TfidfVectorizer(analyzer=analyzer, sublinear_tf=True), LogisticRegression(C=4.0, max_iter=1000)
    )


def rows_of(frame: pd.DataFrame, task: str) -> list[tuple[str, ...]]:
    """Return the text columns of a frame as one tuple a row.

    Raises:
        DataError: the task is unknown or a column is missing.
    """
    if task not in TEXT_COLUMNS:
        raise DataError(f"no bag-of-words baseline for task {task!r}: choose one of {', '.join(TEXT_COLUMNS)}")
    missing = [column for column in TEXT_COLUMNS[task] if column not in frame.columns]
    if missing:
        raise DataError(f"task {task!r} needs the column {missing[0]!r}; the frame has {', '.join(frame.columns)}")
    return list(zip(*(frame[column].astype(str) for column in TEXT_COLUMNS[task]), strict=True))


def bag_of_words_accuracy(splits: dict[str, pd.DataFrame], task: str) -> float:
    """Train the baseline on `train` and score it on the first dev split.

    Args:
        splits: split name -> frame, as `edgemin_utils.corpus.embedded_corpus` returns them; the dev split is the first
            of `dev`, `dev_matched` that is there.
        task: `sst2`, `mnli` or `qqp`.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        DataError: the task is unknown, or a split or a column is missing.
    """
    dev = next((splits[name] for name in ("dev", "dev_matched") if name in splits), None)
    if dev is None or "train" not in splits:
        raise DataError(f"the baseline needs a train and a dev split; there are: {', '.join(splits) or 'none'}")
    classifier = bag_of_words_classifier().fit(rows_of(splits["train"], task), splits["train"]["label"])
    return float(classifier.score(rows_of(dev, task), dev["label"]))
