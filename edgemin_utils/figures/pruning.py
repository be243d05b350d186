"""Figures about pruning: how important each head is, what its removal costs, and what recovery brings back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes

from edgemin_utils.figures.style import CYCLE, GREY, MARKERS, WIDTH, StudyFigure, new_figure, note_figure, styled


@styled
def importance_heatmaps(importance: Mapping[str, Sequence[Sequence[float]]]) -> StudyFigure:
    """One heat map per criterion: layers down, heads across. Each is scaled to its own most important head.

    Args:
        importance: criterion -> float (layers, heads); layers may have unequal numbers of heads.
    """
    layers = max(len(scores) for scores in importance.values())
    heads = max(len(row) for scores in importance.values() for row in scores)
    lines = -(-len(importance) // 2)
    figure = new_figure(lines * max(2.2, 0.34 * layers + 1.2), WIDTH)
    places = figure.subplots(lines, min(2, len(importance)), squeeze=False).ravel()
    for axes in places[len(importance) :]:
        axes.remove()
    for axes, (criterion, scores) in zip(places, importance.items(), strict=False):
        table = np.full((len(scores), heads), np.nan)
        for number, row in enumerate(scores):
            table[number, : len(row)] = row
        share = table / max(np.nanmax(table), 1e-30)
        seaborn.heatmap(
            share,
            ax=axes,
            cmap="viridis",
            vmin=0,
            vmax=1,
            annot=heads <= 8 and layers <= 12,
            fmt=".2f",
            annot_kws={"fontsize": 7},
            cbar_kws={"label": "relative to highest"},
            linewidths=0.3,
        )
        axes.set(xlabel="head", ylabel="layer", title=f"{criterion} importance")
        axes.tick_params(axis="y", rotation=0)
    return figure


@styled
def removal_curves(scan: Mapping[str, Any]) -> StudyFigure:
    """Accuracy as units are masked one by one, least important first, against random orders.

    Args:
        scan: results of a scan: units, curves name -> [{removed, accuracy}], total, rows, split.
    """
    curves = scan.get("curves")
    if not curves or max(len(curve) for curve in curves.values()) < 2:
        return note_figure(f"no {scan.get('units', 'heads').removesuffix('s')} can be taken away")
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    orders = [name for name in curves if not name.startswith("random")]
    random = [curves[name] for name in curves if name.startswith("random")]
    for number, curve in enumerate(random):
        axes.plot(
            [point["removed"] for point in curve],
            [100 * point["accuracy"] for point in curve],
            color=GREY,
            linewidth=0.9,
            alpha=0.8,
            label=f"random order ({len(random)} draws)" if number == 0 else None,
        )
    for number, (name, colour, marker) in enumerate(zip(orders, CYCLE, MARKERS, strict=False)):
        curve = curves[name]
        axes.plot(
            [point["removed"] for point in curve],
            [100 * point["accuracy"] for point in curve],
            color=colour,
            marker=marker,
            **_nested(number, len(orders)),
            label="last layer first" if name == "top" else f"least {name} importance first",
        )
    axes.set(
        xlabel=f"{scan['units']} masked (of {scan['total']:,})",
        ylabel=f"accuracy (%) on {scan['rows']:,} {scan['split']} rows",
        title="no recovery training",
    )
    axes.set_xlim(0, scan["total"])
    if scan["total"] <= 12:
        axes.set_xticks(range(scan["total"] + 1))
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _nested(number: int, count: int) -> dict[str, Any]:
    """Line and marker of one of `count` curves: each is narrower than those drawn before it, and broken, so that of
    curves that run along one another every one can be seen."""
    above = count - 1 - number
    return {
        "linewidth": 1.3 + 1.1 * above,
        "markersize": 3.5 + 2.2 * above,
        "linestyle": "-" if number == 0 else (2.0 * number, (3.5, 2.5)),
        "dash_capstyle": "butt",
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


@styled
def cut_curves(dense: Mapping[str, Any], cuts: Mapping[str, Sequence[Mapping[str, Any]]]) -> StudyFigure:
    """Accuracy over the share of the weights that a cut removes: right after it, hollow, and after recovery, filled.

    Args:
        dense: results of the model before the cuts; its main dev split is drawn.
        cuts: a name for every way of cutting -> results of its cuts, of whatever ratio.
    """
    if not cuts:
        return note_figure("no cut was made")
    split, metrics = next(iter(dense["metrics"].items()))
    weights = dense["size"]["stored_weights"]
    figure = new_figure(3.2 + 0.18 * -(-len(cuts) // 2))
    axes = figure.add_subplot()
    axes.axhspan(100 * metrics["accuracy_low"], 100 * metrics["accuracy_high"], color=GREY, alpha=0.15, linewidth=0)
    axes.axhline(100 * metrics["accuracy"], color=GREY, linewidth=1, label="before the cut (95 % interval)")
    for number, (name, results) in enumerate(cuts.items()):
        style = {
            "color": CYCLE[number % len(CYCLE)],
            "markersize": 5,
            "marker": MARKERS[(number + number // len(CYCLE)) % len(MARKERS)],
        }
        points = sorted(
            ((100 * each["parameters_removed"] / weights, each) for each in results), key=lambda point: point[0]
        )
        _cut_curve(axes, points, split, name, style)
    axes.set(
        xlabel="weights removed (% of the model)",
        ylabel=f"accuracy (%) on {metrics['rows']:,} {split} rows",
        title="hollow, dotted: right after the cut; filled: after recovery",
    )
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _cut_curve(
    axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], split: str, name: str, style: Mapping[str, Any]
) -> None:
    """One way of cutting at its ratios; a line joins them."""
    shares = [share for share, _ in points]
    cut, recovered = (
        [100 * each[entry][split]["accuracy"] for _, each in points] for entry in ("metrics_after_cut", "metrics")
    )
    axes.plot(shares, cut, linestyle=":", linewidth=1, markerfacecolor="white", **style)
    axes.plot(shares, recovered, label=name, **style)
