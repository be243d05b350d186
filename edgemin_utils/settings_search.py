"""The small search behind the laptop profile's student and `recipe=edge`: models under changed settings, judged on
train rows that nothing was trained on. Dev rows play no part in it.

`python -m edgemin_utils.settings_search --data-dir DIR --teacher DIR` trains what is not on disk yet (about an hour on
one core) and writes the table `sst2` to `outputs/reference/search`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from edgemin_utils.chain import TEACHER, distillation_key
from edgemin_utils.config import load_settings, project_folder
from edgemin_utils.errors import EdgeMINError
from edgemin_utils.evaluation import load_stage_model, tokenized_task
from edgemin_utils.records import Run
from edgemin_utils.reference_study import PROFILE, input_options
from edgemin_utils.stages import run_stage
from edgemin_utils.statistics import accuracy_interval, compare_predictions
from edgemin_utils.tables import Table, as_text, read_study, table_notes, write_table
from edgemin_utils.training import predict

TASK = "sst2"
# 10 % of the train rows, as in the study, and as many again, less a tenth, to judge by.
ROWS = {"train_fraction": 1.0, "train_rows": 6735, "holdout_fraction": 0.9}
FOLDER = "search"


@dataclass(frozen=True)
class Trial:
    """One model to judge.

    Attributes:
        model: key of its stage.
        baseline: key of the model, under unchanged settings, that it is set against.
        changes: what differs from the profile's settings.
    """

    model: str
    baseline: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def _student(**changes: Any) -> Trial:
    student = distillation_key("minilmv2")
    return Trial(student, student, changes)


def _compressed_teacher(cut: str, scheme: str = "") -> Trial:
    recipe = f"teacher+prune:{cut}+quantize:{scheme or 'onnx-int4-gptq-embeddings'}"
    kind, way = ("quantization", f"{cut}+{scheme}") if scheme else ("pruning", cut)
    return Trial(f"{kind}/teacher+{way}", TEACHER, {"recipe": [recipe]})


_WORDS = "vocabulary-all-rows-most-12000"
_WORDS_AND_NEURONS = "gradient-neurons-0.25-multiple-32-vocabulary-all-rows-most-16000"
# What trains the teacher anew comes last: a stage's folder holds one model.
TRIALS: Sequence[Trial] = (
    Trial(TEACHER, TEACHER),
    _compressed_teacher(_WORDS),
    _compressed_teacher(f"{_WORDS}-without-recovery"),
    _compressed_teacher(f"{_WORDS}-without-recovery", "onnx-int4-embeddings"),
    _compressed_teacher(f"{_WORDS}-without-recovery", "onnx-int4-gptq-embeddings"),
    _compressed_teacher(_WORDS_AND_NEURONS),
    _compressed_teacher(f"{_WORDS_AND_NEURONS}-without-recovery"),
    _student(),
    _student(relation_heads=12),
    _student(distillation_epochs=3.0, distillation_learning_rate=1e-4, relation_heads=12),
    _student(prediction_learning_rate=1e-4),
    _student(soft_target_weight=0.9),
    _student(student_from_layers=[0, 1, 2]),
    _student(student_from_layers=[0, 2, 4]),
    _student(dropout=0.0),
)


def trial_run(trial: Trial, folder: Path, data_dir: str, teacher: str) -> Run:
    """The chain that a trial's model belongs to, in the search's folder."""
    settings = load_settings(PROFILE, {**ROWS, "data_dir": data_dir, "teacher": teacher, **trial.changes})
    return Run(settings, TASK, 0, folder)


def search(trials: Sequence[Trial], folder: Path, data_dir: str, teacher: str) -> Iterator[tuple[Trial, Path]]:
    """Trains and judges one trial after the other; a trial whose answers are on disk is not computed again.

    Args:
        folder: where models and answers lie.
        data_dir: folder of GLUE's rows.
        teacher: hub id or folder of the teacher's checkpoint.

    Yields:
        the trial and the file of its answers, two int64 arrays (hold-out rows,): `label` and `prediction`.
    """
    for trial in trials:
        run = trial_run(trial, folder, data_dir, teacher)
        path = folder / "answers" / f"{run.fingerprint(trial.model)}.npz"
        if not path.is_file():
            for key in _way_to(run, trial.model):
                run_stage(run, key)
            labels, predictions = _answers(run, trial.model)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npz")
            np.savez_compressed(partial, label=labels, prediction=predictions)
            partial.replace(path)
        yield trial, path


def search_table(found: Sequence[tuple[Trial, Path]]) -> pd.DataFrame:
    """One row a trial: model, changed settings, hold-out rows, accuracy in % with its 95 % interval (Wilson), and the
    paired difference to the trial's baseline in points with its interval and p-value (exact McNemar test)."""
    answers = [(trial, dict(np.load(path))) for trial, path in found]
    unchanged = {trial.model: held for trial, held in answers if trial.model == trial.baseline and not trial.changes}
    rows = []
    for trial, held in answers:
        right = held["prediction"] == held["label"]
        interval = accuracy_interval(int(right.sum()), len(right))
        row = {
            "model": trial.model,
            "changed_settings": _changed(trial),
            "holdout_rows": len(right),
            "accuracy": 100 * right.mean(),
            "accuracy_low": 100 * interval.low,
            "accuracy_high": 100 * interval.high,
        }
        baseline = unchanged.get(trial.baseline)
        if baseline is not None and baseline is not held:
            tested = compare_predictions(baseline["prediction"], held["prediction"], held["label"])
            row |= {
                "compared_with": trial.baseline,
                "difference": 100 * tested["difference"],
                "difference_low": 100 * tested["low"],
                "difference_high": 100 * tested["high"],
                "p_value": tested["p_value"],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def titled_table(found: Sequence[tuple[Trial, Path]], folder: Path) -> Table:
    """`search_table` with its title and notes.

    Args:
        found: what `search` yields.
        folder: the search's, with the records of its chain.
    """
    # One trial's stages take another's place: what is left of an earlier one is no news.
    records = replace(read_study(folder), notes=())
    notes = (
        "Accuracy: on train rows that nothing was trained on, in brackets Wilson's 95 % interval.",
        "Difference: percentage points to the same model under unchanged settings (cuts of the teacher: to the teacher "
        "uncut), with its paired 95 % interval; p from the exact McNemar test, not corrected for several tests. One "
        "run each: other seeds move a model by more than the interval says.",
        *table_notes(records),
    )
    return Table(TASK, "Settings compared on hold-out rows", search_table(found), notes)


def _way_to(run: Run, key: str) -> list[str]:
    """Keys of the stages that a model needs, itself last, in the order in which they run."""
    needed, open_keys = set(), [key]
    while open_keys:
        found = open_keys.pop()
        needed.add(found)
        open_keys += [name for name in run.stage(found).upstream if name not in needed]
    return [name for name in run.plan if name in needed]


def _answers(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of the hold-out rows."""
    tokenizer, model = load_stage_model(run, key)
    rows = tokenized_task(run, tokenizer, [model])
    logits = predict(model, rows.holdout, tokenizer, run.settings.evaluation_batch_size)
    return np.asarray(rows.holdout["labels"]), logits.argmax(axis=1)


def _changed(trial: Trial) -> str:
    """A trial's changes in words, without a recipe, which the model's name spells out."""
    changes = [f"{name}={_text(value)}" for name, value in trial.changes.items() if name != "recipe"]
    return "; ".join(changes) or "none"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the search, writes its table beside the reference results and prints it."""
    options = input_options("settings_search", __doc__.splitlines()[0]).parse_args(arguments)
    console, outputs = Console(), project_folder() / "outputs"
    folder = (Path(options.output_dir).expanduser().absolute() if options.output_dir else outputs) / FOLDER
    found = []
    try:
        for trial, path in search(TRIALS, folder, options.data_dir, options.teacher):
            found.append((trial, path))
            console.print(
                f"{len(found)} of {len(TRIALS)}: {trial.model}, {dict(trial.changes) or 'unchanged'}", highlight=False
            )
    except EdgeMINError as error:
        console.print(f"edgemin: {error}", highlight=False, markup=False)
        return 1
    table = titled_table(found, folder)
    written = write_table(table, outputs / "reference" / FOLDER)
    print(as_text(table.frame))
    print(f"search: {written[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
