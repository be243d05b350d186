"""A tiny study on disk in the format of record version 3: records, predictions, costs. Nothing is trained."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from edgemin_utils.names import kind_of
from edgemin_utils.results.table import Frames, read_frames

ROWS = 40
CUT = "heads-0.2"
PATH = ("teacher", "none", "minilmv2", f"minilmv2+{CUT}", f"minilmv2+{CUT}+int8")
CHOICES = itertools.product(("none", "minilmv2"), ("uncut", CUT), ("", "+int8"))
FACTORIAL = tuple(f"{student}+{cut}{scheme}" for student, cut, scheme in CHOICES)
MODELS = tuple(dict.fromkeys((*PATH, *FACTORIAL, "minilmv2+onnx-int8")))
REFUSED = "tinybert"
# Rows that models get wrong (the first so many) and their steps more, so that accuracies are known by hand.
WRONG = {"teacher": 4, "none": 14, "minilmv2": 6, "uncut": 0, CUT: 2, "int8": 1, "onnx-int8": 0}
# Milliseconds of models, and how many times as long they take after a step.
TIMES = {"teacher": 12.0, "none": 6.0, "minilmv2": 6.0, "uncut": 1.0, CUT: 0.8, "int8": 0.5, "onnx-int8": 0.25}
ENVIRONMENT = {"git_revision": "0123456789abcdef" * 2 + "01234567", "python": "3.11.7", "packages": {"torch": "2.13.0"}}
ENVIRONMENT |= {"processor": "Example CPU", "processor_flags": {"avx2": True, "avx512_vnni": False}}
ENVIRONMENT |= {"available_cores": 2, "memory_bytes": 8_000_000_000, "operating_system": "Linux 6.18 x86_64"}


def wrong_of(model: str) -> int:
    return sum(WRONG[part] for part in model.split("+"))


def milliseconds_of(model: str) -> float:
    return math.prod(TIMES[part] for part in model.split("+"))


def weights_of(model: str) -> int:
    return 1_000_000 if model == "teacher" else 400_000 if CUT in model else 500_000


def bytes_of(model: str) -> int:
    return weights_of(model) * (1 if kind_of(model) == "quantization" else 4)


def write_study(folder: Path, tasks=None, seeds=(0, 1, 2), models=MODELS, timed=True, real=False, worse=0) -> Path:
    """A study with every model in each chain, a refused one and, where `timed`, measured costs in three processes;
    `tasks` maps names to dev splits; `worse`: more rows that all students get wrong."""
    for (task, splits), seed in itertools.product((tasks or {"sst2": ("dev",)}).items(), seeds):
        chain = folder / task / f"seed-{seed}"
        for model in models:
            results = _results(chain / model, splits, seed, real, worse * (model != "teacher"))
            _write(chain / model, kind_of(model), results)
        _write(chain / REFUSED, "distillation", {}, "tinybert needs equal heads, 6 and 4 are not")
        _write(chain / "minilmv2+scan-heads", "scan", scan())
        if timed:
            _write(chain / "costs", "costs", _costs(chain / "costs", models))
        (chain / "chain.json").write_text(json.dumps({"profile": "demo", "overrides": {"train_rows": 2000}}))
    return folder


def write_frames(folder: Path, *arguments, **named) -> Frames:
    """`write_study`, read."""
    return read_frames(write_study(folder, *arguments, **named))


def frames_of(*arguments, **named):
    """A fixture: `write_frames`, once a module."""

    @pytest.fixture(scope="module")
    def frames(tmp_path_factory) -> Frames:
        return write_frames(tmp_path_factory.mktemp("frames") / "study", *arguments, **named)

    return frames


def _write(folder: Path, kind: str, results: dict, refused: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    *_, task, seed, model = folder.parts
    content = {"version": 3, "model": model, "kind": kind, "task": task, "seed": int(seed[5:]), "profile": "demo"}
    content |= {"fingerprint": "0" * 16, "identity": {}, "finished": "2026-11-28T12:00:00+00:00", "seconds": 5.0}
    content |= {"environment": ENVIRONMENT, "results": results} | ({"refused": refused} if refused else {})
    (folder / "record.json").write_text(json.dumps(content))


def _results(folder: Path, splits: tuple[str, ...], seed: int, real: bool, worse: int) -> dict:
    folder.mkdir(parents=True)
    labels, metrics, parts = np.arange(ROWS) % 2, {}, []
    for number, split in enumerate(splits):
        missed = wrong_of(folder.name) + 2 * number + worse
        moved = (np.arange(ROWS) + seed) % ROWS  # seeds fail on other rows
        predictions = np.where(moved < missed, 1 - labels, labels)
        parts.append(pd.DataFrame({"split": split, "row": range(ROWS), "label": labels, "prediction": predictions}))
        accuracy = 1 - missed / ROWS
        metrics[split] = {"accuracy": accuracy, "f1": accuracy - 0.01, "matthews_correlation": 2 * accuracy - 1}
        metrics[split] |= {"rows": ROWS, "accuracy_low": accuracy - 0.1, "accuracy_high": min(1.0, accuracy + 0.05)}
    pd.concat(parts).assign(logit_0=0.0, logit_1=1.0).to_parquet(folder / "predictions.parquet", index=False)
    weights, size = weights_of(folder.name), bytes_of(folder.name)
    listed = weights if size > weights else weights // 2
    sizes = {"framework_parameters": listed, "stored_weights": weights, "paper_parameters": weights // 2}
    macs = {f"1x{length}": {"macs": 10 * weights * length} for length in (32, 128)}
    source = "GLUE" if real else "synthetic corpus"
    return {"metrics": metrics, "data": {"source": source}, "operations": macs, "size": sizes | {"file_bytes": size}}


def _costs(folder: Path, models: tuple[str, ...]) -> dict:
    folder.mkdir()
    latency, times, runs, inputs = [], [], 5, {"1x32": 0.4, "1x128": 1.0, "dev rows": 0.3}.items()
    for model, (name, share), threads, process in itertools.product(models, inputs, (1, 2), range(3)):
        timed_as = model.replace("none", "minilmv2")
        median = milliseconds_of(model) * share / threads * (1 + 0.01 * process)
        row = {"model": model, "timed_as": timed_as, "input": name, "threads": threads, "process": process}
        latency.append(row | {"median_ms": median, "bound_ms": median / 3, "noisy": False})
        if timed_as == model:
            of = {"model": model, "input": name, "threads": threads, "process": process}
            times += [of | {"run": run, "nanoseconds": int(1e6 * median * (0.98 + run / 100))} for run in range(runs)]
    pd.DataFrame(times).to_parquet(folder / "times.parquet", index=False)
    memory = [{"model": model, "peak_bytes": 310_000_000 + bytes_of(model)} for model in models]
    return {"latency": latency, "memory": memory}


def scan() -> dict:
    curve = [{"removed": removed, "accuracy": 0.9 - 0.02 * removed**1.5 / 2} for removed in range(5)]
    worse = [{**point, "accuracy": point["accuracy"] - 0.02 * point["removed"]} for point in curve]
    importance = {"gradient": [[0.1, 0.4], [0.3, 0.2]], "magnitude": [[1.0, 2.0], [2.0, 1.0]]}
    curves = {"gradient": curve, "magnitude": worse, "random-1": worse, "random-2": curve}
    return {"units": "heads", "importance": importance, "curves": curves, "rows": 256, "split": "hold-out", "total": 4}
