"""Which measured model to take under a budget of size, latency and accuracy, and which no other one beats."""

import math
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.names import kind_of
from edgemin_utils.results.comparisons import summary
from edgemin_utils.results.shown import as_text
from edgemin_utils.results.table import Frames, read_frames
from edgemin_utils.settings import nearest

# Shares by which two files or latencies may differ without one counting as better: equal models are timed apart.
SAME = {"bytes": 0.01, "ms_128": 0.05}
_COLUMNS = "model accuracy accuracy_low accuracy_high kept kept_low kept_high bytes".split()
_LATENCIES: dict[int | None, str] = {32: "ms_32", 128: "ms_128", None: "ms_rows"}


def pareto_front(costs: ArrayLike) -> np.ndarray:
    """bool (n,): which rows of costs (n, objectives; infinity: not measured) no other row dominates, by being at least
    as small everywhere and smaller somewhere. Raises DataError where it is no matrix of numbers."""
    costs = np.asarray(costs, dtype=float)
    if costs.ndim != 2 or np.isnan(costs).any():
        raise DataError("a Pareto front needs a matrix of numbers; give infinity for what was not measured")
    ours = costs[:, None, :]
    return ~np.any(np.all(costs <= ours, axis=2) & np.any(costs < ours, axis=2), axis=1)


def candidates(frames: Frames, task: str, latency: str = "ms_128") -> pd.DataFrame:
    """The rows of `summary` of a task's models on its main dev split, best accuracy first, with `on_front`."""
    frame = summary(frames).query("task == @task and accuracy == accuracy")
    frame = frame[frame["split"] == frames.splits(task)[0]]
    values = frame[["accuracy", "bytes", latency]].astype(float).to_numpy() * [-1, 1, 1]
    # Files of equal shapes differ by a few bytes, which is no gain.
    rounded = np.vectorize(lambda value: float(f"{value:.4g}"), otypes=[float])(values)
    frame = frame.assign(on_front=pareto_front(np.nan_to_num(rounded, nan=np.inf)))
    return frame.sort_values(["accuracy", latency, "bytes"], ascending=[False, True, True], kind="stable")


def least_that_keeps(every: pd.DataFrame, share: float, column: str) -> pd.Series | None:
    """Of `candidates` with most seeds the smallest or fastest that keeps a share of the teacher's accuracy by its
    interval's lower end, or where none does by its estimate; among equals what keeps most; None where nothing does."""
    every = every[(every["seeds"] == every["seeds"].max()) & every[column].notna()]
    enough = every[every["kept_low"] >= share]
    enough = enough if len(enough) else every[every["kept"] >= share]
    least = enough[enough[column] <= (1 + SAME.get(column, 0)) * enough[column].min()]
    return least.sort_values("kept", ascending=False, kind="stable").iloc[0] if len(least) else None


def recommend_models(
    study: Path | str,
    task: str | None = None,
    max_mb: float | None = None,
    max_ms: float | None = None,
    min_accuracy: float | None = None,
    length: int | None = 128,
) -> tuple[str, bool]:
    """The five best measured models of each task, or of one, that keep limits of file (MB of 10^6 bytes), one-thread
    latency (ms; at a `length` of 32 or 128 tokens, or of dev rows: None) and accuracy (%), or the nearest one, and the
    commands that build their bundles; as text, and whether anything fits. Raises SettingError where a limit is none, or
    there is no such task, length or time."""
    if bad := [limit for limit in (max_mb, max_ms, min_accuracy) if limit is not None and not 0 < limit < math.inf]:
        raise SettingError(f"a limit of {bad[0]:g} cannot be met; give a number over 0")
    if min_accuracy is not None and not 1 < min_accuracy <= 100:
        raise SettingError(f"accuracy is asked for in percent, as in 85, not {min_accuracy:g}")
    frames, parts, fits = read_frames(study), list[str](), False
    if task is not None and task not in frames.tasks:
        raise SettingError(f"{study} holds no task {task!r}; {nearest(task, frames.tasks)}")
    if length not in _LATENCIES:
        raise SettingError(f"latency is timed at 32 and 128 tokens and on dev rows, not at {length}")
    latency = _LATENCIES[length]
    for name in [task] if task else frames.tasks:
        every = candidates(frames, name, latency)
        if max_ms and every[latency].isna().all():
            raise SettingError(f"no model of {name} was timed on that input; run notebooks/05_analysis.ipynb first")
        # How far each lies outside: what it misses of each limit, as shares of them; what was not measured fits none.
        over = [every["bytes"] / 1e6 / max_mb - 1] if max_mb else []
        over += [every[latency] / max_ms - 1] if max_ms else []
        over += [1 - 100 * every["accuracy"] / min_accuracy] if min_accuracy else []
        missed = sum((each.astype(float).fillna(math.inf).clip(lower=0) ** 2 for each in over), 0 * every["accuracy"])
        fitting = every[missed == 0]
        shown = fitting[fitting["on_front"]].head(5) if len(fitting) else every.loc[[missed.idxmin()]]
        said = f"{len(fitting)} of {len(every)} models fit" if len(fitting) else "nothing fits; the nearest is"
        table = as_text(shown[[*_COLUMNS, latency]])
        commands = dict.fromkeys(bundle_command(frames, name, model) for model in shown["model"])
        parts.append("\n".join([f"{frames.label(name)}: {said}", table, "", *commands]))
        fits |= len(fitting) > 0
    return "\n\n".join(parts), fits


def bundle_command(frames: Frames, task: str, model: str) -> str:
    """The command that builds a model's bundle: a quantized one's from the float one, with 4 bits where it has them."""
    source, _, scheme = model.rpartition("+") if kind_of(model) == "quantization" else (model, "", "")
    seed = frames.results.query("task == @task and model in [@model, @source]")["seed"].min()
    bits = "edge-int8-int4" if "int8-int4" in scheme else "edge-int4"
    folder, words = str(frames.study / task / f"seed-{seed}" / source), ["--scheme", bits] if "int4" in scheme else []
    return shlex.join(["edgemin", "bundle", folder, "--output", f"bundles/{task}-{source}", *words])
