"""Timing on a clock that the test turns, memory of real child processes, energy from made-up counters, and bounds."""

import gc
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import latency, memory, operations
from edgemin_utils.measurement.latency import Protocol, measure_latency
from edgemin_utils.measurement.operations import Product


class Clock:
    """A clock that only moves when a variant runs: by nanoseconds, or what a function makes of the input."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0, []
        monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter_ns=lambda: self.now))

    def variant(self, name: str, nanoseconds):
        def predict(batch):
            self.calls.append((name, batch))
            self.now += int(nanoseconds(batch) if callable(nanoseconds) else nanoseconds)

        return predict


def test_rounds_are_interleaved_rotated_and_share_their_input(monkeypatch):
    clock = Clock(monkeypatch)
    variants = {name: clock.variant(name, cost) for name, cost in (("A", 5), ("B", 7), ("C", 11))}
    result = measure_latency(variants, ["x", "y"], 1, Protocol("own", warm_up=0, runs=4, seconds=0))
    warm_up, timed = clock.calls[:6], clock.calls[6:]
    assert warm_up == [(name, batch) for name in "ABC" for batch in "xy"]
    assert [name for name, _ in timed] == list("ABCBCACABABC")
    assert [batch for _, batch in timed] == list("xxxyyyxxxyyy")
    assert {name: times.tolist() for name, times in result.items()} == {"A": [5] * 4, "B": [7] * 4, "C": [11] * 4}
    assert result["A"].dtype == np.int64


def test_warm_up_and_every_inputs_first_call_are_not_timed(monkeypatch):
    clock = Clock(monkeypatch)
    slow_start = clock.variant("A", lambda batch: 1000 if len(clock.calls) <= 10 else 3)
    result = measure_latency({"A": slow_start}, ["x"], 1, Protocol("own", warm_up=10, runs=6, seconds=0))
    assert result["A"].tolist() == [3] * 6 and len(clock.calls) == 16
    first_sight = clock.variant("B", lambda batch: 3 if clock.calls.count(("B", batch)) > 1 else 1000)
    assert set(measure_latency({"B": first_sight}, range(40), 1, Protocol("own", 5, 20, 0))["B"]) == {3}
    assert {batch for name, batch in clock.calls if name == "B"} == set(range(20))  # the others were not needed


def test_full_protocol_lasts_for_its_seconds_and_its_runs(monkeypatch):
    clock = Clock(monkeypatch)
    full, quick = latency.PROTOCOLS["full"], latency.PROTOCOLS["quick"]
    variants = {"fast": clock.variant("fast", 40e6), "slow": clock.variant("slow", 100e6)}
    assert len(measure_latency(variants, ["x"], 1, full)["fast"]) == 143  # 2 x 10 s are full after 143 rounds
    assert len(measure_latency({"slow": clock.variant("slow", 1e9)}, ["x"], 1, full)["slow"]) == 100
    assert len(measure_latency({"A": clock.variant("A", 10)}, ["x"], 1, quick)["A"]) == 30


def test_summary_by_hand():
    summary = latency.summarise(np.arange(1, 102) * 1_000_000)  # quartiles at 26, 51 and 76, ninth decile at 91
    assert summary == {"median_ms": 51.0, "iqr_ms": 50.0, "p90_ms": 91.0, "runs": 101, "noisy": True}
    assert not latency.summarise(np.linspace(95, 105, 101) * 1e6)["noisy"]  # IQR 5 of 100
    assert latency.summarise(np.linspace(85, 115, 101) * 1e6)["noisy"]  # IQR 15 of 100


def test_conditions_hold_while_timing_and_are_put_back_also_after_a_failure():
    seen, threads = [], torch.get_num_threads()

    def predict(batch):
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), gc.isenabled()))
        if batch == "fail":
            raise ValueError("no kernel")

    measure_latency({"A": predict}, [None], threads + 1, Protocol("own", warm_up=1, runs=3, seconds=0))
    with pytest.raises(ModelError, match="'A' cannot be timed: no kernel"):
        measure_latency({"A": predict}, ["fail"], threads + 1, latency.PROTOCOLS["quick"])
    assert set(seen) == {(threads + 1, True, False)} and torch.get_num_threads() == threads
    assert gc.isenabled() and not torch.is_inference_mode_enabled()


LINEAR, INTEGER = Product("linear", "fp32", 1, 32, 64, 256), Product("linear", "int8", 1, 32, 64, 256)
SCORES = Product("attention", "fp32", 4, 32, 16, 32)
MB = 1_000_000
LOADERS = """
import numpy, os, signal, sys
def holds_200_mb(folder):
    kept = numpy.ones(25_000_000)
    return lambda inputs: kept[0]
def checks_inputs(folder):
    def predict(inputs):
        assert sorted(inputs) == ["attention_mask", "input_ids"], sorted(inputs)
        assert all(array.shape == (1, 32) and array.dtype == numpy.int64 for array in inputs.values())
        assert os.environ["OMP_NUM_THREADS"] == "1" and folder == "anything"
        assert "torch" not in sys.modules, "torch was imported"
    numpy.ones(25_000_000).sum()  # freed again
    return predict
def fails(folder):
    raise ValueError("weights are damaged")
def is_killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    """A module of loaders that children find by the parent's module path."""
    (tmp_path / "memory_loaders.py").write_text(LOADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "memory_loaders"


def test_what_a_loader_keeps_or_frees_is_in_the_peak_and_a_large_parent_is_not(loaders):
    ballast = bytearray(400 * MB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert memory.peak_resident_bytes() > max(400 * MB, 0.99 * psutil.Process().memory_info().rss)
    for loader in ("holds_200_mb", "checks_inputs"):
        found = memory.peak_memory("anything", loader=f"{loaders}:{loader}")
        assert 195 * MB < found["peak_bytes"] - found["baseline_bytes"] < 240 * MB
        assert found["peak_bytes"] < 330 * MB and found["runs"] == 1
    assert len(ballast) == 400 * MB


def test_a_process_that_dies_is_reported(loaders):
    for loader, message in (("fails", "some-model: its process failed: ValueError: w"), ("is_killed", "signal 9")):
        with pytest.raises(ModelError, match=message):
            memory.peak_memory("some-model", loader=f"{loaders}:{loader}")


def write_zones(folder, *counters: int):
    """Two packages, a part of the first, and what holds both: their counters in microjoules."""
    zones = [("0", "package-0"), ("1", "package-1"), ("0:0", "core"), ("2", "psys")]
    for (zone, name), counter in zip(zones, counters, strict=True):
        place = folder / f"intel-rapl:{zone}"
        place.mkdir(exist_ok=True)
        for file, value in (("name", name), ("energy_uj", counter), ("max_energy_range_uj", 10_000_000)):
            (place / file).write_text(f"{value}\n")


def test_packages_are_added_their_parts_are_not_and_a_call_has_its_share(tmp_path):
    write_zones(tmp_path, 1_000_000, 9_900_000, 100, 100)
    found = memory.cpu_energy(lambda: write_zones(tmp_path, 2_500_000, 100_000, 900_000, 900_000), 2, tmp_path)
    assert found["joules"] == pytest.approx((1.5 + 0.2) / 2)  # the second counter wraps
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert memory.read_packages(tmp_path) == {}  # one unreadable package makes the sum unknown
    assert memory.cpu_energy(lambda: None, folder=tmp_path)["joules"] is None


def test_cpu_seconds_are_those_of_work_and_not_of_waiting(tmp_path):
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    worked, waited = (memory.cpu_energy(each, 2, tmp_path) for each in (work, lambda: time.sleep(0.1)))
    assert worked["cpu_seconds"] >= 0.05 > waited["cpu_seconds"]


def test_bound_is_the_longer_of_products_and_reading(monkeypatch):
    """On a machine that takes a millisecond a product, and half a millisecond to read 400 MB."""
    monkeypatch.setattr(operations, "_best_time", {LINEAR: 1e-3, SCORES: 1e-3, 400_000_000: 5e-4}.get)
    assert operations.roofline_bound([LINEAR, SCORES, LINEAR], 400_000_000) == pytest.approx(3)
    assert operations.roofline_bound([], 400_000_000) == pytest.approx(0.5)


def test_speeds_of_this_machine_are_plausible_and_threads_are_put_back():
    before = torch.get_num_threads()
    one, two = (operations.roofline_bound(each, 1000) for each in ([LINEAR, INTEGER], [LINEAR, INTEGER, SCORES]))
    assert 0 < one < two and torch.get_num_threads() == before
    shapes = [operations._kernel(product)().shape for product in (SCORES, LINEAR, INTEGER)]
    assert shapes == [(4, 32, 32), (32, 256), (32, 256)]
