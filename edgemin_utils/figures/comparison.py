"""Methods side by side: accuracy with its interval, and what each method costs, for any of `tables.comparisons`."""

import textwrap

import numpy as np
import pandas as pd

from edgemin_utils.figures.study import panel_labels
from edgemin_utils.figures.style import (
    CYCLE,
    GREY,
    MARKERS,
    StudyFigure,
    annotate_bars,
    new_figure,
    note_figure,
    styled,
    three_digits,
)

# Characters in a line of a method's name; a recipe that spells out its steps is long.
LABEL_WIDTH = 40
# Column of a comparison's table -> what its bars are called. The first that a table has is drawn.
COSTS = {
    "training_seconds": "training (s)",
    "weights_removed": "weights removed (%)",
    "megabytes": "file (MB)",
    "parameters": "stored weights",
}


@styled
def method_comparison(frame: pd.DataFrame) -> StudyFigure:
    """Every method's accuracy with its 95 % interval, a colour and marker per task and dev split, and beside it what
    the method costs; a refused method has a row that says so.

    Args:
        frame: one of `tables.objectives_table`, `cuts_table`, `schemes_table`, `orders_table`.
    """
    if frame.empty:
        return note_figure("no methods to compare")
    rows = frame.assign(panel=panel_labels(frame))
    methods = list(dict.fromkeys(rows["method"]))
    measured = rows.dropna(subset=["accuracy"])
    cost = next((name for name in COSTS if name in measured and measured[name].notna().any()), None)
    panels = list(dict.fromkeys(measured["panel"]))
    height = 0.8 / max(1, len(panels))
    labels = [textwrap.fill(method, LABEL_WIDTH) for method in methods]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = new_figure(max(0.14 + 0.16 * max(1, len(panels)), 0.1 + 0.14 * lines) * len(methods) + 1.1)
    every_axes = figure.subplots(1, 2 if cost else 1, sharey=True, squeeze=False)[0]
    for number, panel in enumerate(panels):
        for row in measured[measured["panel"] == panel].to_dict("records"):
            place = methods.index(row["method"]) - 0.4 + height * (number + 0.5)
            ends = [[row["accuracy"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy"]]]
            every_axes[0].errorbar(
                row["accuracy"],
                place,
                xerr=None if np.isnan(ends).any() else np.maximum(ends, 0),
                capsize=2,
                linestyle="none",
                color=CYCLE[number % len(CYCLE)],
                marker=MARKERS[number % len(MARKERS)],
                label=panel if row["method"] == measured[measured["panel"] == panel]["method"].iloc[0] else None,
            )
    for place, method in enumerate(methods):
        if method not in set(measured["method"]):
            every_axes[0].text(
                0.02,
                place,
                "refused",
                transform=every_axes[0].get_yaxis_transform(),
                va="center",
                fontsize=8,
                color=GREY,
            )
    every_axes[0].set(xlabel="accuracy (%)", yticks=range(len(methods)), yticklabels=labels)
    every_axes[0].grid(axis="x")
    every_axes[0].set_ylim(len(methods) - 0.4, -0.6)
    if cost:
        values = [measured[measured["method"] == method][cost].mean() for method in methods]
        every_axes[1].barh(range(len(methods)), np.nan_to_num(values), color="#BBBBBB", height=0.6)
        annotate_bars(every_axes[1], ["" if np.isnan(value) else three_digits(value) for value in values])
        every_axes[1].set_xlabel(COSTS[cost] + (", mean over tasks" if measured["task"].nunique() > 1 else ""))
        every_axes[1].set_xlim(left=0)
    if panels:
        figure.legend(*every_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(panels)))
    return figure
