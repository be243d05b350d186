"""The study's tables: each a function of its frames, a selection from the one table, as numbers."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils.names import kind_of
from edgemin_utils.results.budgets import candidates, least_that_keeps
from edgemin_utils.results.comparisons import factorial_effects, plain_student, summary
from edgemin_utils.results.shown import as_text, write_table
from edgemin_utils.results.table import Frames, read_frames

_PAPERS = "minilmv2+heads-0.2+int8"
KEPT_SHARES = (0.99, 0.98, 0.95)
HEADLINE_SHARE = 0.98  # of the teacher's accuracy, which the smallest model of the headline keeps
READING = "accuracy [95 % interval over seeds and rows]; kept: of the teacher's; verdict: against what it was made from"


def path_of(frames: Frames, task: str) -> dict[str, str]:
    """Role -> model along the paper's path, as far as the task has it."""
    models, kinds = frames.models(task), ["distillation", "pruning", "quantization"]
    split = {name: name.split("+") for name in models if not name.startswith("none") and "+uncut" not in name}
    along = [name for name, parts in split.items() if [kind_of(part) for part in parts] == kinds[: len(parts)]]
    along.sort(key=lambda name: (-len(split[name]), name != _PAPERS, not name.startswith("minilmv2+heads"), len(name)))
    made = list(itertools.accumulate(split[along[0]] if along else [], "{}+{}".format))
    roles = {"teacher": "teacher", "student, not distilled": plain_student(made[0] if made else "", models)}
    roles |= dict(zip(("student, distilled", "... and cut", "... and quantized"), made, strict=False))
    return {role: name for role, name in roles.items() if name in models}


def headline(frames: Frames) -> pd.DataFrame:
    """Six rows a task, on its main dev split: the paper's path, and the smallest model that keeps `HEADLINE_SHARE` of
    the teacher's accuracy (kept where the interval's lower end says so, else undecided)."""
    rows = list[dict[str, Any]]()
    for task in frames.tasks:
        every = candidates(frames, task)
        known = every.set_index("model", drop=False).to_dict("index")
        rows += [{"what": role, **known[name]} for role, name in path_of(frames, task).items() if name in known]
        rows += _that_keeps(every, HEADLINE_SHARE, "bytes", what=f"smallest that keeps {100 * HEADLINE_SHARE:.0f} %")
    return _selected(pd.DataFrame(rows), "label what model accuracy kept bytes ms_128 faster verdict")


def models(frames: Frames) -> pd.DataFrame:
    """A row for each task, dev split and model, means over seeds; refused ones with their reason."""
    wanted = "label model seeds accuracy f1 matthews kept parameters bytes macs_128 ms_128 memory_bytes seconds refused"
    return _selected(summary(frames), wanted)


def objectives(frames: Frames) -> pd.DataFrame:
    """Students side by side, each against the one without distillation, and that against the teacher."""
    return _side_by_side(frames, lambda name: "+" not in name and name != "teacher")


def cuts(frames: Frames) -> pd.DataFrame:
    """Models after a cut and its recovery, or after tuning, each against what `comparisons.source_of` says."""
    return _side_by_side(frames, lambda name: kind_of(name) in ("pruning", "tuning"))


def schemes(frames: Frames) -> pd.DataFrame:
    """Quantized models, each against the one that it was made from."""
    return _side_by_side(frames, lambda name: kind_of(name) == "quantization")


def costs(frames: Frames) -> pd.DataFrame:
    """MACs, latency with one thread and the speed-up over the teacher, and peak memory."""
    columns = "label model macs_32 macs_128 fewer ms_32 ms_128 ms_rows ms_128_all faster memory_bytes noise"
    rows = _main_rows(frames)
    return _selected(rows.assign(noise=np.where(rows["noisy"] > 0, "noisy", "")), columns)


def sizes(frames: Frames) -> pd.DataFrame:
    """Weights counted three ways, and the saved file in MB (10^6 bytes) and MiB."""
    columns, rows = "label model parameters parameters_listed parameters_paper bytes mib smaller", _main_rows(frames)
    return _selected(rows.assign(mib=rows["bytes"]), columns)


def budgets(frames: Frames) -> pd.DataFrame:
    """The smallest and the fastest model that keep shares of the teacher's accuracy; verdict as in `headline`."""
    rows, goals = list[dict[str, Any]](), (("smallest", "bytes"), ("fastest", "ms_128"))
    for task, share, (goal, column) in itertools.product(frames.tasks, KEPT_SHARES, goals):
        rows += _that_keeps(candidates(frames, task), share, column, at_least=share, goal=goal)
    return _selected(pd.DataFrame(rows), "label at_least goal model accuracy kept bytes ms_128 verdict")


TABLES: dict[str, tuple[str, Callable[[Frames], pd.DataFrame]]] = {  # name -> title and function
    "headline": ("The study in six rows", headline),
    "models": ("Every model", models),
    "objectives": ("Objectives side by side", objectives),
    "cuts": ("Cuts and tuning side by side", cuts),
    "schemes": ("Quantization schemes side by side", schemes),
    "effects": ("Effects of distillation, pruning and quantization", factorial_effects),
    "costs": ("Operations, latency and memory", costs),
    "sizes": ("Weights and files", sizes),
    "budgets": ("Smallest and fastest model for a share of the teacher's accuracy", budgets),
}


def _selected(frame: pd.DataFrame, columns: str) -> pd.DataFrame:
    wanted = [name for column in columns.split() for name in (column, f"{column}_low", f"{column}_high")]
    return frame[[name for name in wanted if name in frame]].reset_index(drop=True)


def _main_rows(frames: Frames) -> pd.DataFrame:
    frame = summary(frames)
    return frame[(frame["split"] == frame["task"].map(lambda task: frames.splits(task)[0])) & (frame["refused"] == "")]


def _side_by_side(frames: Frames, chosen: Callable[[str], bool]) -> pd.DataFrame:
    frame = summary(frames)
    columns = "label model accuracy difference compared_with p verdict parameters bytes ms_128 seconds refused"
    return _selected(frame[frame["model"].map(chosen)], columns)


def _that_keeps(every: pd.DataFrame, share: float, column: str, **more: Any) -> list[dict[str, Any]]:
    row = least_that_keeps(every, share, column)
    said = "kept" if row is not None and row["kept_low"] >= share else "undecided"
    return [] if row is None else [{**row.to_dict(), **more, "verdict": said}]


def write_tables(frames: Frames, folder: Path) -> list[Path]:
    """Every table that has rows into `folder` (see `write_table`); returns the paths."""
    written = list[Path]()
    for name, (title, table) in TABLES.items():
        written += write_table(frame, folder, name, title) if len(frame := table(frames)) else []
    return written


def terminal_table(study: Path | str) -> str:
    """What a study ends with on a terminal: at most twelve rows a task, and how to read them."""
    parts = list[str]()
    for label, rows in headline(read_frames(study)).groupby("label", sort=False):
        for left_out in ("label what", "label what faster", "label what faster ms_128"):
            text = as_text(rows.drop_duplicates("model").drop(columns=left_out.split()).head(12))
            if max(map(len, text.splitlines())) <= 118:
                break
        parts.append(f"{label}\n{text}")
    return "\n\n".join([*parts, READING])
