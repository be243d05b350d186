"""Figures of single models, for chapters 1 to 4: all take plain data, as records hold it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn

from edgemin_utils.figures import style

_MOST_LAYERS = 26  # more layers than these share a row with those that differ in their number only
_STYLES = ("-", "--", "-.", ":")


@style.styled
def loss_curves(training: Mapping[str, Any]) -> style.StudyFigure:
    """What training reduces: a panel for each phase, a curve for each part; markers are hold-out loss and accuracy."""
    history, evaluations = pd.DataFrame(training["history"]), pd.DataFrame(training.get("evaluations", []))
    if history.empty:
        return style.note_figure("no training steps recorded")
    names = [phase["name"] for phase in training["phases"] if phase["name"] in set(history["phase"])]
    figure = style.new_figure(3.0)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = history[history["phase"] == name].dropna(axis="columns", how="all")
        parts = [column for column in rows if column not in ("phase", "step", "epoch", "loss")] or ["loss"]
        for number, part in enumerate(parts):
            axes.plot(rows["epoch"], rows[part], _STYLES[number % 4], color=style.look(number)["color"], label=part)
        held = evaluations[evaluations["phase"] == name] if len(evaluations) else evaluations
        if len(held):
            axes.plot(held["epoch"], held["loss"], "ko", label="hold-out loss")
            for row in held.dropna(subset=["accuracy"]).to_dict("records"):
                place = {"xytext": (-3, 5), "textcoords": "offset points", "ha": "right", "fontsize": 7}
                axes.annotate(f"{100 * row['accuracy']:.1f} %", (row["epoch"], row["loss"]), **place)
        if (rows[parts] > 0).all(axis=None):
            axes.set_yscale("log")
        divergences = all(set(part.split("-")) <= {"query", "key", "value"} for part in parts)
        axes.set(xlabel="epochs", ylabel="KL divergence (nats)" if divergences else "loss", title=name)
        axes.legend(loc="best", fontsize=7)
    return figure


@style.styled
def relation_matrices(relations: Mapping[str, Any]) -> style.StudyFigure:
    """Relations of one sentence, averaged over relation heads: a row for each model, a column for each pair of
    projections. Takes `results["relations"]` of a record: tokens, and models -> pair -> float (tokens, tokens)."""
    if not relations:
        return style.note_figure("this student was trained without a relation objective")
    tokens, models = relations["tokens"], relations["models"]
    pairs = list(next(iter(models.values())))
    highest = float(np.quantile([each[pair] for each in models.values() for pair in pairs], 0.98))
    side = min(2.6, max(1.5, 0.14 * len(tokens)))
    figure = style.new_figure(len(models) * (side + 0.22) + 1.0, max(style.WIDTH, len(pairs) * side + 1.6))
    figure.set_layout_engine("compressed")  # panels have a fixed aspect
    grid = figure.subplots(len(models), len(pairs), sharex=True, sharey=True, squeeze=False)
    for axes, (model, pair) in zip(grid.flat, [(model, pair) for model in models for pair in pairs], strict=True):
        look = {"vmin": 0, "vmax": highest, "cmap": "viridis", "cbar": False, "square": True}
        seaborn.heatmap(np.asarray(models[model][pair]), ax=axes, xticklabels=tokens, yticklabels=tokens, **look)
        axes.tick_params(axis="both", labelsize=6.5 if len(tokens) <= 20 else 4.5)
        axes.tick_params(axis="x", rotation=90)
        axes.set(title=pair if axes in grid[0] else "", ylabel=model if axes in grid[:, 0] else "")
    figure.colorbar(grid[0, 0].collections[0], ax=grid, label="relation (probability)", shrink=0.6, extend="max")
    return figure


@style.styled
def importance_heatmaps(importance: Mapping[str, Sequence[Sequence[float]]]) -> style.StudyFigure:
    """Importance of every head by each criterion, float (layers, heads), relative to the criterion's highest."""
    tables = {criterion: pd.DataFrame(list(scores)).to_numpy(dtype=float) for criterion, scores in importance.items()}
    layers, heads = np.max([table.shape for table in tables.values()], axis=0)
    figure = style.new_figure(-(-len(tables) // 3) * max(1.5, 0.22 * layers + 0.9))
    every = style.panels(figure, len(tables), sharex=True, sharey=True)
    for axes, (criterion, table) in zip(every, tables.items(), strict=True):
        look = {"cmap": "viridis", "vmin": 0, "vmax": 1, "cbar": False, "linewidths": 0.3, "annot_kws": {"fontsize": 6}}
        small = bool(heads <= 8 and layers <= 6)  # seaborn takes NumPy's for numbers to write
        seaborn.heatmap(table / max(np.nanmax(table), 1e-30), ax=axes, annot=small, fmt=".2f", **look)
        axes.set_title(criterion)
        axes.tick_params(axis="y", rotation=0)
    figure.supxlabel("head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    figure.colorbar(every[0].collections[0], ax=every, label="relative to highest")
    return figure


@style.styled
def removal_curves(scans: Sequence[Mapping[str, Any]]) -> style.StudyFigure:
    """Accuracy as units are masked without recovery, least important first or in random orders (grey), of scans."""
    scans = [scan for scan in scans if scan.get("curves") and scan["total"] > 1]
    if not scans:
        return style.note_figure("nothing was scanned")
    figure = style.new_figure(3.0)
    every = figure.subplots(1, len(scans), sharey=True, squeeze=False)[0]
    orders = dict.fromkeys(name for scan in scans for name in scan["curves"] if not name.startswith("random"))
    for axes, scan in zip(every, scans, strict=True):
        for name, curve in scan["curves"].items():
            points = [point["removed"] for point in curve], [100 * point["accuracy"] for point in curve]
            look: dict[str, Any] = {"color": style.GREY, "linewidth": 0.9}
            if name in orders:
                look = {**style.look(list(orders).index(name)), "markevery": max(1, len(curve) // 12), "markersize": 4}
            axes.plot(*points, **look, label={"random-1": "random order"}.get(name, name if name in orders else None))
        axes.set(xlabel=f"{scan['units']} masked (of {scan['total']:,})", xlim=(0, scan["total"]))
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    every[0].set_ylabel(f"accuracy (%), {scans[0]['rows']:,} {scans[0]['split']} rows")
    style.place_legend(figure, 5)
    return figure


@style.styled
def cut_curves(dense: Mapping[str, Any], cuts: Mapping[str, Sequence[Mapping[str, Any]]]) -> style.StudyFigure:
    """Accuracy over the share of the weights that a cut removes: right after it (hollow, dotted) and after recovery
    (filled); the band is the model before, with its 95 % interval. Both are records' results, `cuts` by their way."""
    (split, metrics), weights = next(iter(dense["metrics"].items())), dense["size"]["stored_weights"]
    figure, axes = style.one_panel(3.0 + 0.16 * -(-len(cuts) // 2))
    before, *ends = (100 * metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    axes.axhspan(*ends, color=style.GREY, alpha=0.15, linewidth=0)
    axes.axhline(before, color=style.GREY, linewidth=1, label="before the cut")
    for number, (name, results) in enumerate(cuts.items()):
        points = sorted(results, key=lambda each: -each["size"]["stored_weights"])
        shares = [100 * (1 - each["size"]["stored_weights"] / weights) for each in points]
        for entry, look in (("metrics_after_cut", {"linestyle": ":", "mfc": "white"}), ("metrics", {"label": name})):
            heights = [100 * each[entry][split]["accuracy"] if entry in each else np.nan for each in points]
            axes.plot(shares, heights, **(style.look(number) | look))
    axes.set(xlabel="weights removed (% of the model)", ylabel=f"accuracy (%), {metrics['rows']:,} {split} rows")
    axes.set_xlim(left=0)
    style.place_legend(figure, 2)
    return figure


@style.styled
def bytes_by_part(models: Mapping[str, Mapping[str, float]]) -> style.StudyFigure:
    """Where a model's bytes are: a bar for each model, a piece for each part (name -> part -> bytes)."""
    frame = pd.DataFrame(models).T.fillna(0).rename(columns=lambda part: part.replace("_", " ")) / 1e6
    figure, axes = style.one_panel(1.1 + 0.34 * len(models))
    frame.plot.barh(stacked=True, ax=axes, width=0.7, color=style.CYCLE[: frame.shape[1]], legend=False)
    total = frame.sum(axis=1)
    for part, bars in zip(frame, list[Any](axes.containers), strict=True):
        texts = [f"{size:.2f}" if size > 0.09 * total.max() else "" for size in frame[part]]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=8)
    axes.bar_label(bars, [f"{size:.2f} MB" for size in total], padding=3, fontsize=8)  # behind the last piece
    axes.set(xlabel="size (MB = 10$^6$ bytes)", xlim=(0, 1.18 * total.max()))
    axes.invert_yaxis()
    style.place_legend(figure, 5)
    return figure


@style.styled
def layer_sensitivity(sensitivity: Mapping[str, Any]) -> style.StudyFigure:
    """What each linear layer costs when it alone is quantized; of many, layers that differ in number share a row."""
    frame = pd.DataFrame(sensitivity["layers"])
    if frame.empty:
        return style.note_figure("no linear layer was quantized alone")
    # From its number on, or the last two parts.
    names = frame["layer"].str.extract(r"(?:^|\.)(\d+\..*|[^.]+\.[^.]+|[^.]+)$", expand=False)
    names = names if names.nunique() <= _MOST_LAYERS else names.str.replace(r"^\d+\.", "*.", regex=True)
    rows = {name: place for place, name in enumerate(dict.fromkeys(names))}
    figure = style.new_figure(1.4 + 0.19 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    titles = {"int8": "INT8 (weights and inputs)", "int4": "INT4 (weights)"}
    for number, (form, part) in enumerate(frame.groupby("format", sort=False)):
        places = [rows[name] + 0.28 * (number - 0.5) for name in names[part.index]]
        look = {**style.look(number), "s": 20, "label": titles[str(form)]}
        left.scatter(part["divergence"].clip(lower=1e-8), places, **look)  # below lies rounding
        right.scatter(100 * (part["accuracy"] - sensitivity["accuracy"]), places, **look)
    style.name_rows(left, rows)
    left.tick_params(axis="y", labelsize=7)
    left.set(xscale="log", xlabel="divergence from FP32 (nats)", ylabel="layer quantized alone")
    right.axvline(0, color=style.GREY, linewidth=0.8)
    right.set(xlabel="change of accuracy (points)", title=f"{sensitivity['rows']:,} {sensitivity['split']} rows")
    style.place_legend(figure, 2)
    return figure


@style.styled
def width_sweep(rows: Sequence[Mapping[str, Any]]) -> style.StudyFigure:
    """Where INT8 begins to pay: how many times as fast as FP32 it is over the width (hidden size), for each input."""
    frame, (figure, axes) = pd.DataFrame(rows), style.one_panel(2.7)
    widths = sorted(set(frame["width"]))
    for number, (name, part) in enumerate(frame.groupby("input", sort=False)):
        axes.plot(part["width"], part["faster"], **style.look(number), label=str(name))
    axes.axhline(1, color=style.GREY, linestyle="--", linewidth=1, label="as fast as FP32")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set(xlabel="hidden size of the model (units)", ylabel="times as fast as FP32")
    style.place_legend(figure, 4)
    return figure
