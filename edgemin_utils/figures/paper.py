"""Figures about the paper's numbers: where 11.94M comes from, MACs over length, latency, matrix products."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.patches import Patch

from edgemin_utils.figures.style import CYCLE, GREY, PALETTE, StudyFigure, new_figure, styled

CLAIMED_REDUCTION = (0.37, 0.44)
CLAIMED_RATIO = 2.6


@styled
def listed_parameters(student: Mapping[str, int], final: Mapping[str, int], listed: Mapping[str, int]) -> StudyFigure:
    """Where 11.94M comes from: the parts of the student, of the final model, and what is listed of the latter.

    Args:
        student, final: part -> stored weights.
        listed: table or layer norms -> weights that the framework still lists after quantization.
    """
    parts = list(student)
    rest = sum(final.values()) - sum(listed.values())
    shown = {
        "listed of it:\nthe paper's count": {
            "embeddings": sum(count for name, count in listed.items() if "norm" not in name),
            "norms": sum(count for name, count in listed.items() if "norm" in name),
        },
        "final model:\npruned, INT8": final,
        "student:\nFP32": student,
    }
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    for row, sizes in enumerate(shown.values()):
        left = 0.0
        for number, part in enumerate(parts):
            size = sizes.get(part, 0) / 1e6
            axes.barh(row, size, left=left, color=CYCLE[number], edgecolor="white", height=0.62)
            if size > 1.5:
                axes.text(left + size / 2, row, f"{size:.2f}", ha="center", va="center", color="white", fontsize=8)
            left += size
        if row:
            axes.text(left + 0.3, row, f"{left:.2f}M", va="center", fontsize=8.5)
    start = sum(listed.values()) / 1e6
    axes.barh(0, rest / 1e6, left=start, color="none", edgecolor=GREY, hatch="////", height=0.62, linewidth=0.8)
    axes.text(
        start + rest / 2e6,
        0,
        f"{rest / 1e6:.2f}M in packed INT8 buffers:\nstored, not listed",
        ha="center",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
    axes.annotate(f"{start:.2f}M", (start, 0.31), (start, 0.42), ha="center", fontsize=8.5)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.set(xlabel="weights and biases (millions)", xlim=(0, 1.14 * sum(student.values()) / 1e6))
    handles = [Patch(color=CYCLE[number], label=part.replace("_", " ")) for number, part in enumerate(parts)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(parts))
    return figure


@styled
def operation_ratios(ratios: Mapping[int, float], largest: float) -> StudyFigure:
    """How many times fewer multiply-accumulates the final model needs than the teacher, over the input's length.

    Args:
        ratios: tokens -> ratio.
        largest: what the encoders' ratio stays under at any length.
    """
    figure = new_figure(2.5)
    axes = figure.add_subplot()
    axes.plot(list(ratios), list(ratios.values()), marker="o", label="teacher / final model")
    axes.axhline(CLAIMED_RATIO, color=PALETTE["vermilion"], linestyle="--", label=f"claimed: {CLAIMED_RATIO}")
    axes.axhline(largest, color=GREY, linestyle=":", label=f"encoders' limit: {largest:.2f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ratios), [str(length) for length in ratios])
    axes.minorticks_off()
    axes.set(xlabel="input length (tokens)", ylabel="ratio of MACs", ylim=(1.8, 2.7))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def paper_latency(latency: Sequence[Mapping[str, Any]], student: str) -> StudyFigure:
    """Median latency of the paper's models on each input; the band is what a reduction of 37 to 44 % under the student
    would be.

    Args:
        latency: rows of model, input, median_ms, iqr_ms, bound_ms.
        student: the model that the reduction is under.
    """
    frame = pd.DataFrame(latency)
    inputs = list(dict.fromkeys(frame["input"]))
    figure = new_figure(1.0 + 0.3 * frame["model"].nunique())
    for number, (name, axes) in enumerate(zip(inputs, figure.subplots(1, len(inputs), squeeze=False)[0], strict=True)):
        rows = frame[frame["input"] == name]
        base = rows.loc[rows["model"] == student, "median_ms"].iloc[0]
        axes.axvspan(
            base * (1 - CLAIMED_REDUCTION[1]),
            base * (1 - CLAIMED_REDUCTION[0]),
            color=PALETTE["yellow"],
            alpha=0.5,
            linewidth=0,
            label="claimed: 37 to 44 % under the student" if not number else None,
        )
        axes.barh(
            rows["model"],
            rows["median_ms"],
            xerr=rows["iqr_ms"] / 2,
            color=PALETTE["blue"],
            height=0.6,
            error_kw={"linewidth": 1, "ecolor": PALETTE["black"]},
            label="median, half the IQR" if not number else None,
        )
        axes.plot(
            rows["bound_ms"],
            rows["model"],
            linestyle="none",
            marker="|",
            markersize=11,
            markeredgewidth=2,
            color=PALETTE["vermilion"],
            label="the least this machine needs" if not number else None,
        )
        axes.invert_yaxis()
        axes.set(xlabel="latency (ms)", title=name)
        if number:
            axes.set_yticklabels([])
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def time_parts(rows: Sequence[Mapping[str, Any]]) -> StudyFigure:
    """Where the time of a forward goes in the student, FP32 and INT8, with all heads and without 24 of them.

    Args:
        rows: rows of input, precision, form ("whole" or "pruned"), products, attention and rest (ms).
    """
    frame = pd.DataFrame(rows)
    frame["model"] = frame["precision"].str.upper() + frame["form"].map(
        {"whole": ", all heads", "pruned": ", 24 heads removed"}
    )
    inputs, colours = list(dict.fromkeys(frame["input"])), ("blue", "vermilion", "yellow")
    figure = new_figure(2.3)
    for number, (name, axes) in enumerate(zip(inputs, figure.subplots(1, len(inputs), squeeze=False)[0], strict=True)):
        part, left = frame[frame["input"] == name], 0.0
        for kind, colour in zip(("products", "attention", "rest"), colours, strict=True):
            axes.barh(
                part["model"],
                part[kind],
                left=left,
                color=PALETTE[colour],
                edgecolor="white",
                height=0.65,
                label=kind if not number else None,
            )
            left = left + part[kind].to_numpy()
        axes.invert_yaxis()
        axes.set(xlabel="time of a forward (ms)", title=name)
        if number:
            axes.set_yticklabels([])
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def product_widths(products: Sequence[Mapping[str, Any]], input_name: str, whole: int, pruned: int) -> StudyFigure:
    """Speed of a matrix product over its width, FP32 and INT8: unfilled tiles of a kernel would show as dips, a cost
    that does not depend on the width as a slope.

    Args:
        products: rows of input, direction, width, fp32_ms, int8_ms.
        input_name: which input's rows to draw, e.g. "1x128".
        whole, pruned: the widths before and after the paper's cut.
    """
    frame = pd.DataFrame(products)
    frame = frame[frame["input"] == input_name]
    directions = {"into heads": f"{whole} → width", "out of heads": f"width → {whole}"}
    rows, highest = int(input_name.split("x")[1]), 0.0
    figure = new_figure(2.9)
    grid = figure.subplots(1, len(directions), sharey=True)
    for (direction, title), axes in zip(directions.items(), grid, strict=True):
        part, first = frame[frame["direction"] == direction], axes is grid[0]
        for precision, colour, marker in (("fp32", "blue", "o"), ("int8", "vermilion", "s")):
            speed = rows * part["width"] * whole / part[f"{precision}_ms"] / 1e6
            highest = max(highest, float(speed.max()))
            axes.plot(
                part["width"],
                speed,
                color=PALETTE[colour],
                marker=marker,
                markersize=3,
                linewidth=1,
                label=precision.upper() if first else None,
            )
        for width, heads, style in ((whole, 12, "-"), (pruned, 10, "--")):
            axes.axvline(
                width, color=GREY, linestyle=style, linewidth=0.9, label=f"{width}: {heads} heads" if first else None
            )
        axes.set(xlabel="width (units)", title=title)
        axes.set_xticks(range(int(part["width"].min()), int(part["width"].max()) + 1, 64))
    grid[0].set(ylabel="speed (GMAC/s)", ylim=(0, 1.08 * highest))
    figure.legend(loc="outside upper center", ncols=4)
    return figure
