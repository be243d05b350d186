"""What a task's models trade: accuracy against latency and file size, and which models no other one beats."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from edgemin_utils.chain import COMPRESSED_TEACHER
from edgemin_utils.figures.style import GREY, PALETTE, StudyFigure, new_figure, note_figure, styled, wrapped_name
from edgemin_utils.tables.recommended import best_first, on_front
from edgemin_utils.tables.variants import task_label

KIND_STYLES: Mapping[str, dict[str, Any]] = {
    "teacher": {"color": PALETTE["black"], "marker": "*", "markersize": 10},
    "student": {"color": PALETTE["blue"], "marker": "o"},
    "pruned": {"color": PALETTE["green"], "marker": "^"},
    "tuned": {"color": PALETTE["orange"], "marker": "s"},
    "quantized": {"color": PALETTE["vermilion"], "marker": "D"},
}
"""Colour and marker of each kind of model, see `tables.recommended.KINDS`."""
NAME_WIDTH = 88
"""Characters of a model's name in a line of the list below the panels."""
LABEL_DISTANCES = (10, 13, 17, 22, 28, 36, 46)
"""How far from its point a label is tried, in points; the nearest free place is taken."""
NEARER = 0.8
"""A label's distance to its own marker, as a share of that to the next one, is to be below this."""
SAME_PLACE = 2.0
"""Markers that are fewer pixels apart stand in one place."""
_AROUND = np.deg2rad([135, 45, 180, 0, 225, 315, 90, 270])  # up and left first: nothing lies above a front


@styled
def pareto_picture(frame: pd.DataFrame) -> StudyFigure:
    """Accuracy over latency and over file size of every model of one task, with its 95 % interval; numbered are those
    on the Pareto front of all three, and the step line is the front of the panel's own two quantities. A quantity that
    was measured for no model has no panel.

    Args:
        frame: `tables.candidates` of one task.
    """
    if frame.empty:
        return note_figure("no model has been evaluated yet")
    front = best_first(frame[frame["on_front"]])
    numbers = {key: str(number) for number, key in enumerate(front["key"], start=1)}
    kinds = [kind for kind in KIND_STYLES if kind in set(frame["kind"])]
    synthetic = " (synthetic data)" if frame["synthetic"].any() else ""
    first = frame.iloc[0]
    across = 2 if front["model"].str.len().max() < 48 else 1
    lines = front["model"].map(lambda name: 1 + wrapped_name(name, NAME_WIDTH).count("\n"))
    figure = new_figure(3.9 + 0.19 * -(-int(lines.sum()) // across))
    labels = {"milliseconds": f"median latency, {first['input']}, one thread (ms)", "megabytes": "file (MB)"}
    measured = [column for column in labels if frame[column].notna().any()]
    if not measured:
        return note_figure("neither latency nor file size is measured yet")
    names = [name for name, column in (("file", "megabytes"), ("latency", "milliseconds")) if column in measured]
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, measured, strict=True):
        _draw_panel(axes, frame.dropna(subset=[column, "accuracy"]), column)
        axes.set_xlabel(f"{labels[column]}, log scale")
    panels[0].set_ylabel("accuracy (%)")
    untimed = int(frame["milliseconds"].isna().sum())
    if untimed:
        panels[0].set_title(f"{untimed} of {len(frame)} models not timed", color=GREY)
    handles = _kind_handles(kinds, frame)
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if len(handles) < 6 else 4,
        title=f"{task_label(first['task'], first['split'])}{synthetic}",
        title_fontsize=10.5,
        handletextpad=0.4,
        columnspacing=1.3,
    )
    figure.legend(
        handles=_front_handles(front, numbers),
        loc="outside lower center",
        ncols=across,
        title=f"on the Pareto front of {', '.join(['accuracy', *names[:-1]])} and {names[-1]}",
    )
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)  # the layout is settled before labels are placed in it
    for axes, column in zip(panels, measured, strict=True):
        shown = frame.dropna(subset=[column, "accuracy"])
        place_labels(
            axes,
            [
                (row[column], row["accuracy"], numbers[row["key"]])
                for row in front.dropna(subset=[column]).to_dict("records")
            ],
            _drawn_boxes(axes, shown, column),
            renderer,
            shown[[column, "accuracy"]].to_numpy(dtype=float),
        )
    return figure


def place_labels(
    axes: Axes,
    labels: Iterable[tuple[float, float, str]],
    taken: Iterable[Bbox],
    renderer: RendererBase,
    points: np.ndarray | None = None,
) -> list[Annotation]:
    """Writes labels beside their points so that none lies on another label or on what is drawn, with a thin line
    between label and point. Each takes the nearest free place that is clearly nearer to its own point than to any
    other; where there is none, the nearest free place; where everything is taken, the last.

    Args:
        axes: drawn once, so that its place in the figure is settled.
        labels: x, y (data coordinates) and text of each.
        taken: what must stay visible, in pixels.
        renderer: draws the figure, and so knows how large a text is.
        points: (n, 2) data coordinates of every marker, labelled or not.
    """
    taken, placed = list(taken), []
    markers = np.empty((0, 2)) if points is None else axes.transData.transform(points)
    for x, y, text in labels:
        note = axes.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
        note.set_in_layout(False)
        own = axes.transData.transform((x, y))
        free = [
            place
            for place in itertools.product(LABEL_DISTANCES, _AROUND)
            if _is_free(note, *place, axes, taken, renderer)
        ]
        clear = (place for place in free if _is_nearest_to_own(note, *place, own, markers, renderer))
        best = next(clear, free[0] if free else (LABEL_DISTANCES[-1], _AROUND[-1]))
        _move(note, *best)
        taken.append(_extent(note, renderer))
        placed.append(note)
    return placed


def step_front(values: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n,), (n,) of the front of accuracy over `column`, ordered by it: the best accuracy to be had up to each
    value."""
    front = values[on_front(values, ("accuracy", column))].sort_values([column, "accuracy"])
    return front[column].to_numpy(dtype=float), front["accuracy"].to_numpy(dtype=float)


def _draw_panel(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    axes.set_xscale("log")
    axes.grid()
    for row in rows.to_dict("records"):
        style = _style(row)
        ends = [[row["accuracy"] - row["accuracy_low"]], [row["accuracy_high"] - row["accuracy"]]]
        axes.errorbar(
            row[column],
            row["accuracy"],
            yerr=None if np.isnan(ends).any() else np.maximum(ends, 0),
            linestyle="none",
            elinewidth=0.6,
            alpha=1.0 if row["on_front"] else 0.6,
            **style,
        )
    corners, heights = step_front(rows, column)
    axes.step(corners, heights, where="post", color=GREY, linewidth=1.2, zorder=1)
    low, high = rows[column].min(), rows[column].max()
    margin = max(1.12, (high / low) ** 0.1)
    axes.set_xlim(low / margin, high * margin)
    spread = high / low * margin**2
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=range(1, 10) if spread < 4 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _drawn_boxes(axes: Axes, rows: pd.DataFrame, column: str) -> list[Bbox]:
    """The points, interval bars and pieces of the step line of a panel, as boxes in pixels."""
    points = rows[[column, "accuracy"]].to_numpy(dtype=float)
    intervals = rows[[column, "accuracy_low", "accuracy_high"]].dropna().to_numpy(dtype=float)
    bars = [[(x, low), (x, high)] for x, low, high in intervals]
    corners = list(zip(*step_front(rows, column), strict=True))
    for (x, y), (next_x, next_y) in itertools.pairwise(corners):
        bars += [[(x, y), (next_x, y)], [(next_x, y), (next_x, next_y)]]
    transform = axes.transData.transform
    return [
        *(Bbox([place, place]).padded(4) for place in transform(points)),
        *(Bbox.from_extents(*transform(bar).min(axis=0), *transform(bar).max(axis=0)).padded(1) for bar in bars),
    ]


def _is_filled(row: dict) -> bool:
    """Whether its marker is filled: hollow ones stand for students that were never distilled, and their kin."""
    return row["kind"] == "teacher" or row["student"] == COMPRESSED_TEACHER or bool(row["distilled"])


def _style(row: dict) -> dict[str, Any]:
    """Colour, marker, filling and edge of a model; the compressed forms of the teacher itself have the teacher's
    colour around them."""
    style = KIND_STYLES[row["kind"]]
    return {
        **style,
        "markerfacecolor": style["color"] if _is_filled(row) else "white",
        "markeredgecolor": KIND_STYLES["teacher"]["color"] if row["student"] == COMPRESSED_TEACHER else style["color"],
        "markeredgewidth": 1.4 if row["student"] == COMPRESSED_TEACHER else 1.0,
    }


def _is_free(
    note: Annotation, distance: float, angle: float, axes: Axes, taken: list[Bbox], renderer: RendererBase
) -> bool:
    """Moves a label there; whether it then lies inside the axes and on nothing."""
    _move(note, distance, angle)
    extent, inside = _extent(note, renderer), axes.get_window_extent(renderer)
    return (
        inside.x0 <= extent.x0
        and extent.x1 <= inside.x1
        and inside.y0 <= extent.y0
        and extent.y1 <= inside.y1
        and not any(extent.overlaps(other) for other in taken)
    )


def _is_nearest_to_own(
    note: Annotation, distance: float, angle: float, own: np.ndarray, markers: np.ndarray, renderer: RendererBase
) -> bool:
    """Moves a label there; whether no other marker is about as near to it as its own, `own`, in pixels. Markers in the
    very place of its own cannot be told from it and do not count."""
    _move(note, distance, angle)
    others = markers[np.linalg.norm(markers - own, axis=1) > SAME_PLACE]
    extent = _extent(note, renderer)
    return bool((_distances(extent, own[None]) < NEARER * _distances(extent, others)).all())


def _distances(box: Bbox, points: np.ndarray) -> np.ndarray:
    """(n,): how far each point (n, 2) lies from the nearest place of a box."""
    nearest = np.clip(points, (box.x0, box.y0), (box.x1, box.y1))
    return np.linalg.norm(points - nearest, axis=1)


def _move(note: Annotation, distance: float, angle: float) -> None:
    note.set_position((distance * np.cos(angle), distance * np.sin(angle)))


def _extent(note: Annotation, renderer: RendererBase) -> Bbox:
    """Where its text stands, in pixels, without the line to its point."""
    note.update_positions(renderer)
    return Bbox(matplotlib.text.Text.get_window_extent(note, renderer)).padded(1)


def _kind_handles(kinds: list[str], frame: pd.DataFrame) -> list[Line2D]:
    handles = [Line2D([], [], linestyle="none", label=kind, **KIND_STYLES[kind]) for kind in kinds]
    if not all(_is_filled(row) for row in frame.to_dict("records")):
        handles.append(
            Line2D([], [], linestyle="none", marker="o", color=GREY, markerfacecolor="white", label="not distilled")
        )
    if (frame["student"] == COMPRESSED_TEACHER).any():
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                color="#BBBBBB",
                label="compressed teacher",
                markeredgecolor=KIND_STYLES["teacher"]["color"],
                markeredgewidth=1.4,
            )
        )
    return [*handles, Line2D([], [], color=GREY, linewidth=1.2, label="panel's front")]


def _front_handles(front: pd.DataFrame, numbers: dict[str, str]) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            label=f"{numbers[row['key']]}  {wrapped_name(row['model'], NAME_WIDTH, '    ')}",
            **_style(row),
        )
        for row in front.to_dict("records")
    ]
