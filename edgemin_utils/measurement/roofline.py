"""The fastest that this machine could run a model: every product at the speed measured for its own shape, or reading as
many bytes, whichever takes longer (Williams, Waterman and Patterson 2009)."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from edgemin_utils.measurement.latency import timing_conditions
from edgemin_utils.measurement.operations import Product


class Roofline:
    """Times of this machine with `threads` threads, each measured for `seconds` when it is first asked for."""

    def __init__(self, threads: int, seconds: float = 0.01):
        self.threads, self.seconds = threads, seconds
        self.known: dict[Product, float] = {}
        self.reading: dict[int, float] = {}

    def bound(self, products: Iterable[Product], bytes_read: int) -> float:
        """The least milliseconds of a forward."""
        spent = 0.0
        with timing_conditions(self.threads):
            for product in products:
                if product not in self.known:
                    self.known[product] = self._best(_kernel(product))
                spent += self.known[product]
            if bytes_read not in self.reading:  # what fits in a cache is read from there
                self.reading[bytes_read] = self._best(torch.ones(bytes_read // 4 + 1).sum)
        return 1e3 * max(spent, self.reading[bytes_read])

    def _best(self, work: Callable[[], Any]) -> float:
        """Of what fits in `seconds`, at least three after a warm-up: a busy machine does not raise the bound."""
        work()
        best, calls, started = float("inf"), 0, time.perf_counter()
        while calls < 3 or time.perf_counter() - started < self.seconds:
            begun = time.perf_counter()
            work()
            best, calls = min(best, time.perf_counter() - begun), calls + 1
        return best


def _kernel(product: Product) -> Callable[[], Any]:
    """What computes the product: oneDNN's, in INT8 as fast as ONNX Runtime's MatMulInteger."""
    _, precision, number, rows, inputs, outputs = product
    if precision == "int8":
        whole, weights = torch.ones(rows, inputs, dtype=torch.int8), torch.ones(outputs, inputs, dtype=torch.int8).t()
        return lambda: torch._int_mm(whole, weights)
    states, factors = torch.randn(number, rows, inputs), torch.randn(number, inputs, outputs)
    return (lambda: torch.bmm(states, factors)) if number > 1 else (lambda: torch.mm(states[0], factors[0]))
