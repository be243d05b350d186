"""The numbers behind every table and figure, from records alone: one row a model, seeds taken together.

Columns hold numbers, not text: accuracies and F1 in %, sizes and memory in MB (10^6 bytes), times in ms. A column
`x` may have `x_low` and `x_high` beside it, the ends of its 95 % interval. What was not measured is blank (NaN).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from edgemin_utils.chain import TEACHER
from edgemin_utils.records import Record
from edgemin_utils.statistics import Estimate, compare_predictions, mean_with_interval, retention_over_seeds
from edgemin_utils.tables.variants import (
    Chain,
    StudyRecords,
    is_main,
    is_synthetic,
    main_student,
    model_names,
    read_study,
    source_key,
)

_LABELS = ["task", "split", "key"]
_PER_MODEL = ["task", "key"]


def column_of_input(quantity: str, input_name: str) -> str:
    """Name of the column that holds `quantity` ("latency", "speed_up", "macs") for one input, e.g. "1x128"."""
    return f"{quantity}_{input_name.replace(' ', '_')}"


def own_models(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `summarize` whose models are the study's own, not there for comparison only."""
    return frame[~frame["compared"].astype(bool)].reset_index(drop=True)


def with_every_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows of one task whose models exist with as many seeds as any: a mean over seeds is not chosen from beside
    a single one."""
    return rows[rows["seeds"] == rows["seeds"].max()].reset_index(drop=True)


def columns_of(frame: pd.DataFrame, quantity: str) -> list[str]:
    """Columns that hold `quantity` for fixed inputs such as 1x32, shortest first."""
    found = [name for name in frame if name.startswith(f"{quantity}_1x") and name.rsplit("x", 1)[1].isdigit()]
    return sorted(found, key=lambda name: int(name.rsplit("x", 1)[1]))


def longest_input(frame: pd.DataFrame) -> str | None:
    """The longest fixed input, preferably one that was timed: "1x128"."""
    for quantity in ("latency", "macs"):
        found = columns_of(frame, quantity)
        if found:
            return found[-1].removeprefix(f"{quantity}_")
    return None


def summarize(study: Path | StudyRecords) -> pd.DataFrame:
    """One row per task, dev split and model.

    Columns: task, split, key, model, student, distilled, pruned, quantized, compared (there for comparison
    only), main (on the paper's path), seeds, rows,
    accuracy (with interval: Wilson's for one seed, Student's t over several), f1, matthews_correlation, kept (% of the
    teacher's accuracy), difference (points, to `compared_with`, with interval), p_value, test, parameters, megabytes,
    smaller (teacher's bytes over its own), macs_<input>, latency_<input> and speed_up_<input> with one thread,
    latency_<input>_noisy, peak_memory, memory_baseline, synthetic (whether its rows are), folder.
    """
    return _summarize(as_records(study)).copy()


@functools.lru_cache(maxsize=4)  # every table and figure of a report starts from it
def _summarize(records: StudyRecords) -> pd.DataFrame:
    per_seed = pd.DataFrame([row for chain in records.chains for row in _accuracy_rows(chain)])
    if per_seed.empty:
        return _empty()
    frame = _aggregate(per_seed, _LABELS, _accuracy_of_seeds)
    frame = frame.merge(cost_of_models(records), on=_PER_MODEL, how="left")
    frame["synthetic"] = frame["task"].map({task: is_synthetic(records.of_task(task)) for task in records.tasks})
    return name_models(records, frame)


def as_records(study: Path | StudyRecords) -> StudyRecords:
    """The records of a study, read from its folder unless they are given."""
    return study if isinstance(study, StudyRecords) else read_study(study)


def name_models(records: StudyRecords, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` (columns task and key) with each model's name, place in the factorial and folder, in row order."""
    names = model_names(records.chains)
    main = main_student(records.chains)
    contents = {key: record.content for chain in records.chains for key, record in chain.models.items()}
    frame = frame.copy()
    frame.insert(frame.columns.get_loc("key") + 1, "model", frame["key"].map(names))
    for offset, flag in enumerate(("student", "distilled", "pruned", "quantized", "compared")):
        frame.insert(frame.columns.get_loc("model") + 1 + offset, flag, [contents[key][flag] for key in frame["key"]])
    frame.insert(frame.columns.get_loc("compared") + 1, "main", [is_main(contents[key], main) for key in frame["key"]])
    if "compared_with" in frame:
        frame["compared_with"] = frame["compared_with"].map(names)
    frame["folder"] = [_folders(records, task, key) for task, key in zip(frame["task"], frame["key"], strict=True)]
    order = {key: number for number, key in enumerate(names)}
    tasks = {task: number for number, task in enumerate(records.tasks)}
    rank = pd.DataFrame(
        {"task": frame["task"].map(tasks), "split": frame.get("split", ""), "key": frame["key"].map(order)}
    )
    return frame.loc[rank.sort_values(["task", "split", "key"], kind="stable").index].reset_index(drop=True)


def cost_of_models(records: StudyRecords) -> pd.DataFrame:
    """One row per task and model: size, operations, one-thread latency and memory, means over the seeds."""
    rows = [_size_row(chain, key) for chain in records.chains for key in chain.models]
    if not rows:
        return pd.DataFrame(columns=_PER_MODEL)
    frame = pd.DataFrame(rows).groupby(_PER_MODEL, sort=False).mean(numeric_only=True).reset_index()
    wide = spread_latency(latencies(records).query("threads == 1"), _PER_MODEL)
    return frame.merge(wide, on=_PER_MODEL, how="left") if len(wide) else frame


def latencies(records: StudyRecords) -> pd.DataFrame:
    """One row per task, model, input and thread count: median_ms, iqr_ms, p90_ms, bound_ms, of_bound (times the least
    that the machine needs; means over the seeds), runs, noisy, and speed_up over the teacher with its interval (one
    seed: the record's bootstrap; several: t over the seeds' log ratios)."""
    columns = [*_PER_MODEL, "input", "threads"]
    rows = [row for chain in records.chains for row in _latency_rows(chain)]
    if not rows:
        return pd.DataFrame(
            columns=[
                *columns,
                "median_ms",
                "iqr_ms",
                "p90_ms",
                "bound_ms",
                "of_bound",
                "runs",
                "noisy",
                "speed_up",
                "speed_up_low",
                "speed_up_high",
            ]
        )
    return _aggregate(pd.DataFrame(rows), columns, _latency_of_seeds)


def spread_latency(frame: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """`latencies` with one row per `index` and one column per quantity and input."""
    rows = []
    for labels, group in frame.groupby(index, sort=False):
        row = dict(zip(index, labels, strict=True))
        for item in group.to_dict("records"):
            name, speed_up = column_of_input("latency", item["input"]), column_of_input("speed_up", item["input"])
            row |= {
                name: item["median_ms"],
                f"{name}_noisy": item["noisy"],
                f"{name}_iqr": item["iqr_ms"],
                f"{name}_p90": item["p90_ms"],
                f"{name}_runs": item["runs"],
                speed_up: item["speed_up"],
                f"{speed_up}_low": item["speed_up_low"],
                f"{speed_up}_high": item["speed_up_high"],
            }
            if pd.notna(item["of_bound"]):  # records of before have none
                row |= {f"{name}_bound": item["bound_ms"], column_of_input("of_bound", item["input"]): item["of_bound"]}
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else index)


def compare(chains: Iterable[Chain], split: str, first: str, second: str) -> dict | None:
    """How model `second` differs from `first` (keys) on a split, over all chains that have both; None if none has.

    Returns:
        difference, low, high (percentage points, second minus first), p_value, test, seeds. One seed: paired bootstrap
        interval and exact McNemar test. Several: Student's t over the seeds' differences.
    """
    pairs = []
    for chain in chains:
        if first in chain.models and second in chain.models:
            one, other = (predictions_of(chain.models[key], split) for key in (first, second))
            if one is not None and other is not None and len(one) == len(other):
                pairs.append((one["prediction"].to_numpy(), other["prediction"].to_numpy(), one["label"].to_numpy()))
    if len(pairs) > 1:
        return _difference_of_seeds(pairs)
    return _difference_of_rows(*pairs[0]) if pairs else None


def share_kept(chains: Iterable[Chain], split: str, key: str) -> Estimate | None:
    """Share of the teacher's accuracy that a model keeps on a split, over all chains that have both, with its interval
    (see `statistics.retention_over_seeds`); None if none has, or the teacher gets no row right."""
    pairs = []
    for chain in chains:
        if TEACHER in chain.models and key in chain.models:
            teacher, model = (predictions_of(chain.models[name], split) for name in (TEACHER, key))
            if teacher is not None and model is not None:
                pairs.append((right_rows(teacher), right_rows(model)))
    usable = pairs and all(teacher.any() and len(teacher) == len(model) for teacher, model in pairs)
    return retention_over_seeds(pairs) if usable else None


def predictions_of(record: Record, split: str) -> pd.DataFrame | None:
    """A model's label and prediction for every dev row, ordered by row; None where the file is missing."""
    path = record.folder / f"predictions-{split}.csv"
    if not path.is_file():
        return None
    return pd.read_csv(path, usecols=["row", "label", "prediction"]).sort_values("row", kind="stable")


def right_rows(answers: pd.DataFrame) -> np.ndarray:
    """bool (rows,): whether each row was predicted right."""
    return (answers["prediction"] == answers["label"]).to_numpy()


def _difference_of_rows(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> dict:
    """`compare` of one seed's predictions."""
    found = compare_predictions(first, second, labels)
    return {
        "difference": 100 * found["difference"],
        "low": 100 * found["low"],
        "high": 100 * found["high"],
        "p_value": found["p_value"],
        "test": "McNemar",
        "seeds": 1,
    }


def _difference_of_seeds(pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict:
    """`compare` of several seeds' (first, second, labels)."""
    differences = np.array(
        [100 * float((second == labels).mean() - (first == labels).mean()) for first, second, labels in pairs]
    )
    mean = mean_with_interval(differences)
    same = np.ptp(differences) == 0
    p_value = float("nan") if same else float(stats.ttest_1samp(differences, 0).pvalue)
    return {
        "difference": mean.value,
        "low": mean.low,
        "high": mean.high,
        "p_value": p_value,
        "test": "t over seeds",
        "seeds": len(pairs),
    }


def _accuracy_rows(chain: Chain) -> list[dict]:
    """One row per model and split of one chain."""
    rows = []
    teacher = chain.models.get(TEACHER)
    for key, record in chain.models.items():
        source = source_key(record)
        for split, metrics in record.results["metrics"].items():
            row = {
                "task": chain.task,
                "split": split,
                "key": key,
                "chain": chain,
                "rows": metrics.get("rows"),
                "accuracy": _percent(metrics.get("accuracy")),
                "accuracy_low": _percent(metrics.get("accuracy_low")),
                "accuracy_high": _percent(metrics.get("accuracy_high")),
                "f1": _percent(metrics.get("f1")),
                "matthews_correlation": metrics.get("matthews_correlation"),
                "kept": np.nan,
                "compared_with": source if source in chain.models else None,
            }
            if teacher is not None and split in teacher.results["metrics"]:
                whole = teacher.results["metrics"][split]["accuracy"]
                row["kept"] = 100 * metrics["accuracy"] / whole if whole else np.nan
            rows.append(row)
    return rows


def _accuracy_of_seeds(group: pd.DataFrame) -> dict:
    mean = mean_with_interval(group["accuracy"])
    alone = len(group) == 1
    row = {
        "seeds": len(group),
        "rows": group["rows"].iloc[0],
        "accuracy": mean.value,
        "accuracy_low": group["accuracy_low"].iloc[0] if alone else mean.low,
        "accuracy_high": group["accuracy_high"].iloc[0] if alone else mean.high,
        "f1": group["f1"].mean(),
        "matthews_correlation": group["matthews_correlation"].mean(),
        "kept": group["kept"].mean(),
        "difference": np.nan,
        "difference_low": np.nan,
        "difference_high": np.nan,
        "p_value": np.nan,
        "test": None,
        "compared_with": None,
    }
    first, split, key = group.iloc[0], group["split"].iloc[0], group["key"].iloc[0]
    if first["compared_with"] is not None:
        found = compare(group["chain"], split, first["compared_with"], key)
        row["compared_with"] = first["compared_with"]
        if found is not None:
            row |= {
                "difference": found["difference"],
                "difference_low": found["low"],
                "difference_high": found["high"],
                "p_value": found["p_value"],
                "test": found["test"],
            }
    return row


def _size_row(chain: Chain, key: str) -> dict:
    results = chain.models[key].results
    size, operations = results.get("size") or {}, results.get("operations") or {}
    row = {
        "task": chain.task,
        "key": key,
        "parameters": size.get("stored_weights", np.nan),
        "listed_parameters": size.get("framework_parameters", np.nan),
        "megabytes": _mega(size.get("model_bytes")),
    }
    teacher = chain.models.get(TEACHER)
    for name, column in (("model_bytes", "smaller"), ("stored_weights", "fewer")):
        own = size.get(name)
        whole = ((teacher.results.get("size") or {}) if teacher else {}).get(name)
        row[column] = whole / own if own and whole else np.nan
    row |= {column_of_input("macs", name): item["closed_formula_macs"] for name, item in operations.items()}
    memory = next((item for item in chain.measured_rows("memory") if item["key"] == key), {})
    row |= {"peak_memory": _mega(memory.get("peak_bytes")), "memory_baseline": _mega(memory.get("baseline_bytes"))}
    return row


def _latency_rows(chain: Chain) -> list[dict]:
    rows = []
    ratios = {
        (item["key"], item["input"], item["threads"]): item
        for item in chain.measured_rows("speed_ups")
        if item["baseline_key"] == TEACHER
    }
    timed = chain.measured_rows("latency")
    teacher = {(item["input"], item["threads"]): item["median_ms"] for item in timed if item["key"] == TEACHER}
    for item in timed:
        place = item["input"], item["threads"]
        ratio = ratios.get((item["key"], *place), {})
        whole = teacher.get(place, np.nan)
        rows.append(
            {
                "task": chain.task,
                "key": item["key"],
                "input": item["input"],
                "threads": item["threads"],
                "median_ms": item["median_ms"],
                "iqr_ms": item.get("iqr_ms"),
                "p90_ms": item.get("p90_ms"),
                "runs": item.get("runs"),
                "noisy": bool(item.get("noisy")),
                "bound_ms": item.get("bound_ms"),
                "of_bound": item.get("of_bound"),
                "speed_up": ratio.get("ratio", whole / item["median_ms"]),
                "speed_up_low": None if item["key"] == TEACHER else ratio.get("low"),
                "speed_up_high": None if item["key"] == TEACHER else ratio.get("high"),
            }
        )
    return rows


def _latency_of_seeds(group: pd.DataFrame) -> dict:
    row = {name: group[name].astype(float).mean() for name in ("median_ms", "iqr_ms", "p90_ms", "bound_ms", "of_bound")}
    row |= {"runs": group["runs"].sum(), "noisy": bool(group["noisy"].any()), "seeds": len(group)}
    ratios = np.log(group["speed_up"].astype(float))
    if len(group) == 1 or ratios.isna().any():
        return row | {name: group[name].astype(float).iloc[0] for name in ("speed_up", "speed_up_low", "speed_up_high")}
    mean = mean_with_interval(ratios).exponential()
    return row | {"speed_up": mean.value, "speed_up_low": mean.low, "speed_up_high": mean.high}


def _aggregate(frame: pd.DataFrame, columns: list[str], combine: Callable[[pd.DataFrame], dict]) -> pd.DataFrame:
    """One row per distinct value of `columns`, made by `combine` from the rows of the single seeds."""
    return pd.DataFrame(
        [
            dict(zip(columns, labels, strict=True)) | combine(group)
            for labels, group in frame.groupby(columns, sort=False)
        ]
    )


def _folders(records: StudyRecords, task: str, key: str) -> str:
    """Where a row's records lie, relative to the study; several seeds as `seed-{0,1,2}`."""
    seeds = [str(chain.seed) for chain in records.of_task(task) if key in chain.models]
    seed = seeds[0] if len(seeds) == 1 else "{" + ",".join(seeds) + "}"
    return f"{task}/seed-{seed}/{key}"


def _percent(value: float | None) -> float:
    return np.nan if value is None else 100 * value


def _mega(value: float | None) -> float:
    return np.nan if value is None else value / 1e6


def _empty() -> pd.DataFrame:
    return pd.DataFrame(
        columns=[
            "task",
            "split",
            "key",
            "model",
            "student",
            "distilled",
            "pruned",
            "quantized",
            "compared",
            "main",
            "seeds",
            "rows",
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "f1",
            "matthews_correlation",
            "kept",
            "difference",
            "difference_low",
            "difference_high",
            "p_value",
            "test",
            "compared_with",
            "parameters",
            "megabytes",
            "smaller",
            "fewer",
            "peak_memory",
            "memory_baseline",
            "synthetic",
            "folder",
        ]
    )
