"""Latency, memory, energy and tokenizer time of models, and the sheet that `edgemin measure` prints. Run as a program,
this module is one of the fresh processes that load all models and time them interleaved."""

import functools
import gc
import itertools
import json
import math
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer

from edgemin_utils.environment import available_cores, describe_environment, int8_sentence
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import latency as timing
from edgemin_utils.measurement.measured import open_model
from edgemin_utils.measurement.memory import answer_request, cpu_energy, in_fresh_process, peak_memory
from edgemin_utils.measurement.operations import roofline_bound
from edgemin_utils.measurement.peers import make_peers
from edgemin_utils.settings import Settings, load_settings
from edgemin_utils.statistics import mean_over_processes

TIMES_FILE = "times.parquet"
ROWS, ROWS_TIMED = "dev rows", 100
_PLACE = "threads input model".split()
_SHEET = tomllib.loads((Path(__file__).parent / "sheet.toml").read_text(encoding="utf-8"))


def measure_costs(
    models: Mapping[str, str | Path],
    texts: Sequence[Sequence[str]],
    settings: Settings,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    memory_of: Collection[str] | None = None,
) -> dict[str, Any]:
    """Times every model (name -> folder or hub id), or one for all of equal shapes and scheme, on fixed
    inputs and a hundred rows of texts; and measures peak memory (`memory_of`: of these alone). Gives latency: rows of
    model, timed_as, input, threads, process, `summarise` and, of one thread, bound_ms and attention_ms, its part (raw:
    times.parquet in `folder`); memory, energy: rows of model, timed_as, `peak_memory` or `cpu_energy`; tokenizer
    (`summarise`); protocol; notes."""
    first: dict[str, str] = {}
    timed_as = {name: first.setdefault(_shapes(source), name) for name, source in models.items()}
    timed = {name: str(models[name]) for name in first.values()}
    count, asked = settings.latency_processes, timing.PROTOCOLS[settings.latency_protocol]
    # The runs and seconds that the protocol asks for are those of all processes together.
    runs = {"runs": max(10, math.ceil(asked.runs / count)), "seconds": asked.seconds / count}
    threads = list(dict.fromkeys(number or available_cores() for number in settings.latency_threads))
    request: dict[str, Any] = {"models": timed, "texts": [list(text) for text in texts[:ROWS_TIMED]]}
    request |= {"threads": threads, "lengths": settings.latency_lengths, "max_length": settings.max_length}
    request |= {"protocol": {"name": asked.name, "warm_up": asked.warm_up, **runs}}
    answers, memory = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for place in range(count):
        say(f"latency, process {place + 1} of {count}")
        answers.append(in_fresh_process(__name__, {**request, "describe": place == 0}, max(threads), "latency"))
    for name in dict.fromkeys(timed_as[name] for name in (models if memory_of is None else memory_of)):
        say(f"peak memory of {name}")
        memory[name] = peak_memory(next(Path(timed[name]).glob("*.onnx"), timed[name]), runs=settings.memory_runs)
    times = [{**row, "process": place} for place, answer in enumerate(answers) for row in answer["times"]]
    if folder is not None:
        frame = pd.DataFrame(times).explode("nanoseconds").astype({"nanoseconds": "int64"})
        frame["run"] = frame.groupby(["model", "input", "threads", "process"]).cumcount()
        frame.to_parquet(Path(folder) / TIMES_FILE, index=False)
    described, latency = answers[0]["described"], list[dict[str, Any]]()
    pairs = [{"model": name, "timed_as": shown} for name, shown in timed_as.items()]
    for row in times:
        bound = described[row["model"]]["bounds"][row["input"]] if row["threads"] == 1 else {}
        row |= timing.summarise(row.pop("nanoseconds")) | dict.fromkeys(("bound_ms", "attention_ms")) | bound
        latency += [row | pair for pair in pairs if pair["timed_as"] == row["model"]]
    return {
        "latency": latency,
        "memory": [{**pair, **memory[pair["timed_as"]]} for pair in pairs if pair["timed_as"] in memory],
        "energy": [{**pair, **described[pair["timed_as"]]["energy"]} for pair in pairs],
        **{name: answers[0][name] for name in ("tokenizer", "notes")},
        **{"protocol": {"name": asked.name, "processes": count, **runs}, "timed_as": timed_as},
        "int8_note": int8_sentence(describe_environment()),
    }


def _shapes(source: str | Path) -> str:
    if not (path := Path(source).expanduser() / "config.json").is_file():
        return str(source)
    config = json.loads(path.read_text(encoding="utf-8"))
    sizes = {name: value for name, value in config.items() if isinstance(value, int)}
    return json.dumps([sizes, len(config.get("id2label", ())), config.get("model_type"), config.get("edgemin")])


def _time(request: dict[str, Any]) -> dict[str, Any]:
    models = {name: open_model(source) for name, source in request["models"].items()}
    gc.freeze()  # what is loaded stays, so that no collection need go through it
    texts, (longest, shortest) = request["texts"], min((model.longest or 512, name) for name, model in models.items())
    lengths, inputs = request["lengths"], dict[str, dict[str, list[Any]]]()
    for each in (each for each in lengths if each <= longest):
        inputs[f"1x{each}"] = {name: [timing.fixed_inputs(1, each, it.vocabulary_size)] for name, it in models.items()}
    encoders = {name: _encoder(model.folder, min(longest, request["max_length"])) for name, model in models.items()}
    if texts and any(encoders.values()):
        inputs[ROWS] = {name: [encode(text) for text in texts] for name, encode in encoders.items() if encode}
    notes = [f"1x{each} is left out: {shortest} has {longest} positions." for each in lengths if each > longest]
    notes += [
        f"No tokenizer.json lies beside {name}: not timed on rows." for name in models if texts and not encoders[name]
    ]
    protocol, times, tokenizer = timing.Protocol(**request["protocol"]), list[dict[str, Any]](), None
    for threads, (kind, batches) in itertools.product(request["threads"], inputs.items()):
        calls = {name: lambda at, of=models[name], own=own: of.predict(own[at]) for name, own in batches.items()}
        measured = timing.measure_latency(calls, range(len(next(iter(batches.values())))), threads, protocol)
        for name, each in measured.items():
            times.append({"model": name, "input": kind, "threads": threads, "nanoseconds": each.tolist()})
    if ROWS in inputs:
        encode = next(filter(None, encoders.values()))
        tokenizer = timing.summarise(timing.measure_latency({"": encode}, texts, 1, protocol)[""])
    described = _describe(models, inputs, 20 if protocol.seconds else 5) if request["describe"] else None
    return {"times": times, "notes": notes, "tokenizer": tokenizer, "described": described}


def _describe(models: Mapping[str, Any], inputs: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    found = dict[str, dict[str, Any]]()
    for name, model in models.items():
        own = {kind: batches[name] for kind, batches in inputs.items() if name in batches}
        lengths = {kind: [one["input_ids"].shape[1] for one in batches] for kind, batches in own.items()}
        bounds = dict[str, dict[str, float]]()
        for kind, (products, size) in {kind: model.work(median_high(each)) for kind, each in lengths.items()}.items():
            attention = [product for product in products if product.kind == "attention"]
            both = {"bound_ms": roofline_bound(products, size), "attention_ms": roofline_bound(attention, 0)}
            bounds[kind] = both if products else {}
        kind, batches = next(iter(own.items()))
        with timing.timing_conditions(1):
            energy = cpu_energy(functools.partial(model.predict, batches[0]), repeats)
        found[name] = {"bounds": bounds, "energy": {"input": kind, **energy}}
    return found


def _encoder(folder: Path, longest: int) -> Callable[[Sequence[str]], dict[str, torch.Tensor]] | None:
    if not (path := folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)

    def encode(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        made = tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
        found = {"input_ids": made.ids, "attention_mask": made.attention_mask, "token_type_ids": made.type_ids}
        return {name: torch.tensor([values]) for name, values in found.items()}

    return encode


def measure_models(
    sources: Sequence[str],
    lengths: Sequence[int] = (32, 128),
    threads: Sequence[int] = (1, 0),
    protocol: str = "full",
    say: Callable[[str], None] = lambda text: None,
    peers: bool = False,
) -> dict[str, Any]:
    """Everything about the models (folders, bundles or hub ids): what `measure_costs` gives, and models
    (name, model, size, operations), baseline (the first), speed_ups (ratios over processes), environment. With `peers`
    also of what `make_peers` makes of the first. Raises ModelError where one takes fewer tokens than any length."""
    if peers:
        with tempfile.TemporaryDirectory() as place:
            say(f"peers of {sources[0]}")
            made, notes = make_peers(sources[0], Path(place))
            sheet = measure_models([*sources, *made.values()], lengths, threads, protocol, say)
        return {**sheet, "notes": [*sheet["notes"], *notes]}
    asked = {"latency_lengths": list(lengths), "latency_threads": list(threads), "latency_protocol": protocol}
    settings = load_settings("demo", {**asked, "latency_processes": 2 if protocol == "quick" else 5, "max_length": 512})
    short = [Path(source).name or source for source in sources]
    names = [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]
    named, described, ratios = dict(zip(names, sources, strict=True)), [], []
    for name, source in named.items():
        say(f"{name}: weights, bytes, operations")
        model = open_model(source)
        if (most := model.longest or 512) < min(lengths):
            raise ModelError(f"{name} takes at most {most} tokens; give --lengths of {most} or less")
        described.append({"name": name, **model.describe(lengths)})
    costs, baseline = measure_costs(named, (), settings, say=say), names[0]
    medians = pd.DataFrame(costs["latency"]).pivot(index="process", columns=_PLACE, values="median_ms")
    for threads, kind, name in medians:
        if name != baseline and (threads, kind, baseline) in medians:
            ratio = mean_over_processes(medians[threads, kind, baseline] / medians[threads, kind, name])._asdict()
            ratios.append({"model": name, "input": kind, "threads": threads, "ratio": ratio.pop("value"), **ratio})
    about = {"models": described, "baseline": baseline, "speed_ups": ratios}
    return {**about, "environment": describe_environment(), **costs}


def sheet_text(sheet: Mapping[str, Any]) -> str:
    """A sheet's three tables for a terminal, and what a reader must know."""
    machine, protocol = sheet["environment"], sheet["protocol"]
    parts = [pd.DataFrame(sheet[name]).drop(columns=["model", "timed_as"]) for name in ("memory", "energy")]
    every = pd.concat([pd.json_normalize(list(sheet["models"]), max_level=1), *parts], axis=1)
    columns = {name: every[column] * factor for name, (column, factor) in _SHEET["sizes"].items()}
    sizes = pd.DataFrame({"model": every["name"], **columns})
    work = pd.DataFrame(
        {"model": model["name"], "input": kind, "MMACs": count["macs"] / 1e6}
        | {f"{tool} / formula": count.get(f"{tool}_ratio") for tool in ("fvcore", "torch")}
        for model in sheet["models"]
        for kind, count in model["operations"].items()
    )
    groups = pd.DataFrame(sheet["latency"]).groupby(_PLACE, sort=False)
    times = groups[["median_ms", "iqr_ms", "p90_ms", "bound_ms", "attention_ms"]].median()
    times["matrices %"] = 100 * (times["bound_ms"] - times["attention_ms"]) / times["median_ms"]
    times["attention %"] = 100 * times.pop("attention_ms") / times["median_ms"]
    times = times.assign(runs=groups["runs"].sum(), noisy=groups["noisy"].any().map({True: "noisy", False: ""}))
    faster = pd.DataFrame(sheet["speed_ups"], columns=[*_PLACE, "ratio", "low", "high"]).set_index(_PLACE)
    times = times.join(faster.rename(columns={"ratio": f"times as fast as {sheet['baseline']}"})).reset_index()
    look = " (a QUICK look: too few runs for a result)" if protocol["name"] == "quick" else ""
    told = {"look": look, "cores": machine["available_cores"], "gigabytes": machine["memory_bytes"] / 1e9}
    style: Any = {"index": False, "na_rep": "-", "float_format": lambda it: f"{it:,.3f}".removesuffix(".000")}
    tables = [frame.to_string(**style) for frame in (sizes, work, times)]
    notes = [
        " ".join(_SHEET["notes"].format(**machine, **protocol, **told).split()),
        *sheet["notes"],
        sheet["int8_note"],
    ]
    return "\n\n".join([*tables, "\n".join(textwrap.fill(note, 120) for note in notes)])


if __name__ == "__main__":
    answer_request(_time)
