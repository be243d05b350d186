"""The pipeline picture: what is made from what, with each model's numbers from its records."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from edgemin_utils.figures.study import panel_labels
from edgemin_utils.figures.style import (
    GREY,
    PALETTE,
    STAGE_COLOURS,
    STUDENT_COLOURS,
    StudyFigure,
    new_figure,
    note_figure,
    styled,
)
from edgemin_utils.tables.summary import longest_input

BOX_WIDTH, BOX_HEIGHT = 1.58, 1.22
COLUMN_STEP, ROW_STEP = 2.16, 1.46
TEXT_COLOUR = "#222222"
CHECKPOINT_STUDENT = "none-pretrained"
"""The student whose layers come from the checkpoint that the teacher came from, see `stages.make_student`."""


@styled
def pipeline_picture(frame: pd.DataFrame, task: str | None = None) -> StudyFigure:
    """Boxes and arrows: teacher, students, pruned, quantized, along the paper's path; students trained without
    distillation stand below, each behind what its layers come from.

    Args:
        frame: `tables.summarize(study)`.
        task: whose numbers stand in the boxes (its first dev split); without it the frame's first task.
    """
    rows = frame[frame["task"] == (task or frame["task"].iloc[0])] if len(frame) else frame
    rows = rows[rows["split"] == rows["split"].iloc[0]] if len(rows) else rows
    baselines = rows[
        (rows["student"] != "")
        & ~rows["main"].astype(bool)
        & ~rows["pruned"].astype(bool)
        & ~rows["quantized"].astype(bool)
    ]
    # Last, so that no arrow from the teacher down to another student crosses the checkpoint.
    baselines = baselines.sort_values("student", key=lambda names: names == CHECKPOINT_STUDENT, kind="stable")
    path = rows[rows["main"].astype(bool)]
    if path.empty:
        return note_figure("no model has been made yet")
    columns = 1 + max(_column(row) for row in path.to_dict("records"))
    width = min(8.8, 0.3 + COLUMN_STEP * max(columns, 2))
    figure = new_figure(0.4 + ROW_STEP * 0.95 * (1 + len(baselines)), width)
    axes = figure.add_subplot()
    longest = longest_input(rows)
    places = {}
    for row in path.to_dict("records"):
        places[_column(row)] = (COLUMN_STEP * _column(row), 0.0)
        _draw_box(axes, row, places[_column(row)], longest, STAGE_COLOURS[_column(row)])
    for number, row in enumerate(baselines.to_dict("records"), start=1):
        place = (COLUMN_STEP, -ROW_STEP * number)
        _draw_box(axes, row, place, longest, STUDENT_COLOURS.get(row["student"], PALETTE["purple"]))
        if row["student"] == CHECKPOINT_STUDENT:
            _draw_checkpoint(axes, (0.0, place[1]))
            _draw_arrow(axes, (0.0, place[1]), place, "labels\nonly")
        elif 0 in places:
            _draw_arrow(axes, places[0], place, "distil" if row["distilled"] else "labels only")
    order = sorted(places)
    for before, after in zip(order, order[1:], strict=False):
        _draw_arrow(axes, places[before], places[after], _step(path, after))
    axes.set(xlim=(-0.85, COLUMN_STEP * max(columns - 1, 1) + 0.85), ylim=(-ROW_STEP * len(baselines) - 0.68, 0.76))
    axes.set_axis_off()
    axes.set_title(panel_labels(rows.head(1))[0])
    return figure


def _column(row: dict) -> int:
    if not row["student"]:
        return 0
    return 1 + bool(row["pruned"]) + bool(row["quantized"])


def _step(path: pd.DataFrame, column: int) -> str:
    last = next(row for row in path.to_dict("records") if _column(row) == column)
    if column == 1:
        return "distil" if last["distilled"] else "train"
    return "quantize" if last["quantized"] else "prune"


def _draw_box(axes: Axes, row: dict, place: tuple[float, float], longest: str | None, colour: str) -> None:
    x, y = place
    _draw_outline(axes, place, BOX_HEIGHT, edgecolor=colour, linewidth=1.6)
    # Names are dark whatever the colour of the box: some colours are too light to be read on white.
    axes.text(
        x,
        y + 0.36,
        _wrapped(row["model"]),
        ha="center",
        va="center",
        fontsize=7.5,
        fontweight="bold",
        color=TEXT_COLOUR,
        linespacing=1.25,
    )
    lines = [f"{row['accuracy']:.1f} % accuracy"]
    if pd.notna(row.get("accuracy_low")) and pd.notna(row.get("accuracy_high")):
        lines.append(f"95 % interval {row['accuracy_low']:.1f} to {row['accuracy_high']:.1f}")
    if pd.notna(row.get("parameters")):
        lines.append(f"{row['parameters'] / 1e6:.2f} M weights, {row['megabytes']:.1f} MB")
    latency = row.get(f"latency_{longest}")
    if latency is not None and pd.notna(latency):
        lines.append(f"{latency:.2f} ms, {longest}, one thread")
    axes.text(x, y - 0.2, "\n".join(lines), ha="center", va="center", fontsize=7, linespacing=1.25)


def _draw_outline(axes: Axes, place: tuple[float, float], height: float, **edge: Any) -> None:
    """The white box with round corners behind a text; `edge` is matplotlib's colour, width and style of its line."""
    x, y = place
    axes.add_patch(
        FancyBboxPatch(
            (x - BOX_WIDTH / 2, y - height / 2),
            BOX_WIDTH,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="white",
            **edge,
        )
    )


def _draw_checkpoint(axes: Axes, place: tuple[float, float]) -> None:
    """A small dashed box in the teacher's column: what a model that does not come from the teacher is made of."""
    x, y = place
    _draw_outline(axes, place, 0.46, edgecolor=GREY, linewidth=1.2, linestyle="--")
    axes.text(
        x, y, "pretrained checkpoint", ha="center", va="center", fontsize=7.5, fontweight="bold", color=TEXT_COLOUR
    )


def _wrapped(name: str) -> str:
    """A name on at most two lines of like length."""
    words = name.split()
    if len(name) <= 20:
        return name
    best = min(range(1, len(words)), key=lambda cut: max(len(" ".join(words[:cut])), len(" ".join(words[cut:]))))
    return " ".join(words[:best]) + "\n" + " ".join(words[best:])


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str) -> None:
    left, right = start[0] + BOX_WIDTH / 2 + 0.03, end[0] - BOX_WIDTH / 2 - 0.03
    shape = "arc3,rad=0" if start[1] == end[1] else "angle,angleA=-90,angleB=180,rad=4"
    origin = (left, start[1]) if start[1] == end[1] else (start[0], start[1] - BOX_HEIGHT / 2 - 0.03)
    axes.add_patch(
        FancyArrowPatch(
            origin,
            (right, end[1]),
            arrowstyle="-|>",
            mutation_scale=11,
            color="#555555",
            connectionstyle=shape,
            linewidth=1.2,
            shrinkA=0,
            shrinkB=0,
        )
    )
    if label:
        axes.text(
            (origin[0] + right) / 2, end[1] + 0.09, label, ha="center", va="bottom", fontsize=7.5, color="#333333"
        )
