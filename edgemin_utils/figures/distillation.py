"""Figures about distillation: what the relations look like, and how far the student's are from the teacher's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn

from edgemin_utils.figures.style import CYCLE, WIDTH, StudyFigure, new_figure, note_figure, styled

COLOUR_QUANTILE = 0.98


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
            image = seaborn.heatmap(np.asarray(matrices[pair]), ax=axes, vmin=0, vmax=highest, cmap="viridis",
                                    cbar=False, square=True, xticklabels=tokens, yticklabels=tokens)
            axes.tick_params(axis="x", rotation=90, labelsize=size)
            axes.tick_params(axis="y", rotation=0, labelsize=size)
            axes.set_title(f"{model}: {pair}", fontsize=8.5)
    for axes in grid[-1]:
        axes.set_xlabel("token attended to")
    for axes in grid[:, 0]:
        axes.set_ylabel("token")
    figure.colorbar(image.collections[0], ax=grid, label="relation (probability)", shrink=0.6,
                    extend="max" if values.max() > highest else "neither")
    return figure


@styled
def relation_loss_curves(training: Mapping[str, Any]) -> StudyFigure:
    """Divergence between the student's and the teacher's relations over the training steps, per pair of projections.

    Args:
        training: `results["training"]` of a record with a relation phase.
    """
    history = pd.DataFrame(training["history"])
    pairs = [name for name in history if set(name.split("-")) <= {"query", "key", "value"} and "-" in name]
    rows = history.dropna(subset=pairs, how="all") if pairs else history.iloc[:0]
    if rows.empty:
        return note_figure("this student was trained without a relation phase")
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    for pair, colour, style in zip(pairs, CYCLE, ("-", "--", "-.", ":", "-", "--"), strict=False):
        axes.plot(rows["step"], rows[pair], color=colour, linestyle=style, label=pair)
    axes.set(xlabel="training step", ylabel="KL divergence (nats)", title="relations: student against teacher")
    if (rows[pairs] > 0).all(axis=None):
        axes.set_yscale("log")
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
