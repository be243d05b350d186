"""How long one forward takes. All variants are timed in rounds, one call each on the same input (A B C, B C A, C A B,
...): when the machine's speed drifts it drifts for all of them, and each stands first, second, ... equally often."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from edgemin_utils.environment import available_cores
from edgemin_utils.errors import ModelError, SettingError

NOISY_IQR_SHARE = 0.10
FIRST_ORDINARY_TOKEN = 5  # numbers under it often stand for padding and other special tokens


@dataclass(frozen=True)
class Protocol:
    """When a measurement is long enough: `warm_up` untimed calls a variant, then at least `runs` rounds, and rounds
    until the variants have been timed for `seconds` each on average."""

    name: str
    warm_up: int = 10
    runs: int = 100
    seconds: float = 10.0


# "quick" is a look, and marked as such.
PROTOCOLS = {"quick": Protocol("quick", warm_up=3, runs=30, seconds=0.0), "full": Protocol("full")}


def measure_latency(
    variants: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], threads: int, protocol: Protocol
) -> dict[str, np.ndarray]:
    """Nanoseconds a call, int64 (rounds,), of every variant (name -> predict(input), in eval mode), timed interleaved
    under `torch.inference_mode`. Threads are torch's, 0: all cores; an ONNX Runtime session fixes its own when it is
    made. Raises SettingError where nothing is asked for, ModelError where a variant fails."""
    if not variants or not len(inputs) or protocol.runs < 1:
        raise SettingError("latency needs at least one variant, one input and one run")
    calls, rounds, spent, clock = list(variants.values()), list[list[int]](), 0, time.perf_counter_ns
    with timing_conditions(resolve_threads(threads)):
        for name, call in variants.items():
            try:
                # Kernels are chosen by input size, so every input's first call goes untimed.
                for turn in range(max(protocol.warm_up, min(len(inputs), protocol.runs))):
                    call(inputs[turn % len(inputs)])
            except Exception as error:
                raise ModelError(f"variant {name!r} cannot be timed: {error}") from error
        while len(rounds) < protocol.runs or spent < protocol.seconds * 1e9 * len(calls):
            batch, times = inputs[len(rounds) % len(inputs)], [0] * len(calls)
            for place in range(len(calls)):
                index = (len(rounds) + place) % len(calls)
                start = clock()
                calls[index](batch)
                times[index] = clock() - start
                spent += times[index]
            rounds.append(times)
    return dict(zip(variants, np.array(rounds, dtype=np.int64).T, strict=True))


def resolve_threads(threads: int) -> int:
    """The number of threads meant: 0 stands for every core; else a SettingError."""
    if threads < 0:
        raise SettingError(f"threads is {threads}; give 1 or more, or 0 for all cores")
    return threads or available_cores()


def summarise(nanoseconds: ArrayLike) -> dict[str, Any]:
    """Of one variant's times (runs,): median_ms, iqr_ms (third minus first quartile), p90_ms, runs, noisy (IQR over a
    tenth of the median)."""
    times = np.asarray(nanoseconds, dtype=float) / 1e6
    first, median, third, p90 = np.percentile(times, [25, 50, 75, 90]).tolist()
    noisy = third - first > NOISY_IQR_SHARE * median
    return {"median_ms": median, "iqr_ms": third - first, "p90_ms": p90, "runs": int(times.size), "noisy": noisy}


def fixed_inputs(batch: int, length: int, vocabulary_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ordinary tokens without padding: input_ids and attention_mask (all 1), int64 (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(FIRST_ORDINARY_TOKEN, vocabulary_size, (batch, length), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@contextmanager
def timing_conditions(threads: int) -> Iterator[None]:
    """Inference mode, `threads` torch threads and no garbage collection; all as before afterwards."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()
