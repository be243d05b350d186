"""How tables are shown: as text cells with units and intervals, in notebooks, and as csv, Markdown and LaTeX files."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

_SHOWN = tomllib.loads((Path(__file__).parent / "columns.toml").read_text(encoding="utf-8"))


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` as text cells: units in headers, intervals in brackets, blanks for what is missing, no empty columns."""
    shown = dict[str, list[str]]()
    for name in map(str, frame):
        if name.endswith(("_low", "_high")) or frame[name].isna().all() or (frame[name] == "").all():
            continue
        header, digits, factor = _SHOWN.get(name, (name.replace("_", " ").capitalize(), "2", 1.0))
        columns = [name, *(end for end in (f"{name}_low", f"{name}_high") if end in frame)]
        shown[header] = [_cell(row, digits, factor) for row in frame[columns].itertuples(index=False)]
    return pd.DataFrame(shown, dtype=object)


def as_text(frame: pd.DataFrame) -> str:
    """A readable table for a terminal."""
    return readable(frame).to_markdown(index=False, disable_numparse=True, tablefmt="simple")


def _cell(values: tuple[Any, ...], digits: str, factor: float) -> str:
    if isinstance(values[0], str):
        return values[0]
    sign, places = ("+" if digits.startswith("+") else ""), digits.removeprefix("+")
    places = "0" if isinstance(values[0], int | np.integer) and factor == 1 else places
    texts = [f"{factor * value:{sign},.{places}f}" for value in values if value is not None and not pd.isna(value)]
    texts = [text if text.strip("+-0.,") else text.lstrip("+-") for text in texts]  # a zero has no sign
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else "".join(texts[:1])


def show(frame: pd.DataFrame) -> Styler:
    """A table for a notebook."""
    cells = readable(frame)
    # Styles are tied to cells by this name: two tables on one page must not share it, the same table must keep it.
    name = hashlib.sha256(cells.to_csv().encode()).hexdigest()[:10]
    props = {header: f"text-align: {_side(cells[header])}; white-space: nowrap" for header in cells}
    sides = {header: [{"selector": "", "props": each}] for header, each in props.items()}
    return cells.style.hide(axis="index").format(escape="html").set_uuid(name).set_table_styles(sides)


def _side(texts: pd.Series) -> str:
    return "right" if all(text[:1] in "+-0123456789" for text in texts) else "left"


def write_table(frame: pd.DataFrame, folder: Path, name: str, title: str) -> list[Path]:
    """One table as csv (all digits), md and tex (package booktabs); returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    cells, paths = readable(frame), [folder / f"{name}.{kind}" for kind in ("csv", "md", "tex")]
    frame.to_csv(paths[0], index=False, float_format="%.6g", lineterminator="\n")
    sides, piped = [_side(cells[header]) for header in cells], cells.map(lambda cell: cell.replace("|", r"\|"))
    text = piped.to_markdown(index=False, disable_numparse=True, colalign=sides)
    paths[1].write_text(f"## {title}\n\n{text}\n", encoding="utf-8")
    style = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    latex = style.to_latex(caption=title, column_format="".join(side[0] for side in sides), hrules=True)
    paths[2].write_text(latex, encoding="utf-8")
    return paths
