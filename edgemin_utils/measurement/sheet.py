"""The full sheet of one or several models, as `edgemin measure` prints it: parameters, bytes, operations, latency,
throughput, memory and energy, each row of latency with its distance from the roofline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.energy import forward_energy
from edgemin_utils.measurement.environment import describe_environment, int8_sentence
from edgemin_utils.measurement.latency import (
    PROTOCOLS,
    LatencyResult,
    Protocol,
    fixed_inputs,
    measure_latency,
    resolve_threads,
    rows_per_second,
    speed_ups,
)
from edgemin_utils.measurement.models import COMPILED, MeasuredModel, Predict
from edgemin_utils.measurement.roofline import Peaks, Work, measure_peaks, with_bound

SHEET_VERSION = 1
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Throughput: fewer rounds, since one call at the largest batch takes as long as 64 at the smallest.
BATCH_PROTOCOLS = {
    "quick": Protocol("quick", warm_up=1, runs=5, seconds=0.0),
    "full": Protocol("full batch scan", warm_up=3, runs=30, seconds=3.0),
}
ROWS = "rows"
TOKENIZED = "rows, tokenizer included"
Say = Callable[[str], None]
# From a row's one or two texts to the model's tensors (1, tokens).
Encode = Callable[[tuple[str, ...]], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class SheetOptions:
    """What a sheet covers.

    Attributes:
        protocol: "quick" (a look, marked as such) or "full".
        threads: thread counts, 0 for all cores. Throughput and energy take the first.
        lengths: tokens of the fixed inputs at batch 1.
        texts: rows of one or two texts, timed one by one at their own lengths.
        texts_source: one sentence on where they come from.
        batches: batch sizes of the throughput scan, at the first of `lengths`.
        compiled: whether torch.compile is timed too.
        memory: whether peak memory is measured.
    """

    protocol: str = "full"
    threads: tuple[int, ...] = (1, 0)
    lengths: tuple[int, ...] = (32, 128)
    texts: Sequence[tuple[str, ...]] = ()
    texts_source: str = ""
    batches: tuple[int, ...] = BATCHES
    compiled: bool = True
    memory: bool = True


def measure_models(
    models: Sequence[MeasuredModel], options: SheetOptions, say: Say = lambda text: None
) -> dict[str, Any]:
    """Everything about the models; times are taken interleaved, with the least time that each could take.

    Args:
        models: the one that is measured, and those that it is held against; the first of the latter is the baseline
            of speed-ups (alone, a model is its own).
        say: told what is being done.

    Returns:
        plain data: sheet_version, protocol, threads, baseline, environment, int8_note, peaks (by thread count), models
        (name, parameters, bytes, operations by input, memory, energy), latency, speed_ups, throughput (lists of rows),
        and notes (sentences).

    Raises:
        ModelError: no fixed length fits a model, or a model fails on an input.
    """
    environment = describe_environment()
    threads = tuple(dict.fromkeys(resolve_threads(number) for number in options.threads))
    lengths, notes = _lengths_that_fit(models, options.lengths)
    say("the machine's peak speed and bandwidth")
    peaks = {number: measure_peaks(number) for number in threads}
    described = []
    for model in models:
        say(f"{model.name}: parameters, bytes, operations")
        described.append(_describe(model, lengths))
    timing = _Timing(models, options, threads, lengths, peaks, notes, say)
    latency, ratios = timing.latency()
    throughput = timing.throughput() if options.batches else []
    for model, entry in zip(models, described, strict=True):
        entry["energy"] = timing.energy(model)
        if options.memory:
            say(f"{model.name}: peak memory of a fresh process")
            entry["memory"] = model.peak_memory(max(lengths), 3 if options.protocol == "full" else 1, threads[0])
    return {
        "sheet_version": SHEET_VERSION,
        "protocol": vars(PROTOCOLS[options.protocol]).copy(),
        "threads": threads,
        "baseline": timing.baseline.name,
        "environment": environment,
        "int8_note": int8_sentence(environment),
        "peaks": {str(number): item.as_record() for number, item in peaks.items()},
        "models": described,
        "latency": latency,
        "speed_ups": ratios,
        "throughput": throughput,
        "notes": [*notes, *([f"Rows of text: {options.texts_source}."] if options.texts else [])],
    }


def _lengths_that_fit(models: Sequence[MeasuredModel], lengths: Sequence[int]) -> tuple[list[int], list[str]]:
    longest = min((model.longest for model in models if model.longest), default=max(lengths))
    fitting = [length for length in lengths if length <= longest]
    if not fitting:
        raise ModelError(
            f"no model takes inputs of {min(lengths)} tokens; the longest that all take is {longest}, so "
            f"give --lengths {longest}"
        )
    left_out = [str(length) for length in lengths if length > longest]
    return fitting, [
        f"Left out, because a model takes {longest} tokens at most: inputs of {', '.join(left_out)} tokens."
    ] if left_out else []


def _describe(model: MeasuredModel, lengths: Sequence[int]) -> dict[str, Any]:
    parameters = model.parameters()
    return {
        "name": model.name,
        **model.describe(),
        "int8": model.int8,
        "parameters": parameters,
        "bytes": {
            "file": model.file_bytes(),
            "fp32": 4 * parameters["stored"],
            "stored": sum(sum(sizes.values()) for sizes in parameters["part_bytes"].values()),
        },
        "operations": {f"1x{length}": model.operations(1, length) for length in lengths},
    }


@dataclass
class _Timing:
    """What is timed, and the rows that come of it."""

    models: Sequence[MeasuredModel]
    options: SheetOptions
    threads: tuple[int, ...]
    lengths: list[int]
    peaks: Mapping[int, Peaks]
    notes: list[str]
    say: Say

    @property
    def baseline(self) -> MeasuredModel:
        return self.models[1] if len(self.models) > 1 else self.models[0]

    @property
    def vocabulary(self) -> int:
        return min(model.vocabulary_size for model in self.models)

    def latency(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of latency and of speed-ups, for every input and thread count."""
        rows, ratios = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in self.threads:
            variants = self._variants(number)
            for length in self.lengths:
                self.say(f"latency of 1x{length}, threads: {number}")
                inputs = [fixed_inputs(1, length, self.vocabulary)]
                calls: dict[tuple[str, ...], Predict] = {key: call for key, (_, call) in variants.items()}
                result = measure_latency(calls, inputs, number, PROTOCOLS[self.options.protocol])
                works: dict[tuple[str, ...], list[Work]] = {
                    key: [model.work(1, length)] for key, (model, _) in variants.items()
                }
                self._add(result, f"1x{length}", works, rows, ratios)
            self._add_texts(number, variants, rows, ratios)
        return rows, ratios

    def throughput(self) -> list[dict[str, Any]]:
        """Rows a second at rising batch sizes, on the first back end of each model."""
        number, length, rows = self.threads[0], self.lengths[0], []
        calls = {model.name: next(iter(model.predictors(number, False).values())) for model in self.models}
        for batch in self.options.batches:
            self.say(f"throughput of {batch}x{length}, threads: {number}")
            result = measure_latency(
                calls, [fixed_inputs(batch, length, self.vocabulary)], number, BATCH_PROTOCOLS[self.options.protocol]
            )
            rows += [
                {
                    "model": name,
                    "batch": batch,
                    "length": length,
                    **numbers,
                    "rows_per_second": rows_per_second(numbers["median_ms"], batch),
                }
                for name, numbers in result.summary().items()
            ]
        return rows

    def energy(self, model: MeasuredModel) -> dict[str, Any]:
        """Of one forward of the longest fixed input with the first thread count: cpu_seconds, and joules or None."""
        number, length = self.threads[0], max(self.lengths)
        predict = next(iter(model.predictors(number, False).values()))
        inputs = fixed_inputs(1, length, self.vocabulary)
        repeats = 50 if self.options.protocol == "full" else 10
        return {"input": f"1x{length}", **forward_energy(predict, inputs, number, repeats)}

    def _variants(self, threads: int) -> dict[tuple[str, str], tuple[MeasuredModel, Predict]]:
        """(model, back end) -> what is timed. A compiled model that fails is left out, with a sentence."""
        variants = {}
        for model in self.models:
            for back_end, predict in model.predictors(threads, self.options.compiled).items():
                if back_end == COMPILED and (reason := self._why_not(predict, threads)):
                    note = f"{model.name} is not timed under torch.compile, which does not work here: {reason}"
                    if note not in self.notes:
                        self.notes.append(note)
                    continue
                variants[model.name, back_end] = model, predict
        return variants

    def _why_not(self, predict: Predict, threads: int) -> str:
        """Why a compiled model does not work on the fixed inputs; "" where it does."""
        self.say("torch.compile")
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                for length in self.lengths:
                    predict(fixed_inputs(1, length, self.vocabulary))
        except Exception as error:  # the compiler, its back ends and the C++ compiler each raise their own
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return lines[0]
        finally:
            torch.set_num_threads(before)
        return ""

    def _add_texts(
        self, threads: int, variants: Mapping[tuple[str, str], tuple[MeasuredModel, Predict]], rows: list, ratios: list
    ) -> None:
        """The rows of text, tokenized beforehand and with the tokenizer's time; compiled models would be compiled
        again for every length, so they sit out."""
        texts = self.options.texts
        calls, works = dict[tuple[str, ...], Callable[[Any], Any]](), dict[tuple[str, ...], list[Work]]()
        for (name, back_end), (model, predict) in variants.items():
            if not texts or back_end == COMPILED:
                continue
            if model.tokenizer is None:
                note = f"No tokenizer lies beside {name}, so it is not timed on rows of text."
                self.notes += [note] if note not in self.notes else []
                continue
            encode = _encoder(model.tokenizer, model.longest or 512)
            encoded = [encode(text) for text in texts]
            calls[name, back_end, ROWS] = _of_row(predict, encoded)
            calls[name, back_end, TOKENIZED] = _of_text(predict, encode, texts)
            work = [model.work(1, length) for length in _spread(encoded)]
            works |= {(name, back_end, ROWS): work, (name, back_end, TOKENIZED): work}
        if calls:
            self.say(f"latency of {len(texts)} rows of text, threads: {threads}")
            result = measure_latency(calls, range(len(texts)), threads, PROTOCOLS[self.options.protocol])
            self._add(result, ROWS, works, rows, ratios)

    def _add(
        self,
        result: LatencyResult[tuple[str, ...]],
        input_name: str,
        works: Mapping[tuple[str, ...], list[Work]],
        rows: list,
        ratios: list,
    ) -> None:
        """Rows of one measurement; variants are (model, back end) or (model, back end, input)."""
        for key, numbers in result.summary().items():
            row = {"model": key[0], "back_end": key[1], "input": key[2] if len(key) > 2 else input_name, **numbers}
            rows.append(with_bound(row, works[key], self.peaks[result.threads]))
        for shown in dict.fromkeys(key[2:] for key in result.names):
            baseline = next((key for key in result.names if key[0] == self.baseline.name and key[2:] == shown), None)
            if baseline is None:
                continue
            same = [key for key in result.names if key[2:] == shown]
            for key, ratio in speed_ups(result, baseline).items():
                if key in same and key != baseline:
                    ratios.append(
                        {
                            "model": key[0],
                            "back_end": key[1],
                            "input": shown[0] if shown else input_name,
                            "threads": result.threads,
                            "baseline": f"{baseline[0]} ({baseline[1]})",
                            "ratio": ratio.value,
                            "low": ratio.low,
                            "high": ratio.high,
                        }
                    )


def _of_row(predict: Predict, encoded: Sequence[Mapping[str, torch.Tensor]]) -> Callable[[int], Any]:
    return lambda place: predict(encoded[place])


def _of_text(predict: Predict, encode: Encode, texts: Sequence[tuple[str, ...]]) -> Callable[[int], Any]:
    return lambda place: predict(encode(texts[place]))


def _encoder(tokenizer: PreTrainedTokenizerBase, limit: int) -> Encode:
    """A function from a row's one or two texts to the model's tensors (1, tokens)."""
    return lambda texts: dict(tokenizer(*texts, truncation=True, max_length=limit, return_tensors="pt"))


def _spread(encoded: Sequence[Mapping[str, torch.Tensor]], most: int = 15) -> list[int]:
    """Lengths of the rows, thinned to `most` of them evenly by rank: their median stays."""
    lengths = sorted(row["input_ids"].shape[1] for row in encoded)
    return (
        lengths
        if len(lengths) <= most
        else [lengths[place * (len(lengths) - 1) // (most - 1)] for place in range(most)]
    )
