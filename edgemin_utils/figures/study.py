"""Figures over a whole study: all select from its frames."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils.figures import style
from edgemin_utils.results.comparisons import candidates, factorial_effects, pareto_front, process_medians, summary
from edgemin_utils.results.table import Frames
from edgemin_utils.results.tables import path_of

# Kind of a model's last step -> what it is called, colour, marker.
KINDS = {"teacher": ("teacher", style.BLACK, "*"), "distillation": ("student", style.BLUE, "o")}
KINDS |= {"pruning": ("cut", style.GREEN, "^"), "tuning": ("tuned", style.ORANGE, "s")}
KINDS |= {"quantization": ("quantized", style.VERMILION, "D")}
_OWN, _MOST_NAMED = ("of one's own", style.PURPLE, "P"), 9
_UNTIMED = "latency is not measured yet: run notebooks/05_analysis.ipynb"


@style.styled
def accuracy_over(frames: Frames, column: str = "ms_128") -> style.StudyFigure:
    """Accuracy of every model over its latency or file (`column`: ms_128 or bytes), with 95 % intervals; numbered are
    those that no other beats in accuracy, file and latency; the line is the front of the two that are drawn."""
    in_bytes = column == "bytes"
    found = {task: candidates(frames, task).dropna(subset=[column]) for task in frames.tasks}
    every = {task: rows.assign(x=rows[column] / (1e6 if in_bytes else 1)) for task, rows in found.items() if len(rows)}
    if not every:
        return style.note_figure(_UNTIMED)
    width = 56 if len(every) > 1 else 120
    named = {task: _numbered(rows[rows["on_front"]]["model"], width) for task, rows in every.items()}
    figure = style.new_figure(3.2 + 0.14 * max(map(len, named.values())), max(4.6, 3.3 * len(every)))
    for axes, (task, rows) in zip(figure.subplots(1, len(every), squeeze=False)[0], every.items(), strict=True):
        for kind, part in rows.groupby("kind", sort=False):
            name, colour, marker = KINDS.get(str(kind), _OWN)
            values, bars = style.points_with_intervals(part, "accuracy", 100)
            look = {"color": colour, "marker": marker, "linestyle": "none", "elinewidth": 0.7, "label": name}
            axes.errorbar(part["x"], values, yerr=bars, **look)
        front = rows[pareto_front(rows[["x"]].assign(y=-rows["accuracy"]))].sort_values("x")
        axes.step(front["x"], 100 * front["accuracy"], where="post", color=style.GREY, linewidth=1.2, zorder=0)
        for number, row in enumerate(rows[rows["on_front"]].head(_MOST_NAMED).to_dict("records"), start=1):
            place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7.5, "fontweight": "bold"}
            axes.annotate(str(number), (row["x"], 100 * row["accuracy"]), **place)
        label = "saved file (MB = 10$^6$ bytes)" if in_bytes else "ms, 1x128, one thread"
        axes.set(xlabel=label, title=frames.label(task))
        style.logarithmic(axes)
        place = {"xytext": (0, -36), "textcoords": "offset points", "va": "top", "fontsize": 6.8}
        axes.annotate("\n".join(named[task]), (0, 0), xycoords="axes fraction", **place)
    figure.axes[0].set_ylabel("accuracy (%)")
    style.place_legend(figure, 5, "outside upper center")
    return figure


def _numbered(models: Iterable[str], width: int) -> list[str]:
    texts = [f"{number}  {model}" for number, model in enumerate(list(models)[:_MOST_NAMED], start=1)]
    return [line for text in texts for line in textwrap.wrap(text, width, subsequent_indent="     ")]


@style.styled
def accuracies(frames: Frames) -> style.StudyFigure:
    """Accuracy of the models of the paper's path by dev split, with 95 % intervals; dotted is the teacher's."""
    frame = summary(frames).dropna(subset=["accuracy"]).set_index("model")
    shown = {task: list(path_of(frames, task).values()) for task in frames.tasks}
    figure = style.new_figure(-(-len(shown) // 3) * (0.8 + 0.22 * max(map(len, shown.values()))) + 0.3)
    every = style.panels(figure, len(shown), sharey=len(set(map(tuple, shown.values()))) == 1)
    for axes, (task, names) in zip(every, shown.items(), strict=True):
        own, quiet = frame[frame["task"] == task], "_" * (len(frames.splits(task)) == 1)  # which legends leave out
        parts = {f"{quiet}{split}": part for split, part in own.groupby("split", sort=False)}
        style.draw_rows(axes, parts, names, "accuracy", 100)
        for number, part in enumerate(parts.values()):
            for value in part.loc[part.index == "teacher", "accuracy"]:
                axes.axvline(100 * value, color=style.CYCLE[number], linestyle=":", linewidth=1)
        axes.set(xlabel="accuracy (%)", title=frames.label(task).replace(f" {frames.splits(task)[0]}", ""))
    if any(len(frames.splits(task)) > 1 for task in shown):
        style.place_legend(figure)
    return figure


@style.styled
def factorial_interaction(frames: Frames) -> style.StudyFigure:
    """What distillation, pruning and quantization do to accuracy and latency, alone and together, with intervals."""
    rows = factorial_effects(frames)
    if rows.empty:
        return style.note_figure("not all eight models of distilled x pruned x quantized are there: add `factorial`")
    effects = list(dict.fromkeys(rows["effect"]))
    parts = {str(label): part.set_index("effect") for label, part in rows.groupby("label", sort=False)}
    figure = style.new_figure(0.9 + 0.16 * len(effects) * max(2, len(parts)))
    every = style.panels(figure, 2 if rows["latency"].notna().any() else 1, sharey=True)
    outcomes = [("difference", "accuracy (points)", 100.0, 0.0), ("latency", "latency (ratio, under 1: faster)", 1, 1)]
    for axes, (column, title, factor, none) in zip(every, outcomes, strict=False):
        style.draw_rows(axes, parts, effects, column, factor)
        axes.axvline(none, color=style.BLACK, linewidth=0.8)
        axes.set_xlabel(title)
    style.place_legend(figure)
    return figure


@style.styled
def speed_ups(frames: Frames, task: str) -> style.StudyFigure:
    """One-thread latency at 1x128 of the models of the paper's path: each fresh process (points) and the median (bar);
    the number is how many times as fast as the teacher, with the interval that a second measurement would lie in."""
    timed = {model: each for model in path_of(frames, task).values() for each in process_medians(frames, task, [model])}
    if not timed:
        return style.note_figure(_UNTIMED)
    known = summary(frames).query("task == @task").drop_duplicates("model").set_index("model")
    figure, axes = style.one_panel(0.9 + 0.3 * len(timed))
    longest = max(each.max() for each in timed.values())
    for number, (model, each) in enumerate(timed.items()):
        axes.barh(number, np.median(each), color=KINDS.get(known.loc[model, "kind"], _OWN)[1], height=0.6)
        axes.plot(each, [number] * len(each), "|", color=style.GREY, markersize=9, markeredgewidth=1.2)
        value, low, high = (known.loc[model, column] for column in ("faster", "faster_low", "faster_high"))
        text = "" if pd.isna(value) else f"{value:.2f}x" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")
        axes.text(max(each.max(), np.median(each)) + 0.015 * longest, number, text, va="center", fontsize=8)
    axes.set(xlim=(0, 1.3 * longest), xlabel="latency, 1x128, one thread (ms)", title=frames.label(task))
    style.name_rows(axes, timed)
    return figure


@style.styled
def roofline(costs: Mapping[str, Any]) -> style.StudyFigure:
    """How far one-thread latency at 1x128 lies above this machine's least (roofline, Williams et al. 2009)."""
    rows = pd.DataFrame(costs.get("latency", []), columns="model timed_as input threads median_ms bound_ms".split())
    rows = rows[(rows["input"] == "1x128") & (rows["threads"] == 1) & (rows["model"] == rows["timed_as"])]
    if rows["bound_ms"].isna().all():
        return style.note_figure(_UNTIMED)
    medians = rows.groupby("model", sort=False)[["median_ms", "bound_ms"]].median()
    figure, axes = style.one_panel(0.9 + 0.22 * len(medians))
    axes.hlines(range(len(medians)), medians["bound_ms"], medians["median_ms"], color="#BBBBBB", linewidth=2, zorder=0)
    least: dict[str, Any] = {"color": style.VERMILION, "markersize": 10, "markeredgewidth": 2.2}
    axes.plot(medians["bound_ms"], range(len(medians)), "|", **least, label="least this machine needs")
    axes.plot(medians["median_ms"], range(len(medians)), "o", color=style.BLUE, label="measured")
    for number, (bound, median) in enumerate(medians[["bound_ms", "median_ms"]].to_numpy()):
        axes.text(1.03 * median, number, f" {median / bound:.1f}x", va="center", fontsize=7.5)
    axes.set_xlabel("latency, 1x128, one thread (ms)")
    style.name_rows(axes, medians.index)
    style.logarithmic(axes)
    style.place_legend(figure)
    return figure


@style.styled
def claims_figure(claims: pd.DataFrame) -> style.StudyFigure:
    """Numbers of `paper.claim_checks` as shares of what the paper claimed, with intervals: a claim holds at 1."""
    rows = claims.query("claimed > 0 and ours == ours").reset_index(drop=True)
    figure, axes = style.one_panel(0.9 + 0.24 * len(rows))
    shares, bars = style.points_with_intervals(rows, "ours", 1 / rows["claimed"])
    axes.axvline(1, color=style.VERMILION, linewidth=1.2, label="claimed")
    axes.errorbar(shares, rows.index, xerr=bars, fmt="o", color=style.BLUE, capsize=2, label="here")
    axes.set_xlabel("ours / claimed")
    style.name_rows(axes, rows["number"] + "  " + rows["quantity"])
    style.logarithmic(axes)
    style.place_legend(figure, 2)
    return figure


def write_figures(frames: Frames, folder: Path) -> list[Path]:
    """The figures of a whole study as svg and png into `folder`, of what there is to draw; returns the paths."""
    made = {"accuracies": accuracies(frames), "factorial_interaction": factorial_interaction(frames)}
    made |= {"accuracy_over_latency": accuracy_over(frames), "accuracy_over_size": accuracy_over(frames, "bytes")}
    made |= {f"speed_ups_{task}": speed_ups(frames, task) for task in frames.tasks}
    return [path for name, each in made.items() if not each.is_note for path in style.save_figure(each, folder, name)]
