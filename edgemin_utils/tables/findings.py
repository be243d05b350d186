"""What the numbers say, in sentences that code writes from records: gains, losses, and what cannot be told apart."""

import math
from pathlib import Path

import pandas as pd

from edgemin_utils.chain import TEACHER
from edgemin_utils.number_text import p_value_text, signed
from edgemin_utils.tables.factorial import latency_interactions
from edgemin_utils.tables.main_path import last_of_path, path_steps, unquantized_key
from edgemin_utils.tables.method_findings import SIGNIFICANCE, method_findings
from edgemin_utils.tables.summary import as_records, compare, longest_input, summarize
from edgemin_utils.tables.variants import StudyRecords, is_synthetic, main_student, task_label


def findings(study: Path | StudyRecords) -> list[str]:
    """One Markdown sentence a finding, per task: what is kept, whether each step helped, what it costs and saves.

    A step counts as helping or harming only where the p-value of the paired difference is under 0.05; otherwise the
    sentence says that the rows cannot tell. The p-values are not corrected for several tests. Behind them stand
    `method_findings`, whose are. Folders are relative to the study.
    """
    records = as_records(study)
    frame = summarize(records)
    sentences = []
    for task in records.tasks:
        rows = frame[frame["task"] == task]
        for split in dict.fromkeys(rows["split"]):
            label = task_label(task, split) if rows["split"].nunique() > 1 else task
            of_split = rows[rows["split"] == split].set_index("key")
            sentences += _on_accuracy(records, task, split, label, of_split)
        of_task = rows.drop_duplicates("key").set_index("key")
        sentences += _on_cost(task, of_task, longest_input(frame), _protocol_words(records, task))
    return [*sentences, *_on_interaction(records), *method_findings(records), *records.notes]


def effect_words(step: str, difference: float, p_value: float) -> str:
    """Whether a step helped, harmed, or whether the rows cannot tell; a p-value of NaN stands for none, as where every
    seed moves by as much."""
    if math.isnan(p_value) and difference:
        return "moved accuracy by as much in every seed, which a test over seeds cannot judge"
    clear = not math.isnan(p_value) and p_value < SIGNIFICANCE
    if step == "distillation":
        if clear:
            return "helped" if difference > 0 else "did not help, accuracy fell"
        return "did not help measurably"
    if clear:
        return "raised accuracy" if difference > 0 else "cost accuracy"
    return "made no difference to accuracy that these rows can show"


def _on_accuracy(records: StudyRecords, task: str, split: str, label: str, rows: pd.DataFrame) -> list[str]:
    sentences = []
    chains = records.of_task(task)
    synthetic = "(synthetic rows) " if is_synthetic(chains) else ""
    last = last_of_path(rows)
    if TEACHER in rows.index and last is not None:
        teacher, small = rows.loc[TEACHER], rows.loc[last]
        sentences.append(
            f"**{label}** {synthetic}- the teacher reaches {teacher['accuracy']:.1f} % of {teacher['rows']:,.0f} rows; "
            f"{small['model']} reaches {small['accuracy']:.1f} %, which is {small['kept']:.1f} % of the teacher's "
            f"(`{small['folder']}`)."
        )
    for step, before, after in path_steps(rows, main_student(records.chains)):
        found = compare(chains, split, before, after) if before else None
        if found is not None:
            sentences.append(_step_sentence(label, step, found, rows.loc[after, "folder"]))
    return sentences


def _step_sentence(label: str, step: str, found: dict, folder: str) -> str:
    interval = "" if found["low"] is None else f", 95 % interval {signed(found['low'])} to {signed(found['high'])}"
    p_value = "" if math.isnan(found["p_value"]) else f", p {p_value_text(found['p_value']).replace('<', '< ')}"
    seeds = f"{found['seeds']} seed{'s' if found['seeds'] > 1 else ''}"
    return (
        f"{label}: {step} {effect_words(step, found['difference'], found['p_value'])}: "
        f"{signed(found['difference'])} points{interval}{p_value} ({found['test']}, {seeds}, `{folder}`)."
    )


def _on_cost(task: str, rows: pd.DataFrame, longest: str | None, protocol: str) -> list[str]:
    """Savings of the smallest model of the main path against the teacher, and of quantization against its source."""
    last = last_of_path(rows)
    if TEACHER not in rows.index or last is None:
        return []
    teacher, small = rows.loc[TEACHER], rows.loc[last]
    parts = []
    if not pd.isna(small["smaller"]):
        parts.append(
            f"a file {small['smaller']:.2f} times smaller ({teacher['megabytes']:.2f} to {small['megabytes']:.2f} MB)"
        )
    if not pd.isna(small["fewer"]):
        parts.append(f"{small['fewer']:.2f} times fewer stored weights")
    macs = f"macs_{longest}"
    if macs in rows and small[macs] > 0:
        parts.append(f"{teacher[macs] / small[macs]:.2f} times fewer MACs at {longest}")
    sentences = [f"{task}: against the teacher, {small['model']} has {', '.join(parts)}."] if parts else []
    column = f"speed_up_{longest}"
    if column in rows and not pd.isna(small[column]):
        sentences.append(_speed_sentence(task, small, column, longest, protocol))
        before = unquantized_key(rows, small) if small["quantized"] else None
        if before is not None and f"latency_{longest}" in rows:
            ratio = rows.loc[before, f"latency_{longest}"] / small[f"latency_{longest}"]
            word = "faster" if ratio > 1 else "slower"
            sentences.append(
                f"{task}: quantization alone makes it {max(ratio, 1 / ratio):.2f} times {word} at "
                f"{longest} with one thread{protocol}, while the number of MACs stays what it was."
            )
    return sentences


def _speed_sentence(task: str, small: pd.Series, column: str, longest: str | None, protocol: str) -> str:
    ratio, low, high = (small[name] for name in (column, f"{column}_low", f"{column}_high"))
    interval = "" if pd.isna(low) else f" (95 % interval {low:.2f} to {high:.2f})"
    noisy = ", on noisy timings" if bool(small.get(f"latency_{longest}_noisy", False)) else ""
    where = f"{interval} at {longest} with one thread{noisy}{protocol}"
    if low <= 1 <= high:
        return f"{task}: its speed cannot be told from the teacher's: speed-up {ratio:.2f}{where}."
    if ratio >= 1:
        return f"{task}: it answers {ratio:.2f} times as fast as the teacher{where}."
    return f"{task}: it is **slower** than the teacher: speed-up {ratio:.2f}{where}."


def _protocol_words(records: StudyRecords, task: str) -> str:
    """What a time has to say of the protocol it was taken by: nothing for the full one."""
    measured = [chain.measurement.results for chain in records.of_task(task) if chain.measurement]
    return ", by the quick protocol" if any(results.get("protocol") == "quick" for results in measured) else ""


def _on_interaction(records: StudyRecords) -> list[str]:
    sentences = []
    for task, ratio in latency_interactions(records).items():
        interval = "" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
        sentences.append(
            f"{task}: pruned and quantized together, a model needs {ratio.value:.2f}{interval} times the latency that "
            "the two gains multiplied would give (1: no interaction; under 1: together they gain more)"
            f"{_protocol_words(records, task)}."
        )
    return sentences
