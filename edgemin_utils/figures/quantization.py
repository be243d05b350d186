"""Figures about quantization: where a model's bytes are, and which layers became INT8."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.patches import Patch

from edgemin_utils.figures.style import CYCLE, GREY, PALETTE, StudyFigure, new_figure, styled


@styled
def bytes_by_part(before: Mapping[str, float], after: Mapping[str, float],
                  names: tuple[str, str] = ("FP32", "INT8")) -> StudyFigure:
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
        bars = axes.barh(names, sizes, left=left, color=CYCLE[number % len(CYCLE)], edgecolor="white",
                         label=part.replace("_", " "))
        axes.bar_label(bars, [f"{size:.2f}" if size > 0.08 * total else "" for size in sizes], label_type="center",
                       color="white", fontsize=8)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for number, whole in enumerate(left):
        axes.text(whole + 0.01 * total, number, f"{whole:.2f} MB", va="center", fontsize=8)
    axes.set(xlabel="size (MB = 10$^6$ bytes)", ylabel="model", xlim=(0, 1.16 * total))
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=min(5, len(parts)))
    return figure


@styled
def quantized_layers(layers: Sequence[Mapping[str, Any]]) -> StudyFigure:
    """Bytes of every layer before and after quantization; colour says whether it became INT8.

    Layers that differ only in their encoder layer's number are taken together, so that deep models stay readable.

    Args:
        layers: `results["layers"]` of a quantization record: name, kind, quantized, bytes_before, bytes_after.
    """
    frame = pd.DataFrame(layers)
    frame["group"] = [_without_number(name) for name in frame["name"]]
    grouped = frame.groupby("group", sort=False).agg(
        count=("name", "size"), quantized=("quantized", "mean"), before=("bytes_before", "sum"),
        after=("bytes_after", "sum"))
    labels = [f"{name} ({count}x)" if count > 1 else name for name, count in grouped["count"].items()]
    figure = new_figure(1.2 + 0.27 * len(grouped))
    axes = figure.add_subplot()
    colours = [PALETTE["blue"] if share == 1 else PALETTE["orange"] if share == 0 else PALETTE["green"]
               for share in grouped["quantized"]]
    axes.barh(labels, grouped["before"] / 1e3, color="none", edgecolor=GREY, height=0.8)
    axes.barh(labels, grouped["after"] / 1e3, color=colours, height=0.5)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set(xlabel="size (kB = 10$^3$ bytes, logarithmic)", ylabel="layer")
    handles = [Patch(facecolor="none", edgecolor=GREY, label="before (FP32)"),
               Patch(color=PALETTE["blue"], label="after, quantized to INT8"),
               Patch(color=PALETTE["orange"], label="after, not quantized")]
    if ((grouped["quantized"] > 0) & (grouped["quantized"] < 1)).any():
        handles.append(Patch(color=PALETTE["green"], label="after, partly quantized"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _without_number(name: str) -> str:
    """A layer's name with encoder layer numbers as `*`; the model's own prefix is dropped."""
    parts = ["*" if part.isdigit() else part for part in name.split(".")]
    if "*" in parts:  # "bert.encoder.layer.3.attention.self.query" as "layer.*.attention.self.query"
        parts = parts[max(0, parts.index("*") - 1):]
    return ".".join(parts)
