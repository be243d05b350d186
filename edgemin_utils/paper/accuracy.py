"""What studies on disk say about the paper's accuracy claims: accuracy and retention of the paper's pipeline, always
beside the student that was never distilled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemin_utils.chain import RECIPES, TEACHER
from edgemin_utils.errors import StageError
from edgemin_utils.number_text import percent
from edgemin_utils.records import Record
from edgemin_utils.statistics import Estimate, accuracy_interval, mean_with_interval, retention_over_seeds
from edgemin_utils.tables.summary import predictions_of, right_rows
from edgemin_utils.tables.variants import Chain, StudyRecords, is_synthetic, read_study


def study_accuracy(study: Path | StudyRecords, recipe: str = "paper") -> list[dict[str, Any]]:
    """One row a task and dev split of a study that has a recipe whole, by default the paper's pipeline (distilled,
    pruned, INT8).

    Args:
        study: folder or records.
        recipe: a name of `chain.RECIPES`.

    Returns:
        rows of task, split, profile, study (one sentence), papers_models (whether the models are the paper's own),
        seeds, accuracy and kept (share of the teacher's accuracy) of the final model, undistilled_accuracy and
        undistilled_kept of the student without distillation, each with _low and _high (one seed: Wilson's and the
        paired bootstrap interval; several: Student's t), None where it is missing; undistilled_form ("compressed alike"
        or "not compressed"). Where the recipe is another one and every chain has the paper's too, paper_accuracy and
        paper_kept. Studies on synthetic rows give none.
    """
    records = study if isinstance(study, StudyRecords) else read_study(study)
    rows = []
    for task in records.tasks:
        ended = [
            (chain, final)
            for chain in records.of_task(task)
            if TEACHER in chain.models and (final := _final(chain, recipe))
        ]
        if not ended or is_synthetic([chain for chain, _ in ended]):
            continue
        for split in ended[0][0].models[TEACHER].results["metrics"]:
            rows.append(_row(records.study.name, task, split, ended, recipe))
    return rows


def share_text(row: Mapping[str, Any], name: str) -> str:
    """A share of one of the rows of `study_accuracy` in percent with its interval; "not there" for None."""
    if row.get(name) is None:
        return "not there"
    return percent(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"), unit=" %")


def _row(study: str, task: str, split: str, ended: Sequence[tuple[Chain, Record]], recipe: str) -> dict[str, Any]:
    """`ended`: the chains that have the recipe whole, each with the model at its end."""
    chains, finals = [chain for chain, _ in ended], [final for _, final in ended]
    plain = [_undistilled(chain, final) for chain, final in ended]
    teachers = [_correct(chain.models[TEACHER], split) for chain in chains]
    several = task if len(chains[0].models[TEACHER].results["metrics"]) == 1 else f"{task} {split}"
    profile = finals[0].content["profile"]
    row = {
        "task": several,
        "split": split,
        "profile": profile,
        "seeds": len(chains),
        "study": f"study {study} ({profile} profile, {len(chains)} seed{'s' * (len(chains) > 1)} of {task})",
        "papers_models": all(_is_papers(chain, final) for chain, final in ended),
        "undistilled_form": "compressed alike"
        if plain[0] is not None and plain[0].content["quantized"]
        else "not compressed",
    }
    row |= _estimates("", teachers, [_correct(record, split) for record in finals])
    papers = [_final(chain, "paper") for chain in chains] if recipe != "paper" else []
    for prefix, models in (("paper_", papers), ("undistilled_", plain)):
        there = [_correct(record, split) for record in models if record is not None]
        if len(there) == len(chains):
            row |= _estimates(prefix, teachers, there)
    return {"undistilled_accuracy": None, "undistilled_kept": None, **row}


def _estimates(prefix: str, teachers: Sequence[np.ndarray], models: Sequence[np.ndarray]) -> dict[str, Any]:
    """Accuracy and retention with their intervals, over one or several seeds."""
    if len(models) == 1:
        own = models[0]
        interval = accuracy_interval(int(own.sum()), len(own))
        accuracy = Estimate(float(own.mean()), interval.low, interval.high)
    else:
        accuracy = mean_with_interval([own.mean() for own in models])
    kept = retention_over_seeds([*zip(teachers, models, strict=True)])
    return {
        f"{prefix}{name}{end}": value
        for name, item in (("accuracy", accuracy), ("kept", kept))
        for end, value in (("", item.value), ("_low", item.low), ("_high", item.high))
    }


def _final(chain: Chain, recipe: str) -> Record | None:
    """The model at the end of a recipe; of several ways to take its steps (as by another scheme), the paper's."""
    found = [record for record in chain.models.values() if _took(record.content["steps"], RECIPES[recipe])]
    found.sort(key=lambda record: (record.content["steps"][-1] != "quantize:dynamic-int8", record.key))
    return found[0] if found else None


def _took(steps: Sequence[str], recipe: Sequence[str]) -> bool:
    """Whether steps, spelled out, are a recipe's, which leaves some open."""
    return len(steps) == len(recipe) and all(
        step == asked or step.split(":", 1)[0] == asked for step, asked in zip(steps, recipe, strict=True)
    )


def _undistilled(chain: Chain, final: Record) -> Record | None:
    """The student without distillation, compressed like the final model, else as it was trained."""
    alike = [
        record
        for record in chain.models.values()
        if record.content["student"] == "none" and tuple(record.content["steps"]) == tuple(final.content["steps"][1:])
    ]
    return alike[0] if alike else chain.models.get("distillation/none")


def _is_papers(chain: Chain, final: Record) -> bool:
    """Whether a chain's teacher, and the student that its final model was made from, are the paper's architectures."""

    def shape(model: Mapping[str, Any]) -> tuple:
        return model["family"], model["layers"], model["hidden_size"]

    student = chain.models.get(f"distillation/{final.content['student']}", final)
    return (shape(chain.models[TEACHER].results["model"]), shape(student.results["model"])) == (
        ("distilbert", 6, 768),
        ("bert", 12, 384),
    )


def _correct(record: Record, split: str) -> np.ndarray:
    """bool (rows,): whether each dev row was predicted right, in the rows' own order.

    Raises:
        StageError: the record's predictions are not there.
    """
    answers = predictions_of(record, split)
    if answers is None:
        raise StageError(f"{record.folder} holds no predictions of {split}; run the chain's command again")
    return right_rows(answers)
