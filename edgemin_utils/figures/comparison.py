"""Methods side by side: accuracy with its interval, and what each method costs, for any of `tables.comparisons`."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from edgemin_utils.figures.study import panel_labels
from edgemin_utils.figures.style import (
    CYCLE,
    GREY,
    MARKERS,
    StudyFigure,
    new_figure,
    note_figure,
    styled,
    three_digits,
    wrapped_name,
)

# Characters in a line of a method's name; a recipe that spells out its steps is long.
LABEL_WIDTH = 44
# Inches of a method's row: for every dev split that it has, and for every line of its name.
SPLIT_HEIGHT, LINE_HEIGHT, ROW_MARGIN = 0.14, 0.14, 0.09
# Column of a comparison's table -> what its bars are called. The first that a table has is drawn.
COSTS = {
    "training_seconds": "training (s)",
    "weights_removed": "weights removed (%)",
    "megabytes": "file (MB)",
    "parameters": "stored weights",
}


@styled
def method_comparison(frame: pd.DataFrame) -> StudyFigure:
    """Every method's accuracy with its 95 % interval, and beside it what the method costs, a row of panels per task
    that lists the methods run on it; a colour and marker per dev split. A refused method has a row that says so.

    Args:
        frame: one of `tables.objectives_table`, `cuts_table`, `schemes_table`, `orders_table`.
    """
    if frame.empty:
        return note_figure("no methods to compare")
    frame = frame.assign(panel=panel_labels(frame))
    of_tasks = [rows for _, rows in frame.groupby("task", sort=False)]
    cost = next((name for name in COSTS if name in frame and frame[name].notna().any()), None)
    heights = [_row_inches(rows).sum() for rows in of_tasks]
    figure = new_figure(sum(heights) + 0.62 * len(of_tasks) + 0.3)
    grid = figure.subplots(
        len(of_tasks), 2 if cost else 1, sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, rows in zip(grid, of_tasks, strict=True):
        _draw_accuracies(axes[0], rows)
        if cost:
            _draw_costs(axes[1], rows, cost, frame[cost].max())
    return figure


def _methods(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows["method"]))


def _labels(rows: pd.DataFrame) -> list[str]:
    return [wrapped_name(method, LABEL_WIDTH) for method in _methods(rows)]


def _row_inches(rows: pd.DataFrame) -> np.ndarray:
    """(methods,): how high each method's row of a task's panel is."""
    splits = SPLIT_HEIGHT * rows["panel"].nunique()
    lines = np.array([label.count("\n") + 1 for label in _labels(rows)])
    return ROW_MARGIN + np.maximum(splits, LINE_HEIGHT * lines)


def _centres(rows: pd.DataFrame) -> np.ndarray:
    """(methods,): where the middle of each row lies, in inches from the panel's upper edge."""
    inches = _row_inches(rows)
    return np.cumsum(inches) - inches / 2


def _draw_accuracies(axes: Axes, rows: pd.DataFrame) -> None:
    """The left panel of one task: each method's accuracies, a point per dev split."""
    methods, measured = _methods(rows), rows.dropna(subset=["accuracy"])
    panels = list(dict.fromkeys(measured["panel"]))
    centres = dict(zip(methods, _centres(rows), strict=True))
    for number, panel in enumerate(panels):
        found = measured[measured["panel"] == panel]
        for row in found.to_dict("records"):
            axes.errorbar(
                row["accuracy"],
                centres[row["method"]] + SPLIT_HEIGHT * (number - (len(panels) - 1) / 2),
                xerr=_interval(row),
                capsize=2,
                linestyle="none",
                color=CYCLE[number % len(CYCLE)],
                marker=MARKERS[number % len(MARKERS)],
                label=panel if row["method"] == found["method"].iloc[0] else None,
            )
    for method, place in centres.items():
        if method not in set(measured["method"]):
            axes.text(0.02, place, "refused", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=GREY)
    axes.set(xlabel="accuracy (%)", ylabel="method", yticks=list(centres.values()), yticklabels=_labels(rows))
    axes.grid(axis="x")
    axes.set_ylim(_row_inches(rows).sum(), 0)
    if len(panels) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(panels), handletextpad=0.3)
    else:
        axes.set_title((panels or list(rows["panel"]))[0])


def _draw_costs(axes: Axes, rows: pd.DataFrame, cost: str, largest: float) -> None:
    """The right panel of one task: what each method costs there. All tasks share the scale; a method's cost is the
    same on every dev split."""
    values = rows.groupby("method", sort=False)[cost].first().reindex(_methods(rows))
    axes.barh(_centres(rows), values.fillna(0), color="#BBBBBB", height=SPLIT_HEIGHT)
    for place, value in zip(_centres(rows), values, strict=True):
        if pd.notna(value):
            axes.annotate(
                three_digits(value), (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_xlabel(COSTS[cost])
    axes.set_xlim(0, 1.3 * largest if largest > 0 else 1)


def _interval(row: dict[str, Any]) -> np.ndarray | None:
    """Distances from the accuracy to both ends of its interval; None where it has none."""
    ends = np.array([[row["accuracy"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy"]]])
    return None if np.isnan(ends).any() else np.maximum(ends, 0)
