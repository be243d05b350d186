"""Figures about the data and about training: labels, lengths, loss and accuracy curves, confusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn

from edgemin_utils.figures.style import (
    CYCLE,
    GREY,
    MARKERS,
    PALETTE,
    StudyFigure,
    new_figure,
    note_figure,
    styled,
    thousands,
)


@styled
def label_balance(label_counts: Mapping[str, Mapping[str, int]]) -> StudyFigure:
    """Share of each label in every split.

    Args:
        label_counts: split -> label -> rows.
    """
    splits = list(label_counts)
    labels = list(dict.fromkeys(label for counts in label_counts.values() for label in counts))
    figure = new_figure(1.3 + 0.45 * len(splits))
    axes = figure.add_subplot()
    left = np.zeros(len(splits))
    totals = np.array([max(1, sum(label_counts[split].values())) for split in splits])
    for number, label in enumerate(labels):
        counts = np.array([label_counts[split].get(label, 0) for split in splits])
        share = 100 * counts / totals
        bars = axes.barh(
            splits, share, left=left, color=CYCLE[number % len(CYCLE)], label=str(label), edgecolor="white"
        )
        axes.bar_label(
            bars,
            [f"{count:,}" if each > 12 else "" for count, each in zip(counts, share, strict=True)],
            label_type="center",
            color="white",
            fontsize=8,
        )
        left = left + share
    axes.set(xlim=(0, 100), xlabel="share of the split's rows (%), number of rows in the bars", ylabel="split")
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=min(4, len(labels)), title="label")
    return figure


@styled
def token_length_histogram(lengths: Sequence[int], max_length: int) -> StudyFigure:
    """Histogram of input lengths with the longest input a model takes marked.

    Args:
        lengths: tokens of each row, special tokens included, before truncation.
        max_length: tokens kept.
    """
    counts = np.asarray(lengths, dtype=int)
    if counts.size == 0:
        return note_figure("no token lengths recorded")
    figure = new_figure(2.8)
    axes = figure.add_subplot()
    width = max(1, int(np.ceil((counts.max() - counts.min() + 1) / 60)))
    edges = np.arange(counts.min() - 0.5, counts.max() + width + 0.5, width)
    axes.hist(counts, bins=edges.tolist(), color=PALETTE["sky blue"], edgecolor="white", linewidth=0.4)
    longer = 100 * np.mean(counts > max_length)
    axes.axvline(
        max_length,
        color=PALETTE["vermilion"],
        linestyle="--",
        label=f"longest input kept: {max_length} tokens ({longer:.1f} % of rows are longer)",
    )
    axes.axvline(
        np.median(lengths), color=PALETTE["black"], linestyle=":", label=f"median: {np.median(lengths):.0f} tokens"
    )
    axes.set(xlabel="input length (tokens)", ylabel="rows")
    thousands(axes.yaxis)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def training_curves(training: Mapping[str, Any]) -> StudyFigure:
    """Training loss, and loss and accuracy on the hold-out rows, over the epochs; phases are marked.

    Args:
        training: `results["training"]` of a record: phases, history, evaluations.
    """
    history, evaluations = pd.DataFrame(training["history"]), pd.DataFrame(training["evaluations"])
    if history.empty and evaluations.empty:
        return note_figure("no training steps recorded")
    figure = new_figure(3.0)
    left, right = figure.subplots(1, 2)
    for number, phase in enumerate(phase["name"] for phase in training["phases"]):
        colour, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
        if not history.empty:
            rows = history[history["phase"] == phase]
            left.plot(rows["epoch"], rows["loss"], color=colour, label=f"{phase}, training")
        if not evaluations.empty:
            rows = evaluations[evaluations["phase"] == phase].dropna(subset=["accuracy"])
            if len(rows):
                left.plot(
                    rows["epoch"], rows["loss"], color=colour, marker=marker, linestyle="--", label=f"{phase}, hold-out"
                )
                right.plot(rows["epoch"], 100 * rows["accuracy"], color=colour, marker=marker, label=phase)
    _mark_phases((left, right), training["phases"])
    left.set(xlabel="epochs", ylabel="loss", title="loss")
    right.set(xlabel="epochs", ylabel="accuracy (%)", title="accuracy on the hold-out rows")
    for axes in (left, right):
        axes.grid(axis="y")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _mark_phases(every_axes: Sequence, phases: Sequence[Mapping[str, Any]]) -> None:
    """A vertical line where one phase ends and the next begins, the same range of epochs on all axes."""
    ends = np.cumsum([phase["epochs"] for phase in phases])
    for axes in every_axes:
        axes.set_xlim(0, max(ends[-1], 1e-9) * 1.02)
        for end in ends[:-1]:
            axes.axvline(end, color=GREY, linestyle=":", linewidth=1)


@styled
def confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> StudyFigure:
    """Rows by true and predicted label, as counts over the colour of the share of their true label.

    Args:
        matrix: int (labels, labels), rows true, columns predicted.
        labels: label names in id order.
    """
    counts = np.asarray(matrix)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(3.0, 0.85 * len(labels) + 1.6)
    figure = new_figure(size * 0.82, size + 0.9)
    axes = figure.add_subplot()
    texts = np.array(
        [
            [f"{count:,}\n{each:.1f} %" for count, each in zip(*pair, strict=True)]
            for pair in zip(counts, share, strict=True)
        ]
    )
    seaborn.heatmap(
        share,
        annot=texts if len(labels) <= 8 else False,
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=100,
        square=True,
        ax=axes,
        xticklabels=labels,
        yticklabels=labels,
        linewidths=0.5,
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "share of the true label (%)", "shrink": 0.8},
    )
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.tick_params(axis="y", rotation=0)
    return figure
