"""What this machine has to measure of the paper's models: latency, the interaction of pruning and quantization, the
matrix products behind it, memory and CPU time."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemin_utils.checkpoints import save_model
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.evaluation import predictor
from edgemin_utils.measurement.energy import forward_energy
from edgemin_utils.measurement.latency import LatencyResult, Protocol, fixed_inputs, measure_latency, speed_ups
from edgemin_utils.measurement.memory import peak_memory
from edgemin_utils.measurement.roofline import measure_peaks, with_bound, work_of_model
from edgemin_utils.paper.architectures import VOCABULARY, PaperModels
from edgemin_utils.quantization import quantize, save_quantized
from edgemin_utils.statistics import Estimate, bootstrap_interval_of_interaction

TEACHER, STUDENT, PRUNED, FIFTH, INT8, FINAL = (
    "teacher", "student", "student, 24 heads removed", "student, 29 heads removed", "student, INT8", "final model")
TWO_BY_TWO = (STUDENT, PRUNED, INT8, FINAL)
LENGTHS = (32, 128)
THREADS = 1
ENERGY_REPEATS = 20
WIDTHS = tuple(range(256, 513, 8))
# Products are short, so many rounds are cheap.
PRODUCT_PROTOCOL = Protocol("products", warm_up=3, runs=100, seconds=0.0)
Say = Callable[[str], None]


def measure_paper(models: PaperModels, protocol: Protocol, say: Say = lambda text: None,
                  lengths: Sequence[int] = LENGTHS, widths: Sequence[int] = WIDTHS,
                  product_protocol: Protocol = PRODUCT_PROTOCOL, memory_runs: int = 1,
                  samples: int = 2000) -> dict[str, Any]:
    """Every measurement, with one thread.

    Returns:
        plain data: protocol, threads, latency (model, input, median_ms, ..., bound_ms, of_bound), raw (input ->
        LatencyResult's record), over_teacher and over_student (model, input, ratio, low, high), interaction (input,
        ratio, low, high, predicted: what the products alone give), products (input, direction, width, fp32_ms,
        int8_ms), memory (model, baseline_bytes, peak_bytes,
        resident_bytes), energy (model, cpu_seconds, joules, source), peaks.
    """
    timed = {TEACHER: models.teacher, STUDENT: models.student, PRUNED: models.pruned, FIFTH: models.fifth,
             INT8: models.quantized, FINAL: models.pruned_quantized}
    found: dict[str, Any] = {"protocol": vars(protocol).copy(), "threads": THREADS, "latency": [], "raw": {},
                             "over_teacher": [], "over_student": [], "interaction": [], "products": []}
    say("peak speed and bandwidth")
    peaks = measure_peaks(THREADS)
    for length in lengths:
        name = f"1x{length}"
        say(f"latency of {len(timed)} models on {name}")
        result = measure_latency({key: predictor(model) for key, model in timed.items()},
                                 [fixed_inputs(1, length, VOCABULARY)], THREADS, protocol)
        found["raw"][name] = result.as_record()
        found["latency"] += [with_bound({"model": key, "input": name, **numbers},
                                        [work_of_model(timed[key], 1, length)], peaks)
                             for key, numbers in result.summary().items()]
        found["over_teacher"] += _ratios(result, name, TEACHER, samples)
        found["over_student"] += _ratios(result, name, STUDENT, samples)
        say(f"matrix products of {length} rows, {len(widths)} widths")
        products = time_products(length, widths, models.student.config.hidden_size, product_protocol)
        found["products"] += [{"input": name, **row} for row in products]
        whole = time_layer(length, models, product_protocol)
        found["interaction"].append({"input": name, **_as_dict(interaction(result, samples)),
                                     "predicted": predicted_interaction(whole), "layer_ms": whole})
    say("peak memory of fresh processes")
    found["memory"] = peak_memories(models, max(lengths), memory_runs)
    found["energy"] = [{"model": name, "input": f"1x{max(lengths)}", **forward_energy(
        predictor(model), fixed_inputs(1, max(lengths), VOCABULARY), THREADS, ENERGY_REPEATS)}
                       for name, model in ((TEACHER, models.teacher), (STUDENT, models.student),
                                           (FINAL, models.pruned_quantized))]
    return {**found, "peaks": peaks.as_record()}


def interaction(result: LatencyResult, samples: int = 2000) -> Estimate:
    """How pruning and quantization interact on latency: 1 where their gains multiply, over 1 where together they gain
    less (see `statistics.bootstrap_interval_of_interaction`)."""
    return bootstrap_interval_of_interaction(*(result.of(name) for name in TWO_BY_TWO), samples=samples)


# ---- matrix products --------------------------------------------------------------------------------------------


def time_products(rows: int, widths: Sequence[int], hidden_size: int, protocol: Protocol) -> list[dict[str, Any]]:
    """Times products of `rows` tokens over a range of widths, FP32 and dynamic INT8, in turns.

    Two directions: "into heads" is hidden size -> width, as query, key and value; "out of heads" is width -> hidden
    size, as the attention output. INT8 is torch's dynamic quantized linear layer, activations quantized in the call.
    """
    shapes = {("into heads", width): (hidden_size, width) for width in widths}
    shapes |= {("out of heads", width): (width, hidden_size) for width in widths}
    medians = _time_linears({key: (rows, *shape) for key, shape in shapes.items()}, protocol)
    return [{"direction": direction, "width": width, "fp32_ms": medians[direction, width]["fp32"],
             "int8_ms": medians[direction, width]["int8"]} for direction, width in shapes]


def time_layer(rows: int, models: PaperModels, protocol: Protocol) -> dict[str, float]:
    """Milliseconds that the six products of one encoder layer take by themselves: {fp32, int8} x {whole, pruned}."""
    layers = {"whole": encoder_layers(models.student)[0], "pruned": encoder_layers(models.pruned)[0]}
    names = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")
    shapes = {(form, name): (rows, getattr(layer, name).in_features, getattr(layer, name).out_features)
              for form, layer in layers.items() for name in names}
    medians = _time_linears(shapes, protocol)
    return {f"{precision} {form}": sum(medians[form, name][precision] for name in names)
            for precision in ("fp32", "int8") for form in layers}


def predicted_interaction(layer: Mapping[str, float]) -> float:
    """The interaction that the products alone would give, from `time_layer`."""
    return (layer["int8 pruned"] * layer["fp32 whole"]) / (layer["int8 whole"] * layer["fp32 pruned"])


def _applied(layer: nn.Module, states: torch.Tensor) -> Callable[[Any], torch.Tensor]:
    return lambda _: layer(states)


def _time_linears(shapes: Mapping[Any, tuple[int, int, int]], protocol: Protocol) -> dict[Any, dict[str, float]]:
    """Key -> {"fp32", "int8"}: median milliseconds of a linear layer of (rows, inputs, outputs), all in turns."""
    calls: dict[tuple[Any, str], Callable[[Any], Any]] = {}
    for key, (rows, inputs, outputs) in shapes.items():
        layer, states = nn.Linear(inputs, outputs).eval(), torch.randn(1, rows, inputs)
        integer = quantize(nn.Sequential(layer), "dynamic-int8")
        calls[key, "fp32"], calls[key, "int8"] = _applied(layer, states), _applied(integer, states)
    summary = measure_latency(calls, [None], THREADS, protocol).summary()
    return {key: {precision: summary[key, precision]["median_ms"] for precision in ("fp32", "int8")} for key in shapes}


# ---- memory and energy -------------------------------------------------------------------------------------------


def peak_memories(models: PaperModels, length: int, runs: int) -> list[dict[str, Any]]:
    """Of teacher, student and final model, each saved and run in a fresh process: model, baseline_bytes (after the
    imports), peak_bytes (loading included), resident_bytes (at the end)."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, model in ((TEACHER, models.teacher), (STUDENT, models.student), (FINAL, models.pruned_quantized)):
            folder = Path(place) / name.replace(" ", "-")
            if name == FINAL:
                save_quantized(model, folder, "dynamic-int8")
            else:
                save_model(model, folder)
            found = peak_memory(folder, loader="edgemin_utils.quantization:load_model", length=length, runs=runs)
            rows.append({"model": name,
                         **{key: found[key] for key in ("baseline_bytes", "peak_bytes", "resident_bytes")}})
    return rows


def _ratios(result: LatencyResult, input_name: str, baseline: str, samples: int) -> list[dict[str, Any]]:
    return [{"model": name, "input": input_name, **_as_dict(ratio)}
            for name, ratio in speed_ups(result, baseline, samples).items() if name != baseline]


def _as_dict(estimate: Estimate) -> dict[str, Any]:
    return {"ratio": estimate.value, "low": estimate.low, "high": estimate.high}
