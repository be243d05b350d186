"""Figures about quantization: where a model's bytes are, which layers became integers, and what each loses alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.patches import Patch

from edgemin_utils.figures.style import CYCLE, GREY, PALETTE, StudyFigure, new_figure, note_figure, styled

# More layers than these share a row with those that differ in their number only.
MOST_ROWS = 26
SMALLEST_DIVERGENCE = 1e-8
"""Nats; what is smaller, and rounding, is drawn here."""


@styled
def bytes_by_part(
    before: Mapping[str, float], after: Mapping[str, float], names: tuple[str, str] = ("FP32", "INT8")
) -> StudyFigure:
    """Stacked bars of a model's bytes by part, before and after a step.

    Args:
        before, after: part (embeddings, attention, ...) -> bytes.
        names: of the two bars.
    """
    parts = list(dict.fromkeys([*before, *after]))
    figure = new_figure(2.3 + 0.1 * len(parts))
    axes = figure.add_subplot()
    left = [0.0, 0.0]
    total = max(sum(before.values()), sum(after.values())) / 1e6
    for number, part in enumerate(parts):
        sizes = [before.get(part, 0) / 1e6, after.get(part, 0) / 1e6]
        bars = axes.barh(
            names, sizes, left=left, color=CYCLE[number % len(CYCLE)], edgecolor="white", label=part.replace("_", " ")
        )
        axes.bar_label(
            bars,
            [f"{size:.2f}" if size > 0.08 * total else "" for size in sizes],
            label_type="center",
            color="white",
            fontsize=8,
        )
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for number, whole in enumerate(left):
        axes.text(whole + 0.01 * total, number, f"{whole:.2f} MB", va="center", fontsize=8)
    axes.set(xlabel="size (MB = 10$^6$ bytes)", ylabel="model", xlim=(0, 1.16 * total))
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=min(5, len(parts)))
    return figure


@styled
def quantized_layers(layers: Sequence[Mapping[str, Any]]) -> StudyFigure:
    """Bytes of every layer before and after quantization; colour says whether it was quantized.

    Layers that differ only in their encoder layer's number are taken together, so that deep models stay readable.

    Args:
        layers: `results["layers"]` of a quantization record: name, kind, quantized, bytes_before, bytes_after.
    """
    frame = pd.DataFrame(layers)
    frame["group"] = [_without_number(name) for name in frame["name"]]
    grouped = frame.groupby("group", sort=False).agg(
        count=("name", "size"),
        quantized=("quantized", "mean"),
        before=("bytes_before", "sum"),
        after=("bytes_after", "sum"),
    )
    labels = [f"{name} ({count}x)" if count > 1 else name for name, count in grouped["count"].items()]
    figure = new_figure(1.2 + 0.27 * len(grouped))
    axes = figure.add_subplot()
    colours = [
        PALETTE["blue"] if share == 1 else PALETTE["orange"] if share == 0 else PALETTE["green"]
        for share in grouped["quantized"]
    ]
    axes.barh(labels, grouped["before"] / 1e3, color="none", edgecolor=GREY, height=0.8)
    axes.barh(labels, grouped["after"] / 1e3, color=colours, height=0.5)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set(xlabel="size (kB = 10$^3$ bytes, logarithmic)", ylabel="layer")
    handles = [
        Patch(facecolor="none", edgecolor=GREY, label="before (FP32)"),
        Patch(color=PALETTE["blue"], label="after, quantized"),
        Patch(color=PALETTE["orange"], label="after, not quantized"),
    ]
    if ((grouped["quantized"] > 0) & (grouped["quantized"] < 1)).any():
        handles.append(Patch(color=PALETTE["green"], label="after, partly quantized"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


@styled
def layer_sensitivity(sensitivity: Mapping[str, Any]) -> StudyFigure:
    """What each linear layer costs when it alone is quantized: how far the answers move, and the change of accuracy.

    In a deep model, layers that differ only in their encoder layer's number share a row.

    Args:
        sensitivity: results of a layer-sensitivity record: layers (layer, format, accuracy, divergence), accuracy,
            rows, split.
    """
    frame = pd.DataFrame(sensitivity["layers"])
    if frame.empty:
        return note_figure("no linear layer was quantized alone")
    names = frame["layer"].map(_short_name)
    names = names if names.nunique() <= MOST_ROWS else frame["layer"].map(_without_number)
    rows = {name: place for place, name in enumerate(dict.fromkeys(names))}
    figure = new_figure(1.4 + 0.19 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for (number_format, part), colour, marker, shift in zip(
        frame.groupby("format", sort=False), (PALETTE["blue"], PALETTE["vermilion"]), "os", (-0.14, 0.14), strict=False
    ):
        places = [rows[name] + shift for name in names[part.index]]
        label = {"int8": "INT8 (weights and inputs)", "int4": "INT4 (weights)"}.get(number_format, number_format)
        left.scatter(
            part["divergence"].clip(lower=SMALLEST_DIVERGENCE),
            places,
            color=colour,
            marker=marker,
            s=22,
            label=label,
            alpha=0.85,
        )
        right.scatter(
            100 * (part["accuracy"] - sensitivity["accuracy"]), places, color=colour, marker=marker, s=22, alpha=0.85
        )
    left.set_xscale("log")
    left.set_yticks(range(len(rows)), list(rows), fontsize=7)
    left.invert_yaxis()
    left.set(
        xlabel="divergence from FP32 (nats, logarithmic)",
        ylabel="layer quantized alone",
        title=f"{sensitivity['rows']:,} {sensitivity['split']} rows",
    )
    right.axvline(0, color=GREY, linewidth=0.8)
    right.set(xlabel="change of accuracy (points)")
    for axes in (left, right):
        axes.grid(axis="y")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _short_name(name: str) -> str:
    """A layer's name without the model's own prefix: "3.attention.self.query", "classifier"."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[places[0] :] if places else parts[-2:])


def _without_number(name: str) -> str:
    """A layer's name with encoder layer numbers as `*`; the model's own prefix is dropped."""
    parts = ["*" if part.isdigit() else part for part in name.split(".")]
    if "*" in parts:  # "bert.encoder.layer.3.attention.self.query" as "layer.*.attention.self.query"
        parts = parts[max(0, parts.index("*") - 1) :]
    return ".".join(parts)
