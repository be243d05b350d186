"""What studies on disk say about the paper's accuracy claims: accuracy and retention of the paper's pipeline, always
beside the student that was never distilled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils.chain import TEACHER
from edgemin_utils.records import Record
from edgemin_utils.statistics import Estimate, accuracy_interval, mean_with_interval, retention
from edgemin_utils.tables.variants import Chain, StudyRecords, is_synthetic, read_study

PIPELINE = ("distill", "prune", "quantize")


def study_accuracy(study: Path | StudyRecords) -> list[dict[str, Any]]:
    """One row a task and dev split of a study that has the paper's pipeline whole (distilled, pruned, INT8).

    Returns:
        rows of task, split, profile, study (one sentence), papers_models (whether the models are the paper's own),
        seeds, accuracy and kept (share of the teacher's accuracy) of the final model, undistilled_accuracy and
        undistilled_kept of the student without distillation, each with _low and _high (one seed: Wilson's and the
        paired bootstrap interval; several: Student's t), None where it is missing; undistilled_form ("compressed alike"
        or "not compressed"). Studies on synthetic rows give none.
    """
    records = study if isinstance(study, StudyRecords) else read_study(study)
    rows = []
    for task in records.tasks:
        pipelines = [(chain, final) for chain in records.of_task(task)
                     if TEACHER in chain.models and (final := _final(chain))]
        if not pipelines or is_synthetic([chain for chain, _ in pipelines]):
            continue
        for split in pipelines[0][0].models[TEACHER].results["metrics"]:
            rows.append(_row(records.study.name, task, split, pipelines))
    return rows


def _row(study: str, task: str, split: str, pipelines: Sequence[tuple[Chain, Record]]) -> dict[str, Any]:
    """A row from chains and the model at the end of each one's pipeline."""
    chains, finals = [chain for chain, _ in pipelines], [final for _, final in pipelines]
    plain = [record for chain, final in pipelines if (record := _undistilled(chain, final))]
    teachers = [_correct(chain.models[TEACHER], split) for chain in chains]
    several = task if len(chains[0].models[TEACHER].results["metrics"]) == 1 else f"{task} {split}"
    profile = finals[0].content["profile"]
    row = {"task": several, "split": split, "profile": profile, "seeds": len(chains),
           "study": f"study {study} ({profile} profile, {len(chains)} seed{'s' * (len(chains) > 1)} of {task})",
           "papers_models": all(_is_papers(chain.models[TEACHER], final) for chain, final in pipelines),
           "undistilled_form": "compressed alike" if plain and plain[0].content["quantized"] else "not compressed"}
    row |= _estimates("", teachers, [_correct(record, split) for record in finals])
    if len(plain) == len(chains):
        return row | _estimates("undistilled_", teachers, [_correct(record, split) for record in plain])
    return row | {"undistilled_accuracy": None, "undistilled_kept": None}


def _estimates(prefix: str, teachers: Sequence[np.ndarray], models: Sequence[np.ndarray]) -> dict[str, Any]:
    """Accuracy and retention with their intervals, over one or several seeds."""
    if len(models) == 1:
        own = models[0]
        interval = accuracy_interval(int(own.sum()), len(own))
        accuracy = Estimate(float(own.mean()), interval.low, interval.high)
        kept = retention(teachers[0], own)
    else:
        accuracy = mean_with_interval([own.mean() for own in models])
        kept = mean_with_interval([own.mean() / teacher.mean() for own, teacher in zip(models, teachers, strict=True)])
    return {f"{prefix}{name}{end}": value for name, item in (("accuracy", accuracy), ("kept", kept))
            for end, value in (("", item.value), ("_low", item.low), ("_high", item.high))}


def _final(chain: Chain) -> Record | None:
    """The model at the end of the paper's pipeline: dynamic INT8 of a pruned, distilled student."""
    found = [record for record in chain.models.values()
             if tuple(step.split(":", 1)[0] for step in record.content["steps"]) == PIPELINE]
    found.sort(key=lambda record: (record.content["steps"][-1] != "quantize:dynamic-int8", record.key))
    return found[0] if found else None


def _undistilled(chain: Chain, final: Record) -> Record | None:
    """The student without distillation, compressed like the final model, else as it was trained."""
    alike = [record for record in chain.models.values() if record.content["student"] == "none"
             and tuple(record.content["steps"]) == tuple(final.content["steps"][1:])]
    return alike[0] if alike else chain.models.get("distillation/none")


def _is_papers(teacher: Record, student: Record) -> bool:
    """Whether teacher and student are the paper's architectures."""
    def shape(model: Mapping[str, Any]) -> tuple:
        return model["family"], model["layers"], model["hidden_size"]

    return (shape(teacher.results["model"]), shape(student.results["model"])) == (
        ("distilbert", 6, 768), ("bert", 12, 384))


def _correct(record: Record, split: str) -> np.ndarray:
    """bool (rows,): whether each dev row was predicted right, in the rows' own order."""
    frame = pd.read_csv(record.folder / f"predictions-{split}.csv").sort_values("row", kind="stable")
    return (frame["label"] == frame["prediction"]).to_numpy()
