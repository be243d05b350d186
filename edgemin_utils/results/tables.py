"""The study's tables, each a selection from the one table, and which model to take under a budget."""

import functools
import itertools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from edgemin_utils.errors import SettingError
from edgemin_utils.names import LISTS, kind_of
from edgemin_utils.results.comparisons import candidates, factorial_effects, least_that_keeps, plain_student, summary
from edgemin_utils.results.table import LAYOUT, Frames, as_text, read_frames, write_table
from edgemin_utils.settings import nearest

_PAPERS = "minilmv2+heads-0.2+int8"
_STEPS = {"student, distilled": "Distillation", "... and cut": "The cut", "... and quantized": "Quantization"}
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
    """Six rows a task: the paper's path, and the smallest model that keeps `HEADLINE_SHARE`, surely or undecided."""
    rows = list[dict[str, Any]]()
    for task in frames.tasks:
        every = candidates(frames, task)
        known = every.set_index("model", drop=False).to_dict("index")
        rows += [{**known[name], "what": role} for role, name in path_of(frames, task).items() if name in known]
        smallest = least_that_keeps(every, HEADLINE_SHARE, "bytes")
        rows += smallest.assign(what=f"smallest that keeps {100 * HEADLINE_SHARE:.0f} %").to_dict("records")
    return _with_columns("headline", pd.DataFrame(rows))


def verdicts(frames: Frames) -> list[str]:
    """A sentence (Markdown) for each step of the paper's path: its verdict and the points of accuracy that it adds."""
    every, sentences = summary(frames).query("main").set_index(["task", "model"]), list[str]()
    for role, step in _STEPS.items():
        paths = ((task, path_of(frames, task)) for task in frames.tasks)
        rows = [every.loc[task, path[role]] for task, path in paths if role in path]
        found = [(row, *(100 * row[["difference", "difference_low", "difference_high"]])) for row in rows]
        said = [f"{row.verdict} on {row.label}, {at:+.1f} [{low:+.1f}, {high:+.1f}]" for row, at, low, high in found]
        against = " and ".join(sorted({row.compared_with for row in rows}))
        sentences += [f"**{step}** (points against {against}): {'; '.join(said)}."] if said else []
    return [*sentences, *cautions(frames)]


def cautions(frames: Frames) -> list[str]:
    """A sentence for each task whose teacher's interval reaches down to what its most frequent dev label scores."""
    teachers, said = summary(frames).query("main and model == 'teacher' and accuracy == accuracy"), list[str]()
    for row in teachers.itertuples():
        own = frames.predictions.query("task == @row.task and split == @row.split and model == 'teacher'")
        most = own["label"].value_counts(normalize=True).max()
        if row.accuracy_low <= most:
            score = f"{100 * row.accuracy:.1f} %, where the most frequent label alone gives {100 * most:.1f} %"
            said.append(f"ATTENTION: the teacher on {row.label} has {score}; what is kept of it says nothing.")
    return said


def budgets(frames: Frames) -> pd.DataFrame:
    """The smallest and the fastest model that keep shares of the teacher's accuracy; verdict as in `headline`."""
    rows, goals = list[dict[str, Any]](), (("smallest", "bytes"), ("fastest", "ms_128"))
    for task, share, (goal, column) in itertools.product(frames.tasks, KEPT_SHARES, goals):
        least = least_that_keeps(candidates(frames, task), share, column)
        rows += least.assign(at_least=share, goal=goal).to_dict("records")
    return _with_columns("budgets", pd.DataFrame(rows))


def selection(frames: Frames, name: str) -> pd.DataFrame:
    """A table whose rows are a query of `summary`: models, objectives, cuts, schemes, costs or sizes."""
    return _with_columns(name, summary(frames).query(LAYOUT["tables"][name]["rows"], engine="python"))


def _with_columns(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    wanted = LAYOUT["tables"][name]["columns"].split()
    columns = [f"{column}{end}" for column in wanted for end in ("", "_low", "_high")]
    shown = [column for column in columns if column in frame or column in wanted]  # an unknown one is an error
    return frame[shown].reset_index(drop=True) if len(frame) else pd.DataFrame(columns=wanted)


_MADE = {"headline": headline, "budgets": budgets, "effects": factorial_effects}
TABLES: dict[str, tuple[str, Callable[[Frames], pd.DataFrame]]] = {  # name -> title and function
    name: (about["title"], _MADE.get(name, functools.partial(selection, name=name)))
    for name, about in LAYOUT["tables"].items()
}


def write_tables(frames: Frames, folder: Path) -> list[Path]:
    """Every table that has rows into `folder` (see `write_table`); returns the paths."""
    made = {name: table(frames) for name, (_, table) in TABLES.items()}
    return [path for name, it in made.items() if len(it) for path in write_table(it, folder, name, TABLES[name][0])]


def terminal_table(study: Path | str) -> str:
    """What a study ends with on a terminal: at most twelve rows a task, and how to read them."""
    frames, parts = read_frames(study), list[str]()
    listed = {models[0]: name for name, models in LISTS.items() if len(models) == 1}  # recipes have long names
    for label, rows in headline(frames).replace({"model": listed}).groupby("label", sort=False):
        for left_out in ("label what", "label what faster", "label what faster ms_128"):
            text = as_text(rows.drop_duplicates("model").drop(columns=left_out.split()).head(12))
            if max(map(len, text.splitlines())) <= 118:
                break
        parts.append(f"{label}\n{text}")
    return "\n\n".join([*parts, *cautions(frames), READING])


def recommend_models(
    study: Path | str,
    task: str | None = None,
    max_mb: float | None = None,
    max_ms: float | None = None,
    min_accuracy: float | None = None,
    length: int = 128,
) -> tuple[str, bool]:
    """Text, and whether anything fits: of each task or one the five best models within limits (MB of 10^6 bytes, ms of
    one thread, %), or the nearest, and their bundles' commands. Raises SettingError for what cannot be asked."""
    if bad := [limit for limit in (max_mb, max_ms, min_accuracy) if limit is not None and not 0 < limit < math.inf]:
        raise SettingError(f"a limit of {bad[0]:g} cannot be met; give a number over 0")
    if min_accuracy is not None and not 1 < min_accuracy <= 100:
        raise SettingError(f"accuracy is asked for in percent, as in 85, not {min_accuracy:g}")
    frames, parts, fits = read_frames(study), list[str](), False
    if task is not None and task not in frames.tasks:
        raise SettingError(f"{study} holds no task {task!r}; {nearest(task, frames.tasks)}")
    if length not in (32, 128):
        raise SettingError(f"latency is timed at 32 and 128 tokens, not at {length}")
    latency = f"ms_{length}"
    columns = f"model accuracy accuracy_low accuracy_high kept kept_low kept_high bytes {latency}".split()
    limits = [("bytes", 1, max_mb and 1e6 * max_mb), (latency, 1, max_ms), ("accuracy", -1, (min_accuracy or 0) / 100)]
    for name in [task] if task else frames.tasks:
        every = candidates(frames, name, latency)
        if max_ms and every[latency].isna().all():
            raise SettingError(f"no model of {name} was timed on that input; run notebooks/05_analysis.ipynb first")
        # How far each lies outside: what it misses of each limit, as shares of them; what was not measured fits none.
        over = [sign * (every[column].astype(float) / limit - 1) for column, sign, limit in limits if limit]
        missed = sum((each.fillna(math.inf).clip(lower=0) ** 2 for each in over), 0 * every["accuracy"])
        fitting = every[missed == 0]
        shown = fitting[fitting["on_front"]].head(5) if len(fitting) else every.loc[[missed.idxmin()]]
        said = f"{len(fitting)} of {len(every)} models fit" if len(fitting) else "nothing fits; the nearest is"
        commands = dict.fromkeys(bundle_command(frames, name, model) for model in shown["model"])
        parts.append("\n".join([f"{frames.label(name)}: {said}", as_text(shown[columns]), "", *commands]))
        fits |= len(fitting) > 0
    return "\n\n".join(parts), fits


def bundle_command(frames: Frames, task: str, model: str) -> str:
    """The command that builds a model's bundle: a quantized one's from the float one, with 4 bits where it has them."""
    source, _, scheme = model.rpartition("+") if kind_of(model) == "quantization" else (model, "", "")
    seed = frames.results.query("task == @task and model in [@model, @source]")["seed"].min()
    bits = "edge-int8-int4" if "int8-int4" in scheme else "edge-int4"
    folder, words = str(frames.study / task / f"seed-{seed}" / source), ["--scheme", bits] if "int4" in scheme else []
    return shlex.join(["edgemin", "bundle", folder, "--output", f"bundles/{task}-{source}", *words])
