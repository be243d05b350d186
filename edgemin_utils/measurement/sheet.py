"""The sheet of models that `edgemin measure` prints: weights, bytes, operations, latency, memory and energy."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from edgemin_utils.environment import describe_environment
from edgemin_utils.measurement.costs import measure_costs
from edgemin_utils.measurement.measured import open_model
from edgemin_utils.settings import load_settings
from edgemin_utils.statistics import mean_over_processes

_PLACE = "threads input model".split()
# Column, factor and header.
_SIZES = """size.stored_weights 1 weights; size.framework_parameters 1 listed; size.paper_parameters 1 paper's count;
    size.file_bytes 1e-6 file MB; size.file_bytes 9.5367431640625e-07 MiB; size.integer_bytes 1e-6 integers MB;
    peak_bytes 1e-6 peak MB; baseline_bytes 1e-6 imports MB; cpu_seconds 1e3 CPU ms a row; joules 1 joules a row"""
_NOTES = """Weights: wherever stored; listed: by the framework, blind to packed INT8; paper's count: listed once linear
    layers are dynamically quantized. Latency: medians over {processes} fresh processes{look}; noisy: IQR over
    10 % of the median; low and high: where a second measurement would lie. {cores} cores, {memory:.0f} GB, {system}."""


def measure_models(
    sources: Sequence[str],
    lengths: Sequence[int] = (32, 128),
    threads: Sequence[int] = (1, 0),
    protocol: str = "full",
    texts: Sequence[Sequence[str]] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything about the models (folders, hub ids, .onnx files or bundles), also on rows of `texts`: what
    `measure_costs` gives in 5 processes (2 with the quick protocol), and models (name, model, size, operations by
    input), baseline (the first), speed_ups (model, input, threads, ratio, low, high over processes), environment."""
    asked = {"latency_lengths": list(lengths), "latency_threads": list(threads), "latency_protocol": protocol}
    settings = load_settings("demo", {**asked, "latency_processes": 2 if protocol == "quick" else 5, "max_length": 512})
    short = [Path(source).name or source for source in sources]
    names = [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]
    named, described, ratios = dict(zip(names, sources, strict=True)), [], []
    for name, source in named.items():
        say(f"{name}: weights, bytes, operations")
        model = open_model(source)
        work = {f"1x{each}": model.operations(each) for each in lengths if each <= (model.longest or each)}
        described.append({"name": name, **model.describe(), "operations": work})
    costs, baseline = measure_costs(named, texts, settings, say=say), names[0]
    medians = pd.DataFrame(costs["latency"]).pivot(index="process", columns=_PLACE, values="median_ms")
    for threads, kind, name in medians:
        if name != baseline and (threads, kind, baseline) in medians:
            ratio = mean_over_processes(medians[threads, kind, baseline] / medians[threads, kind, name])._asdict()
            ratios.append({"model": name, "input": kind, "threads": threads, "ratio": ratio.pop("value"), **ratio})
    found = {"models": described, "baseline": baseline, "speed_ups": ratios, "environment": describe_environment()}
    return found | costs


def sheet_text(sheet: Mapping[str, Any]) -> str:
    """A sheet's three tables for a terminal, and what a reader must know."""
    machine, protocol = sheet["environment"], sheet["protocol"]
    parts = [pd.DataFrame(sheet[name]).drop(columns=["model", "timed_as"]) for name in ("memory", "energy")]
    every = pd.concat([pd.json_normalize(list(sheet["models"]), max_level=1), *parts], axis=1)
    entries = [entry.split() for entry in _SIZES.split(";")]
    columns = {" ".join(name): every[column] * float(factor) for column, factor, *name in entries}
    sizes = pd.DataFrame({"model": every["name"], **columns})
    work = pd.DataFrame(
        {"model": model["name"], "input": kind, "MMACs": count["macs"] / 1e6}
        | {f"{tool} / formula": count.get(f"{tool}_ratio") for tool in ("fvcore", "torch")}
        for model in sheet["models"]
        for kind, count in model["operations"].items()
    )
    groups = pd.DataFrame(sheet["latency"]).groupby(_PLACE, sort=False)
    times = groups[["median_ms", "iqr_ms", "p90_ms", "bound_ms"]].median()
    times = times.assign(runs=groups["runs"].sum(), noisy=groups["noisy"].any().map({True: "noisy", False: ""}))
    faster = pd.DataFrame(sheet["speed_ups"], columns=[*_PLACE, "ratio", "low", "high"]).set_index(_PLACE)
    times = times.join(faster.rename(columns={"ratio": f"times as fast as {sheet['baseline']}"})).reset_index()
    look = " (a QUICK look: too few runs for a result)" if protocol["name"] == "quick" else ""
    told = {"cores": machine["available_cores"], "memory": machine["memory_bytes"] / 1e9, "look": look}
    about = _NOTES.format(processes=protocol["processes"], system=machine["operating_system"], **told)
    style: Any = {"index": False, "na_rep": "-", "float_format": lambda it: f"{it:,.3f}".removesuffix(".000")}
    tables = [frame.to_string(**style) for frame in (sizes, work, times)]
    notes = [" ".join(about.split()), *sheet["notes"], sheet["int8_note"]]
    return "\n\n".join([*tables, "\n".join(textwrap.fill(note, 120) for note in notes)])
