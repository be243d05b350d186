"""The study's tables: which columns each one shows, with titles and notes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from edgemin_utils.tables.comparisons import cuts_table, objectives_table, orders_table, schemes_table
from edgemin_utils.tables.factorial import factorial_effects, factorial_table
from edgemin_utils.tables.overview import KEPT_SHARE, overview
from edgemin_utils.tables.recommended import (
    COMPARED_DIGITS,
    EQUALLY_GOOD,
    budget_models,
    recommended_models,
    split_notes,
)
from edgemin_utils.tables.summary import (
    as_records,
    columns_of,
    latencies,
    longest_input,
    name_models,
    own_models,
    spread_latency,
    summarize,
)
from edgemin_utils.tables.variants import StudyRecords, describe_data, is_synthetic

MAIN_TABLE = "main_results"
"""Name of the table that a report always has."""


@dataclass(frozen=True)
class Table:
    """A table with the numbers (`frame`), its file name, its title and what a reader must know beside it."""

    name: str
    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def main_results(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, dev split and model of the study's own path and factorial: what it gets right, what it keeps of
    the teacher, and how it differs from the model it came from. Models that are there for comparison only stand in the
    tables of `comparisons`. The columns are those of `summary.summarize`."""
    columns = [
        "task",
        "split",
        "model",
        "accuracy",
        "f1",
        "matthews_correlation",
        "kept",
        "difference",
        "p_value",
        "test",
        "compared_with",
        "rows",
        "seeds",
        "folder",
    ]
    return _choose(own_models(summarize(study)), columns)


def cost_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task and model: stored weights, file, multiply-accumulates of one forward pass, median latency of
    one row with one thread, speed-up over the teacher, peak memory of a fresh process."""
    frame = _one_row_per_model(summarize(study))
    longest = longest_input(frame)
    columns = [
        "task",
        "model",
        "parameters",
        "listed_parameters",
        "fewer",
        "megabytes",
        "smaller",
        *([f"macs_{longest}"] if longest else []),
        *columns_of(frame, "latency"),
        *([f"speed_up_{longest}"] if f"speed_up_{longest}" in frame else []),
        *([f"of_bound_{longest}"] if f"of_bound_{longest}" in frame else []),
        "peak_memory",
        "memory_baseline",
        "folder",
    ]
    return _choose(frame, columns)


def latency_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, thread count and model: median latency and speed-up over the teacher for every input.

    The interquartile ranges, 90th percentiles and run counts stand in columns that `layout.readable` leaves out.
    """
    records = as_records(study)
    frame = latencies(records)
    if frame.empty:
        return pd.DataFrame(columns=["task", "threads", "model", "folder"])
    frame = name_models(records, spread_latency(frame, ["task", "key", "threads"]))
    frame = pd.concat(
        [group.sort_values("threads", kind="stable") for _, group in frame.groupby("task", sort=False)],
        ignore_index=True,
    )
    wide = [name for name in frame if name.startswith(("latency_", "speed_up_", "of_bound_"))]
    return frame[["task", "threads", "model", *wide, "folder"]]


def training_time_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task and model: how long its stage took, and how fast its training loop ran (means over seeds)."""
    records = as_records(study)
    rows = []
    for chain in records.chains:
        for key, record in chain.models.items():
            phases = (record.results.get("training") or {}).get("phases") or []
            seconds = [phase["seconds"] for phase in phases]
            seen = sum(phase["examples_per_second"] * phase["seconds"] for phase in phases)
            rows.append(
                {
                    "task": chain.task,
                    "key": key,
                    "epochs": sum(phase["epochs"] for phase in phases) or np.nan,
                    "steps": sum(phase["steps"] for phase in phases) or np.nan,
                    "training_seconds": sum(seconds) or np.nan,
                    "examples_per_second": seen / sum(seconds) if sum(seconds) else np.nan,
                    "stage_seconds": record.content.get("wall_seconds", np.nan),
                }
            )
    if not rows:
        return pd.DataFrame(columns=["task", "model", "stage_seconds", "folder"])
    frame = pd.DataFrame(rows).groupby(["task", "key"], sort=False).mean().reset_index()
    return _choose(
        name_models(records, frame),
        ["task", "model", "epochs", "steps", "examples_per_second", "training_seconds", "stage_seconds", "folder"],
    )


def chains_table(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per chain: what its records hold, and how long it took to compute them."""
    rows = []
    for chain in as_records(study).chains:
        records = [
            *chain.models.values(),
            *(chain.scans or {}).values(),
            *([chain.measurement] if chain.measurement else []),
        ]
        finished = max((record.content.get("finished", "") for record in records), default="")
        rows.append(
            {
                "task": chain.task,
                "seed": chain.seed,
                "models": len(chain.models),
                "scans": len(chain.scans or {}),
                "measured": chain.measurement is not None,
                "stage_seconds": sum(record.content.get("wall_seconds", 0.0) for record in records),
                "finished": finished,
                "folder": f"{chain.task}/seed-{chain.seed}",
            }
        )
    return pd.DataFrame(
        rows, columns=["task", "seed", "models", "scans", "measured", "stage_seconds", "finished", "folder"]
    )


def main_table(study: Path | StudyRecords) -> Table:
    """`main_results` with its title and notes."""
    records = as_records(study)
    accuracy = (
        "Brackets hold 95 % intervals: Wilson's of the dev rows for one seed, Student's t over several seeds.",
        "Difference: percentage points to the model it was made from, and of students to the teacher, with its paired "
        "95 % interval; p from the exact McNemar test (one seed) or Student's t over the seeds, not corrected for "
        "several tests.",
        "Kept: accuracy in % of the teacher's. F1: of the positive class, the classes' mean where there are more than "
        "two. MCC: Matthews correlation coefficient.",
    )
    return Table(
        MAIN_TABLE,
        f"Accuracy per task and model{data_kind(records)}",
        main_results(records),
        (*accuracy, *table_notes(records)),
    )


def overview_table(study: Path | StudyRecords) -> Table:
    """`overview` with its title and notes."""
    records = as_records(study)
    frame = overview(records)
    said = [
        "Brackets hold 95 % intervals: of accuracies over the dev rows for one seed, over the seeds for several, which "
        "tells what another training would give on the same rows, not what other rows would; of times over the rounds "
        "of one measurement. A step's points are those of the model after it less those of the model before it; an "
        "interval that holds 0 leaves open whether there is a difference.",
        "The path is the paper's (heads are ranked by their gradient, as its literature review advises, where the "
        "paper names magnitude); its last model is the last that is there.",
    ]
    about = {
        "MB of teacher": "MB are 10^6 bytes of the saved weights; the tokenizer is not counted.",
        "Times faster at": "Times are latencies of one row with one thread; by pruning and by quantization: against "
        "the same student without that step.",
        "Interaction": "Interaction: latency with both steps over what their gains multiplied would give, 1 for none, "
        "over 1 if they hinder each other.",
        "Smallest model": f"Smallest and fastest: of the models that keep {KEPT_SHARE} % of the teacher's accuracy, by "
        f"point estimate, and were made with every seed of the task; {EQUALLY_GOOD}.",
    }
    shown = [note for row, note in about.items() if frame["quantity"].str.startswith(row).any()]
    said += [" ".join(shown)] if shown else []
    said.append("Stage: the folder in each chain, TASK/seed-N, that the row's model lies in.")
    return Table(
        "overview", f"At a glance{data_kind(records)}", frame, (*said, latency_note(records), *table_notes(records))
    )


def every_table(study: Path | StudyRecords) -> list[Table]:
    """All tables of the report, with their titles and notes."""
    records = as_records(study)
    notes, data = table_notes(records), data_kind(records)
    size = (
        "Weights count every stored number, also those in INT8 buffers that the framework does not list; MB are 10^6 "
        "bytes of the saved weights, without the tokenizer; MACs are multiply-accumulates by the closed formula; "
        "memory is the peak of a fresh process, import baseline in the csv file.",
    )
    timing, bound = (latency_note(records), *noise_note(records)), bound_note(records)
    return [
        overview_table(records),
        main_table(records),
        Table(
            "cost",
            f"Size, operations, latency and memory per model{data}",
            cost_table(records),
            (*size, *timing, *bound, *notes),
        ),
        Table(
            "latency",
            f"Latency and speed-up over the teacher, all inputs and thread counts{data}",
            latency_table(records),
            (*timing, *bound, *notes),
        ),
        recommended_table(records),
        budget_table(records),
        Table("factorial", f"Distilled x pruned x quantized{data}", factorial_table(records), (*timing, *notes)),
        Table(
            "factorial_effects",
            f"Main effects and interactions of the three steps{data}",
            factorial_effects(records),
            (
                "Effects on accuracy in percentage points; on size and latency as ratios (under 1: smaller, faster).",
                "Models of equal shapes are timed once, so what distillation does to latency is 1 by construction.",
                "Brackets hold 95 % intervals: accuracy, Student's t over dev rows (one seed) or seeds; latency, "
                "bootstrap over timing rounds (one seed) or Student's t over seeds.",
                *timing,
                *notes,
            ),
        ),
        *comparison_tables(records),
        Table("training_time", f"Time per stage{data}", training_time_table(records), notes),
    ]


def recommended_table(study: Path | StudyRecords) -> Table:
    """`recommended_models` with its title and notes."""
    records = as_records(study)
    frame = recommended_models(records)
    front = (
        f"No other model of the task is at least as good in accuracy, file and latency and better in one, at "
        f"{COMPARED_DIGITS} significant digits; a latency that was not measured counts as the worst.",
        "The rows were picked by the dev rows that they are judged on, so the best of many looks a little better "
        "than it is; intervals are each model's own. `edgemin recommend` picks under a budget.",
    )
    return Table(
        "recommended",
        f"Pareto front of accuracy, size and latency{data_kind(records)}",
        frame,
        (*front, *split_notes(frame), latency_note(records), *noise_note(records), *table_notes(records)),
    )


def budget_table(study: Path | StudyRecords) -> Table:
    """`budget_models` with its title and notes."""
    records = as_records(study)
    frame = budget_models(records)
    chosen = (
        "Of every model of the task that was made with each of its seeds and keeps at least that share of the "
        "teacher's accuracy, by point estimate, the one with the smallest file and the one with the shortest latency; "
        f"{EQUALLY_GOOD}.",
        "The models were picked by the dev rows that they are judged on, so they look a little better than they are.",
    )
    return Table(
        "budgets",
        f"The smallest and the fastest model that keep enough{data_kind(records)}",
        frame,
        (*chosen, *split_notes(frame), latency_note(records), *noise_note(records), *table_notes(records)),
    )


def comparison_tables(study: Path | StudyRecords) -> list[Table]:
    """The tables of `comparisons` that have methods to compare, with their titles and notes."""
    records = as_records(study)
    notes, data = table_notes(records), data_kind(records)
    tested = (
        "Difference: percentage points to {}, on the same rows, with its 95 % interval; p (Holm): corrected for "
        "the rows of one task."
    )
    timing = (latency_note(records), *noise_note(records))
    found = [
        Table(
            "objectives",
            f"Distillation objectives{data}",
            objectives_table(records),
            (
                tested.format("the same student without distillation"),
                "Training time includes the teacher's passes; it was taken on whatever the machine was doing.",
                *notes,
            ),
        ),
        Table(
            "cuts",
            f"Pruning: what is cut, by which criterion{data}",
            cuts_table(records),
            (
                tested.format("the uncut student"),
                "A cut student trains on for its recovery, which the uncut one does not: the difference is of both.",
                *timing,
                *notes,
            ),
        ),
        Table(
            "schemes",
            f"Quantization schemes{data}",
            schemes_table(records),
            (
                tested.format("the FP32 model that all start from"),
                "Agreement: share of dev rows with the same answer as that model.",
                *timing,
                *notes,
            ),
        ),
        Table(
            "orders",
            f"Orders of the steps{data}",
            orders_table(records),
            (tested.format("the teacher"), *timing, *notes),
        ),
    ]
    fewest = {"schemes": 3}  # the FP32 row is not a scheme
    return [
        table
        for table in found
        if len(table.frame.drop_duplicates(["task", "method"]))
        >= fewest.get(table.name, 2) * max(1, table.frame["task"].nunique())
    ]


def table_notes(study: Path | StudyRecords) -> tuple[str, ...]:
    """What every table says beside it: where rows come from, seeds, processor, what is missing."""
    records = as_records(study)
    notes = []
    for task in records.tasks:
        chains = records.of_task(task)
        seeds = ", ".join(str(chain.seed) for chain in chains)
        notes.append(f"{task}: {data_description(chains)}; seed{'s' if len(chains) > 1 else ''} {seeds}.")
    processors = dict[str, dict[str, None]]()
    for record in records.records:
        processors.setdefault(_processor(record.content.get("environment") or {}), {})[record.task] = None
    if len(processors) == 1:
        notes.append(f"Processor: {next(iter(processors))}.")
    elif processors:
        of_tasks = "; ".join(f"{', '.join(tasks)} on {processor}" for processor, tasks in processors.items())
        notes.append(f"Processors: {of_tasks}. Times on different processors are not comparable.")
    return (*notes, *(f"{note}." for note in records.notes))


def data_description(chains: list) -> str:
    """Where a task's rows come from, how many there are, and what is not as usual with them; synthetic rows are called
    synthetic."""
    data = describe_data(chains)
    if data is None:
        return "data not described in the records"
    dev = ", ".join(f"{count:,} {name}" for name, count in (data.get("dev_rows") or {}).items())
    described = (
        f"{data.get('source', 'source not recorded')}; {data.get('train_rows', 0):,} train rows, dev rows: {dev}"
    )
    # Where a missing file was looked for, in brackets behind a note, stays in the record.
    return "; ".join([described, *(note.split(" (")[0] for note in data.get("notes") or [])])


def data_kind(records: StudyRecords) -> str:
    """What a title says of the data: " (synthetic data)" if every task's rows are, " (partly synthetic data)" if some
    are, else nothing."""
    synthetic = [is_synthetic(records.of_task(task)) for task in records.tasks]
    if synthetic and all(synthetic):
        return " (synthetic data)"
    return " (partly synthetic data)" if any(synthetic) else ""


def latency_note(records: StudyRecords) -> str:
    """The latency protocol, or that nothing was timed."""
    measured = [chain.measurement.results for chain in records.chains if chain.measurement]
    if not measured:
        return "Latency and memory are not measured."
    tasks = dict[str, dict[str, None]]()
    for chain in records.chains:
        if chain.measurement:
            tasks.setdefault(str(chain.measurement.results.get("protocol")), {})[chain.task] = None
    protocols = [
        f"{name} protocol ({', '.join(of)})" if len(tasks) > 1 else f"{name} protocol"
        for name, of in sorted(tasks.items())
    ]
    runs = [row["runs"] for item in measured for row in item.get("latency") or [] if row.get("runs")]
    count = f", {min(runs):,} runs or more a row" if runs else ""
    parts = [
        f"Latency: median, batch 1, {' and '.join(protocols)}{count}; models are timed in turn, those of "
        "equal shapes and scheme once for all of them."
    ]
    if "quick" in tasks:
        parts.append("Quick protocol: a quick look, not a full measurement.")
    return " ".join([*parts, *sorted({item["int8_note"] for item in measured if item.get("int8_note")})])


def bound_note(records: StudyRecords) -> tuple[str, ...]:
    """What the columns over the bound mean, where the study has any."""
    if not any(row.get("bound_ms") for chain in records.chains for row in chain.measured_rows("latency")):
        return ()
    return ("Over the bound: times the least that this machine's measured peak speed and bandwidth allow.",)


def noise_note(records: StudyRecords) -> tuple[str, ...]:
    """What the mark of noisy timings means, where the study has any."""
    noisy = any(row.get("noisy") for chain in records.chains for row in chain.measured_rows("latency"))
    return ("* noisy: the interquartile range is over 10 % of the median.",) if noisy else ()


def _processor(environment: dict) -> str:
    flags = [name for name, there in (environment.get("processor_flags") or {}).items() if there]
    text = f"{environment.get('processor', 'not recorded')}, {environment.get('available_cores', '?')} cores"
    return f"{text} ({', '.join(flags)})" if flags else text


def _choose(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Those columns that are there, each followed by its interval and noise mark."""
    chosen = []
    for name in columns:
        chosen += [each for each in (name, f"{name}_low", f"{name}_high", f"{name}_noisy") if each in frame]
    return frame[chosen]


def _one_row_per_model(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop_duplicates(["task", "key"]).reset_index(drop=True)
