"""What models are worth beside one another: means with intervals over seeds and rows or processes; what none beats."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from edgemin_utils import names, statistics
from edgemin_utils.results.table import COLUMNS, Frames

FACTORS = ("distilled", "pruned", "quantized")
LEVEL = 0.05
# Shares by which two files or latencies may differ without one counting as better: equal models are timed apart.
SAME = {"bytes": 0.01, "ms_128": 0.05}
_MEANS = COLUMNS[COLUMNS.index("f1") : COLUMNS.index("seconds") + 1]


@functools.lru_cache(maxsize=4)
def summary(frames: Frames) -> pd.DataFrame:
    """A row for each task, dev split and model: means over seeds, and against the teacher smaller, fewer (MACs), faster
    (1x128, one thread) and kept. p of a difference to compared_with is Holm's among its split's models of one kind."""
    groups = frames.results.groupby(["task", "split", "model"], sort=False)
    frame = pd.DataFrame([_row(frames, place, group) for place, group in groups])
    frame["mib"] = frame["bytes"]  # which tables show in 2^20
    teachers = frame[frame["model"] == "teacher"].groupby("task")[["bytes", "macs_128"]].mean()
    for name, own in {"smaller": "bytes", "fewer": "macs_128"}.items():
        frame[name] = frame["task"].map(teachers[own]) / frame[own]
    frame["p"] = frame.dropna(subset="p").groupby(["task", "split", "kind"])["p"].transform(statistics.holm_correction)
    frame.loc[(frame["p"] > LEVEL) & frame["verdict"].isin(["better", "worse"]), "verdict"] = "undecided"
    return frame


def _row(frames: Frames, place: tuple[str, str, str], group: pd.DataFrame) -> dict[str, Any]:
    task, split, model = place
    row: dict[str, Any] = {"task": task, "split": split, "main": split == frames.splits(task)[0], "model": model}
    row |= {"label": frames.label(task, split), "kind": group["kind"].iloc[0], "refused": group["refused"].max()}
    row |= {"seeds": int((group["rows"] > 0).sum()), "noise": "noisy" if group["noisy"].astype(float).any() else ""}
    row |= group[_MEANS].astype(float).mean().to_dict() | {"compared_with": source_of(model, frames.models(task))}
    own, both = frames.right_rows(task, split, model), frames.right_rows(task, split, "teacher", model)
    medians, other = process_medians(frames, task, ["teacher", model]), model != "teacher"
    row |= ends("accuracy", statistics.Estimate(*np.array(statistics.contrast(own, [1])).clip(0, 1)) if own else None)
    row |= ends("kept", statistics.share_kept(*both) if other and both and both[0].any() else None)
    row |= ends("faster", statistics.contrast_of_latencies(medians, [1, -1]) if other and medians else None)
    pair = frames.right_rows(task, split, row["compared_with"], model)
    change = statistics.contrast(pair, [-1, 1]) if pair else None
    row |= {"p": statistics.p_value(*pair) if pair else None, **ends("difference", change)}
    return row | {"verdict": statistics.verdict(change, statistics.NO_LOSS_MARGIN) if change else ""}


def source_of(model: str, known: Sequence[str]) -> str:
    """What a model is held against: an objective the student without distillation, a cut the uncut control, which
    trained as long, that student the teacher, the teacher nothing, all others what they were made from."""
    source, _, last = model.rpartition("+")
    if not source:
        return "" if model == "teacher" else "teacher" if model.startswith("none") else plain_student(model, known)
    control = f"{source}+{_control(last)}"
    return control if names.kind_of(last) == "pruning" and last != _control(last) and control in known else source


def plain_student(student: str, known: Sequence[str]) -> str:
    """The student without distillation that shares the most of a student's settings, best with no others."""
    settings = set(student.split(",")[1:])
    plain = [name for name in known if name.split(",")[0] == "none" and "+" not in name]
    fitting = [name for name in plain if settings.issuperset(name.split(",")[1:])]
    return max(fitting or plain, key=lambda name: len(settings & set(name.split(","))), default="none")


def _control(cut: str) -> str:
    return ",".join(["uncut", *(change for change in cut.split(",")[1:] if change.startswith("recovery"))])


def ends(name: str, found: statistics.Estimate | None) -> dict[str, float | None]:
    """An estimate as columns of a table: name, name_low, name_high."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), found or (None, None, None), strict=True))


def process_medians(frames: Frames, task: str, models: Sequence[str]) -> list[np.ndarray]:
    """Of each model (processes,): median milliseconds at 1x128, one thread, of seeds that timed all; perhaps empty."""
    known = frames.results[frames.results["task"] == task].drop_duplicates(["seed", "model"])
    timed = known.set_index(["seed", "model"])["timed_as"].to_dict()
    every = [[(task, seed, timed.get((seed, model)) or model) for model in models] for seed in known["seed"].unique()]
    found = [[frames.medians[place] for place in places] for places in every if frames.medians.keys() >= {*places}]
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def factorial_models(frames: Frames, task: str) -> dict[tuple[bool, ...], str]:
    """(distilled, pruned, quantized) -> model of a task's first complete factorial, if any; uncut is the control."""
    models, cells = frames.models(task), list(itertools.product((False, True), repeat=len(FACTORS)))
    for steps in (name.split("+") for name in models if not name.startswith("none")):
        if [names.kind_of(step) for step in steps] == ["distillation", "pruning", "quantization"]:
            student, cut, scheme = steps
            choices = (plain_student(student, models), student), (f"+{_control(cut)}", f"+{cut}"), ("", f"+{scheme}")
            eight = dict(zip(cells, map("".join, itertools.product(*choices)), strict=True))
            if len(set(eight.values())) == 8 and set(eight.values()) <= set(models):
                return eight
    return {}


def factorial_effects(frames: Frames) -> pd.DataFrame:
    """Main effects and interactions per task and split: difference in accuracy, its verdict, and latency (ratio)."""
    rows = list[dict[str, Any]]()
    complete = {task: eight for task in frames.tasks if (eight := factorial_models(frames, task))}
    for task, eight in complete.items():
        medians = process_medians(frames, task, [*eight.values()])
        effects = statistics.factorial_weights([*eight], FACTORS)
        for split in frames.splits(task):
            right = frames.right_rows(task, split, *eight.values())
            for effect, weights in effects.items() if right else ():
                found = statistics.contrast(right, weights)
                ratio = statistics.contrast_of_latencies(medians, weights) if medians else None
                row = {"label": frames.label(task, split), "effect": effect, **ends("difference", found)}
                row["verdict"] = statistics.verdict(found, statistics.NO_LOSS_MARGIN)
                rows.append({**row, **ends("latency", ratio)})
    return pd.DataFrame(rows)


def pareto_front(costs: ArrayLike) -> np.ndarray:
    """bool (n,): which rows of costs (n, objectives; NaN: worst) none dominates: nowhere larger, somewhere smaller."""
    costs = np.asarray(costs, dtype=float)
    costs = np.where(np.isnan(costs), np.inf, costs)
    return ~np.any(np.all(costs <= costs[:, None], axis=2) & np.any(costs < costs[:, None], axis=2), axis=1)


def candidates(frames: Frames, task: str, latency: str = "ms_128") -> pd.DataFrame:
    """The rows of `summary` of a task's models on its main dev split, best accuracy first, with `on_front`."""
    frame = summary(frames).query("task == @task and main and accuracy == accuracy")
    # Files of equal shapes differ by a few bytes, which is no gain.
    rounded = frame[["accuracy", "bytes", latency]].astype(float).map(lambda value: float(f"{value:.4g}"))
    frame = frame.assign(on_front=pareto_front(rounded * [-1, 1, 1]))
    return frame.sort_values(["accuracy", latency, "bytes"], ascending=[False, True, True], kind="stable")


def least_that_keeps(every: pd.DataFrame, share: float, column: str) -> pd.DataFrame:
    """Of `candidates` with most seeds the smallest or fastest, in one row or none, that keeps a share of the teacher's
    accuracy by its interval's lower end (verdict: kept), else by its estimate (undecided); the best of equals."""
    every = every[(every["seeds"] == every["seeds"].max()) & every[column].notna()]
    sure = every[every["kept_low"] >= share].assign(verdict="kept")
    enough = sure if len(sure) else every[every["kept"] >= share].assign(verdict="undecided")
    least = enough[enough[column] <= (1 + SAME.get(column, 0)) * enough[column].min()]
    return least.sort_values("kept", ascending=False, kind="stable").head(1)
