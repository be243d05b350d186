"""Figures over a whole study: accuracy, cost, and the trade between them. All take `tables.summarize`'s frame."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from edgemin_utils.figures.style import (
    GREY,
    PALETTE,
    STAGE_COLOURS,
    StudyFigure,
    annotate_bars,
    model_style,
    new_figure,
    note_figure,
    styled,
    three_digits,
)
from edgemin_utils.tables.layout import task_labels
from edgemin_utils.tables.summary import longest_input

LARGEST_BUBBLE = 420.0
"""Area in square points of the largest file's bubble."""
DASHES = (0, (1.6, 1.1))
"""Edge of the students without distillation in `accuracy_over_latency`."""


@styled
def accuracy_over_latency(frame: pd.DataFrame, input_name: str | None = None) -> StudyFigure:
    """Accuracy over latency, a panel per task and dev split; a hollow marker's area is its file's size, and the edges
    of students without distillation are dashed, so that models in one place can all be seen.

    Args:
        frame: `tables.summarize(study)`.
        input_name: the timed input, e.g. "1x128"; without it the longest one.
    """
    input_name = input_name or longest_input(frame)
    column = f"latency_{input_name}"
    if column not in frame or frame[column].isna().all():
        return note_figure("latency is not measured yet: run notebooks/05_analysis.ipynb")
    rows = frame.assign(panel=panel_labels(frame)).dropna(subset=[column, "accuracy"])
    panels = list(dict.fromkeys(rows["panel"]))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    models = rows.drop_duplicates("model")
    legend_rows = -(-len(models) // 3)
    figure = new_figure(2.7 * down + 0.22 * legend_rows + 1.1)
    grid = figure.subplots(down, across, squeeze=False)
    largest = rows["megabytes"].max()
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_trade(axes, rows[rows["panel"] == panel], column, largest)
        axes.set(title=panel, xlabel=f"median latency, {input_name}, one thread (ms)", ylabel="accuracy (%)")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.legend(
        handles=_model_handles(models),
        loc="outside lower center",
        ncols=3,
        title="model (colour: student, marker: steps, dashed edge: not distilled)",
    )
    if pd.notna(largest):
        figure.legend(
            handles=_size_handles(largest),
            loc="outside upper center",
            ncols=4,
            title="file size (area)",
            labelspacing=1.2,
            handletextpad=1.2,
            columnspacing=2.5,
        )
    return figure


@styled
def accuracy_by_stage(frame: pd.DataFrame) -> StudyFigure:
    """Every model's accuracy with its 95 % interval, a panel per task and dev split; the line is the teacher's."""
    if frame.empty:
        return note_figure("no model has been evaluated yet")
    rows = frame.assign(panel=panel_labels(frame))
    panels, models = list(dict.fromkeys(rows["panel"])), list(dict.fromkeys(rows["model"]))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(down * (0.21 * len(models) + 0.85) + 0.2)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    place = {model: number for number, model in enumerate(models)}
    for axes, panel in zip(grid.flat, panels, strict=False):
        for row in rows[rows["panel"] == panel].to_dict("records"):
            error = _interval(row, "accuracy")
            axes.errorbar(
                row["accuracy"], place[row["model"]], xerr=error, capsize=2.5, linestyle="none", **model_style(row)
            )
            if not row["student"]:
                axes.axvline(row["accuracy"], color=GREY, linestyle=":", linewidth=1)
        axes.set(title=panel, xlabel="accuracy (%)", yticks=range(len(models)), yticklabels=models)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.grid(axis="x")
    for axes in grid[:, 0]:
        axes.set_ylabel("model")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure


@styled
def cost_by_stage(frame: pd.DataFrame) -> StudyFigure:
    """Weights, file size, operations, latency and memory along the paper's path, of the frame's first task; what was
    measured for no model is left out."""
    frame = frame[frame["main"] & ~_is_baseline(frame)] if len(frame) else frame
    if frame.empty:
        return note_figure("no model has been made yet")
    rows = frame[frame["task"] == frame["task"].iloc[0]].drop_duplicates("key").reset_index(drop=True)
    longest = longest_input(rows)
    quantities = [
        ("parameters", "stored weights\n(millions)", 1e-6),
        ("megabytes", "file (MB)", 1),
        (f"macs_{longest}", f"MACs at {longest}\n(millions)", 1e-6),
        (f"latency_{longest}", f"latency at {longest}\none thread (ms)", 1),
        ("peak_memory", "peak memory (MB)", 1),
    ]
    quantities = [each for each in quantities if each[0] in rows and rows[each[0]].notna().any()]
    if not quantities:
        return note_figure("no cost is measured yet")
    title = f"{panel_labels(rows.head(1))[0]}: cost of each stage"
    across = min(3, len(quantities))
    down = -(-len(quantities) // across)
    figure = new_figure(down * (0.3 * len(rows) + 1.05) + 0.4, title=title)
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    colours = [STAGE_COLOURS[number % len(STAGE_COLOURS)] for number in range(len(rows))]
    for axes, (column, label, scale) in zip(grid.flat, quantities, strict=False):
        values = scale * rows[column].astype(float)
        axes.barh(rows["model"], values.fillna(0), color=colours)
        axes.set_xlabel(label)
        annotate_bars(axes, ["not measured" if pd.isna(value) else three_digits(value) for value in values])
        axes.set_xlim(left=0)
    for axes in grid[:, 0]:
        axes.set_ylabel("model")
    grid[0, 0].invert_yaxis()
    for axes in grid.flat[len(quantities) :]:
        axes.remove()
    return figure


@styled
def factorial_effects_figure(effects: pd.DataFrame) -> StudyFigure:
    """Main effects and interactions on accuracy, and on latency where it was timed, with their 95 % intervals.

    Args:
        effects: `tables.factorial_effects(study)`.
    """
    if effects.empty:
        return note_figure("the eight models of distilled x pruned x quantized are not all there")
    rows = effects.assign(panel=panel_labels(effects))
    names, panels = list(dict.fromkeys(rows["effect"])), list(dict.fromkeys(rows["panel"]))
    timed = "latency_ratio" in rows and rows["latency_ratio"].notna().any()
    figure = new_figure(0.22 * len(names) * max(1.0, len(panels) / 2) + 1.5)
    every_axes = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    outcomes = [("accuracy_effect", "accuracy (percentage points)", 0.0)]
    if timed:
        outcomes.append(("latency_ratio", "latency (ratio, under 1: faster)", 1.0))
    colours = [PALETTE[name] for name in ("blue", "vermilion", "green", "purple", "orange", "sky blue")]
    height = 0.8 / len(panels)
    for axes, (column, label, none) in zip(every_axes, outcomes, strict=True):
        for number, panel in enumerate(panels):
            found = rows[rows["panel"] == panel].set_index("effect").reindex(names)
            values, places = found[column], np.arange(len(names)) - 0.4 + height * (number + 0.5)
            axes.barh(
                places, values - none, left=none, height=height, label=panel, color=colours[number % len(colours)]
            )
            axes.errorbar(
                values, places, xerr=_distances(found, column), fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5
            )
        axes.axvline(none, color="black", linewidth=0.8)
        axes.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x")
    every_axes[0].set_ylabel("effect")
    every_axes[0].invert_yaxis()
    figure.legend(*every_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(panels)))
    return figure


def panel_labels(frame: pd.DataFrame) -> list[str]:
    """Each row's task and dev split; where its data are synthetic, the label says so."""
    synthetic = frame["synthetic"] if "synthetic" in frame else [False] * len(frame)
    return [
        f"{label} (synthetic data)" if made_up else label
        for label, made_up in zip(task_labels(frame), synthetic, strict=True)
    ]


def _draw_trade(axes: Axes, rows: pd.DataFrame, column: str, largest: float) -> None:
    """One panel of `accuracy_over_latency`; the axes leave room for the markers. What is dashed is drawn last, so that
    a solid edge or bar in the same place shows through its gaps."""
    for row in sorted(rows.to_dict("records"), key=_is_dashed):
        style = model_style(row)
        dashes: LineStyleType = DASHES if _is_dashed(row) else "-"
        bars = axes.errorbar(
            row[column],
            row["accuracy"],
            yerr=_interval(row, "accuracy"),
            color=style["color"],
            linewidth=0.9,
            capsize=3.5 if _is_dashed(row) else 2,
            zorder=1,
        )
        for bar in bars.lines[2]:
            bar.set_linestyle(dashes)
        axes.scatter(
            row[column],
            row["accuracy"],
            s=_area(row["megabytes"], largest),
            marker=style["marker"],
            facecolors="none",
            edgecolors=style["color"],
            linewidths=1.5,
            linestyles=[dashes],
            zorder=2,
        )
        axes.plot(row[column], row["accuracy"], marker=".", markersize=3, color=style["color"], zorder=3)
    axes.set_xlim(left=0)
    axes.margins(0.15)
    axes.set_xlim(0, 1.15 * rows[column].max())
    axes.grid()


def _is_dashed(row: dict) -> bool:
    """Whether its edge is dashed: a student that was trained without distillation."""
    return bool(row["student"]) and not row["distilled"]


def _area(megabytes: float, largest: float) -> float:
    return 40.0 if pd.isna(megabytes) or not largest else LARGEST_BUBBLE * megabytes / largest


def _interval(row: dict, name: str) -> np.ndarray | None:
    """Distances from the value to both ends of its interval, as matplotlib's error bars take them."""
    value, low, high = (row.get(column) for column in (name, f"{name}_low", f"{name}_high"))
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return None
    return np.array([[max(0.0, value - low)], [max(0.0, high - value)]])


def _distances(rows: pd.DataFrame, name: str) -> np.ndarray:
    """(2, rows): from each value down and up to the ends of its interval; no length where it has none."""
    ends = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
    return np.clip(np.nan_to_num(np.array(ends, dtype=float)), 0, None)


def _is_baseline(frame: pd.DataFrame) -> pd.Series:
    return (frame["student"] != "") & ~frame["distilled"].astype(bool)


def _model_handles(models: pd.DataFrame) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            markersize=6.5,
            markerfacecolor="none",
            markeredgewidth=1.5,
            label=row["model"],
            **model_style(row),
        )
        for row in models.to_dict("records")
    ]


def _size_handles(largest: float) -> list[Line2D]:
    sizes = [largest * share for share in (0.1, 0.25, 0.5, 1.0)]
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            color=GREY,
            markerfacecolor="none",
            markeredgewidth=1.5,
            label=f"{size:.3g} MB",
            markersize=np.sqrt(_area(size, largest)),
        )
        for size in sizes
    ]
