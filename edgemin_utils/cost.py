"""The measurement stage: latency, memory and tokenizer time of every model of a chain, in one place.

Run when nothing else runs. All models are loaded and timed interleaved, so that their ratios hold when the machine's
speed drifts. Models of equal shapes and scheme run the same operations; one of them is timed and its numbers serve
all (`timed_as` says which).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from edgemin_utils.chain import COST, TEACHER
from edgemin_utils.data import load_task_data
from edgemin_utils.encoders import is_exported, longest_input
from edgemin_utils.errors import SettingError
from edgemin_utils.evaluation import load_stage_model, predictor, tokenized_task
from edgemin_utils.measurement.environment import describe_environment, int8_sentence
from edgemin_utils.measurement.latency import (
    PROTOCOLS,
    LatencyResult,
    fixed_inputs,
    measure_latency,
    resolve_threads,
    speed_ups,
    summarise,
)
from edgemin_utils.measurement.memory import peak_memory
from edgemin_utils.measurement.models import open_model
from edgemin_utils.measurement.roofline import Peaks, Work, measure_peaks, with_bound, work_of_model
from edgemin_utils.records import Record, Run
from edgemin_utils.training import Batch, batch_maker

DEV_ROWS_TIMED = 100


def measure_chain(run: Run) -> Record:
    """Stage `measurement/cost`.

    Results: protocol, latency (key, timed_as, input, threads, median_ms, iqr_ms, p90_ms, runs, noisy, bound_ms,
    of_bound), speed_ups (key, baseline_key, input, threads, ratio, low, high), memory (key, baseline_bytes,
    peak_bytes, cpu_seconds, runs), tokenizer (input, median_ms, ...), int8_note, peaks (by thread count, see
    `roofline.Peaks`). Raw times in latency.npz beside the record, in nanoseconds.
    """
    return run.run_stage(COST, lambda folder: _measure_chain(run, folder))


def _measure_chain(run: Run, folder: Path) -> dict[str, Any]:
    settings = run.settings
    records = {key: run.read(key) for key in run.stage(COST).upstream}
    timed_as = representatives({key: record for key, record in records.items() if not record.refused})
    loaded = {key: load_stage_model(run, key) for key in dict.fromkeys(timed_as.values())}
    inputs = _inputs(run, loaded)
    latency, ratios, raw = [], [], {}
    threads = dict.fromkeys(resolve_threads(number) for number in settings.latency_threads)
    peaks = {number: measure_peaks(number) for number in threads}
    works = {
        key: _works(run, key, model, {name: of_model[key] for name, of_model in inputs.items()})
        for key, (_, model) in loaded.items()
    }
    with tqdm(total=len(inputs) * len(threads), desc="Latency", unit="setting", leave=False) as progress:
        for number in threads:
            for name, of_model in inputs.items():
                timed = {key: _answers(predictor(model), of_model[key]) for key, (_, model) in loaded.items()}
                places = range(len(of_model[TEACHER]))
                result = measure_latency(timed, places, number, PROTOCOLS[settings.latency_protocol])
                raw[f"{name}, {number} threads"] = result
                latency += _latency_rows(result, timed_as, name, works, peaks[number])
                ratios += _speed_up_rows(result, timed_as, name, settings.bootstrap_samples)
                progress.update()
    times = {f"{name} | {key}": result.of(key) for name, result in raw.items() for key in result.names}
    np.savez_compressed(folder / "latency.npz", allow_pickle=False, **times)
    memory = _memory(run, timed_as)
    return {
        "protocol": settings.latency_protocol,
        "latency": latency,
        "speed_ups": ratios,
        "memory": memory,
        "tokenizer": [_time_tokenizer(run, loaded[TEACHER][0])],
        "timed_as": timed_as,
        "int8_note": int8_sentence(describe_environment()),
        "peaks": {str(number): found.as_record() for number, found in peaks.items()},
    }


def representatives(records: Mapping[str, Record]) -> dict[str, str]:
    """Key -> the first key whose model has the same shapes and scheme, and so the same cost."""
    first: dict[str, str] = {}
    return {
        key: first.setdefault(f"{record.results['model']} {record.results.get('scheme', 'float32')}", key)
        for key, record in records.items()
    }


def _inputs(run: Run, loaded: Mapping[str, tuple[Any, PreTrainedModel]]) -> dict[str, dict[str, list[Batch]]]:
    """Name -> model's key -> batches of one row: fixed inputs from the model's own vocabulary, and dev rows at their
    own lengths through its own tokenizer. Every model gets the same rows in the same order.

    Raises:
        SettingError: a fixed input is longer than a model has positions for.
    """
    longest, asked = min(longest_input(model) for _, model in loaded.values()), max(run.settings.latency_lengths)
    if asked > longest:
        raise SettingError(
            f"latency_lengths asks for inputs of {asked} tokens, and the models of {run.task} take {longest} at most; "
            f"give --set latency_lengths={longest}"
        )
    inputs: dict[str, dict[str, list[Batch]]] = {
        f"1x{length}": {key: [fixed_inputs(1, length, model.config.vocab_size)] for key, (_, model) in loaded.items()}
        for length in run.settings.latency_lengths
    }
    models, data = [model for _, model in loaded.values()], load_task_data(run.settings, run.task, run.seed)
    inputs["dev rows"] = {}
    for key, (tokenizer, _) in loaded.items():
        rows = next(iter(tokenized_task(run, tokenizer, models, data).dev.values()))
        make = batch_maker(rows, tokenizer)
        batches = (make([place]) for place in range(min(DEV_ROWS_TIMED, len(rows))))
        inputs["dev rows"][key] = [
            {name: value for name, value in batch.items() if name != "labels"} for batch in batches
        ]
    return inputs


def _answers(predict: Callable[[Batch], torch.Tensor], batches: Sequence[Batch]) -> Callable[[int], torch.Tensor]:
    """A function from a place in a model's own inputs to its logits there."""
    return lambda place: predict(batches[place])


def _works(run: Run, key: str, model: Any, inputs: Mapping[str, list[Any]]) -> dict[str, list[Work]]:
    """Input's name -> the work of one forward on each of its batches, for the roofline."""
    if is_exported(model):  # its graph is counted
        model = open_model(str(run.stage_folder(key)))
    known: dict[tuple[int, ...], Work] = {}

    def work(batch: Mapping[str, Any]) -> Work:
        shape = tuple(batch["input_ids"].shape)
        if shape not in known:
            known[shape] = work_of_model(model, *shape) if isinstance(model, nn.Module) else model.work(*shape)
        return known[shape]

    return {name: [work(batch) for batch in batch_list] for name, batch_list in inputs.items()}


def _latency_rows(
    result: LatencyResult,
    timed_as: Mapping[str, str],
    name: str,
    works: Mapping[str, Mapping[str, list[Work]]],
    peaks: Peaks,
) -> list[dict[str, Any]]:
    summary = result.summary()
    rows = {key: with_bound({"input": name, **numbers}, works[key][name], peaks) for key, numbers in summary.items()}
    return [{"key": key, "timed_as": shown, **rows[shown]} for key, shown in timed_as.items()]


def _speed_up_rows(result: LatencyResult, timed_as: Mapping[str, str], name: str, samples: int) -> list[dict[str, Any]]:
    """Every model against the teacher and against the first uncompressed student."""
    students = [key for key in timed_as if key.startswith("distillation/")]
    rows = []
    for baseline in (TEACHER, *students[:1]):
        ratios = speed_ups(result, timed_as[baseline], samples)
        rows += [
            {
                "key": key,
                "baseline_key": baseline,
                "input": name,
                "threads": result.threads,
                "ratio": ratios[shown].value,
                "low": ratios[shown].low,
                "high": ratios[shown].high,
            }
            for key, shown in timed_as.items()
        ]
    return rows


def _memory(run: Run, timed_as: Mapping[str, str]) -> list[dict[str, Any]]:
    measured = {}
    for key in tqdm(dict.fromkeys(timed_as.values()), desc="Memory", unit="model", leave=False):
        measured[key] = peak_memory(
            run.stage_folder(key), loader="edgemin_utils.quantization:load_model", runs=run.settings.memory_runs
        )
    return [
        {"key": key, "timed_as": shown, **{name: value for name, value in measured[shown].items()}}
        for key, shown in timed_as.items()
    ]


def _time_tokenizer(run: Run, tokenizer: Any) -> dict[str, Any]:
    """Time to tokenize one dev row, which the model-only latencies leave out."""
    data = load_task_data(run.settings, run.task, run.seed)
    split = next(iter(data.dev.values()))
    texts = [
        tuple(row[column] for column in data.task.text_columns)
        for row in split.select(range(min(DEV_ROWS_TIMED, len(split))))
    ]
    result = measure_latency(
        {"tokenizer": lambda row: tokenizer(*row, truncation=True, return_tensors="pt")}, texts, 1, PROTOCOLS["quick"]
    )
    return {"input": "dev rows", **summarise(result.of("tokenizer"))}
