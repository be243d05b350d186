"""Tables that set methods side by side: objectives, cuts, quantization schemes, and orders of the steps.

Each takes what a study's records hold, whatever was asked for by `compared_objectives`, `compared_cuts`,
`compared_schemes` and `recipe`. A method that was refused stands in its table with the reason. Where several models are
tested against the same one, p-values are Holm's (`p_holm`), over the rows of one task and dev split.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edgemin_utils.chain import TEACHER, distillation_key
from edgemin_utils.objectives import OBJECTIVES, read_student
from edgemin_utils.records import Record
from edgemin_utils.statistics import holm_correction, mean_with_interval
from edgemin_utils.tables.summary import as_records, columns_of, compare, summarize
from edgemin_utils.tables.variants import (
    Chain,
    StudyRecords,
    is_synthetic,
    kinds_since_student,
    main_student,
    objective_name,
    orders_of_steps,
    source_key,
    what_of,
)


def objectives_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, dev split and objective: what the student reaches, what distillation adds to the same student
    without it (paired, `p_holm`), how long the training took, and what the objective demands of the architecture."""
    records = as_records(study)
    table = _compared(records, _is_student, lambda chain, key: distillation_key("none"))
    students = [content["student"] for content in table.pop("content")]
    table["method"] = [objective_name(student) for student in students]
    table["training_seconds"] = _mean_of(records, table, _training_seconds)
    table["demands"] = [
        OBJECTIVES[known.objective].demands if (known := read_student(student)) else "" for student in students
    ]
    return table[
        _present(
            table,
            [
                *_ROW,
                "parameters",
                *_ACCURACY,
                "kept",
                *_DIFFERENCE,
                "p_holm",
                "training_seconds",
                "demands",
                "refused",
                "seeds",
                "folder",
            ],
        )
    ]


def cuts_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, dev split and cut of the main student: the share of its weights that went, accuracy right after
    the cut and after recovery, the difference to the uncut student (paired, `p_holm`), operations and latency."""
    records = as_records(study)
    main = main_student(records.chains)

    def chosen(record: Record) -> bool:
        return record.content["student"] == main and kinds_since_student(record.content) == ["prune"]

    table = _compared(records, chosen, lambda chain, key: distillation_key(main or ""))
    table["method"] = [what_of(content, "prune") for content in table.pop("content")]
    table["after_cut"] = [
        _mean_over(records, row["task"], row["key"], partial(_accuracy_after_cut, split=row["split"]))
        for row in table.to_dict("records")
    ]
    table["weights_removed"] = _mean_of(records, table, lambda record: _share_removed(records, record))
    return table[
        _present(
            table,
            [
                *_ROW,
                "weights_removed",
                "parameters",
                "after_cut",
                *_ACCURACY,
                *_DIFFERENCE,
                "p_holm",
                *columns_of(table, "macs")[-1:],
                *_latency(table),
                "refused",
                "seeds",
                "folder",
            ],
        )
    ]


def schemes_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, dev split and quantization scheme of the main pruned student, under the FP32 model that all of
    them start from: accuracy, how many answers stay the same, the difference (paired, `p_holm`), size and latency."""
    records = as_records(study)
    sources = {
        source_key(record)
        for chain in records.chains
        for record in (*chain.models.values(), *chain.refused.values())
        if _is_scheme_of_main(record, records)
    }
    table = _compared(
        records,
        lambda record: record.key in sources or _is_scheme_of_main(record, records),
        lambda chain, key: source_key(chain.models[key]) if key in chain.models and key not in sources else None,
    )
    table["method"] = [what_of(content, "quantize") or "float32 (PyTorch)" for content in table.pop("content")]
    table["agreement"] = [
        _mean_over(records, row["task"], row["key"], partial(_agreement, split=row["split"]))
        for row in table.to_dict("records")
    ]
    return table[
        _present(
            table,
            [
                *_ROW,
                "megabytes",
                *_ACCURACY,
                "agreement",
                *_DIFFERENCE,
                "p_holm",
                *_latency(table),
                "refused",
                "seeds",
                "folder",
            ],
        )
    ]


def orders_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, dev split and order of the steps, for the paper's pipeline and every recipe of the study: the
    last model of each, with the difference to the teacher (paired, `p_holm`), size, operations and latency."""
    table = _orders(as_records(study), lambda chain, key: TEACHER)
    return table[
        _present(
            table,
            [
                *_ROW,
                *_ACCURACY,
                "kept",
                *_DIFFERENCE,
                "p_holm",
                "parameters",
                "megabytes",
                *columns_of(table, "macs")[-1:],
                *_latency(table),
                "refused",
                "steps_taken",
                "seeds",
                "folder",
            ],
        )
    ]


def orders_against_paper(study: Path | StudyRecords) -> pd.DataFrame:
    """The rows of `orders_table`, each with the difference to the last model of the paper's pipeline instead (paired,
    `p_holm`; blank in the paper's own row, which `papers_own` marks)."""
    records = as_records(study)
    papers = {
        (chain.task, chain.seed): key
        for chain in records.chains
        for key, record in chain.models.items()
        if _ends_papers_path(record, records)
    }
    table = _orders(records, lambda chain, key: papers.get((chain.task, chain.seed)))
    table["papers_own"] = [
        (task, key) in {(task, key) for (task, _), key in papers.items()}
        for task, key in zip(table["task"], table["key"], strict=True)
    ]
    return table[[*_ROW, "papers_own", *_ACCURACY, *_DIFFERENCE, "p_holm", "refused", "seeds", "folder"]]


def _orders(records: StudyRecords, reference: Callable[[Chain, str], str | None]) -> pd.DataFrame:
    """The last model of every order, tested against `reference` (see `_compared`), the orders' names in `method`."""

    def chosen(record: Record) -> bool:
        content = record.content
        recipe = content["compared"] and not _is_scheme_of_main(record, records) and len(content["steps"]) > 1
        return content["quantized"] and (_ends_papers_path(record, records) or recipe)

    table = _compared(records, chosen, reference)
    table["method"] = orders_of_steps(table["content"])
    table["steps_taken"] = [", ".join(content["steps"]) for content in table.pop("content")]
    return table


def _ends_papers_path(record: Record, records: StudyRecords) -> bool:
    """Whether it is the last model of the paper's pipeline: the main student, pruned and quantized."""
    content = record.content
    main = main_student(records.chains)
    return content["student"] == main and not content["compared"] and content["pruned"] and content["quantized"]


# ---- the rows ----------------------------------------------------------------------------------------------------

_ROW = ("task", "split", "synthetic", "method")
_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
_DIFFERENCE = ("difference", "difference_low", "difference_high")


def _compared(
    records: StudyRecords, chosen: Callable[[Record], bool], reference: Callable[[Chain, str], str | None]
) -> pd.DataFrame:
    """The rows of `summarize` that `chosen` picks, tested against a reference model each, refused ones behind them.

    `reference` gives the key of the model that a chain's model is tested against, or None.
    """
    contents, first = dict[str, Mapping[str, Any]](), dict[tuple[str, str], Chain]()
    for chain in records.chains:
        for record in (*chain.models.values(), *chain.refused.values()):
            if chosen(record):
                contents.setdefault(record.key, record.content)
                first.setdefault((chain.task, record.key), chain)
    frame = summarize(records)
    frame = frame[frame["key"].isin(contents)].reset_index(drop=True)
    frame["content"] = [contents[key] for key in frame["key"]]
    tested = [
        _tested(records, row, reference(first[row["task"], row["key"]], row["key"])) for row in frame.to_dict("records")
    ]
    for name in (*_DIFFERENCE, "p_value"):
        frame[name] = [row[name] for row in tested] if tested else np.nan
    frame["p_holm"] = np.nan
    for _, group in frame.groupby(["task", "split"], sort=False):
        family = group["p_value"].dropna()
        frame.loc[family.index, "p_holm"] = holm_correction(family.tolist())
    frame["refused"] = ""
    refused = [
        {
            "task": chain.task,
            "split": "",
            "key": key,
            "content": found.content,
            "refused": found.refused,
            "folder": found.folder.relative_to(records.study).as_posix(),
            "seeds": 1,
        }
        for (_, key), chain in first.items()
        if (found := chain.refused.get(key)) is not None
    ]
    if not refused:
        return frame
    split_of = {task: group["split"].iloc[0] for task, group in frame.groupby("task", sort=False)}
    extra = pd.DataFrame(refused)
    extra["split"] = extra["task"].map(split_of).fillna("")
    extra["synthetic"] = [is_synthetic(records.of_task(task)) for task in extra["task"]]
    return (
        pd.concat([frame, extra], ignore_index=True)
        if len(frame)
        else extra.reindex(columns=[*frame.columns]).assign(refused=extra["refused"])
    )


def _tested(records: StudyRecords, row: dict, reference: str | None) -> dict:
    found = (
        compare(records.of_task(row["task"]), row["split"], reference, row["key"])
        if reference and reference != row["key"]
        else None
    )
    if found is None:
        return {**dict.fromkeys(_DIFFERENCE, np.nan), "p_value": np.nan}
    return {
        "difference": found["difference"],
        "difference_low": found["low"],
        "difference_high": found["high"],
        "p_value": found["p_value"],
    }


def _is_student(record: Record) -> bool:
    """Whether it is a student as it came out of distillation, or of training without."""
    return bool(record.content["student"]) and not kinds_since_student(record.content)


def _is_scheme_of_main(record: Record, records: StudyRecords) -> bool:
    """Whether it is a quantized form of the pruned main student, with no other step on its way."""
    content = record.content
    own_cuts = {
        what_of(other.content, "prune")
        for chain in records.chains
        for other in chain.models.values()
        if other.content["pruned"] and not other.content["compared"]
    }
    return (
        content["student"] == main_student(records.chains)
        and what_of(content, "prune") in own_cuts
        and kinds_since_student(content) == ["prune", "quantize"]
    )


# ---- single columns ----------------------------------------------------------------------------------------------


def _mean_of(records: StudyRecords, table: pd.DataFrame, value: Callable[[Record], float]) -> list[float]:
    return [_mean_over(records, row["task"], row["key"], value) for row in table.to_dict("records")]


def _mean_over(records: StudyRecords, task: str, key: str, value: Callable[[Record], float]) -> float:
    """Mean over the seeds of a number that each model's record holds."""
    values = [value(chain.models[key]) for chain in records.of_task(task) if key in chain.models]
    values = [number for number in values if not pd.isna(number)]
    return mean_with_interval(values).value if values else np.nan


def _training_seconds(record: Record) -> float:
    seconds = [phase["seconds"] for phase in (record.results.get("training") or {}).get("phases") or []]
    extra = (record.results.get("seconds_by_part") or {}).get("teacher signals", 0.0)
    return sum(seconds) + extra if seconds else np.nan


def _accuracy_after_cut(record: Record, split: str) -> float:
    metrics = (record.results.get("metrics_after_cut") or {}).get(split) or {}
    return 100 * metrics.get("accuracy", np.nan)


def _agreement(record: Record, split: str) -> float:
    return 100 * (record.results.get("agreement") or {}).get(split, np.nan)


def _share_removed(records: StudyRecords, record: Record) -> float:
    """Percent of the source's stored weights that a model has lost."""
    source = next(
        (
            chain.models.get(source_key(record) or "")
            for chain in records.chains
            if chain.task == record.task and chain.seed == record.seed
        ),
        None,
    )
    if source is None:
        return np.nan
    before, after = (item.results["size"]["stored_weights"] for item in (source, record))
    return 100 * (1 - after / before)


def _latency(table: pd.DataFrame) -> list[str]:
    """The latency columns of fixed inputs, with their noise marks."""
    return [name for column in columns_of(table, "latency") for name in (column, f"{column}_noisy") if name in table]


def _present(table: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Those columns that the table has; the one on refusals only where something was refused."""
    return [name for name in columns if name in table and (name != "refused" or (table["refused"] != "").any())]
