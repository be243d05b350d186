"""How long one forward takes. All variants are timed in rounds, one call each on the same input (A B C, B C A, C A B,
...): when the machine's speed drifts it drifts for all of them, and each stands first, second, ... equally often."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from edgemin_utils.environment import available_cores
from edgemin_utils.errors import ModelError


class Protocol(NamedTuple):
    """`warm_up` untimed calls a variant, then at least `runs` rounds, and as many as take `seconds` a variant."""

    name: str
    warm_up: int = 10
    runs: int = 100
    seconds: float = 10.0


PROTOCOLS = {"quick": Protocol("quick", warm_up=3, runs=30, seconds=0.0), "full": Protocol("full")}


def measure_latency(
    variants: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], threads: int, protocol: Protocol
) -> dict[str, np.ndarray]:
    """Nanoseconds a call, int64 (rounds,), of every variant (name -> predict(input)), timed interleaved with so many
    torch threads (0: all cores; an ONNX Runtime session has its own). Raises ModelError where a variant fails."""
    calls, rounds, spent, clock = list(variants.values()), list[list[int]](), 0, time.perf_counter_ns
    with timing_conditions(threads or available_cores()):
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


def summarise(nanoseconds: ArrayLike) -> dict[str, Any]:
    """Of times (runs,): median_ms, iqr_ms (third minus first quartile), p90_ms, runs, noisy (IQR over median / 10)."""
    times = np.asarray(nanoseconds, dtype=float) / 1e6
    first, median, third, p90 = np.percentile(times, [25, 50, 75, 90]).tolist()
    spread = {"iqr_ms": third - first, "p90_ms": p90, "noisy": third - first > 0.1 * median}
    return {"median_ms": median, "runs": int(times.size), **spread}


def fixed_inputs(batch: int, length: int, vocabulary_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens, without the first five, often special: input_ids and attention_mask, int64 (batch, length)."""
    tokens = torch.randint(5, vocabulary_size, (batch, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@contextmanager
def timing_conditions(threads: int) -> Iterator[None]:
    """Inference mode, `threads` torch threads and no garbage collection; all as before afterwards."""
    with torch.inference_mode(), ExitStack() as afterwards:
        afterwards.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        if gc.isenabled():
            afterwards.callback(gc.enable)
        gc.collect()
        gc.disable()
        yield
