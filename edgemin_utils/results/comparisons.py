"""What models are worth beside one another: means over seeds, with intervals over seeds and rows or processes."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils import statistics
from edgemin_utils.names import kind_of
from edgemin_utils.results.table import Frames
from edgemin_utils.statistics import NO_LOSS_MARGIN, Estimate

FACTORS = ("distilled", "pruned", "quantized")
LEVEL = 0.05
_MEANS = """f1 matthews parameters parameters_listed parameters_paper bytes macs_32 macs_128 memory_bytes seconds noisy
    ms_32 ms_128 ms_rows ms_32_all ms_128_all ms_rows_all""".split()


@functools.lru_cache(maxsize=4)
def summary(frames: Frames) -> pd.DataFrame:
    """A row for each task, dev split and model: task, split, label (both, as tables call them), model, kind, refused,
    seeds; accuracy and kept (share of the teacher's) as fractions, faster (times the teacher at 1x128, one thread),
    with _low and _high; smaller and fewer (the teacher's bytes and MACs over the model's); means over seeds of the
    table's numbers; compared_with (see `source_of`), difference in accuracy with _low and _high, p (Holm's, among its
    split's models of one kind), verdict."""
    groups = frames.results.groupby(["task", "split", "model"], sort=False)
    frame = pd.DataFrame([_row(frames, place, group) for place, group in groups])
    for _, family in frame[frame["p"].notna()].groupby(["task", "split", "kind"]):
        frame.loc[family.index, "p"] = statistics.holm_correction(family["p"].tolist())
    for number, row in frame[frame["p"] > LEVEL].iterrows():
        frame.loc[number, "verdict"] = "undecided" if row["verdict"] in ("better", "worse") else row["verdict"]
    return frame


def _row(frames: Frames, place: tuple[str, str, str], group: pd.DataFrame) -> dict[str, Any]:
    task, split, model = place
    row: dict[str, Any] = {"task": task, "split": split, "label": frames.label(task, split), "model": model}
    row |= {"kind": group["kind"].iloc[0], "refused": group["refused"].max(), "seeds": int((group["rows"] > 0).sum())}
    row |= group[_MEANS].astype(float).mean().to_dict() | {"verdict": "", "p": None}
    own, both = frames.right_rows(task, split, model), frames.right_rows(task, split, "teacher", model)
    row |= ends("accuracy", statistics.mean_accuracy(own[0]) if own else None)
    other = model != "teacher"
    row |= ends("kept", statistics.share_kept(both[0], both[1]) if other and both and both[0].any() else None)
    row |= ends("faster", speed_up(frames, task, "teacher", model) if other else None)
    teacher = frames.results.query("task == @task and model == 'teacher'")[["bytes", "macs_128"]].astype(float).mean()
    row |= {"smaller": teacher["bytes"] / row["bytes"], "fewer": teacher["macs_128"] / row["macs_128"]}
    row["compared_with"] = source_of(model, frames.models(task))
    pair = frames.right_rows(task, split, row["compared_with"], model) if row["compared_with"] else None
    estimate = None
    if pair:
        found = statistics.compare(pair[0], pair[1])
        estimate = Estimate(found["difference"], found["low"], found["high"])
        row |= {"p": found["p_value"], "verdict": statistics.verdict(estimate, NO_LOSS_MARGIN)}
    return row | ends("difference", estimate)


def source_of(model: str, known: Sequence[str]) -> str:
    """What a model is held against: an objective the student without distillation, a cut the uncut control, which
    trained as long, that student the teacher, the teacher nothing, all others what they were made from."""
    source, _, last = model.rpartition("+")
    if not source:
        return "" if model == "teacher" else "teacher" if model.startswith("none") else plain_student(model, known)
    control = f"{source}+{_control(last)}"
    return control if kind_of(last) == "pruning" and last != _control(last) and control in known else source


def plain_student(student: str, known: Sequence[str]) -> str:
    """The student without distillation that shares the most of a student's settings, such as
    `none,distillation_epochs=1` for a brief student, if possible with none of another value."""
    settings = set(student.split(",")[1:])
    plain = [name for name in known if name.split(",")[0] == "none" and "+" not in name]
    fitting = [name for name in plain if settings.issuperset(name.split(",")[1:])]
    return max(fitting or plain, key=lambda name: len(settings & set(name.split(","))), default="none")


def _control(cut: str) -> str:
    return ",".join(["uncut", *(change for change in cut.split(",")[1:] if change.startswith("recovery"))])


def ends(name: str, found: Estimate | None) -> dict[str, float | None]:
    """An estimate as columns of a table: name, name_low, name_high."""
    value, low, high = found or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def process_medians(
    frames: Frames, task: str, models: Sequence[str], name: str = "1x128", threads: int = 1
) -> np.ndarray | None:
    """(models, processes): median milliseconds in each process of every seed that timed all models; 0 threads: all."""
    known = frames.results[frames.results["task"] == task].drop_duplicates(["seed", "model"])
    timed = known.set_index(["seed", "model"])["timed_as"].to_dict()
    found = list[np.ndarray]()
    for seed in known["seed"].unique():
        places = [(task, seed, timed.get((seed, model)) or model, name, threads) for model in models]
        if all(place in frames.medians for place in places):
            found.append(np.array([frames.medians[place] for place in places]))
    return np.concatenate(found, axis=1) if found else None


def speed_up(
    frames: Frames, task: str, first: str, second: str, name: str = "1x128", threads: int = 1
) -> Estimate | None:
    """How many times as fast as `first` model `second` is, with its interval over fresh processes."""
    found = process_medians(frames, task, [first, second], name, threads)
    return None if found is None else statistics.ratio_of_latencies(found[0], found[1])


def factorial_models(frames: Frames, task: str) -> dict[tuple[bool, ...], str]:
    """(distilled, pruned, quantized) -> model of the first complete factorial of a task; empty where there is none.
    Where nothing is cut stands the control that trains as long."""
    models = frames.models(task)
    for name in models:
        parts = name.split("+")
        if [kind_of(part) for part in parts] != ["distillation", "pruning", "quantization"] or name.startswith("none"):
            continue
        choices = (plain_student(parts[0], models), parts[0]), (_control(parts[1]), parts[1]), ("", f"+{parts[2]}")
        cells = itertools.product((False, True), repeat=3)
        eight = {cell: "{}+{}{}".format(*(pair[it] for pair, it in zip(choices, cell, strict=True))) for cell in cells}
        if len(set(eight.values())) == 8 and set(eight.values()) <= set(models):
            return eight
    return {}


def factorial_effects(frames: Frames, name: str = "1x128") -> pd.DataFrame:
    """Main effects and interactions per task and split: label, effect, difference (accuracy), latency (ratio: under 1
    is faster), each with _low and _high, and the verdict on accuracy."""
    rows = list[dict[str, Any]]()
    for task in frames.tasks:
        eight = factorial_models(frames, task)
        medians = process_medians(frames, task, list(eight.values()), name) if eight else None
        exponents = statistics.factorial_weights(list(eight), FACTORS) if eight else {}
        for split in frames.splits(task):
            right = frames.right_rows(task, split, *eight.values()) if eight else None
            found = statistics.factorial_effects(dict(zip(eight, right, strict=True)), FACTORS) if right else {}
            for effect, estimate in found.items():
                row = {"label": frames.label(task, split), "effect": effect, **ends("difference", estimate)}
                ratio = None if medians is None else statistics.contrast_of_latencies([*medians], exponents[effect])
                rows.append(row | {"verdict": statistics.verdict(estimate, NO_LOSS_MARGIN)} | ends("latency", ratio))
    return pd.DataFrame(rows)
