"""Tables as a reader sees them: plain text for terminals, Markdown, LaTeX, and csv with the full numbers."""

import hashlib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler
from tabulate import SEPARATING_LINE, tabulate

from edgemin_utils.number_text import number_text, p_value_text
from edgemin_utils.tables.contents import MAIN_TABLE, Table, every_table
from edgemin_utils.tables.variants import StudyRecords, task_label

TEXT_WIDTH = 120
_SIDE_COLUMNS = ("_low", "_high", "_noisy", "_iqr", "_p90", "_runs", "_bound")
_FILE_KINDS = ("csv", "md", "tex")
_LABELS = ("Task", "Threads", "Model", "Method")


@dataclass(frozen=True)
class Column:
    """How a column of numbers is shown: header with unit, decimals, factor to the shown unit, sign."""

    header: str
    digits: int = 1
    scale: float = 1.0
    signed: bool = False
    suffix: str = ""


COLUMNS = {
    "model": Column("Model"),
    "accuracy": Column("Accuracy %"),
    "f1": Column("F1 %"),
    "matthews_correlation": Column("MCC", 3),
    "kept": Column("Kept %"),
    "at_least": Column("At least %", 0),
    "goal": Column("Goal"),
    "difference": Column("Difference", 1, signed=True),
    "p_value": Column("p", 3),
    "threads": Column("Threads", 0),
    "parameters": Column("Weights", 0),
    "megabytes": Column("MB", 2),
    "smaller": Column("Smaller", 2, suffix="x"),
    "peak_memory": Column("Memory (MB)", 0),
    "folder": Column("Folder"),
    "effect": Column("Effect"),
    "accuracy_effect": Column("Accuracy (points)", 2, signed=True),
    "size_ratio": Column("Size (ratio)", 3),
    "latency_ratio": Column("Latency (ratio)", 3),
    "epochs": Column("Epochs", 1),
    "steps": Column("Steps", 0),
    "examples_per_second": Column("Rows/s", 0),
    "training_seconds": Column("Training (s)"),
    "stage_seconds": Column("In all (s)"),
    "seed": Column("Seed", 0),
    "models": Column("Models", 0),
    "scans": Column("Scans", 0),
    "finished": Column("Finished"),
    "distilled": Column("Distilled"),
    "median_ms": Column("Median (ms)", 2),
    "iqr_ms": Column("IQR (ms)", 2),
    "runs": Column("N", 0),
    "bound_ms": Column("Bound (ms)", 2),
    "of_bound": Column("Over the bound", 1, suffix="x"),
    "over_teacher": Column("Over the teacher", 2, suffix="x"),
    "over_student": Column("Over the student", 2, suffix="x"),
    "interaction": Column("Interaction", 3),
    "products_alone": Column("Products alone", 3),
    "attention_alone": Column("Attention alone", 3),
    "predicted": Column("Predicted", 3),
    "imports_mb": Column("Imports (MB)", 0),
    "peak_mb": Column("Peak (MB)", 0),
    "at_the_end_mb": Column("At the end (MB)", 0),
    "pruned": Column("Pruned"),
    "quantized": Column("Quantized"),
    "p_holm": Column("p (Holm)", 3),
    "method": Column("Method"),
    "weights_removed": Column("Weights removed %"),
    "after_cut": Column("After cut %"),
    "agreement": Column("Agreement %"),
    "demands": Column("Demands"),
    "refused": Column("Refused"),
}
# In the csv files only: how a number came about, and what a second column or a note already says.
_CSV_ONLY = {
    "test",
    "compared_with",
    "rows",
    "seeds",
    "synthetic",
    "listed_parameters",
    "fewer",
    "memory_baseline",
    "steps_taken",
    "bundle_from",
}


def readable(frame: pd.DataFrame, trace: bool = False) -> pd.DataFrame:
    """`frame` as text cells: intervals in brackets behind their number, units in the headers, blanks for what is
    missing, `*` behind a noisy time.

    Args:
        frame: one of the tables of `contents`.
        trace: whether the column that names each row's folder stays.
    """
    shown = {}
    if "task" in frame:
        shown["Task"] = task_labels(frame)
    for name in frame.columns:
        if name in ("task", "split") or name in _CSV_ONLY or _beside_another(name, frame.columns):
            continue
        if name == "folder" and not trace:
            continue
        column = _column(name)
        shown[column.header] = [_cell(row, name, column) for row in frame.to_dict("records")]
    return pd.DataFrame(shown, dtype=object)


def task_labels(frame: pd.DataFrame) -> list[str]:
    """A task's name, with the dev split behind it where a task has several: "mnli matched"."""
    if "split" not in frame:
        return [str(task) for task in frame["task"]]
    several = frame.groupby("task")["split"].nunique() > 1
    return [
        task_label(task, split) if several[task] else str(task)
        for task, split in zip(frame["task"], frame["split"], strict=True)
    ]


def as_text(table: pd.DataFrame | Table, width: int = TEXT_WIDTH) -> str:
    """A table for a terminal, at most `width` characters wide: one that is wider goes on in a second block with the
    same first columns, and a line is drawn where the task changes. A `Table` comes with its title and notes."""
    if isinstance(table, Table):
        parts = (table.title, as_text(table.frame, width), notes_as_text(table.notes, width))
        return "\n\n".join(part for part in parts if part)
    cells = readable(table)
    if cells.empty:
        return "(no rows)"
    labels = [name for name in cells if name in _LABELS]
    blocks, rest = [], [name for name in cells if name not in labels]
    while rest:
        count = len(rest)
        while count > 1 and _text_width(_text_block(cells[labels + rest[:count]])) > width:
            count -= 1
        blocks.append(_text_block(cells[labels + rest[:count]]))
        rest = rest[count:]
    return "\n\n".join(blocks or [_text_block(cells)])


def notes_as_text(notes: Iterable[str], width: int = TEXT_WIDTH) -> str:
    """Notes for a terminal, one under the other, folded at `width`."""
    return "\n".join(textwrap.fill(note, width, subsequent_indent="  ", break_on_hyphens=False) for note in notes)


def as_html(frame: pd.DataFrame, trace: bool = False) -> Styler:
    """A table for a notebook: `readable`'s cells without a row index."""
    cells = readable(frame, trace)
    # Styles are tied to cells by this name: two tables on one page must not share it, the same table must keep it.
    name = hashlib.sha256(cells.to_csv().encode()).hexdigest()[:10]
    sides = {
        header: [{"selector": "", "props": f"text-align: {side}; white-space: nowrap"}]
        for header, side in zip(cells, _alignment(cells), strict=True)
    }
    return cells.style.hide(axis="index").format(escape="html").set_uuid(name).set_table_styles(sides)


def as_markdown(table: Table) -> str:
    """The table in Markdown under its title, its notes below. Each row names its folder."""
    cells = readable(table.frame, trace=True)
    cells = cells.map(lambda text: text.replace("|", "\\|").replace("*", "\\*"))
    body = (
        tabulate(
            cells, headers="keys", tablefmt="pipe", showindex=False, disable_numparse=True, colalign=_alignment(cells)
        )
        if len(cells)
        else "(no rows)"
    )
    notes = "\n".join(f"- {note}".replace("- *", "- \\*") for note in table.notes)
    return f"## {table.title}\n\n{body}\n\n{notes}\n"


def as_latex(table: Table) -> str:
    """A LaTeX table (packages booktabs and graphicx) with its title as caption and its notes below."""
    cells = readable(table.frame)
    alignment = "".join("l" if side == "left" else "r" for side in _alignment(cells))
    lines = [" & ".join(map(latex_escape, cells.columns)) + r" \\", r"\midrule"]
    tasks = list(cells["Task"]) if "Task" in cells else [""] * len(cells)
    for number, row in enumerate(cells.to_numpy()):
        if number and tasks[number] != tasks[number - 1]:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(map(latex_escape, row)) + r" \\")
    notes = r" \\ ".join(latex_escape(note) for note in table.notes)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{latex_escape(table.title)}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}",
            r"\end{table}",
            "",
        ]
    )


def latex_escape(text: Any) -> str:
    """`text` with LaTeX's special characters made printable."""
    special = {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",
        "]": "{]}",
    }
    return "".join(special.get(character, character) for character in str(text))


def write_tables(study: Path | StudyRecords, folder: Path) -> list[Path]:
    """Writes every table as csv (all numbers, full precision), md and tex into `folder`; returns the paths.

    The same records give the same bytes. A table without rows is left out, and what an earlier report wrote under its
    name is removed; only the main results are always there.
    """
    written = []
    for table in every_table(study):
        if len(table.frame) or table.name == MAIN_TABLE:
            written += write_table(table, folder)
        else:
            for kind in _FILE_KINDS:
                (folder / f"{table.name}.{kind}").unlink(missing_ok=True)
    return written


def write_table(table: Table, folder: Path) -> list[Path]:
    """Writes one table as <name>.csv, .md and .tex into `folder`, which is made if need be; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (
        table.frame.to_csv(index=False, float_format="%.8g", lineterminator="\n"),
        as_markdown(table),
        as_latex(table),
    )
    paths = [folder / f"{table.name}.{kind}" for kind in _FILE_KINDS]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8", newline="\n")
    return paths


def _column(name: str) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    for prefix, column in (
        ("latency_", Column("{} (ms)", 2)),
        ("speed_up_", Column("{} speed-up", 2, suffix="x")),
        ("of_bound_", Column("{} over the bound", 1, suffix="x")),
        ("macs_", Column("{} MMACs", 1, 1e-6)),
        ("task ", Column("{}")),
    ):
        if name.startswith(prefix):
            header = column.header.format(name.removeprefix(prefix).replace("_", " "))
            return Column(header, column.digits, column.scale, column.signed, column.suffix)
    return Column(name.replace("_", " ").capitalize())


def _beside_another(name: str, columns: Iterable[str]) -> bool:
    return any(name.endswith(side) and name.removesuffix(side) in columns for side in _SIDE_COLUMNS)


def _cell(row: dict, name: str, column: Column) -> str:
    value = row[name]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or pd.isna(value):
        return ""
    if isinstance(value, str):
        return value
    if name in ("p_value", "p_holm"):
        return p_value_text(value)
    low, high = (row.get(f"{name}{side}") for side in ("_low", "_high"))
    text = _number(value, column)
    if low is not None and high is not None and not pd.isna(low) and not pd.isna(high):
        text += f" [{_number(low, column, False)}, {_number(high, column, False)}]"
    return text + ("*" if row.get(f"{name}_noisy") is True else "")


def _number(value: float, column: Column, suffix: bool = True) -> str:
    text = number_text(value * column.scale, column.digits, "+" if column.signed else "")
    return text + (column.suffix if suffix else "")


def _alignment(cells: pd.DataFrame) -> tuple[str, ...]:
    left = {
        "Task",
        "Model",
        "Method",
        "Demands",
        "Refused",
        "Folder",
        "Effect",
        "Distilled",
        "Pruned",
        "Quantized",
        "Finished",
        "Measured",
        "State",
        "Number",
        "Claim",
        "Claimed",
        "Counted",
        "Ours",
        "Verdict",
        "Function",
        "Quantity",
        "Stage",
        "Way",
        "Honest",
        "Honest way",
        "Input",
    }
    return tuple("left" if name in left else "right" for name in cells)


def _text_block(cells: pd.DataFrame) -> str:
    rows: list = []
    tasks = list(cells["Task"]) if "Task" in cells else [""] * len(cells)
    for number, row in enumerate(cells.to_numpy().tolist()):
        if number and tasks[number] != tasks[number - 1]:
            rows.append(SEPARATING_LINE)
        rows.append(row)
    return tabulate(
        rows, headers=list(cells.columns), tablefmt="simple", disable_numparse=True, colalign=_alignment(cells)
    )


def _text_width(text: str) -> int:
    return max(map(len, text.splitlines()))
