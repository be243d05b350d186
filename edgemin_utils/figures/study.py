"""Figures over a whole study: all select from its frames."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from edgemin_utils.figures import style
from edgemin_utils.results.budgets import candidates, pareto_front
from edgemin_utils.results.comparisons import factorial_effects, process_medians, summary
from edgemin_utils.results.table import Frames
from edgemin_utils.results.tables import path_of

# Kind of a model's last step -> what it is called, colour, marker.
KINDS = {"teacher": ("teacher", style.BLACK, "*"), "distillation": ("student", style.BLUE, "o")}
KINDS |= {"pruning": ("cut", style.GREEN, "^"), "tuning": ("tuned", style.ORANGE, "s")}
KINDS |= {"quantization": ("quantized", style.VERMILION, "D")}
_OVER = {"latency": "ms_128", "size": "bytes"}
_OWN, _MOST_NAMED = ("of one's own", style.PURPLE, "P"), 9


@style.styled
def accuracy_over(frames: Frames, column: str = "ms_128") -> style.StudyFigure:
    """Accuracy of every model over its latency or file (`column` as in the table), with 95 % intervals over seeds and
    rows; numbered are those that no other model beats in accuracy, file and latency; the line is the front of the two
    that are drawn."""
    latency, factor = ("ms_128", 1e-6) if column == "bytes" else (column, 1.0)
    inputs = {"bytes": "saved file (MB = 10$^6$ bytes)", "ms_rows": "ms, dev rows, one thread"}
    label = inputs.get(column, f"ms, 1x{column.split('_')[-1]}, one thread")
    found = {task: candidates(frames, task, latency).dropna(subset=[column]) for task in frames.tasks}
    every = {task: rows.assign(x=factor * rows[column]) for task, rows in found.items() if len(rows)}
    if not every:
        return style.note_figure("latency is not measured yet: run notebooks/05_analysis.ipynb")
    width = 56 if len(every) > 1 else 120
    named = {task: _numbered(rows[rows["on_front"]]["model"], width) for task, rows in every.items()}
    figure = style.new_figure(3.2 + 0.14 * max(map(len, named.values())), max(4.6, 3.3 * len(every)))
    for axes, (task, rows) in zip(figure.subplots(1, len(every), squeeze=False)[0], every.items(), strict=True):
        for kind, part in rows.groupby("kind", sort=False):
            name, colour, marker = KINDS.get(str(kind), _OWN)
            values, bars = style.points_with_intervals(part, "accuracy", 100)
            look = {"color": colour, "marker": marker, "linestyle": "none", "elinewidth": 0.6, "label": name}
            axes.errorbar(part["x"], values, yerr=bars, **look)
        front = rows[pareto_front(rows[["x"]].assign(y=-rows["accuracy"]))].sort_values("x")
        axes.step(front["x"], 100 * front["accuracy"], where="post", color=style.GREY, linewidth=1.2, zorder=0)
        for number, row in enumerate(rows[rows["on_front"]].head(_MOST_NAMED).to_dict("records"), start=1):
            place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7.5, "fontweight": "bold"}
            axes.annotate(str(number), (row["x"], 100 * row["accuracy"]), **place)
        axes.set(xlabel=label, title=frames.label(task))
        style.logarithmic(axes)
        place = {"xytext": (0, -36), "textcoords": "offset points", "va": "top", "fontsize": 6.8}
        axes.annotate("\n".join(named[task]), (0, 0), xycoords="axes fraction", **place)
    figure.axes[0].set_ylabel("accuracy (%)")
    looks = dict.fromkeys(KINDS.get(kind, _OWN) for rows in every.values() for kind in rows["kind"])
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=name) for name, c, m in looks]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _numbered(models: Iterable[str], width: int) -> list[str]:
    texts = [f"{number}  {model}" for number, model in enumerate(list(models)[:_MOST_NAMED], start=1)]
    return [line for text in texts for line in textwrap.wrap(text, width, subsequent_indent="     ")]


@style.styled
def accuracies(frames: Frames, models: Sequence[str] = (), task: str = "") -> style.StudyFigure:
    """Accuracy of models side by side with 95 % intervals over seeds and rows, a colour and marker for each dev split;
    the dotted line is the teacher's. By default the models of the paper's path, of all tasks."""
    tasks, frame = [task] if task else frames.tasks, summary(frames)
    shown = {name: list(models) or list(path_of(frames, name).values()) for name in tasks}
    figure = style.new_figure(-(-len(tasks) // 3) * (0.8 + 0.22 * max(map(len, shown.values()))) + 0.3)
    every = style.panels(figure, len(tasks), sharey=len(set(map(tuple, shown.values()))) == 1)
    most = max(range(len(tasks)), key=lambda place: len(frames.splits(tasks[place])))
    for axes, name in zip(every, tasks, strict=True):
        rows = frame[(frame["task"] == name) & frame["accuracy"].notna()]
        for number, split in enumerate(frames.splits(name)):
            part = rows[rows["split"] == split].set_index("model").reindex(shown[name])
            places = np.arange(len(part)) + 0.22 * (number - (len(frames.splits(name)) - 1) / 2)
            values, bars = style.points_with_intervals(part, "accuracy", 100)
            look = {**style.look(number), "linestyle": "none", "capsize": 2}
            axes.errorbar(values, places, xerr=bars, label=split, **look)
            for value in 100 * rows.loc[(rows["split"] == split) & (rows["model"] == "teacher"), "accuracy"]:
                axes.axvline(value, color=style.CYCLE[number], linestyle=":", linewidth=1)
        axes.set(xlabel="accuracy (%)", title=frames.label(name).replace(f" {frames.splits(name)[0]}", ""))
        style.name_rows(axes, shown[name])
    if len(frames.splits(tasks[most])) > 1:
        style.place_legend(figure, every[most])
    return figure


@style.styled
def factorial_interaction(frames: Frames) -> style.StudyFigure:
    """What distillation, pruning and quantization do alone and together, to accuracy and to latency at 1x128, with 95 %
    intervals; where nothing is cut the model trained as long."""
    rows = factorial_effects(frames)
    if rows.empty:
        return style.note_figure("not all eight models of distilled x pruned x quantized are there: add `factorial`")
    effects, labels = list(dict.fromkeys(rows["effect"])), list(dict.fromkeys(rows["label"]))
    timed = rows["latency"].notna().any()
    figure = style.new_figure(0.9 + 0.16 * len(effects) * max(2, len(labels)))
    every = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    outcomes = [("difference", "accuracy (points)", 100.0, 0.0), ("latency", "latency (ratio, under 1: faster)", 1, 1)]
    for axes, (column, title, factor, none) in zip(every, outcomes, strict=False):
        for number, label in enumerate(labels):
            part = rows[rows["label"] == label].set_index("effect").reindex(effects)
            places = np.arange(len(effects)) + 0.7 * ((number + 0.5) / len(labels) - 0.5)
            values, bars = style.points_with_intervals(part, column, factor)
            look = {**style.look(number), "linestyle": "none", "capsize": 2}
            axes.errorbar(values, places, xerr=bars, label=label, **look)
        axes.axvline(none, color=style.BLACK, linewidth=0.8)
        axes.set_xlabel(title)
        style.name_rows(axes, effects)
    style.place_legend(figure, every[0], 3)
    return figure


@style.styled
def speed_ups(frames: Frames, task: str, models: Sequence[str] = (), name: str = "1x128") -> style.StudyFigure:
    """Latency of each fresh process (points) and its median (bar), one thread; the number is how many times as fast as
    the teacher, with the interval that a second measurement would lie in. By default the models of the paper's path."""
    shown = list(models) or list(path_of(frames, task).values())
    medians = {model: process_medians(frames, task, [model], name) for model in shown}
    timed = {model: each[0] for model, each in medians.items() if each is not None}
    if not timed:
        return style.note_figure("latency is not measured yet: run notebooks/05_analysis.ipynb")
    known = summary(frames).query("task == @task").drop_duplicates("model").set_index("model")
    figure, axes = style.one_panel(0.9 + 0.3 * len(timed))
    longest = max(each.max() for each in timed.values())
    for number, (model, each) in enumerate(timed.items()):
        axes.barh(number, np.median(each), color=KINDS.get(known.loc[model, "kind"], _OWN)[1], height=0.6)
        axes.plot(each, [number] * len(each), "|", color=style.GREY, markersize=9, markeredgewidth=1.2)
        value, low, high = (known.loc[model, column] for column in ("faster", "faster_low", "faster_high"))
        text = "" if pd.isna(value) else f"{value:.2f}x" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")
        axes.text(max(each.max(), np.median(each)) + 0.015 * longest, number, text, va="center", fontsize=8)
    axes.set(xlim=(0, 1.3 * longest), xlabel=f"latency, {name}, one thread (ms)", title=frames.label(task))
    style.name_rows(axes, timed)
    return figure


@style.styled
def roofline(costs: Mapping[str, Any], name: str = "1x128") -> style.StudyFigure:
    """How far each model's one-thread latency lies above the least that this machine needs for its arithmetic and its
    bytes (roofline, Williams et al. 2009), by the results of a chain's costs."""
    rows = pd.DataFrame(costs.get("latency", []))
    if not rows.empty:
        rows = rows[(rows["input"] == name) & (rows["threads"] == 1) & (rows["model"] == rows["timed_as"])]
    if rows.empty or "bound_ms" not in rows or rows["bound_ms"].isna().all():
        return style.note_figure(f"latency at {name} is not measured: run notebooks/05_analysis.ipynb")
    medians = rows.groupby("model", sort=False)[["median_ms", "bound_ms"]].median()
    figure, axes = style.one_panel(0.9 + 0.22 * len(medians))
    axes.hlines(range(len(medians)), medians["bound_ms"], medians["median_ms"], color="#BBBBBB", linewidth=2, zorder=0)
    least: dict[str, Any] = {"color": style.VERMILION, "markersize": 10, "markeredgewidth": 2.2}
    axes.plot(medians["bound_ms"], range(len(medians)), "|", **least, label="least this machine needs")
    axes.plot(medians["median_ms"], range(len(medians)), "o", color=style.BLUE, label="measured")
    for number, (bound, median) in enumerate(medians[["bound_ms", "median_ms"]].to_numpy()):
        axes.text(1.03 * median, number, f" {median / bound:.1f}x", va="center", fontsize=7.5)
    axes.set_xlabel(f"latency, {name}, one thread (ms)")
    style.name_rows(axes, medians.index)
    style.logarithmic(axes)
    style.place_legend(figure, axes)
    return figure


@style.styled
def claims_figure(claims: pd.DataFrame) -> style.StudyFigure:
    """The paper's numbers beside the same quantity counted or measured honestly, with its interval, each as a share of
    the claim: on the line it holds. Takes rows as of `paper.claimed_numbers`."""
    rows = claims.dropna(subset=["claimed", "ours"]).reset_index(drop=True)
    figure, axes = style.one_panel(0.9 + 0.24 * len(rows))
    share, low, high = (rows[name].astype(float) / rows["claimed"] for name in ("ours", "low", "high"))
    axes.axvline(1, color=style.VERMILION, linewidth=1.2, label="claimed")
    look = {"xerr": style.error_bars(share, low, high), "fmt": "o", "color": style.BLUE, "capsize": 2}
    axes.errorbar(share, rows.index, **look, label="here")
    axes.set_xlabel("ours / claimed")
    style.name_rows(axes, rows["number"] + "  " + rows["quantity"])
    style.logarithmic(axes)
    style.place_legend(figure, axes, 2)
    return figure


def write_figures(frames: Frames, folder: Path) -> list[Path]:
    """The figures of a whole study as svg and png into `folder`, of what there is to draw; returns the paths."""
    made = {"accuracies": accuracies(frames), "factorial_interaction": factorial_interaction(frames)}
    made |= {f"accuracy_over_{name}": accuracy_over(frames, column) for name, column in _OVER.items()}
    made |= {f"speed_ups_{task}": speed_ups(frames, task) for task in frames.tasks}
    return [path for name, each in made.items() if not each.is_note for path in style.save_figure(each, folder, name)]
