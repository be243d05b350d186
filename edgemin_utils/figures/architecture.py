"""The README's picture of how data flows: rows and settings in, a chain's stages, records on disk, what is drawn.

`python -m edgemin_utils.figures.architecture` writes it; `make docs` runs that.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from edgemin_utils.chain import NOTEBOOKS
from edgemin_utils.config import project_folder
from edgemin_utils.figures.style import GREY, PALETTE, StudyFigure, new_figure, save_figure, styled

NAME = "data_flow"
# Column of the stages in the middle row: heading, stage whose notebook makes it, what it does, module that does it.
STAGES = (
    ("teacher", "teacher", "fine-tuned on\nthe task", "training.py"),
    ("students", "distillation", "learn from it,\nand without it", "distillation/"),
    ("pruned", "pruning", "heads, neurons,\nlayers or tokens\ncut; recovery", "pruning/"),
    ("tuned", "tuning", "quantization-\naware training,\nfine-tuning", "tuning.py"),
    ("quantized", "quantization", "INT8 or INT4,\nPyTorch or ONNX", "quantization/"),
    ("measured", "measurement", "all variants,\ninterleaved", "measurement/"),
)
COLOURS = ("black", "blue", "green", "orange", "purple", "vermilion")
STEP, BOX = 16.9, 14.4


@styled
def data_flow() -> StudyFigure:
    """How data flows: rows and settings go into one chain per task and seed, whose stages run in order; each stage
    leaves a folder with its record; tables, figures and the report are drawn from records alone."""
    figure = new_figure(4.9)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.5, 100.5), ylim=(0, 67))
    axes.set_axis_off()
    _box(
        axes,
        0,
        54,
        45,
        11,
        "rows",
        "embedded corpora, a folder, the hub or one's own file\ntasks.py, data.py, tokenization.py",
        GREY,
    )
    _box(
        axes,
        55,
        54,
        45,
        11,
        "settings",
        "a profile, and what a run changes in it\nconfig.py; study.py runs a chain per task and seed",
        GREY,
    )
    axes.add_patch(
        FancyBboxPatch(
            (-0.2, 29),
            100.4,
            21,
            boxstyle="round,pad=0.1,rounding_size=1",
            facecolor="#F4F4F4",
            edgecolor="none",
            zorder=0,
        )
    )
    axes.text(
        50,
        48.5,
        "one chain: a task and a seed; its notebooks run in order, chains side by side",
        ha="center",
        va="center",
        fontsize=8,
        color="#333333",
    )
    for number, ((title, stage, text, module), colour) in enumerate(zip(STAGES, COLOURS, strict=True)):
        left = (100 - BOX) / 2 + (number - (len(STAGES) - 1) / 2) * STEP
        _box(axes, left, 30.2, BOX, 16.4, title, f"{text}\n{NOTEBOOKS[stage]}\n{module}", PALETTE[colour])
        if number:
            _arrow(axes, (left - STEP + BOX + 0.5, 38.5), (left - 0.5, 38.5))
        _arrow(axes, (left + BOX / 2, 29.7), (left + BOX / 2, 24.5))
    for middle in (22.5, 77.5):
        _arrow(axes, (middle, 53.5), (middle, 50.5))
    _box(
        axes,
        0,
        14.5,
        100,
        9.5,
        "records: outputs/<study>/<task>/seed-<n>/<stage>/<variant>/",
        "the model, its predictions for every dev row, and record.json with a fingerprint of settings, data and "
        "stages before;\nthe next stage starts from here, and what is current is not made again (records.py)",
        PALETTE["orange"],
    )
    ends = (
        ("tables/, figures/", "drawn from records alone"),
        ("report.py", "one HTML page"),
        ("outputs/reference, README", "edgemin publish: without weights"),
    )
    for number, (title, text) in enumerate(ends):
        left = number * 35.0
        _box(axes, left, 1, 30, 8.5, title, text, PALETTE["sky blue"])
        if number:
            _arrow(axes, (left - 4.6, 5.25), (left - 0.4, 5.25))
    _arrow(axes, (15, 14), (15, 10))
    return figure


def _box(
    axes: Axes, left: float, bottom: float, width: float, height: float, title: str, text: str, colour: str
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0.1,rounding_size=0.8",
            facecolor="white",
            edgecolor=colour,
            linewidth=1.5,
        )
    )
    middle, line, lines = left + width / 2, 2.45, 1 + text.count("\n")
    top = bottom + height / 2 + line * (lines + 0.2) / 2
    axes.text(middle, top, title, ha="center", va="center", fontsize=8.5, fontweight="bold", color="#222222")
    axes.text(
        middle, top - 0.2 * line - line * (lines + 1) / 2, text, ha="center", va="center", fontsize=7.3, linespacing=1.2
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=10, color="#555555", linewidth=1.2, shrinkA=0, shrinkB=0
        )
    )


def reference_folder() -> Path:
    """Where the picture lies, for the README."""
    return project_folder() / "outputs" / "reference" / "architecture"


if __name__ == "__main__":
    for written in save_figure(data_flow(), reference_folder(), NAME):
        print(written)
