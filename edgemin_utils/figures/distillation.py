"""Figures about distillation: what the relations look like, what each phase reduces, which layer teaches best."""

from collections.abc import Mapping
from typing import Any

import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn

from edgemin_utils.figures.style import CYCLE, GREY, MARKERS, WIDTH, StudyFigure, new_figure, note_figure, styled
from edgemin_utils.objectives import read_student

COLOUR_QUANTILE = 0.98
LINE_STYLES = ("-", "--", "-.", ":")


@styled
def relation_matrices(relations: Mapping[str, Any]) -> StudyFigure:
    """Relation matrices of one sentence: a row for each model, a column for each pair of projections.

    Each row of a matrix is a distribution over the tokens, averaged over the relation heads. All panels share one
    colour scale, which ends at the 98th percentile: one strong relation would leave all others dark.

    Args:
        relations: `results["relations"]` of a record: tokens, and models -> pair -> float (tokens, tokens).
    """
    if not relations:
        return note_figure("this student was trained without a relation objective")
    tokens, models = relations["tokens"], relations["models"]
    pairs = list(next(iter(models.values())))
    values = np.concatenate([np.ravel(matrix) for each in models.values() for matrix in each.values()])
    highest = np.quantile(values, COLOUR_QUANTILE)
    cell = min(0.30, (WIDTH / len(pairs) - 0.5) / len(tokens))
    side = max(1.7, cell * len(tokens))
    figure = new_figure(len(models) * (side + 0.35) + 0.9, max(WIDTH, len(pairs) * (side + 0.35) + 1.4))
    figure.set_layout_engine("compressed")  # panels have a fixed aspect
    grid = figure.subplots(len(models), len(pairs), sharex=True, sharey=True, squeeze=False)
    size = 7 if len(tokens) <= 20 else 5
    for row, (model, matrices) in zip(grid, models.items(), strict=True):
        for axes, pair in zip(row, pairs, strict=True):
            image = seaborn.heatmap(
                np.asarray(matrices[pair]),
                ax=axes,
                vmin=0,
                vmax=highest,
                cmap="viridis",
                cbar=False,
                square=True,
                xticklabels=tokens,
                yticklabels=tokens,
            )
            axes.tick_params(axis="x", rotation=90, labelsize=size)
            axes.tick_params(axis="y", rotation=0, labelsize=size)
            axes.set_title(f"{model}: {pair}", fontsize=8.5)
    for axes in grid[-1]:
        axes.set_xlabel("token attended to")
    for axes in grid[:, 0]:
        axes.set_ylabel("token")
    figure.colorbar(
        image.collections[0],
        ax=grid,
        label="relation (probability)",
        shrink=0.6,
        extend="max" if values.max() > highest else "neither",
    )
    return figure


@styled
def objective_loss_curves(training: Mapping[str, Any]) -> StudyFigure:
    """What the student is trained to reduce over the training steps: a panel for each phase, a curve for each part.

    Args:
        training: `results["training"]` of a record: phases and history.
    """
    history = pd.DataFrame(training["history"])
    if history.empty:
        return note_figure("no training steps recorded")
    names = [phase["name"] for phase in training["phases"]]
    figure = new_figure(3.1)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = history[history["phase"] == name].dropna(axis="columns", how="all")
        parts = [column for column in rows if column not in ("phase", "step", "epoch", "loss")] or ["loss"]
        for number, part in enumerate(parts):
            axes.plot(
                rows["step"],
                rows[part],
                color=CYCLE[number % len(CYCLE)],
                linestyle=LINE_STYLES[number % len(LINE_STYLES)],
                label=part,
            )
        if (rows[parts] > 0).all(axis=None):
            axes.set_yscale("log")
        divergences = all(set(part.split("-")) <= {"query", "key", "value"} for part in parts)
        axes.set(xlabel="training step", ylabel="KL divergence (nats)" if divergences else "loss", title=name)
        axes.grid(axis="y")
        axes.legend(loc="best", fontsize=7)
    return figure


@styled
def teacher_layer_scan(students: Mapping[str, Mapping[str, Any]]) -> StudyFigure:
    """Accuracy of students that differ only in the teacher layer they learn from, with 95 % intervals; the line is the
    student without distillation.

    Args:
        students: student's name -> results of its record; refused ones are left out.
    """
    scanned: dict[str, dict[int, Any]] = {}
    for name, results in students.items():
        student = read_student(name)
        if student is None or "teacher_layer" not in results:
            continue
        if not (student.assistant or student.is_assistant or results["transfer_rows"]):
            scanned.setdefault(student.objective, {})[results["teacher_layer"]] = _main_accuracy(results)
    scanned = {objective: dict(sorted(layers.items())) for objective, layers in scanned.items() if len(layers) > 1}
    if not scanned:
        return note_figure(
            "no teacher layers were scanned: add students such as minilmv2-layer-0 to compared_objectives"
        )
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    for number, (objective, layers) in enumerate(scanned.items()):
        middle, low, high = (100 * np.array(values) for values in zip(*layers.values(), strict=True))
        axes.errorbar(
            list(layers),
            middle,
            yerr=(middle - low, high - middle),
            color=CYCLE[number],
            marker=MARKERS[number],
            capsize=3,
            label=objective,
        )
    if "none" in students and "metrics" in students["none"]:
        plain = [100 * value for value in _main_accuracy(students["none"])]
        axes.axhline(plain[0], color=GREY, linestyle="--", label="without distillation")
        axes.axhspan(plain[1], plain[2], color=GREY, alpha=0.12, linewidth=0)
    axes.set(xlabel="teacher layer (counted from 0)", ylabel="accuracy (%)", title="which teacher layer to learn from")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _main_accuracy(results: Mapping[str, Any]) -> tuple[float, float, float]:
    """Accuracy on the main dev split and the ends of its interval."""
    metrics = next(iter(results["metrics"].values()))
    return metrics["accuracy"], metrics["accuracy_low"], metrics["accuracy_high"]
