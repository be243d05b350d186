"""Latency, memory, energy and tokenizer time of every model of a chain. Run as a program, this module is one of the
fresh processes that load all models and time them interleaved, so that ratios hold when the machine's speed drifts."""

import functools
import gc
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer

from edgemin_utils.environment import describe_environment, int8_sentence
from edgemin_utils.measurement import latency as timing
from edgemin_utils.measurement.measured import graph_file, open_model
from edgemin_utils.measurement.memory import answer_request, cpu_energy, in_fresh_process, peak_memory
from edgemin_utils.measurement.roofline import Roofline
from edgemin_utils.settings import Settings

TIMES_FILE = "times.parquet"
ROWS, ROWS_TIMED = "dev rows", 100


def measure_costs(
    models: Mapping[str, str | Path],
    texts: Sequence[Sequence[str]],
    settings: Settings,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    memory_of: Collection[str] | None = None,
) -> dict[str, Any]:
    """Times every model (name -> folder, hub id or .onnx file) on fixed inputs and on the first hundred rows of texts,
    one or two a row, at their own lengths, and measures its peak memory (`memory_of`: of these alone). Models of equal
    shapes and scheme run the same operations: one is timed for all. Raw times go to times.parquet in `folder`. Gives
    latency: rows of model, timed_as, input ("1x32", "1x128", "dev rows"), threads, process, what `summarise` says and,
    of one thread, bound_ms (`Roofline.bound`); memory and energy: rows of model, timed_as and what `peak_memory` and
    `cpu_energy` say; tokenizer (`summarise` of one row); protocol, timed_as, int8_note, notes."""
    first: dict[str, str] = {}
    timed_as = {name: first.setdefault(_shapes(source), name) for name, source in models.items()}
    timed = {name: str(models[name]) for name in first.values()}
    count, asked = settings.latency_processes, timing.PROTOCOLS[settings.latency_protocol]
    # The runs and seconds that the protocol asks for are those of all processes together.
    runs = {"runs": max(10, math.ceil(asked.runs / count)), "seconds": asked.seconds / count}
    threads = list(dict.fromkeys(timing.resolve_threads(number) for number in settings.latency_threads))
    request: dict[str, Any] = {"models": timed, "texts": [list(text) for text in texts[:ROWS_TIMED]]}
    request |= {"threads": threads, "lengths": settings.latency_lengths, "max_length": settings.max_length}
    request |= {"protocol": {"name": asked.name, "warm_up": asked.warm_up, **runs}}
    answers, memory = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for place in range(count):
        say(f"latency, process {place + 1} of {count}")
        whole = {**request, "describe": place == 0}
        answers.append(in_fresh_process("edgemin_utils.measurement.costs", whole, max(threads), "latency"))
    for name in dict.fromkeys(timed_as[name] for name in (models if memory_of is None else memory_of)):
        say(f"peak memory of {name}")
        memory[name] = peak_memory(graph_file(timed[name]) or timed[name], runs=settings.memory_runs)
    times = [{**row, "process": place} for place, answer in enumerate(answers) for row in answer["times"]]
    if folder is not None:
        frame = pd.DataFrame(times).explode("nanoseconds").astype({"nanoseconds": "int64"})
        frame["run"] = frame.groupby(["model", "input", "threads", "process"]).cumcount()
        frame.to_parquet(Path(folder) / TIMES_FILE, index=False)
    described, latency = answers[0]["described"], list[dict[str, Any]]()
    pairs = [{"model": name, "timed_as": shown} for name, shown in timed_as.items()]
    for row in times:
        bound = described[row["model"]]["bounds"][row["input"]] if row["threads"] == 1 else None
        row |= timing.summarise(row.pop("nanoseconds")) | {"bound_ms": bound}
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
    longest, texts = min(model.longest or 512 for model in models.values()), request["texts"]
    lengths, inputs = request["lengths"], dict[str, dict[str, list[Any]]]()
    for each in (each for each in lengths if each <= longest):
        fixed = {name: [timing.fixed_inputs(1, each, model.vocabulary_size)] for name, model in models.items()}
        inputs[f"1x{each}"] = fixed
    encoders = {name: _encoder(model.folder, min(longest, request["max_length"])) for name, model in models.items()}
    if texts and any(encoders.values()):
        inputs[ROWS] = {name: [encode(text) for text in texts] for name, encode in encoders.items() if encode}
    notes = [f"1x{each} is left out: a model has {longest} positions." for each in lengths if each > longest]
    notes += [f"No tokenizer.json lies beside {name}: not timed on rows." for name in models if not encoders[name]]
    protocol, times, tokenizer = timing.Protocol(**request["protocol"]), list[dict[str, Any]](), None
    for threads, (kind, batches) in itertools.product(request["threads"], inputs.items()):
        calls = {name: lambda at, of=models[name], own=own: of.predict(own[at]) for name, own in batches.items()}
        measured = timing.measure_latency(calls, range(len(next(iter(batches.values())))), threads, protocol)
        for name, each in measured.items():
            times.append({"model": name, "input": kind, "threads": threads, "nanoseconds": each.tolist()})
    if ROWS in inputs:
        encode = next(filter(None, encoders.values()))
        tokenizer = timing.summarise(timing.measure_latency({"": encode}, texts, 1, protocol)[""])
    answer = {"times": times, "notes": notes, "tokenizer": tokenizer}
    return answer | (_describe(models, inputs, 20 if protocol.seconds else 5) if request["describe"] else {})


def _describe(models: Mapping[str, Any], inputs: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    roofline, found = Roofline(1), dict[str, dict[str, Any]]()
    for name, model in models.items():
        own = {kind: batches[name] for kind, batches in inputs.items() if name in batches}
        lengths = {kind: [one["input_ids"].shape[1] for one in batches] for kind, batches in own.items()}
        bounds = {kind: roofline.bound(*model.work(median_high(each))) for kind, each in lengths.items()}
        kind, batches = next(iter(own.items()))
        with timing.timing_conditions(1):
            energy = cpu_energy(functools.partial(model.predict, batches[0]), repeats)
        found[name] = {"bounds": bounds, "energy": {"input": kind, **energy}}
    return {"described": found}


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


if __name__ == "__main__":
    answer_request(_time)
