"""The eight students of distilled x pruned x quantized, and what each step does alone and together with the others."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from edgemin_utils.statistics import Estimate, contrasts_of_medians, mean_with_interval
from edgemin_utils.tables.summary import as_records, columns_of, longest_input, predictions_of, right_rows, summarize
from edgemin_utils.tables.variants import Chain, StudyRecords, kinds_since_student, main_student

FACTORS = ("distilled", "pruned", "quantized")
_PATHS: tuple[list[str], ...] = ([], ["prune"], ["quantize"], ["prune", "quantize"])
TERMS = tuple(terms for count in (1, 2, 3) for terms in itertools.combinations(FACTORS, count))


def factorial_table(study: Path | StudyRecords) -> pd.DataFrame:
    """The eight students of distilled x pruned x quantized, per task and dev split."""
    records = as_records(study)
    frame = _factorial_rows(records)
    longest = longest_input(frame)
    columns = ["task", "split", *FACTORS, "accuracy", "accuracy_low", "accuracy_high", "parameters", "megabytes"]
    return frame[
        [*columns, *(name for name in (f"latency_{longest}", f"latency_{longest}_noisy") if name in frame), "folder"]
    ]


def factorial_effects(study: Path | StudyRecords) -> pd.DataFrame:
    """Main effects and interactions of distilled, pruned and quantized, per task and dev split.

    An effect is the mean over the four models whose codes (+1 with, -1 without; for an interaction their product)
    are +1, minus the mean over the other four: in percentage points of accuracy, and for latency and file size as a
    ratio of geometric means (under 1: faster, smaller). It is worked out where all eight models are there.

    Intervals hold 95 %. Accuracy: Student's t over the dev rows' own effects (one seed) or over the seeds' effects.
    Latency at the longest input, one thread: bootstrap over the rounds that timed all models (one seed), or Student's t
    over the seeds' log ratios. Size has none.
    """
    records = as_records(study)
    frame = _factorial_rows(records)
    longest = columns_of(frame, "latency")[-1].removeprefix("latency_") if columns_of(frame, "latency") else None
    rows = []
    for (task, split), group in frame.groupby(["task", "split"], sort=False):
        if len(group) == 8 and len(group[list(FACTORS)].drop_duplicates()) == 8:
            latency = _latency_effects(records, task, longest) if longest else [None] * len(TERMS)
            for terms, estimate in zip(TERMS, latency, strict=True):
                row = {
                    "task": task,
                    "split": split,
                    "synthetic": group["synthetic"].iloc[0],
                    "effect": " x ".join(terms),
                    "accuracy_effect": factorial_effect(group, terms, "accuracy"),
                    "size_ratio": factorial_effect(group, terms, "megabytes", True),
                }
                row |= _ends("accuracy_effect", _accuracy_effect(records, task, split, terms))
                if longest:
                    row["latency_ratio"] = factorial_effect(group, terms, f"latency_{longest}", True)
                    row |= _ends("latency_ratio", estimate)
                rows.append(row)
    outcomes = [
        f"{name}{end}"
        for name in ("accuracy_effect", "size_ratio", *(["latency_ratio"] if longest else []))
        for end in (("",) if name == "size_ratio" else ("", "_low", "_high"))
    ]
    return pd.DataFrame(rows, columns=["task", "split", "synthetic", "effect", *outcomes])


def latency_interactions(study: Path | StudyRecords) -> dict[str, Estimate]:
    """Task -> latency of a student that is pruned and quantized over what the two gains multiplied would give, with its
    95 % interval: 1 where the steps do not interact, under 1 where together they gain more. Without tasks that were not
    timed or lack one of the eight students.
    """
    effects = factorial_effects(study)
    if "latency_ratio" not in effects:
        return {}
    found = {}
    for row in effects[effects["effect"] == "pruned x quantized"].drop_duplicates("task").to_dict("records"):
        # A contrast of a 2^k design is half the difference of differences, so the ratio is squared.
        value, low, high = (row[name] ** 2 for name in ("latency_ratio", "latency_ratio_low", "latency_ratio_high"))
        if not np.isnan(value):
            found[row["task"]] = Estimate(value, low, high) if not np.isnan(low) else Estimate(value, None, None)
    return found


def latency_gain(study: Path | StudyRecords, task: str, before: str, after: str, input_name: str) -> Estimate | None:
    """Times that model `after` (a key) is faster than `before` on an input such as "1x128" with one thread, with its
    95 % interval (see `factorial_effects`), over the chains that timed both; None if none did."""
    chains = [chain for chain in as_records(study).of_task(task) if {before, after} <= chain.models.keys()]
    found = _latency_contrasts([(chain, (before, after), np.array([[1.0, -1.0]])) for chain in chains], input_name)
    return found[0] if found else None


def factorial_effect(eight: pd.DataFrame, terms: tuple[str, ...], outcome: str, ratio: bool = False) -> float:
    """Effect of one factor, or interaction of several, on column `outcome` of a full 2x2x2 design (NaN where a value
    is missing). With `ratio` the means are geometric and their quotient is returned.

    Montgomery, Design and Analysis of Experiments, contrasts of a 2^k design.
    """
    values = eight[outcome].to_numpy(dtype=float)
    values = np.log(values) if ratio else values
    effect = _weights(eight[list(FACTORS)].to_numpy(dtype=bool), terms) @ values
    return float(np.exp(effect) if ratio else effect)


def _weights(places: np.ndarray, terms: tuple[str, ...]) -> np.ndarray:
    """Weight of each of eight models in an effect: a quarter, with the sign of the product of its codes.

    Args:
        places: bool (8, 3), whether each model is distilled, pruned, quantized.
    """
    codes = np.where(places, 1, -1)[:, [FACTORS.index(name) for name in terms]]
    return codes.prod(axis=1) / 4


def _factorial_rows(records: StudyRecords) -> pd.DataFrame:
    """The rows of `summarize` that belong to the factorial, in the order of the factors."""
    frame, main = summarize(records), main_student(records.chains)
    keys = {key for chain in records.chains for key in _keys(chain, main).values()}
    groups = [
        group.sort_values(list(FACTORS), kind="stable")
        for _, group in frame[frame["key"].isin(keys)].groupby(["task", "split"], sort=False)
    ]
    return pd.concat(groups, ignore_index=True) if groups else frame.iloc[:0]


def _keys(chain: Chain, main: str | None) -> dict[tuple[bool, bool, bool], str]:
    """(distilled, pruned, quantized) -> key of a chain's models that belong to the factorial."""
    found: dict[tuple[bool, bool, bool], str] = {}
    for key, record in chain.models.items():
        content = record.content
        if content["student"] in (main, "none") and kinds_since_student(content) in _PATHS and not content["compared"]:
            found.setdefault((bool(content["distilled"]), bool(content["pruned"]), bool(content["quantized"])), key)
    return found


def _ends(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None or estimate.low is None or estimate.high is None:
        return {f"{name}_low": np.nan, f"{name}_high": np.nan}
    return {f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _complete_chains(records: StudyRecords, task: str) -> list[tuple[Chain, np.ndarray, list[str]]]:
    """(chain, places (8, 3), keys) of the task's chains that hold all eight models."""
    found = []
    for chain in records.of_task(task):
        keys = _keys(chain, main_student(records.chains))
        if len(keys) == 8:
            found.append((chain, np.array(list(keys)), list(keys.values())))
    return found


def _accuracy_effect(records: StudyRecords, task: str, split: str, terms: tuple[str, ...]) -> Estimate | None:
    """Effect on accuracy in percentage points with its interval; None where predictions are missing."""
    by_seed = []
    for chain, places, keys in _complete_chains(records, task):
        answers = [answer for key in keys if (answer := predictions_of(chain.models[key], split)) is not None]
        if len(answers) < len(keys) or len({len(answer) for answer in answers}) > 1:
            return None
        right = np.array([right_rows(answer) for answer in answers], dtype=float)
        by_seed.append(100 * _weights(places, terms) @ right)
    if not by_seed:
        return None
    return mean_with_interval(by_seed[0] if len(by_seed) == 1 else [rows.mean() for rows in by_seed])


def _latency_effects(records: StudyRecords, task: str, input_name: str) -> list[Estimate | None]:
    """Effect of every term on latency as a ratio with its interval, over the chains that were timed; None where the raw
    times of one of them are missing."""
    weighted = [
        (chain, keys, np.array([_weights(places, terms) for terms in TERMS]))
        for chain, places, keys in _complete_chains(records, task)
    ]
    found = _latency_contrasts(weighted, input_name)
    return [None] * len(TERMS) if found is None else [*found]


def _latency_contrasts(
    weighted: Sequence[tuple[Chain, Sequence[str], np.ndarray]], input_name: str
) -> list[Estimate] | None:
    """Geometric contrasts of models' latencies with their intervals: bootstrap over the rounds of the one chain that
    was timed, Student's t over the logs of several; None where none was, or the raw times of one are missing.

    Args:
        weighted: chains, each with the keys of models and the weights (contrasts, models).
    """
    by_seed = []
    for chain, keys, weights in weighted:
        if chain.measurement is None:
            continue
        times, timed_as = _raw_times(chain, keys, input_name)
        if times is None:
            return None
        # Models of equal cost were timed once; their weights add up on the one that was.
        columns = np.array([[name == key for key in timed_as] for name in dict.fromkeys(timed_as)], dtype=float)
        by_seed.append(contrasts_of_medians(times, weights @ columns.T))
    if len(by_seed) < 2:
        return by_seed[0] if by_seed else None
    means = [
        mean_with_interval(np.log([estimate.value for estimate in estimates]))
        for estimates in zip(*by_seed, strict=True)
    ]
    return [mean.exponential() for mean in means]


def _raw_times(chain: Chain, keys: Sequence[str], input_name: str) -> tuple[np.ndarray | None, list[str]]:
    """Nanoseconds (timed models, rounds) of one-thread forwards from the measurement's raw file, in the order in which
    they first stand in the list behind it, and the key that each of `keys` was timed as."""
    path = chain.measurement.folder / "latency.npz" if chain.measurement else None
    known = {row["key"]: row["timed_as"] for row in chain.measured_rows("latency")}
    if path is None or not path.is_file() or not all(key in known for key in keys):
        return None, []
    timed_as = [known[key] for key in keys]
    names = [f"{input_name}, 1 threads | {key}" for key in dict.fromkeys(timed_as)]
    with np.load(path) as raw:
        return (np.array([raw[name] for name in names]) if all(name in raw for name in names) else None), timed_as
