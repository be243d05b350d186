"""How long one forward takes, measured so that ratios between variants can be trusted.

All variants are timed in rounds, one call each (A B C, B C A, C A B, ...): when the machine's speed drifts it
drifts for all of them, and the rotation lets each stand first, second, ... equally often. In one round every
variant gets the same input, so that rounds are paired samples. The garbage collector rests while rounds are
timed.

The thread count reaches torch here. A back end that fixes its threads when it is made (an ONNX Runtime
session's `intra_op_num_threads`) must be made with `resolve_threads(threads)`, the same number.
"""

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.measurement.environment import available_cores
from edgemin_utils.statistics import RESAMPLES, Estimate, bootstrap_interval_of_ratio_of_medians

NOISY_IQR_SHARE = 0.10
# Numbers under this often stand for padding and other special tokens; fixed inputs do without them.
FIRST_ORDINARY_TOKEN = 5
_PROGRESS_INTERVAL_NS = 500_000_000
# What variants are called by: texts, or tuples such as (model, back end).
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Protocol:
    """When a measurement is long enough: `warm_up` untimed calls a variant, then at least `runs` rounds, and
    rounds until the variants have been timed for `seconds` each on average. (Every variant is in every round, so a
    slow one is timed for longer and a fast one for less; waiting for the fastest would only repeat the slow ones.)"""

    name: str
    warm_up: int = 10
    runs: int = 100
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.runs < 1 or self.seconds < 0:
            raise SettingError(f"latency protocol {self.name!r} needs warm_up >= 0, runs >= 1, seconds >= 0")


PROTOCOLS = {
    "quick": Protocol("quick", warm_up=10, runs=30, seconds=0.0),
    "full": Protocol("full", warm_up=10, runs=100, seconds=10.0),
}


@dataclass(frozen=True)
class LatencyResult(Generic[Name]):
    """Raw times of one measurement.

    Attributes:
        names: variants, in the order of `raw_ns`'s columns.
        raw_ns: int64 (rounds, variants), nanoseconds a call.
        threads: threads every variant was given.
        protocol: what it was measured under; "quick" marks numbers that are a look, not a result.
    """

    names: tuple[Name, ...]
    raw_ns: np.ndarray
    threads: int
    protocol: Protocol

    def of(self, name: Name) -> np.ndarray:
        """int64 (rounds,), the variant's nanoseconds a call. Raises SettingError for a name not measured."""
        if name not in self.names:
            raise SettingError(f"{name!r} was not measured; measured: {', '.join(map(str, self.names))}")
        return self.raw_ns[:, self.names.index(name)]

    def summary(self) -> dict[Name, dict[str, Any]]:
        """Variant -> what `summarise` says of it, and the protocol's name and the threads."""
        return {
            name: {**summarise(self.of(name)), "protocol": self.protocol.name, "threads": self.threads}
            for name in self.names
        }

    def as_record(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        return {
            "threads": self.threads,
            "protocol": vars(self.protocol).copy(),
            "raw_ns": {name: self.of(name).tolist() for name in self.names},
        }


def measure_latency(
    variants: Mapping[Name, Callable[[Any], Any]],
    inputs: Sequence[Any],
    threads: int,
    protocol: Protocol,
    progress: Callable[[float], None] | None = None,
) -> LatencyResult[Name]:
    """Times every variant on the inputs, interleaved (see the module's text), under `torch.inference_mode`.

    Args:
        variants: name -> predict(input), in eval mode where it is a torch model.
        inputs: at least one; round r uses inputs[r modulo their number].
        threads: threads of torch, 0 for all cores; the former number is put back afterwards.
        protocol: one of `PROTOCOLS`, or one of your own.
        progress: called between rounds, outside the timed calls, with the share done in 0..1.

    Raises:
        SettingError: no variant or no input, or negative threads.
        ModelError: a variant fails on an input.
    """
    if not variants or not inputs:
        raise SettingError("latency needs at least one variant and one input")
    names, calls = tuple(variants), tuple(variants.values())
    threads = resolve_threads(threads)
    with _timing_conditions(threads):
        for name, call in variants.items():
            # Kernels are chosen by input size, so every input's first call goes untimed.
            _warm_up(name, call, inputs, max(protocol.warm_up, min(len(inputs), protocol.runs)))
        rounds = list(_timed_rounds(calls, inputs, protocol, progress))
    return LatencyResult(names, np.array(rounds, dtype=np.int64), threads, protocol)


def resolve_threads(threads: int) -> int:
    """The number of threads meant: 0 stands for every logical core this process may use.

    Raises:
        SettingError: a negative number.
    """
    if threads < 0:
        raise SettingError(f"threads is {threads}; give 1 or more, or 0 for all cores")
    return threads or available_cores()


def summarise(raw_ns: ArrayLike) -> dict[str, Any]:
    """Median, spread and number of one variant's times, (runs,) in nanoseconds.

    Returns:
        median_ms, iqr_ms (third minus first quartile), p90_ms, runs, noisy (IQR over 10 % of the median).
        Higher percentiles are left out: a hundred runs hardly hold one value beyond the 99th.

    Raises:
        SettingError: no times.
    """
    times = np.asarray(raw_ns, dtype=float) / 1e6
    if times.ndim != 1 or times.size == 0:
        raise SettingError("a summary of latency needs the raw times of one variant, at least one")
    first, median, third, p90 = np.percentile(times, [25, 50, 75, 90])
    return {
        "median_ms": float(median),
        "iqr_ms": float(third - first),
        "p90_ms": float(p90),
        "runs": int(times.size),
        "noisy": bool(third - first > NOISY_IQR_SHARE * median),
    }


def rows_per_second(median_ms: float, batch: int) -> float:
    """Throughput: rows classified a second when each call takes `median_ms` for `batch` rows."""
    return batch / (median_ms / 1e3)


def speed_ups(
    result: LatencyResult[Name], baseline: Name, samples: int = RESAMPLES, seed: int = 0
) -> dict[Name, Estimate]:
    """Variant -> how many times faster than `baseline` it is (ratio of medians), with its 95 % bootstrap
    interval over rounds. The baseline itself has 1. Raises SettingError for a baseline not measured."""
    reference = result.of(baseline)
    return {
        name: bootstrap_interval_of_ratio_of_medians(reference, result.of(name), samples=samples, seed=seed)
        for name in result.names
    }


def fixed_inputs(
    batch: int, length: int, vocabulary_size: int, seed: int = 0, token_type_ids: bool = False
) -> dict[str, torch.Tensor]:
    """Random ordinary tokens at a fixed size, without padding.

    Returns:
        input_ids, attention_mask (all 1) and, if asked for, token_type_ids (all 0): int64 (batch, length).

    Raises:
        SettingError: a size under 1, or a vocabulary of special tokens alone.
    """
    if batch < 1 or length < 1 or vocabulary_size <= FIRST_ORDINARY_TOKEN:
        raise SettingError(
            f"no inputs of {batch} x {length} from {vocabulary_size} tokens can be made: "
            f"sizes start at 1 and a vocabulary holds more than {FIRST_ORDINARY_TOKEN} tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(FIRST_ORDINARY_TOKEN, vocabulary_size, (batch, length), generator=generator)
    made = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if token_type_ids:
        made["token_type_ids"] = torch.zeros_like(tokens)
    return made


@contextmanager
def _timing_conditions(threads: int) -> Iterator[None]:
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


def _warm_up(name: Hashable, call: Callable[[Any], Any], inputs: Sequence[Any], warm_up: int) -> None:
    try:
        for turn in range(warm_up):
            call(inputs[turn % len(inputs)])
    except Exception as error:
        raise ModelError(f"variant {name!r} cannot be timed: {error}") from error


def _timed_rounds(
    calls: Sequence[Callable[[Any], Any]],
    inputs: Sequence[Any],
    protocol: Protocol,
    progress: Callable[[float], None] | None,
) -> Iterator[list[int]]:
    """Yields one list a round: nanoseconds of each call, in the order of `calls` whatever order they ran
    in."""
    clock = time.perf_counter_ns
    spent = [0] * len(calls)
    needed_ns = protocol.seconds * 1e9 * len(calls)
    done, reported = 0, clock()
    while done < protocol.runs or sum(spent) < needed_ns:
        batch = inputs[done % len(inputs)]
        times = [0] * len(calls)
        for place in range(len(calls)):
            index = (done + place) % len(calls)
            start = clock()
            calls[index](batch)
            times[index] = clock() - start
            spent[index] += times[index]
        done += 1
        yield times
        if progress is not None and clock() - reported > _PROGRESS_INTERVAL_NS:
            progress(min(1.0, done / protocol.runs, sum(spent) / needed_ns if needed_ns else 1.0))
            reported = clock()
    if progress is not None:
        progress(1.0)
