"""A study at a glance: one row a question, one column a task."""

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from edgemin_utils.chain import TEACHER, distillation_key
from edgemin_utils.number_text import percent, with_interval
from edgemin_utils.statistics import Estimate
from edgemin_utils.tables.factorial import latency_gain, latency_interactions
from edgemin_utils.tables.main_path import last_of_path, path_steps, unquantized_key
from edgemin_utils.tables.recommended import budget_models
from edgemin_utils.tables.summary import as_records, compare, longest_input, share_kept, summarize
from edgemin_utils.tables.variants import StudyRecords, main_student, task_label

KEPT_SHARE = 97
"""Share of the teacher's accuracy, in %, that the smallest and the fastest model of the overview keep."""


class _Answer(NamedTuple):
    """What one task says to one question; `stage` is the key of the model that it is about, "" for several."""

    quantity: str
    text: str
    stage: Hashable = ""


def overview(study: Path | StudyRecords) -> pd.DataFrame:
    """What the study found, as text.

    Columns: quantity (accuracies in %, steps in percentage points, files in MB, times in ms), `task <name>` for every
    task (and dev split, where a task has several), stage (the folder of the row's model in every chain; blank where
    the row is about more than one). Brackets hold 95 % intervals. Questions that no task has an answer to are left out.
    """
    records = as_records(study)
    frame = summarize(records)
    chosen, interactions = budget_models(records), latency_interactions(records)
    answers = dict[str, list[_Answer]]()
    for task in records.tasks:
        of_task = frame[frame["task"] == task]
        for split in dict.fromkeys(of_task["split"]):
            label = task_label(task, split) if of_task["split"].nunique() > 1 else task
            rows = of_task[of_task["split"] == split].set_index("key")
            answers[f"task {label}"] = [
                *_on_accuracy(records, task, split, rows),
                *_on_cost(rows, longest_input(frame)),
                *_on_gains(records, task, rows, longest_input(frame)),
                *_on_interaction(interactions.get(task)),
                *_on_budgets(chosen[(chosen["task"] == task) & (chosen["split"] == split)]),
            ]
    texts = {label: {each.quantity: each.text for each in of_task} for label, of_task in answers.items()}
    stages = {each.quantity: each.stage for of_task in answers.values() for each in of_task}
    shown = [
        {
            "quantity": quantity,
            **{label: of.get(quantity, "") for label, of in texts.items()},
            "stage": stages[quantity],
        }
        for quantity in _questions(answers.values())
    ]
    return pd.DataFrame(shown, columns=["quantity", *answers, "stage"])


def _questions(answers: Iterable[list[_Answer]]) -> list[str]:
    """Every question once, in an order that keeps each task's own."""
    order = list[str]()
    for of_task in answers:
        place = 0
        for quantity, *_ in of_task:
            if quantity in order:
                place = order.index(quantity)
            else:
                order.insert(place, quantity)
            place += 1
    return order


def _on_accuracy(records: StudyRecords, task: str, split: str, rows: pd.DataFrame) -> list[_Answer]:
    """What is right, and what each step of the paper's path does to it."""
    first, main, last = rows.iloc[0], main_student(records.chains), last_of_path(rows)
    seeds = f"{first['seeds']:.0f} seed{'s' if first['seeds'] > 1 else ''}"
    found = [_Answer("Dev rows", f"{first['rows']:,.0f}, {seeds}")]
    for key in dict.fromkeys((TEACHER, distillation_key("none"), distillation_key(main or "none"), last)):
        if key in rows.index:
            row = rows.loc[key]
            accuracy = with_interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"])
            found.append(_Answer(f"{row['model']}, %", accuracy, key))
    kept = share_kept(records.of_task(task), split, last) if last is not None else None
    if kept is not None:
        found.append(_Answer("That in % of the teacher's", percent(*kept), last))
    for step, before, after in path_steps(rows, main):
        made = compare(records.of_task(task), split, before, after) if before else None
        if made is not None:
            points = with_interval(made["difference"], made["low"], made["high"], sign="+")
            found.append(_Answer(f"{step.capitalize()}, points", points, after))
    return found


def _on_cost(rows: pd.DataFrame, longest: str | None) -> list[_Answer]:
    """File, multiply-accumulates and latency of the path's last model."""
    last = last_of_path(rows)
    if TEACHER not in rows.index or last is None:
        return []
    teacher, small, found = rows.loc[TEACHER], rows.loc[last], list[_Answer]()
    if not pd.isna(small["smaller"]):
        files = f"{teacher['megabytes']:.1f}, {small['megabytes']:.1f}"
        found += [
            _Answer("MB of teacher and last model", files, last),
            _Answer("Times smaller", f"{small['smaller']:.2f}", last),
        ]
    macs, speed_up = (f"{name}_{longest}" for name in ("macs", "speed_up"))
    if macs in rows and small[macs] > 0:
        found.append(_Answer(f"Times fewer MACs at {longest}", f"{teacher[macs] / small[macs]:.2f}", last))
    if speed_up in rows and not pd.isna(small[speed_up]):
        ratio = with_interval(small[speed_up], small[f"{speed_up}_low"], small[f"{speed_up}_high"], digits=2)
        found.append(_Answer(f"Times faster at {longest}", ratio, last))
    return found


def _on_gains(records: StudyRecords, task: str, rows: pd.DataFrame, longest: str | None) -> list[_Answer]:
    """What pruning, before and after quantization, and quantization each do to the latency of the path's last model."""
    last = last_of_path(rows)
    if longest is None or last is None or not rows.loc[last, "quantized"]:
        return []
    pruned, whole = unquantized_key(rows, rows.loc[last]), distillation_key(rows.loc[last, "student"])
    own = rows[(rows["student"] == rows.loc[last, "student"]) & ~rows["compared"].astype(bool)]
    whole_quantized = next(iter(own.index[own["quantized"] & ~own["pruned"]]), None)
    found = []
    for quantity, before, after in (
        ("Times faster by pruning", whole, pruned),
        ("Times faster by pruning, once quantized", whole_quantized, last),
        ("Times faster by quantization", pruned, last),
    ):
        gain = latency_gain(records, task, before, after, longest) if before and after and before != after else None
        if gain is not None:
            found.append(_Answer(quantity, with_interval(*gain, digits=2), after))
    return found


def _on_interaction(interaction: Estimate | None) -> list[_Answer]:
    if interaction is None:
        return []
    return [_Answer("Interaction of pruning and quantization", with_interval(*interaction, digits=2))]


def _on_budgets(chosen: pd.DataFrame) -> list[_Answer]:
    """The smallest and the fastest model that keep `KEPT_SHARE` % of the teacher's accuracy."""
    found = []
    for row in chosen[chosen["at_least"] == KEPT_SHARE].to_dict("records"):
        latency = next(row[name] for name in row if name.startswith("latency_") and not name.endswith("_noisy"))
        times = "" if pd.isna(latency) else f", {latency:.1f} ms"
        text = f"{row['megabytes']:.1f} MB{times}, {row['accuracy']:.1f} %"
        found.append(_Answer(f"{row['goal'].capitalize()} model that keeps {KEPT_SHARE} %", text))
    return found
