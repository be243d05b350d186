"""Every model of a study as a candidate for use: what it gets right, weighs and takes, and whether it is on the front.

The Pareto front of a task holds the models that no other one beats: none is at least as good in accuracy, size and
latency and better in one of them.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from edgemin_utils.pareto import pareto_front
from edgemin_utils.records import Record
from edgemin_utils.tables.summary import as_records, column_of_input, longest_input, summarize, with_every_seed
from edgemin_utils.tables.variants import StudyRecords

KINDS = {
    "teacher": "teacher",
    "distillation": "student",
    "pruning": "pruned",
    "tuning": "tuned",
    "quantization": "quantized",
}
"""Kind of a model's last stage -> what the model is called."""
COMPARED_DIGITS = 4
"""Significant digits at which models are compared: saved files of equal shapes differ by a few bytes, no gain."""
USUAL_INPUT = "1x128"
KEPT_SHARES = (99, 97, 95)
"""Shares of the teacher's accuracy, in %, for which `budget_models` names the smallest and the fastest model."""
NO_DIFFERENCE = {"megabytes": 0.01, "milliseconds": 0.05}
"""Share by which two files or latencies may differ there without one counting as better: models of the same operations
were timed a few percent apart."""
EQUALLY_GOOD = (
    f"of files within {100 * NO_DIFFERENCE['megabytes']:.0f} % of the smallest and latencies within "
    f"{100 * NO_DIFFERENCE['milliseconds']:.0f} % of the shortest, that of the model which keeps most"
)
"""The rule in words."""


def candidates(study: Path | StudyRecords, input_name: str | None = None) -> pd.DataFrame:
    """One row per task and model, by the first dev split of its task.

    Args:
        study: its folder or records.
        input_name: whose one-thread latency counts, e.g. "1x128" or "dev rows"; without it the longest fixed one.

    Returns:
        task, split, synthetic, key, model, kind (see `KINDS`), student (that it comes from, see `chain.Stage`),
        distilled, seeds, accuracy (%, mean over seeds, with accuracy_low and accuracy_high), kept, megabytes (10^6
        bytes), input, milliseconds (median; blank where it was not timed), milliseconds_noisy, on_front (within the
        task), bundle_from (folder of the stage that a bundle is built from, relative to the study; of the first seed),
        folder.
    """
    records = as_records(study)
    frame = summarize(records)
    frame["input"] = input_name or longest_input(frame) or USUAL_INPUT
    latency = column_of_input("latency", next(iter(frame["input"]), USUAL_INPUT))
    first = frame.groupby("task")["split"].transform("min")
    frame = frame[frame["split"] == first].reset_index(drop=True)
    for name, source in (("milliseconds", latency), ("milliseconds_noisy", f"{latency}_noisy")):
        frame[name] = frame[source] if source in frame else np.nan
    frame["kind"] = [KINDS[key.split("/")[0]] for key in frame["key"]]
    frame["bundle_from"] = [_bundle_folder(records, row["task"], row["key"]) for row in frame.to_dict("records")]
    frame["on_front"] = False
    for _, rows in frame.groupby("task", sort=False):
        frame.loc[rows.index, "on_front"] = on_front(rows)
    return frame[
        [
            "task",
            "split",
            "synthetic",
            "key",
            "model",
            "kind",
            "student",
            "distilled",
            "seeds",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "kept",
            "megabytes",
            "input",
            "milliseconds",
            "milliseconds_noisy",
            "on_front",
            "bundle_from",
            "folder",
        ]
    ]


def on_front(rows: pd.DataFrame, objectives: tuple[str, ...] = ("accuracy", "megabytes", "milliseconds")) -> np.ndarray:
    """Which of the candidates are on their Pareto front, at `COMPARED_DIGITS`; accuracy is to be large, the others
    small. What was not measured counts as the worst, so it never beats what was.

    Returns:
        (rows,), bool.
    """
    values = rows[list(objectives)].astype(float).to_numpy() * [
        -1.0 if name == "accuracy" else 1.0 for name in objectives
    ]
    rounded = [[float(f"{value:.{COMPARED_DIGITS}g}") for value in row] for row in values]
    return pareto_front(np.nan_to_num(np.reshape(rounded, values.shape), nan=np.inf, posinf=np.inf, neginf=-np.inf))


def best_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Candidates by falling accuracy; of equal ones the faster first, then the smaller."""
    return rows.sort_values(["accuracy", "milliseconds", "megabytes"], ascending=[False, True, True], kind="stable")


def bundle_stage(record: Record) -> str:
    """Key of the stage whose folder `edgemin bundle` takes for a model. The bundle quantizes float weights by itself,
    so for a quantized model it is the float stage that it came from."""
    return record.content["source"] if record.content["quantized"] else record.key


def recommended_models(study: Path | StudyRecords) -> pd.DataFrame:
    """The Pareto front of each task, best accuracy first: accuracy, file, latency of the longest input with one thread,
    and in the csv file the stage that its bundle is built from."""
    front = candidates(study).query("on_front")
    return as_shown(pd.concat([best_first(rows) for _, rows in front.groupby("task", sort=False)] or [front]))


def budget_models(study: Path | StudyRecords) -> pd.DataFrame:
    """Two rows per task and share of the teacher's accuracy: the smallest and the fastest model that keep at least as
    much, by point estimate, with the columns of `recommended_models`: of those within `NO_DIFFERENCE` of the smallest
    or fastest, the one that keeps most. Models that exist with fewer seeds than others are not candidates. A task has
    none for a share that only its teacher keeps, and no fastest if nothing was timed.
    """
    every = candidates(study)
    chosen = []
    for _, of_task in every.groupby("task", sort=False):
        models = with_every_seed(of_task)
        for share in KEPT_SHARES:
            enough = best_first(models[models["kept"] >= share])
            if set(enough["kind"]) <= {"teacher"}:
                continue
            for goal, column in (("smallest", "megabytes"), ("fastest", "milliseconds")):
                least = enough[enough[column] <= (1 + NO_DIFFERENCE[column]) * enough[column].min()]
                if len(least):
                    chosen.append({"at_least": share, "goal": goal} | least.iloc[0].to_dict())
    frame = pd.DataFrame(chosen, columns=["at_least", "goal", *every])
    shown = as_shown(frame)
    shown.insert(2, "at_least", frame["at_least"])
    shown.insert(3, "goal", frame["goal"])
    return shown


def as_shown(rows: pd.DataFrame) -> pd.DataFrame:
    """Candidates as a table, with the latency named by its input."""
    latency = column_of_input("latency", next(iter(rows["input"]), USUAL_INPUT))
    rows = rows.rename(columns={"milliseconds": latency, "milliseconds_noisy": f"{latency}_noisy"})
    return rows[
        [
            "task",
            "split",
            "model",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "kept",
            "megabytes",
            latency,
            f"{latency}_noisy",
            "seeds",
            "bundle_from",
            "folder",
        ]
    ].reset_index(drop=True)


def split_notes(rows: pd.DataFrame) -> tuple[str, ...]:
    """Which dev split counts, for tasks with a split of another name than just "dev"."""
    pairs = rows[["task", "split"]].drop_duplicates().itertuples(index=False)
    return tuple(f"{task}: accuracy on {split}." for task, split in pairs if split not in ("dev", "validation"))


def _bundle_folder(records: StudyRecords, task: str, key: str) -> str:
    chain = next(chain for chain in records.of_task(task) if key in chain.models)
    return f"{task}/seed-{chain.seed}/{bundle_stage(chain.models[key])}"
