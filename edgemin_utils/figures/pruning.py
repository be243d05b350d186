"""Figures about pruning: how important each head is, and what its removal costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn

from edgemin_utils.figures.style import CYCLE, GREY, MARKERS, WIDTH, StudyFigure, new_figure, note_figure, styled


@styled
def importance_heatmaps(importance: Mapping[str, Sequence[Sequence[float]]]) -> StudyFigure:
    """One heat map per criterion: layers down, heads across. Each is scaled to its own most important head.

    Args:
        importance: criterion -> float (layers, heads); layers may have unequal numbers of heads.
    """
    layers = max(len(scores) for scores in importance.values())
    heads = max(len(row) for scores in importance.values() for row in scores)
    height = max(2.2, 0.34 * layers + 1.2)
    figure = new_figure(height, WIDTH)
    for axes, (criterion, scores) in zip(figure.subplots(1, len(importance), squeeze=False)[0], importance.items(),
                                         strict=True):
        table = np.full((len(scores), heads), np.nan)
        for number, row in enumerate(scores):
            table[number, :len(row)] = row
        share = table / max(np.nanmax(table), 1e-30)
        seaborn.heatmap(share, ax=axes, cmap="viridis", vmin=0, vmax=1, annot=heads <= 8 and layers <= 12, fmt=".2f",
                        annot_kws={"fontsize": 7}, cbar_kws={"label": "relative to highest"},
                        linewidths=0.3)
        axes.set(xlabel="head", ylabel="layer", title=f"{criterion} importance")
        axes.tick_params(axis="y", rotation=0)
    return figure


@styled
def head_removal_curves(scan: Mapping[str, Any]) -> StudyFigure:
    """Accuracy as heads are taken away one by one, least important first, against random orders.

    Args:
        scan: results of a head scan: curves name -> [{removed, accuracy}], total_heads, rows, split.
    """
    curves = scan.get("curves")
    if not curves:
        return note_figure("no head was taken away")
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    orders = [name for name in curves if not name.startswith("random")]
    random = [curves[name] for name in curves if name.startswith("random")]
    for number, curve in enumerate(random):
        axes.plot([point["removed"] for point in curve], [100 * point["accuracy"] for point in curve], color=GREY,
                  linewidth=0.9, alpha=0.8, label=f"random order ({len(random)} draws)" if number == 0 else None)
    for name, colour, marker in zip(orders, CYCLE, MARKERS, strict=False):
        curve = curves[name]
        axes.plot([point["removed"] for point in curve], [100 * point["accuracy"] for point in curve], color=colour,
                  marker=marker, markersize=4, label=f"least {name} importance first")
    axes.set(xlabel=f"heads taken away (of {scan['total_heads']})",
             ylabel=f"accuracy (%) on {scan['rows']:,} {scan['split']} rows", title="no recovery training")
    axes.set_xlim(0, scan["total_heads"])
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
