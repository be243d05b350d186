"""A study folder of hand-made records, for the tests of tables, figures and the report. Nothing is trained."""

import csv
import json
from pathlib import Path

import numpy as np

TEACHER = "teacher/fine-tuned"
NONE, DISTILLED = "distillation/none", "distillation/minilmv2"
SCAN = "pruning/minilmv2+head-scan"
CUT = "gradient-heads-0.25"
PRUNED, NONE_PRUNED = f"pruning/minilmv2+{CUT}", f"pruning/none+{CUT}"
DISTILLED_INT8, NONE_INT8 = "quantization/minilmv2+dynamic-int8", "quantization/none+dynamic-int8"
PRUNED_INT8, NONE_PRUNED_INT8 = (f"quantization/minilmv2+{CUT}+dynamic-int8", f"quantization/none+{CUT}+dynamic-int8")
COST = "measurement/cost"
MODELS = (TEACHER, DISTILLED, NONE, PRUNED, NONE_PRUNED, DISTILLED_INT8, NONE_INT8, PRUNED_INT8, NONE_PRUNED_INT8)
UPSTREAM = {
    TEACHER: (),
    DISTILLED: (TEACHER,),
    NONE: (TEACHER,),
    SCAN: (DISTILLED,),
    PRUNED: (DISTILLED, TEACHER),
    NONE_PRUNED: (NONE,),
    DISTILLED_INT8: (DISTILLED,),
    NONE_INT8: (NONE,),
    PRUNED_INT8: (PRUNED,),
    NONE_PRUNED_INT8: (NONE_PRUNED,),
    COST: MODELS,
}
ROWS = 40
# How many of the first rows each model gets wrong, so that accuracies and discordant rows are known by hand.
WRONG = {
    TEACHER: 4,
    DISTILLED: 6,
    NONE: 14,
    PRUNED: 8,
    NONE_PRUNED: 16,
    DISTILLED_INT8: 7,
    NONE_INT8: 15,
    PRUNED_INT8: 8,
    NONE_PRUNED_INT8: 18,
}
WEIGHTS = {TEACHER: 1_000_000, DISTILLED: 500_000, PRUNED: 400_000}
LATENCY_MS = {
    TEACHER: 12.0,
    DISTILLED: 6.0,
    NONE: 6.0,
    PRUNED: 5.0,
    NONE_PRUNED: 5.0,
    DISTILLED_INT8: 3.0,
    NONE_INT8: 3.0,
    PRUNED_INT8: 2.0,
    NONE_PRUNED_INT8: 2.0,
}


def flags(key: str) -> dict:
    stage, variant = key.split("/")
    student = "" if stage in ("teacher", "measurement") else variant.split("+")[0]
    source = next(iter(UPSTREAM[key]), "") if stage != "measurement" else ""
    steps = (
        ([f"distill:{student}"] if student == "minilmv2" else [])
        + ([f"prune:{CUT}"] if CUT in variant else [])
        + (["quantize:dynamic-int8"] if stage == "quantization" else [])
    )
    return {
        "stage": stage,
        "variant": variant,
        "student": student,
        "source": source,
        "steps": steps,
        "compared": False,
        "distilled": student == "minilmv2",
        "pruned": CUT in variant,
        "quantized": stage == "quantization",
    }


def weights_of(key: str) -> int:
    if key == TEACHER:
        return WEIGHTS[TEACHER]
    return WEIGHTS[PRUNED if flags(key)["pruned"] else DISTILLED]


def bytes_of(key: str) -> int:
    return weights_of(key) * (1 if flags(key)["quantized"] else 4)


def model_results(key: str, folder: Path, splits: tuple[str, ...], wrong: dict[str, int], rows: int = ROWS) -> dict:
    """Results of a stage that keeps a model, and its prediction files."""
    labels = np.arange(rows) % 2
    metrics, confusion = {}, {}
    for number, split in enumerate(splits):
        missed = wrong[key] + 2 * number
        predictions = np.where(np.arange(rows) < missed, 1 - labels, labels)
        with (folder / f"predictions-{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "label", "prediction", "logit_0", "logit_1"])
            writer.writerows(zip(range(rows), labels, predictions, labels * 0.1, labels * 0.2, strict=True))
        accuracy = 1 - missed / rows
        metrics[split] = {
            "accuracy": accuracy,
            "f1": accuracy - 0.01,
            "matthews_correlation": 2 * accuracy - 1,
            "rows": rows,
            "accuracy_low": accuracy - 0.1,
            "accuracy_high": min(1.0, accuracy + 0.05),
        }
        confusion[split] = [
            [rows // 2 - missed // 2, missed // 2],
            [missed - missed // 2, rows // 2 - missed + missed // 2],
        ]
    size = bytes_of(key)
    macs = 10 * weights_of(key)
    parts = {"embeddings": 0.4, "attention": 0.2, "feed_forward": 0.35, "norms": 0.02, "head": 0.03}
    results = {
        "data": {
            "source": "synthetic corpus in the schema of Sentiment_2 & co",
            "notes": [],
            "train_rows": 6000,
            "holdout_rows": 300,
            "dev_rows": dict.fromkeys(splits, rows),
            "labels": ["negative", "positive"],
            "title": "Sentiment_2 & co",
            "text_columns": ["sentence"],
        },
        "metrics": metrics,
        "confusion": confusion,
        "size": {
            "framework_parameters": weights_of(key),
            "stored_weights": weights_of(key),
            "model_bytes": size,
            "parts": {name: int(weights_of(key) * share) for name, share in parts.items()},
            "bytes_per_part": {name: int(size * share) for name, share in parts.items()},
            "fp32_bytes": weights_of(key) * 4,
        },
        "operations": {
            name: {"closed_formula_macs": macs * length, "fvcore_macs": None, "flop_counter_macs": None}
            for name, length in (("1x32", 32), ("1x128", 128))
        },
        "model": {
            "family": "bert",
            "layers": 2,
            "hidden_size": 96,
            "heads": [6, 6] if not flags(key)["pruned"] else [5, 4],
            "intermediate_sizes": [384, 384],
            "vocabulary_size": 4000,
        },
    }
    if not flags(key)["quantized"]:
        results["training"] = training(flags(key)["distilled"])
    else:
        results["layers"] = quantized_layers()
    return results


def quantized_layers() -> list[dict]:
    rows = []
    for name, kind, count, quantized in (
        ("bert.embeddings.word_embeddings", "Embedding", 384_000, False),
        ("bert.encoder.layer.0.attention.self.query", "Linear", 9_312, True),
        ("bert.encoder.layer.0.intermediate.dense", "Linear", 37_248, True),
        ("bert.encoder.layer.0.output.LayerNorm", "LayerNorm", 192, False),
        ("classifier", "Linear", 194, True),
    ):
        rows.append(
            {
                "name": name,
                "kind": kind,
                "quantized": quantized,
                "parameters": count,
                "bytes_before": 4 * count,
                "bytes_after": count if quantized else 4 * count,
            }
        )
    return rows


def training(relations: bool) -> dict:
    phases = ["relations", "predictions"] if relations else ["fine-tuning"]
    history, evaluations, step = [], [], 0
    for position, phase in enumerate(phases):
        for number in range(20):
            step += 10
            row = {"phase": phase, "step": step, "epoch": 4 * position + (number + 1) / 5, "loss": 1.5 / (1 + number)}
            if phase == "relations":
                row |= {
                    "query-query": 0.5 / (1 + number),
                    "key-key": 0.6 / (1 + number),
                    "value-value": 0.4 / (1 + number),
                }
            history.append(row)
        if phase != "relations":
            evaluations += [
                {"phase": phase, "epoch": 4 * position + epoch, "loss": 0.7 / epoch, "accuracy": 1 - 0.4 / epoch}
                for epoch in (1, 2, 3, 4)
            ]
    return {
        "phases": [
            {
                "name": phase,
                "epochs": 4,
                "steps": 200,
                "seconds": 20.0,
                "examples_per_second": 1000.0,
                "precision": "float32",
            }
            for phase in phases
        ],
        "history": history,
        "evaluations": evaluations,
    }


def relations(tokens: int = 7) -> dict:
    generator = np.random.default_rng(0)
    pairs = ("query-query", "key-key", "value-value")
    return {
        "tokens": ["[CLS]", "the", "film", "was", "n't", "dull", "[SEP]"][:tokens],
        "models": {
            model: {pair: generator.dirichlet(np.ones(tokens), tokens).tolist() for pair in pairs}
            for model in ("teacher", "student before", "student after")
        },
    }


def scan_results() -> dict:
    falling = [0.85 - 0.003 * number**2 for number in range(11)]
    names = ("gradient", "magnitude", "random-1", "random-2", "random-3")
    return {
        "importance": importance(),
        "rows": 300,
        "units": "heads",
        "total": 12,
        "split": "holdout",
        "curves": {
            name: [{"removed": number, "accuracy": value - 0.01 * position} for number, value in enumerate(falling)]
            for position, name in enumerate(names)
        },
    }


def cut_results() -> tuple[dict, dict]:
    """A model's results, and those of ten ways of cutting it, each at two or three ratios."""

    def metrics(accuracy):
        return {
            "dev": {
                "accuracy": accuracy,
                "accuracy_low": accuracy - 0.02,
                "accuracy_high": accuracy + 0.02,
                "rows": 872,
            }
        }

    names = (
        "gradient heads",
        "gradient-l2 heads",
        "taylor heads",
        "magnitude heads",
        "random heads",
        "gradient neurons",
        "gradient heads and neurons, global, 4 rounds",
        "top layers",
        "vocabulary",
        "magnitude neurons, labels alone",
    )
    cuts = {
        name: [
            {
                "parameters_removed": 40 * step * (1 + place % 4),
                "metrics_after_cut": metrics(0.83 - 0.05 * step - 0.01 * place),
                "metrics": metrics(0.85 - 0.015 * step - 0.004 * place),
            }
            for step in range(1, 3 + place % 2)
        ]
        for place, name in enumerate(names)
    }
    return {"metrics": metrics(0.86), "size": {"stored_weights": 1000}}, cuts


def importance() -> dict:
    generator = np.random.default_rng(1)
    return {name: generator.random((2, 6)).tolist() for name in ("gradient", "magnitude")}


def cost_results(latency: dict[str, float] = LATENCY_MS) -> dict:
    rows, ratios = [], []
    for threads in (1, 2):
        for name, factor in (("1x32", 0.5), ("1x128", 1.0), ("dev rows", 0.25)):
            for key, base in latency.items():
                rows.append(
                    {
                        "key": key,
                        "timed_as": key,
                        "input": name,
                        "threads": threads,
                        "median_ms": base * factor / threads,
                        "iqr_ms": 0.1,
                        "p90_ms": base * factor / threads + 0.2,
                        "runs": 30,
                        "bound_ms": base * factor / threads / 4,
                        "of_bound": 4.0,
                        "noisy": key == NONE and name == "1x128" and threads == 1,
                    }
                )
                if key != TEACHER:
                    ratio = LATENCY_MS[TEACHER] / base
                    ratios.append(
                        {
                            "key": key,
                            "baseline_key": TEACHER,
                            "input": name,
                            "threads": threads,
                            "ratio": ratio,
                            "low": ratio - 0.1,
                            "high": ratio + 0.2,
                        }
                    )
    memory = [
        {"key": key, "baseline_bytes": 150_000_000, "peak_bytes": 150_000_000 + 10 * bytes_of(key), "runs": 1}
        for key in latency
    ]
    return {
        "protocol": "quick",
        "rounds": 30,
        "latency": rows,
        "speed_ups": ratios,
        "memory": memory,
        "tokenizer": [{"input": "1x32", "median_ms": 0.1}],
        "int8_note": "",
        "cpu_seconds": [1.0],
    }


def write_raw_times(folder: Path, rounds: int = 12) -> None:
    """`latency.npz` of one-thread forwards at 1x128: rounds around each model's time, the machine drifting alike."""
    drift = np.linspace(0.9, 1.1, rounds)
    np.savez_compressed(
        folder / "latency.npz",
        **{f"1x128, 1 threads | {key}": 1e6 * value * drift for key, value in LATENCY_MS.items()},
    )


def add_model(study: Path, like: str, key: str, steps: list[str], wrong: int, task: str = "sst2", **changes) -> None:
    """A compared model's record made after that of key `like`, with `wrong` first dev rows wrong."""
    source = study / task / "seed-0" / like
    content = json.loads((source / "record.json").read_text())
    stage, variant = key.split("/")
    results = content["results"] | {
        name: changes.pop(name)
        for name in list(changes)
        if name in ("metrics_after_cut", "agreement", "demands", "size")
    }
    accuracy = 1 - wrong / ROWS
    results["metrics"] = {"dev": results["metrics"]["dev"] | {"accuracy": accuracy}}
    folder = study / task / "seed-0" / key
    folder.mkdir(parents=True)
    labels = np.arange(ROWS) % 2
    predictions = np.where(np.arange(ROWS) < wrong, 1 - labels, labels)
    lines = [f"{row},{label},{found},0,0" for row, (label, found) in enumerate(zip(labels, predictions, strict=True))]
    (folder / "predictions-dev.csv").write_text("\n".join(["row,label,prediction,logit_0,logit_1", *lines]) + "\n")
    (folder / "record.json").write_text(
        json.dumps(
            content
            | {
                "stage": stage,
                "variant": variant,
                "steps": steps,
                "compared": True,
                "fingerprint": key,
                "results": results,
                "identity": {"upstream": {}},
                **changes,
            }
        )
    )


def write_compressed_teachers(study: Path) -> tuple[str, str, str]:
    """Records of recipes that compress the teacher itself, of one cut and of none; their keys, the float one first."""
    cut, scheme = "prune:gradient-neurons-0.25", "quantize:onnx-dynamic-int8"
    pruned, ends = "pruning/teacher+gradient-neurons-0.25", "quantization/teacher+"
    keys = pruned, f"{ends}gradient-neurons-0.25+onnx-dynamic-int8", f"{ends}onnx-dynamic-int8"
    common = {"student": "teacher", "distilled": False}
    add_model(study, PRUNED, keys[0], ["teacher", cut], 6, source=TEACHER, **common)
    add_model(study, PRUNED_INT8, keys[1], ["teacher", cut, scheme], 7, source=pruned, **common)
    add_model(study, DISTILLED_INT8, keys[2], ["teacher", scheme], 5, source=TEACHER, **common)
    return keys


def write_record(
    study: Path, task: str, seed: int, key: str, results, upstream: dict[str, str], fingerprint: str
) -> None:
    folder = study / task / f"seed-{seed}" / key
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "record_version": 2,
        "task": task,
        "seed": seed,
        "profile": "demo",
        "fingerprint": fingerprint,
        "identity": {"upstream": upstream},
        **flags(key),
        "finished": "2026-01-01T00:00:00+00:00",
        "wall_seconds": 30.0,
        "results": results(folder) if callable(results) else results,
        "environment": {
            "processor": "Test CPU 100%",
            "available_cores": 2,
            "processor_flags": {"avx2": True, "avx512_vnni": False},
            "memory_bytes": 8_000_000_000,
            "operating_system": "Test OS",
            "python": "3.11.7",
            "packages": {"torch": "2.13.0"},
        },
    }
    (folder / "record.json").write_text(json.dumps(content, indent=1))


def write_chain(
    study: Path,
    task: str = "sst2",
    seed: int = 0,
    splits: tuple[str, ...] = ("dev",),
    wrong: dict[str, int] = WRONG,
    leave_out: tuple[str, ...] = (),
    rows: int = ROWS,
) -> Path:
    """All records of one chain but those in `leave_out`; returns the study's folder."""
    mark = {key: f"{task}-{seed}-{key}" for key in UPSTREAM}
    for key, needed in UPSTREAM.items():
        if key in leave_out:
            continue
        upstream = {name: mark[name] for name in needed}
        if key == COST:
            timed = {name: value for name, value in LATENCY_MS.items() if name not in leave_out}
            results = cost_results(timed)
        elif key == SCAN:
            results = scan_results()
        else:

            def results(folder, key=key):
                found = model_results(key, folder, splits, wrong, rows)
                return found | ({"relations": relations()} if key == DISTILLED else {})

        write_record(study, task, seed, key, results, upstream, mark[key])
        if key == COST:
            write_raw_times(study / task / f"seed-{seed}" / key)
    return study
