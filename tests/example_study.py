"""A tiny study on disk in the format of record version 3: records, predictions, costs. Nothing is trained."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from edgemin_utils.names import kind_of

ROWS = 40
CUT = "heads-0.2"
PATH = ("teacher", "none", "minilmv2", f"minilmv2+{CUT}", f"minilmv2+{CUT}+int8")
CHOICES = itertools.product(("none", "minilmv2"), ("uncut", CUT), ("", "+int8"))
FACTORIAL = tuple(f"{student}+{cut}{scheme}" for student, cut, scheme in CHOICES)
MODELS = tuple(dict.fromkeys((*PATH, *FACTORIAL, "minilmv2+onnx-int8")))
REFUSED = "tinybert"
# Rows that each model gets wrong (the first so many), so that accuracies are known by hand.
WRONG = {"teacher": 4, "none": 14, "minilmv2": 6}
MORE_WRONG = {"uncut": 0, CUT: 2, "int8": 1, "onnx-int8": 0}
MILLISECONDS = {"teacher": 12.0, "none": 6.0, "minilmv2": 6.0}
TIMES_AS_LONG = {"uncut": 1.0, CUT: 0.8, "int8": 0.5, "onnx-int8": 0.25}
ENVIRONMENT = {"git_revision": "0123456789abcdef" * 2 + "01234567", "python": "3.11.7", "packages": {"torch": "2.13.0"}}
ENVIRONMENT |= {"processor": "Example CPU", "processor_flags": {"avx2": True, "avx512_vnni": False}}
ENVIRONMENT |= {"available_cores": 2, "memory_bytes": 8_000_000_000, "operating_system": "Linux 6.18 x86_64"}


def wrong_of(model: str) -> int:
    first, *steps = model.split("+")
    return WRONG[first] + sum(MORE_WRONG[step] for step in steps)


def milliseconds_of(model: str) -> float:
    first, *steps = model.split("+")
    return float(MILLISECONDS[first] * np.prod([TIMES_AS_LONG[step] for step in steps]))


def weights_of(model: str) -> int:
    return 1_000_000 if model == "teacher" else 400_000 if CUT in model else 500_000


def bytes_of(model: str) -> int:
    return weights_of(model) * (1 if kind_of(model) == "quantization" else 4)


def write_study(
    folder: Path, tasks=None, seeds=(0, 1, 2), models=MODELS, timed=True, source="synthetic corpus", worse=0
) -> Path:
    """A study with every model in each chain, a refused one and, where `timed`, measured costs in three processes;
    `tasks` maps names to dev splits; `worse`: more rows that all students get wrong."""
    for (task, splits), seed in itertools.product((tasks or {"sst2": ("dev",)}).items(), seeds):
        chain = folder / task / f"seed-{seed}"
        for model in models:
            results = _results(model, chain / model, splits, seed, source, worse * (model != "teacher"))
            _write(chain / model, model, task, seed, kind_of(model), results)
        _write(chain / REFUSED, REFUSED, task, seed, "distillation", {}, "tinybert needs equal heads, 6 and 4 are not")
        _write(chain / "minilmv2+scan-heads", "minilmv2+scan-heads", task, seed, "scan", scan())
        if timed:
            _write(chain / "costs", "costs", task, seed, "costs", _costs(chain / "costs", models))
        (chain / "chain.json").write_text(json.dumps({"profile": "demo", "overrides": {"train_rows": 2000}}))
    return folder


def _write(folder: Path, model: str, task: str, seed: int, kind: str, results: dict, refused: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": 3, "model": model, "kind": kind, "task": task, "seed": seed, "profile": "demo"}
    content |= {"fingerprint": "0" * 16, "identity": {}, "finished": "2026-11-28T12:00:00+00:00", "seconds": 5.0}
    content |= {"environment": ENVIRONMENT, "results": results} | ({"refused": refused} if refused else {})
    (folder / "record.json").write_text(json.dumps(content))


def _results(model: str, folder: Path, splits: tuple[str, ...], seed: int, source: str, worse: int) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    labels, metrics, parts = np.arange(ROWS) % 2, {}, []
    for number, split in enumerate(splits):
        missed = wrong_of(model) + 2 * number + worse
        moved = (np.arange(ROWS) + seed) % ROWS  # seeds fail on other rows
        predictions = np.where(moved < missed, 1 - labels, labels)
        parts.append(pd.DataFrame({"split": split, "row": range(ROWS), "label": labels, "prediction": predictions}))
        accuracy = 1 - missed / ROWS
        metrics[split] = {"accuracy": accuracy, "f1": accuracy - 0.01, "matthews_correlation": 2 * accuracy - 1}
        metrics[split] |= {"rows": ROWS, "accuracy_low": accuracy - 0.1, "accuracy_high": min(1.0, accuracy + 0.05)}
    pd.concat(parts).assign(logit_0=0.0, logit_1=1.0).to_parquet(folder / "predictions.parquet", index=False)
    weights, size = weights_of(model), bytes_of(model)
    listed = weights if size > weights else weights // 2
    sizes = {"framework_parameters": listed, "stored_weights": weights, "paper_parameters": weights // 2}
    operations = {f"1x{length}": {"macs": 10 * weights * length} for length in (32, 128)}
    results = {"metrics": metrics, "data": {"source": source}, "operations": operations}
    return results | {"size": sizes | {"file_bytes": size}}


def _costs(folder: Path, models: tuple[str, ...]) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    latency, times, runs, inputs = [], [], 5, {"1x32": 0.4, "1x128": 1.0, "dev rows": 0.3}.items()
    for model, (name, share), threads, process in itertools.product(models, inputs, (1, 2), range(3)):
        timed_as = model.replace("none", "minilmv2")
        median = milliseconds_of(model) * share / threads * (1 + 0.01 * process)
        row = {"model": model, "timed_as": timed_as, "input": name, "threads": threads, "process": process}
        latency.append(row | {"median_ms": median, "iqr_ms": 0.1, "p90_ms": 1.1 * median, "runs": runs, "noisy": False})
        latency[-1]["bound_ms"] = median / 3
        if timed_as == model:
            of = {"model": model, "input": name, "threads": threads, "process": process}
            times += [of | {"run": run, "nanoseconds": int(1e6 * median * (0.98 + run / 100))} for run in range(runs)]
    pd.DataFrame(times).to_parquet(folder / "times.parquet", index=False)
    memory = [{"model": m, "baseline_bytes": 300_000_000, "peak_bytes": 310_000_000 + bytes_of(m)} for m in models]
    return {"latency": latency, "memory": memory, "tokenizer": [], "peaks": {}}


def scan() -> dict:
    """Results of a scan of heads."""
    curve = [{"removed": removed, "accuracy": 0.9 - 0.02 * removed**1.5 / 2} for removed in range(5)]
    worse = [{**point, "accuracy": point["accuracy"] - 0.02 * point["removed"]} for point in curve]
    importance = {"gradient": [[0.1, 0.4], [0.3, 0.2]], "magnitude": [[1.0, 2.0], [2.0, 1.0]]}
    curves = {"gradient": curve, "magnitude": worse, "random-1": worse, "random-2": curve}
    return {"units": "heads", "importance": importance, "curves": curves, "rows": 256, "split": "hold-out", "total": 4}
