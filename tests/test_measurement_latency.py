"""The timing protocol on a clock that the test turns; energy from made-up counters; bounds worked out by hand."""

import gc
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgemin_utils.environment import available_cores
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.measurement import latency, memory, roofline
from edgemin_utils.measurement.latency import Protocol, measure_latency
from edgemin_utils.measurement.operations import Product
from edgemin_utils.measurement.roofline import Roofline


class Clock:
    """A clock that only moves when a variant runs, which takes so many nanoseconds or as long as a function of the
    input says."""

    def __init__(self):
        self.now, self.calls = 0, []

    def variant(self, name: str, nanoseconds):
        def predict(batch):
            self.calls.append((name, batch))
            self.now += int(nanoseconds(batch) if callable(nanoseconds) else nanoseconds)

        return predict


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter_ns=lambda: made.now))
    return made


def test_rounds_are_interleaved_rotated_and_share_their_input(clock):
    variants = {name: clock.variant(name, cost) for name, cost in (("A", 5), ("B", 7), ("C", 11))}
    result = measure_latency(variants, ["x", "y"], 1, Protocol("own", warm_up=0, runs=4, seconds=0))
    warm_up, timed = clock.calls[:6], clock.calls[6:]
    assert warm_up == [(name, batch) for name in "ABC" for batch in "xy"]
    assert [name for name, _ in timed] == list("ABCBCACABABC")
    assert [batch for _, batch in timed] == list("xxxyyyxxxyyy")
    assert {name: times.tolist() for name, times in result.items()} == {"A": [5] * 4, "B": [7] * 4, "C": [11] * 4}
    assert result["A"].dtype == np.int64


def test_warm_up_and_every_inputs_first_call_are_not_timed(clock):
    slow_start = clock.variant("A", lambda batch: 1000 if len(clock.calls) <= 10 else 3)
    result = measure_latency({"A": slow_start}, ["x"], 1, Protocol("own", warm_up=10, runs=6, seconds=0))
    assert result["A"].tolist() == [3] * 6 and len(clock.calls) == 16
    first_sight = clock.variant("B", lambda batch: 3 if clock.calls.count(("B", batch)) > 1 else 1000)
    assert set(measure_latency({"B": first_sight}, range(40), 1, Protocol("own", 5, 20, 0))["B"]) == {3}
    assert {batch for name, batch in clock.calls if name == "B"} == set(range(20))  # the others were not needed


def test_full_protocol_lasts_for_its_seconds_and_its_runs(clock):
    full, quick = latency.PROTOCOLS["full"], latency.PROTOCOLS["quick"]
    variants = {"fast": clock.variant("fast", 40e6), "slow": clock.variant("slow", 100e6)}
    assert len(measure_latency(variants, ["x"], 1, full)["fast"]) == 143  # 2 x 10 s are full after 143 rounds
    assert len(measure_latency({"slow": clock.variant("slow", 1e9)}, ["x"], 1, full)["slow"]) == 100
    assert len(measure_latency({"A": clock.variant("A", 10)}, ["x"], 1, quick)["A"]) == 30


def test_summary_by_hand():
    # 1..101 ms: quartiles at 26, 51 and 76, ninth decile at 91.
    summary = latency.summarise(np.arange(1, 102) * 1_000_000)
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
    assert set(seen) == {(threads + 1, True, False)}
    assert torch.get_num_threads() == threads
    assert gc.isenabled() and not torch.is_inference_mode_enabled()


def test_threads_and_what_cannot_be_timed():
    assert latency.resolve_threads(0) == available_cores() >= 1
    assert latency.resolve_threads(3) == 3
    with pytest.raises(SettingError, match="-1"):
        latency.resolve_threads(-1)
    for variants, inputs, runs in (({}, [1], 5), ({"A": print}, [], 5), ({"A": print}, [1], 0)):
        with pytest.raises(SettingError, match="at least one variant, one input and one run"):
            measure_latency(variants, inputs, 1, Protocol("own", runs=runs))


def test_fixed_inputs_hold_ordinary_tokens_and_follow_the_seed():
    first, again = (latency.fixed_inputs(3, 50, 60, seed)["input_ids"] for seed in (1, 1))
    assert first.shape == (3, 50) and 5 <= first.min() and first.max() < 60 and torch.equal(first, again)
    assert latency.fixed_inputs(3, 50, 60)["attention_mask"].tolist() == [[1] * 50] * 3


def write_zone(folder, zone: str, name: str, counter: int, wrap: int = 10_000_000):
    (folder / zone).mkdir(exist_ok=True)
    for file, value in (("name", name), ("energy_uj", counter), ("max_energy_range_uj", wrap)):
        (folder / zone / file).write_text(f"{value}\n")


def test_packages_are_added_their_parts_are_not_and_a_call_has_its_share(tmp_path):
    counters = [("0", "package-0", 1_000_000), ("1", "package-1", 9_900_000), ("0:0", "core", 100), ("2", "psys", 100)]
    for zone, name, counter in counters:
        write_zone(tmp_path, f"intel-rapl:{zone}", name, counter)
    calls = []

    def work():
        calls.append(1)
        write_zone(tmp_path, "intel-rapl:0", "package-0", 2_500_000)
        write_zone(tmp_path, "intel-rapl:1", "package-1", 100_000)  # it wraps
        write_zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
        write_zone(tmp_path, "intel-rapl:2", "psys", 900_000)

    found = memory.cpu_energy(work, repeats=2, folder=tmp_path)
    assert len(calls) == found["repeats"] == 2
    assert found["joules"] == pytest.approx((1.5 + 0.2) / 2)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert memory.read_packages(tmp_path) == {}  # one unreadable package makes the sum unknown
    assert memory.cpu_energy(lambda: None, folder=tmp_path)["joules"] is None


def test_cpu_seconds_are_those_of_work_and_not_of_waiting(tmp_path):
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    worked, waited = (memory.cpu_energy(each, 2, tmp_path) for each in (work, lambda: time.sleep(0.1)))
    assert worked["cpu_seconds"] >= 0.05 > waited["cpu_seconds"] and waited["wall_seconds"] >= 0.1


LINEAR, INTEGER = Product("linear", "fp32", 1, 32, 64, 256), Product("linear", "int8", 1, 32, 64, 256)
SCORES = Product("attention", "fp32", 4, 32, 16, 32)


def test_bound_is_the_longer_of_products_and_reading(monkeypatch):
    """On a machine that takes a millisecond a product, and half a millisecond to read 400 MB."""
    measured = []
    monkeypatch.setattr(roofline, "_kernel", lambda product: measured.append(product))
    monkeypatch.setattr(Roofline, "_best", lambda self, work: 1e-3 if work is None else 5e-4)
    found = Roofline(1)
    assert found.bound([LINEAR, SCORES, LINEAR], 400_000_000) == pytest.approx(3)
    assert measured == [LINEAR, SCORES]  # each shape once
    assert found.bound([], 400_000_000) == pytest.approx(0.5)


def test_speeds_of_this_machine_are_plausible_and_threads_are_put_back():
    before, found = torch.get_num_threads(), Roofline(1, seconds=0.002)
    one, two = (found.bound(products, 1000) for products in ([LINEAR, INTEGER], [LINEAR, INTEGER, SCORES]))
    assert 0 < one < two and torch.get_num_threads() == before
    shapes = [roofline._kernel(product)().shape for product in (SCORES, LINEAR, INTEGER)]
    assert shapes == [(4, 32, 32), (32, 256), (32, 256)]
