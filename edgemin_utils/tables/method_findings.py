"""What the tables that set methods side by side say, in sentences: which objective, cut, scheme and order does best,
and what of it can be told apart.

Each sentence names the folder of the model that it is about, relative to the study.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from edgemin_utils.number_text import p_value_text, with_interval
from edgemin_utils.tables.comparisons import cuts_table, objectives_table, orders_against_paper, schemes_table
from edgemin_utils.tables.summary import as_records, with_every_seed
from edgemin_utils.tables.variants import StudyRecords, task_label

SIGNIFICANCE = 0.05
"""A p-value below it counts as a difference, here and in `findings`."""
_FLOAT_SCHEME = "onnx-float32"
_READING = (
    "Better and worse are told apart by p-values under 0.05, Holm-corrected over the methods of a task; brackets are "
    "not corrected. With few seeds and many methods only large effects pass. What gains or keeps most does so by point "
    "estimate and is not tested against the next."
)


def method_findings(study: Path | StudyRecords) -> list[str]:
    """How to read them, and one Markdown sentence a task, dev split and comparison; none for comparisons that the study
    does not hold.

    A method counts as better or worse than what it is held against where Holm's p-value of the paired difference is
    under 0.05. It counts as without a loss only where its own 95 % interval, not corrected for the number of methods,
    does not lie under 0 either: the correction guards against claiming a loss, not against overlooking one. Methods
    that were run with fewer seeds than others stand in the tables alone.
    """
    records = as_records(study)
    sentences = []
    for make, sentence in (
        (objectives_table, _on_objectives),
        (cuts_table, _on_cuts),
        (schemes_table, _on_schemes),
        (orders_against_paper, _on_orders),
    ):
        sentences += _by_split(make(records), sentence)
    return [_READING, *sentences] if sentences else []


def _by_split(frame: pd.DataFrame, sentence: Callable[[str, pd.DataFrame], str]) -> list[str]:
    """`sentence` of every task and split in which at least two methods were held against something."""
    found = []
    for task, of_task in frame.groupby("task", sort=False):
        splits = [split for split in dict.fromkeys(of_task["split"]) if split]
        for split in splits:
            rows = with_every_seed(of_task[(of_task["split"] == split) & of_task["accuracy"].notna()])
            if rows["difference"].notna().sum() >= 2:
                found.append(sentence(task_label(task, split) if len(splits) > 1 else str(task), rows))
    return found


def _on_objectives(label: str, rows: pd.DataFrame) -> str:
    tested = rows[rows["difference"].notna()]
    best = _best(tested)
    return (
        f"{label}: of {len(tested)} other students held against the one without distillation, {best['method']} gains "
        f"most: {_difference(best)}, {_accuracy(best)} ({_where(best)}). {_told_apart(tested)}"
    )


def _on_cuts(label: str, rows: pd.DataFrame) -> str:
    said = f"{label}: of {rows['difference'].notna().sum()} cuts held against the uncut student"
    return _without_loss(
        said, rows, "weights_removed", lambda most: f"takes most ({most['weights_removed']:.1f} % of the weights)"
    )


def _on_schemes(label: str, rows: pd.DataFrame) -> str:
    quantized = rows[rows["method"] != _FLOAT_SCHEME]  # which changes no number, only who computes with it
    count = quantized["difference"].notna().sum()
    said = f"{label}: of {count} quantization schemes held against the FP32 model that they start from"
    smaller = quantized.assign(saved=-quantized["megabytes"])
    return _without_loss(said, smaller, "saved", lambda small: f"makes the smallest file ({small['megabytes']:.2f} MB)")


def _without_loss(said: str, rows: pd.DataFrame, gain: str, words: Callable[[pd.Series], str]) -> str:
    """Which method gains most by column `gain` among those without a loss (see `method_findings`), in `words`."""
    tested = rows[rows["difference"].notna()]
    harmless = tested[~((tested["difference"] < 0) & (_clear(tested) | (tested["difference_high"] < 0)))]
    if harmless.empty:
        return f"{said}, every one costs accuracy. {_told_apart(tested)}"
    best = harmless.loc[harmless[gain].idxmax()]
    return (
        f"{said}, {best['method']} {words(best)} without a loss that shows: {_difference(best)}, "
        f"{_accuracy(best)} ({_where(best)}). {_told_apart(tested)}"
    )


def _on_orders(label: str, rows: pd.DataFrame) -> str:
    paper, tested = rows[rows["papers_own"]], rows[rows["difference"].notna()]
    best = _best(rows)
    said = f"{label}: of {len(rows)} recipes, {best['method']} keeps most: {_accuracy(best)}"
    if paper.empty:
        return f"{said} ({_where(best)})."
    if best["papers_own"]:
        return f"{said}, the paper's own ({_where(best)}). {_told_apart(tested)}"
    return (
        f"{said}, which is {_difference(best)} against the paper's at {_accuracy(paper.iloc[0])} "
        f"({_where(best)}). {_told_apart(tested)}"
    )


# ---- parts of a sentence -----------------------------------------------------------------------------------------


def _clear(rows: pd.DataFrame) -> pd.Series:
    return rows["p_holm"] < SIGNIFICANCE


def _best(rows: pd.DataFrame) -> pd.Series:
    return rows.loc[rows["accuracy"].idxmax()]


def _difference(row: pd.Series) -> str:
    points = with_interval(row["difference"], row["difference_low"], row["difference_high"], sign="+", unit=" points")
    p_value = "" if pd.isna(row["p_holm"]) else f", p (Holm) {p_value_text(row['p_holm']).replace('<', '< ')}"
    return points + p_value


def _accuracy(row: pd.Series) -> str:
    return with_interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"], unit=" %")


def _where(row: pd.Series) -> str:
    return f"{row['seeds']:.0f} seed{'s' if row['seeds'] > 1 else ''}, `{row['folder']}`"


def _told_apart(tested: pd.DataFrame) -> str:
    """Which of the methods differ clearly, and in which direction."""
    clear = tested[_clear(tested)]
    named = [
        f"Clearly {word}: {'; '.join(rows['method'])}."
        for word, rows in (("better", clear[clear["difference"] > 0]), ("worse", clear[clear["difference"] < 0]))
        if len(rows)
    ]
    return " ".join(named) or "None of them can be told apart from it."
