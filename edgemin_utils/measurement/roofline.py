"""The fastest that this machine could run a model: its peak speed and memory bandwidth, measured, and the model's work.

The roofline model (Williams, Waterman and Patterson 2009) bounds a time from below by two others: that of the
arithmetic at the machine's peak, and that of moving the bytes at its bandwidth, whichever is longer. Peaks are the best
of many short runs, so that a busy machine does not raise the bound above what an idle one needs; still they are what
the kernels of torch and ONNX Runtime reach, not what the processor's data sheet says.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils import quantization
from edgemin_utils.measurement.latency import resolve_threads
from edgemin_utils.measurement.operations import macs_by_precision
from edgemin_utils.measurement.parameters import part_of, stored_sizes

# Rows x inputs x outputs of the products that are timed: an encoder's own sizes, and a square one.
SHAPES = ((128, 384, 384), (128, 384, 1536), (128, 768, 3072), (512, 1024, 1024))
# Bytes read over and over for the bandwidth: from what fits in a core's own cache to what fits in none.
WORKING_SETS = tuple(2**power for power in range(18, 29, 2))
_SECONDS = 0.05


@dataclass(frozen=True)
class Work:
    """What one forward has to do at least.

    Attributes:
        fp32_macs, int8_macs: multiply-accumulates by the arithmetic that does them.
        bytes_read: of weights, each once; of a table of embeddings only the rows looked up.
    """

    fp32_macs: int
    int8_macs: int
    bytes_read: int


@dataclass(frozen=True)
class Peaks:
    """What the machine reached with `threads` threads.

    Attributes:
        fp32_macs_per_second: of torch.mm.
        int8_macs_per_second, int8_kernel: of torch's dynamic quantized linear layer or of ONNX Runtime's
            MatMulInteger, whichever was faster, and which it was.
        bandwidth: (bytes read over and over, bytes a second), by rising size.
    """

    threads: int
    fp32_macs_per_second: float
    int8_macs_per_second: float
    int8_kernel: str
    bandwidth: tuple[tuple[int, float], ...]

    def bytes_per_second(self, size: int) -> float:
        """The bandwidth that reading `size` bytes can have: the best measured from the next smaller size on, because
        a model that fits in a cache is read from there."""
        smaller = [number for number, (measured, _) in enumerate(self.bandwidth) if measured <= size]
        return max(speed for _, speed in self.bandwidth[(smaller or [0])[-1] :])

    def as_record(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        return asdict(self)


def measure_peaks(threads: int = 1, seconds: float = _SECONDS) -> Peaks:
    """Measures this machine with `threads` threads (0: all cores); takes about 25 x `seconds` in all."""
    threads = resolve_threads(threads)
    with _torch_threads(threads):
        fp32 = max(_speed(shape, _float_product(shape), seconds) for shape in SHAPES)
        int8 = {
            "torch dynamic quantized linear layer": _torch_integer_product,
            "ONNX Runtime MatMulInteger": _onnx_integer_product,
        }
        speeds = {
            name: max(_speed(shape, make(shape, threads), seconds) for shape in SHAPES) for name, make in int8.items()
        }
        bandwidth = tuple((size, size / _best_seconds(_reader(size), seconds)) for size in WORKING_SETS)
    fastest = max(speeds, key=speeds.__getitem__)
    return Peaks(threads, fp32, speeds[fastest], fastest, bandwidth)


def bound_ms(work: Work, peaks: Peaks) -> float:
    """The least milliseconds that the work takes at these peaks: the longer of arithmetic and reading."""
    arithmetic = work.fp32_macs / peaks.fp32_macs_per_second + work.int8_macs / peaks.int8_macs_per_second
    return 1e3 * max(arithmetic, work.bytes_read / peaks.bytes_per_second(work.bytes_read))


def with_bound(row: Mapping[str, Any], works: list[Work], peaks: Peaks) -> dict[str, Any]:
    """A row of latency with its distance from the roofline.

    Args:
        works: of every input that the row's median was taken over.

    Returns:
        the row, bound_ms (median over the inputs) and of_bound (how many times the bound the median is).
    """
    bound = float(np.median([bound_ms(work, peaks) for work in works]))
    return {**row, "bound_ms": bound, "of_bound": row["median_ms"] / bound}


def work_of_model(model: PreTrainedModel, batch: int, length: int) -> Work:
    """The work of one forward of a torch classifier, FP32 or quantized, of `batch` rows of `length` tokens."""
    macs, size = macs_by_precision(model, batch, length), 0
    width = getattr(model.config, "embedding_size", model.config.hidden_size)
    for name, (weights, stored) in stored_sizes(model).items():
        table = part_of(name) == "embeddings" and "project" not in name
        share = min(1.0, batch * length * width / weights) if table else 1.0
        size += int(stored * share)
    return Work(macs["fp32"], macs["int8"], size)


# ---- what is timed ----------------------------------------------------------------------------------------------


def _float_product(shape: tuple[int, int, int]) -> Callable[[], Any]:
    rows, inputs, outputs = shape
    states, weights = torch.randn(rows, inputs), torch.randn(inputs, outputs)
    return lambda: torch.mm(states, weights)


def _torch_integer_product(shape: tuple[int, int, int], threads: int) -> Callable[[], Any]:
    rows, inputs, outputs = shape
    layer = quantization.quantize(nn.Sequential(nn.Linear(inputs, outputs)), "dynamic-int8")
    states = torch.randn(rows, inputs)
    return lambda: layer(states)


def _onnx_integer_product(shape: tuple[int, int, int], threads: int) -> Callable[[], Any]:
    rows, inputs, outputs = shape
    generator = np.random.default_rng(0)
    weights = numpy_helper.from_array(generator.integers(-127, 128, (inputs, outputs), dtype=np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["states", "weights"], ["product"])],
        "product",
        [helper.make_tensor_value_info("states", TensorProto.UINT8, [rows, inputs])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [rows, outputs])],
        [weights],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    states = {"states": generator.integers(0, 256, (rows, inputs), dtype=np.uint8)}
    return lambda: session.run(None, states)


def _reader(size: int) -> Callable[[], Any]:
    values = torch.ones(size // 4)
    return values.sum


def _speed(shape: tuple[int, int, int], work: Callable[[], Any], seconds: float) -> float:
    """MACs a second of the fastest call."""
    return float(np.prod(shape)) / _best_seconds(work, seconds)


def _best_seconds(work: Callable[[], Any], seconds: float) -> float:
    """The fastest of the calls that fit in `seconds`, at least three after one for warming up."""
    work()
    best, calls, started = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
        calls += 1
    return best


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Inference mode with that many threads; the former number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
