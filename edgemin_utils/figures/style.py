"""How figures look, are shown and saved. Colours are Okabe and Ito's; what one says, a marker or a label says too."""

import functools
import io
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS, GREY, WIDTH = "os^DvPX", "#777777", 7.2
STYLE = Path(__file__).parent / "study.mplstyle"


class StudyFigure(Figure):
    """A figure that Jupyter shows by itself, with a `description` for screen readers; `is_note`: nothing to draw."""

    description: str = ""
    is_note: bool = False

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        width, height = (round(100 * inches) for inches in self.get_size_inches())
        return _bytes(self, "png"), {"width": width, "height": height, "alt": self.description}


def styled(draw: Callable[..., StudyFigure]) -> Callable[..., StudyFigure]:
    """Decorator: draws under the study's style, whatever the session's own settings are."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **named: Any) -> StudyFigure:
        with matplotlib.style.context(STYLE, after_reset=True):
            figure = draw(*arguments, **named)
        figure.description = figure.description or " ".join((draw.__doc__ or "").split("\n\n")[0].split())
        return figure

    return drawn


def new_figure(height: float, width: float = WIDTH) -> StudyFigure:
    """An empty figure of so many inches."""
    return StudyFigure(figsize=(width, height), layout="constrained")


def one_panel(height: float) -> tuple[StudyFigure, Axes]:
    """An empty figure with its axes."""
    figure = new_figure(height)
    return figure, figure.add_subplot()


@styled
def note_figure(message: str) -> StudyFigure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(1.0)
    figure.is_note, figure.description = True, message
    figure.text(0.5, 0.5, message, ha="center", va="center", color=GREY, wrap=True)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `figure` as <name>.svg and <name>.png into `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        path.write_bytes(_bytes(figure, path.suffix[1:]))
    return paths


def _bytes(figure: Figure, kind: str) -> bytes:
    metadata = {"Date": None} if kind == "svg" else None
    buffer, save = io.BytesIO(), functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata)
    with matplotlib.style.context(STYLE), warnings.catch_warnings(record=True) as said:
        save(buffer)
        if said:  # names so long that the layout leaves the panels no room: the page grows instead
            save(buffer := io.BytesIO(), bbox_inches="tight")
    return buffer.getvalue()


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the first, second, ... of several things."""
    return {"color": CYCLE[number % len(CYCLE)], "marker": MARKERS[(number + number // 7) % len(MARKERS)]}


def place_legend(figure: Figure, columns: int = 3, place: Any = "outside lower center") -> None:
    """One legend of what all panels show, below them if no other place is named."""
    every = [axes.get_legend_handles_labels() for axes in figure.axes]
    shown = {label: handle for handles, labels in every for handle, label in zip(handles, labels, strict=True)}
    if shown:
        figure.legend([*shown.values()], [*shown], loc=place, ncols=min(columns, len(shown)))


def logarithmic(axes: Axes) -> None:
    """A logarithmic horizontal axis with plain numbers at 1, 2 and 5 times powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="both", labelsize=8)


def points_with_intervals(rows: pd.DataFrame, name: str, factor: float | pd.Series) -> tuple[pd.Series, np.ndarray]:
    """A column times a factor, and (2, n): distances down and up to the columns `_low` and `_high`, 0 without them."""
    value, low, high = (factor * rows[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))
    return value, np.clip(np.nan_to_num([value - low, high - value]), 0, None)


def draw_rows(axes: Axes, parts: Mapping[str, pd.DataFrame], names: Sequence[str], column: str, factor: float) -> None:
    """Rows from the top down, in each a point with its interval for every one of `parts`, whose index are the names."""
    for number, (label, part) in enumerate(parts.items()):
        places = np.arange(len(names)) + 0.7 * ((number + 0.5) / len(parts) - 0.5)
        values, bars = points_with_intervals(part.reindex(names), column, factor)
        axes.errorbar(values, places, xerr=bars, **look(number), linestyle="none", capsize=2, label=label)
    name_rows(axes, names)


def name_rows(axes: Axes, names: Collection[str]) -> None:
    """Rows from the top down, by their names."""
    axes.set(yticks=range(len(names)), yticklabels=list(names), ylim=(len(names) - 0.5, -0.5))


def panels(figure: StudyFigure, count: int, **shared: Any) -> list[Axes]:
    """So many panels, at most three in a row."""
    across = min(3, count)
    every = figure.subplots(-(-count // across), across, squeeze=False, **shared).ravel()
    for axes in every[count:]:
        axes.remove()
    return list(every[:count])
