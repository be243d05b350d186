"""What this machine has to measure of the paper's models: latency, memory and CPU time."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from edgemin_utils.checkpoints import save_model
from edgemin_utils.evaluation import predictor
from edgemin_utils.measurement.energy import forward_energy
from edgemin_utils.measurement.latency import LatencyResult, Protocol, fixed_inputs, measure_latency, speed_ups
from edgemin_utils.measurement.memory import peak_memory
from edgemin_utils.measurement.roofline import Peaks, measure_peaks, with_bound, work_of_model
from edgemin_utils.paper.architectures import PaperModels
from edgemin_utils.paper.honest import HONEST, save_honest
from edgemin_utils.paper.interaction import additive_prediction, medians_ms, time_parts, time_products
from edgemin_utils.quantization import save_quantized
from edgemin_utils.statistics import Estimate, bootstrap_interval_of_interaction

TEACHER, STUDENT, PRUNED, FIFTH, INT8, FINAL = (
    "teacher",
    "student",
    "student, 24 heads removed",
    "student, 29 heads removed",
    "student, INT8",
    "final model",
)
TWO_BY_TWO = (STUDENT, PRUNED, INT8, FINAL)
LENGTHS = (32, 128)
THREADS = 1
ENERGY_REPEATS = 20
WIDTHS = tuple(range(256, 513, 8))
# What the process that a model's memory is measured in has imported.
TORCH, ONNX = "PyTorch, transformers", "ONNX Runtime, tokenizers, NumPy"
Say = Callable[[str], None]


def measure_paper(
    models: PaperModels,
    protocol: Protocol,
    say: Say = lambda text: None,
    lengths: Sequence[int] = LENGTHS,
    widths: Sequence[int] = WIDTHS,
    memory_runs: int = 1,
    samples: int = 2000,
    repeats: int = 1,
) -> dict[str, Any]:
    """Every measurement, with one thread.

    Args:
        repeats: how often latency is measured; the first time is the result, `repeated` sets the ratios of all beside
            one another.

    Returns:
        plain data: protocol, threads, what `measure_latencies` returns, products (input, direction, width, fp32_ms,
        int8_ms), parts (input, parts_ms: variant -> median, and what `interaction.additive_prediction` returns), memory
        (model, process, baseline_bytes, peak_bytes, resident_bytes), energy (model, cpu_seconds, joules, source),
        peaks, repeated (see `repeated_ratios`; empty where latency was measured once).
    """
    found: dict[str, Any] = {"protocol": vars(protocol).copy(), "threads": THREADS, "products": [], "parts": []}
    say("peak speed and bandwidth")
    peaks = measure_peaks(THREADS)
    # Parts and products are short, and a hundred rounds of them are enough; a quick look has fewer.
    short = Protocol(f"{protocol.name}, parts", min(3, protocol.warm_up), min(100, protocol.runs), seconds=0.0)
    runs = [measure_latencies(models, protocol, peaks, lengths, samples, say) for _ in range(repeats)]
    found |= {**runs[0], "repeated": repeated_ratios(runs) if repeats > 1 else []}
    for length in lengths:
        name = f"1x{length}"
        say(f"products, attention and the rest of {name}")
        timed = time_parts(length, models, THREADS, short)
        found["parts"].append({"input": name, "parts_ms": medians_ms(timed), **additive_prediction(timed, samples)})
        say(f"matrix products of {length} rows, {len(widths)} widths")
        products = time_products(length, widths, models.student.config.hidden_size, THREADS, short)
        found["products"] += [{"input": name, **row} for row in products]
    say("peak memory of fresh processes")
    found["memory"] = peak_memories(models, max(lengths), memory_runs)
    inputs = fixed_inputs(1, max(lengths), models.honest.config.vocab_size)
    found["energy"] = [
        {
            "model": name,
            "input": f"1x{max(lengths)}",
            **forward_energy(predictor(model), inputs, THREADS, ENERGY_REPEATS),
        }
        for name, model in (
            (TEACHER, models.teacher),
            (STUDENT, models.student),
            (FINAL, models.pruned_quantized),
            (HONEST, models.honest_quantized),
        )
    ]
    return {**found, "peaks": peaks.as_record()}


# ---- latency -----------------------------------------------------------------------------------------------------


def measure_latencies(
    models: PaperModels,
    protocol: Protocol,
    peaks: Peaks,
    lengths: Sequence[int] = LENGTHS,
    samples: int = 2000,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Latency of all models in turn, at batch 1.

    Returns:
        latency (model, input, median_ms, ..., bound_ms, of_bound), raw (input -> LatencyResult's record), over_teacher
        and over_student (model, input, ratio, low, high), interaction (input, ratio, low, high).
    """
    timed = timed_models(models)
    # Every model gets the same tokens, so they are of the smallest vocabulary.
    vocabulary = min(model.config.vocab_size for model in timed.values())
    found: dict[str, Any] = {"latency": [], "raw": {}, "over_teacher": [], "over_student": [], "interaction": []}
    for length in lengths:
        name = f"1x{length}"
        say(f"latency of {len(timed)} models on {name}")
        result = measure_latency(
            {key: predictor(model) for key, model in timed.items()},
            [fixed_inputs(1, length, vocabulary)],
            THREADS,
            protocol,
        )
        found["raw"][name] = result.as_record()
        found["latency"] += [
            with_bound({"model": key, "input": name, **numbers}, [work_of_model(timed[key], 1, length)], peaks)
            for key, numbers in result.summary().items()
        ]
        found["over_teacher"] += _ratios(result, name, TEACHER, samples)
        found["over_student"] += _ratios(result, name, STUDENT, samples)
        found["interaction"].append({"input": name, **_as_dict(interaction(result, samples))})
    return found


def timed_models(models: PaperModels) -> dict[str, PreTrainedModel]:
    """Name in tables -> model, of those whose latency is measured."""
    return {
        TEACHER: models.teacher,
        STUDENT: models.student,
        PRUNED: models.pruned,
        FIFTH: models.fifth,
        INT8: models.quantized,
        FINAL: models.pruned_quantized,
        HONEST: models.honest_quantized,
    }


def interaction(result: LatencyResult, samples: int = 2000) -> Estimate:
    """How pruning and quantization interact on latency: 1 where their gains multiply, over 1 where together they gain
    less (see `statistics.bootstrap_interval_of_interaction`)."""
    return bootstrap_interval_of_interaction(*(result.of(name) for name in TWO_BY_TWO), samples=samples)


def repeated_ratios(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every ratio of several results of `measure_latencies`, side by side.

    Returns:
        rows of ratio ("over the teacher", "over the student", "interaction"), model, input, runs (one value a run),
        disagreement (how far the largest lies above the smallest, as a share of the latter), low and high (the first
        run's interval).
    """
    rows = []
    for kind, title in (
        ("over_teacher", "over the teacher"),
        ("over_student", "over the student"),
        ("interaction", "interaction"),
    ):
        for entries in zip(*(run[kind] for run in runs), strict=True):
            values = [entry["ratio"] for entry in entries]
            rows.append(
                {
                    "ratio": title,
                    "model": entries[0].get("model", ""),
                    "input": entries[0]["input"],
                    "runs": values,
                    "disagreement": max(values) / min(values) - 1,
                    "low": entries[0]["low"],
                    "high": entries[0]["high"],
                }
            )
    return rows


def _ratios(result: LatencyResult, input_name: str, baseline: str, samples: int) -> list[dict[str, Any]]:
    return [
        {"model": name, "input": input_name, **_as_dict(ratio)}
        for name, ratio in speed_ups(result, baseline, samples).items()
        if name != baseline
    ]


def _as_dict(estimate: Estimate) -> dict[str, Any]:
    return {"ratio": estimate.value, "low": estimate.low, "high": estimate.high}


# ---- memory ------------------------------------------------------------------------------------------------------


def peak_memories(models: PaperModels, length: int, runs: int) -> list[dict[str, Any]]:
    """Of teacher, student, final and honest model, each saved and run in a fresh process: model, process (what it
    imports), baseline_bytes (after the imports), peak_bytes (loading included), resident_bytes (at the end). The honest
    model, being an .onnx file, runs in a process without torch."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, model in (
            (TEACHER, models.teacher),
            (STUDENT, models.student),
            (FINAL, models.pruned_quantized),
            (HONEST, models.honest_quantized),
        ):
            folder, loader, process = Path(place) / name.replace(" ", "-"), "quantization:load_model", TORCH
            if name == HONEST:
                save_honest(model, folder)
                loader, process = "measurement.deployed:load_deployed", ONNX
            elif name == FINAL:
                save_quantized(model, folder, "dynamic-int8")
            else:
                save_model(model, folder)
            found = peak_memory(folder, loader=f"edgemin_utils.{loader}", length=length, runs=runs)
            rows.append(
                {
                    "model": name,
                    "process": process,
                    **{key: found[key] for key in ("baseline_bytes", "peak_bytes", "resident_bytes")},
                }
            )
    return rows
