"""How every figure of the study looks: colours, markers, fonts, and how it is shown and saved.

The palette is Okabe and Ito's, which people with the common forms of colour blindness can tell apart; a model's colour
names its student and its marker the steps taken, so that neither carries the meaning alone.
"""

import functools
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

PALETTE = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
CYCLE = tuple(PALETTE[name] for name in ("blue", "vermilion", "green", "purple", "orange", "sky blue", "black"))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#777777"
STUDENT_COLOURS = {
    "": PALETTE["black"],
    "none": PALETTE["vermilion"],
    "none-pretrained": PALETTE["orange"],
    "minilmv2": PALETTE["blue"],
}
STEP_MARKERS = {(False, False): "o", (True, False): "s", (False, True): "^", (True, True): "D"}
STAGE_COLOURS = (PALETTE["black"], PALETTE["blue"], PALETTE["green"], PALETTE["purple"])
WIDTH = 7.0
"""Width in inches of a figure over the whole text; fonts are chosen to be read at this width."""
RESOLUTION = 150
"""Dots per inch of the png files."""
LONGEST_WORD = 1.3
"""Width of a word, as a share of its line's, above which it is broken."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.hashsalt": "edgemin",
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],
    "axes.prop_cycle": cycler(color=CYCLE),
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.usetex": False,
}


class StudyFigure(Figure):
    """A figure that Jupyter shows by itself. It never passes through pyplot, so nothing stays open behind it.

    Attributes:
        description: one sentence on what is drawn; screen readers read it in place of the picture.
        is_note: it only says why there is nothing to draw, so a report leaves it out.
    """

    description: str = ""
    is_note: bool = False

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        width, height = self.get_size_inches()
        return _bytes(self, "png"), {
            "width": round(width * 100),
            "height": round(height * 100),
            "alt": self.description,
        }


def styled(draw: Callable[..., StudyFigure]) -> Callable[..., StudyFigure]:
    """Decorator: draws under the study's style, whatever the session's own settings are."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **named: Any) -> StudyFigure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            figure = draw(*arguments, **named)
        # The innermost function that drew it knows best: a note stays a note.
        figure.description = figure.description or " ".join((draw.__doc__ or "").split("\n\n")[0].split())
        return figure

    return drawn


def new_figure(height: float, width: float = WIDTH, title: str = "") -> StudyFigure:
    """An empty figure of `width` x `height` inches."""
    figure = StudyFigure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


@styled
def note_figure(message: str) -> StudyFigure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(1.2)
    figure.is_note = True
    figure.text(0.5, 0.5, message, ha="center", va="center", wrap=True, color=GREY)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `figure` as <name>.svg and <name>.png into `folder`; the same figure gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in ("svg", "png"):
        path = folder / f"{name}.{kind}"
        path.write_bytes(_bytes(figure, kind))
        paths.append(path)
    return paths


def model_style(row: Mapping[str, Any]) -> dict[str, Any]:
    """Colour (its student) and marker (the steps taken) of one row of `tables.summarize`."""
    return {
        "color": STUDENT_COLOURS.get(row["student"], PALETTE["purple"]),
        "marker": STEP_MARKERS[bool(row["pruned"]), bool(row["quantized"])],
    }


def wrapped_name(name: str, width: int, indent: str = "") -> str:
    """A model's or method's name on lines of about `width` characters, broken between words: a name such as
    onnx-int4-embeddings stays whole. Only one that would be `LONGEST_WORD` times as wide is broken at its hyphens."""
    words = [
        part
        for word in name.split()
        for part in (textwrap.wrap(word, width, break_long_words=False) if len(word) > LONGEST_WORD * width else [word])
    ]
    return textwrap.fill(
        " ".join(words), width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def thousands(axis: Any) -> None:
    """Writes an axis' large numbers as 20,000."""
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))


def three_digits(value: float) -> str:
    """A number with three significant digits and no exponent: 0.400, 12.0, 1,280."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def annotate_bars(axes: Axes, texts: Sequence[str]) -> None:
    """Writes each horizontal bar's value behind it, and makes room for it."""
    axes.bar_label(cast(BarContainer, axes.containers[0]), labels=list(texts), padding=3, fontsize=8)
    axes.margins(x=0.32)


def _bytes(figure: Figure, kind: str) -> bytes:
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure.savefig(buffer, format=kind, dpi=RESOLUTION, metadata=metadata)
    return numbered_clip_paths(buffer.getvalue()) if kind == "svg" else buffer.getvalue()


def numbered_clip_paths(svg: bytes) -> bytes:
    """An SVG of matplotlib's with its clip paths named by their number. Its own names are a hash of where they lie, to
    the last bit; the solver that lays panels out does not always end in the same bit, though in the same drawing."""
    names = dict.fromkeys(re.findall(rb'<clipPath id="(p[0-9a-f]{10})"', svg))
    numbers = {name: b"clip-path-%d" % number for number, name in enumerate(names)}
    return re.sub(rb"(?<=[\"#])p[0-9a-f]{10}(?=[\")])", lambda found: numbers.get(found[0], found[0]), svg)
