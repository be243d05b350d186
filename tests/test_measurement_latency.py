"""The timing protocol on a clock that the test turns, and once on the real one."""

import gc
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.measurement import latency
from edgemin_utils.measurement.latency import LatencyResult, Protocol, measure_latency


class Clock:
    """A clock that only moves when a variant runs."""

    def __init__(self):
        self.now = 0
        self.calls = []

    def perf_counter_ns(self) -> int:
        return self.now

    def variant(self, name: str, nanoseconds):
        """A variant that takes `nanoseconds`, a number or a function of how often it has run."""
        runs = iter(range(10**9))

        def predict(batch):
            run = next(runs)
            self.calls.append((name, batch))
            self.now += int(nanoseconds(run) if callable(nanoseconds) else nanoseconds)

        return predict


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter_ns=made.perf_counter_ns))
    return made


def test_rounds_are_interleaved_rotated_and_share_their_input(clock):
    variants = {name: clock.variant(name, cost) for name, cost in (("A", 5), ("B", 7), ("C", 11))}
    result = measure_latency(variants, ["x", "y"], 1, Protocol("own", warm_up=0, runs=4, seconds=0))
    warm_up, timed = clock.calls[:6], clock.calls[6:]
    assert warm_up == [(name, batch) for name in "ABC" for batch in "xy"]
    assert [name for name, _ in timed] == list("ABCBCACABABC")
    assert [batch for _, batch in timed] == list("xxxyyyxxxyyy")
    assert result.names == ("A", "B", "C")
    assert result.raw_ns.dtype == np.int64
    assert result.raw_ns.tolist() == [[5, 7, 11]] * 4


def test_warm_up_is_not_timed(clock):
    slow_start = clock.variant("A", lambda run: 1000 if run < 10 else 3)
    result = measure_latency({"A": slow_start}, ["x"], 1, Protocol("own", warm_up=10, runs=6, seconds=0))
    assert result.of("A").tolist() == [3] * 6
    assert len(clock.calls) == 16


def test_every_input_that_is_timed_was_run_once_before(clock):
    costs = {}

    def slow_at_first_sight(batch):
        clock.now += costs.get(batch, 1000)
        costs[batch] = 3

    result = measure_latency({"A": slow_at_first_sight}, range(40), 1, Protocol("own", 5, 20, 0))
    assert set(result.of("A")) == {3}
    assert sorted(costs) == list(range(20))  # the other inputs were not needed


def test_full_protocol_lasts_for_its_seconds_and_its_runs(clock):
    full = latency.PROTOCOLS["full"]
    assert (full.warm_up, full.runs, full.seconds) == (10, 100, 10.0)
    fast = {"fast": clock.variant("fast", 40e6), "slow": clock.variant("slow", 100e6)}
    result = measure_latency(fast, ["x"], 1, full)
    assert len(result.raw_ns) == 143  # 2 x 10 s are full after 143 rounds of 40 + 100 ms
    result = measure_latency({"slow": clock.variant("slow", 1e9)}, ["x"], 1, full)
    assert len(result.raw_ns) == 100


def test_quick_protocol_is_30_runs_and_marked(clock):
    result = measure_latency({"A": clock.variant("A", 10)}, ["x"], 1, latency.PROTOCOLS["quick"])
    summary = result.summary()["A"]
    assert (summary["runs"], summary["protocol"], summary["threads"]) == (30, "quick", 1)


def test_summary_by_hand():
    # 1..101 ms: quartiles at 26, 51 and 76, ninth decile at 91.
    summary = latency.summarise(np.arange(1, 102) * 1_000_000)
    assert summary == {"median_ms": 51.0, "iqr_ms": 50.0, "p90_ms": 91.0, "runs": 101, "noisy": True}
    assert not any("99" in key for key in summary)


def test_a_row_is_noisy_when_its_spread_is_over_a_tenth_of_its_median():
    assert not latency.summarise(np.linspace(95, 105, 101) * 1e6)["noisy"]  # IQR 5 of 100
    assert latency.summarise(np.linspace(85, 115, 101) * 1e6)["noisy"]  # IQR 15 of 100
    with pytest.raises(SettingError, match="at least one"):
        latency.summarise([])


def test_speed_ups_hold_while_the_machine_slows_down(clock):
    drift = lambda run: 1 + 0.02 * run  # noqa: E731
    variants = {
        "teacher": clock.variant("teacher", lambda run: 300e6 * drift(run)),
        "student": clock.variant("student", lambda run: 100e6 * drift(run)),
    }
    result = measure_latency(variants, ["x"], 1, Protocol("own", warm_up=1, runs=100, seconds=0))
    assert result.summary()["teacher"]["noisy"]
    found = latency.speed_ups(result, "teacher")
    assert found["teacher"] == (1, 1, 1)
    assert found["student"] == pytest.approx((3, 3, 3))


def test_throughput():
    assert latency.rows_per_second(median_ms=20.0, batch=8) == pytest.approx(400)


def test_conditions_hold_while_timing_and_are_put_back():
    seen, threads = [], torch.get_num_threads()

    def predict(batch):
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), gc.isenabled()))

    result = measure_latency({"A": predict}, [None], 2, Protocol("own", warm_up=1, runs=3, seconds=0))
    assert set(seen) == {(2, True, False)}
    assert result.threads == 2
    assert torch.get_num_threads() == threads
    assert gc.isenabled() and not torch.is_inference_mode_enabled()


def test_conditions_are_put_back_after_a_failure_that_names_the_variant():
    threads = torch.get_num_threads()

    def fail(batch):
        raise ValueError("no kernel")

    with pytest.raises(ModelError, match="'int8' cannot be timed: no kernel"):
        measure_latency({"fp32": lambda batch: None, "int8": fail}, [1], threads + 1, latency.PROTOCOLS["quick"])
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_zero_threads_mean_all_available_cores():
    from edgemin_utils.measurement.environment import available_cores

    assert latency.resolve_threads(0) == available_cores() >= 1
    assert latency.resolve_threads(3) == 3
    with pytest.raises(SettingError, match="-1"):
        latency.resolve_threads(-1)


def test_nothing_to_time_and_impossible_protocols_are_refused():
    with pytest.raises(SettingError, match="at least one variant"):
        measure_latency({}, [1], 1, latency.PROTOCOLS["quick"])
    with pytest.raises(SettingError, match="at least one variant and one input"):
        measure_latency({"A": print}, [], 1, latency.PROTOCOLS["quick"])
    with pytest.raises(SettingError, match="runs >= 1"):
        Protocol("own", runs=0)


def test_a_result_is_written_as_json_and_names_what_was_measured():
    result = LatencyResult(("A", "B"), np.array([[1, 2], [3, 4], [5, 6]]), 2, latency.PROTOCOLS["full"])
    written = json.loads(json.dumps(result.as_record()))
    assert written["threads"] == 2 and Protocol(**written["protocol"]) == result.protocol
    assert written["raw_ns"] == {"A": [1, 3, 5], "B": [2, 4, 6]}
    with pytest.raises(SettingError, match="'C' was not measured; measured: A, B"):
        result.of("C")


def test_progress_runs_to_1_outside_the_timed_calls(clock):
    shares = []

    def progress(share):
        shares.append(share)
        clock.now += 10**9  # a slow display must not show in the times

    result = measure_latency(
        {"A": clock.variant("A", 200e6)}, ["x"], 1, Protocol("own", warm_up=0, runs=20, seconds=0), progress
    )
    assert set(result.of("A")) == {200_000_000}
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 3


def test_real_clock():
    variants = {"slow": lambda batch: time.sleep(0.015), "fast": lambda batch: time.sleep(0.005)}
    result = measure_latency(variants, [0], 1, Protocol("own", warm_up=1, runs=15, seconds=0))
    assert np.all(result.of("slow") >= 15e6) and np.all(result.of("fast") >= 5e6)
    # A busy machine wakes both too late, which brings the ratio of 3 nearer to 1.
    assert 1.3 < latency.speed_ups(result, "slow")["fast"].value < 3.2


def test_fixed_inputs_hold_ordinary_tokens_and_follow_the_seed():
    first, again, other = (latency.fixed_inputs(3, 50, 60, seed, token_type_ids=True) for seed in (1, 1, 2))
    assert list(first) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(tensor.shape == (3, 50) and tensor.dtype == torch.int64 for tensor in first.values())
    assert first["input_ids"].min() >= latency.FIRST_ORDINARY_TOKEN and first["input_ids"].max() < 60
    assert first["attention_mask"].all() and not first["token_type_ids"].any()
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])
    assert "token_type_ids" not in latency.fixed_inputs(1, 2, 60)
    with pytest.raises(SettingError, match="more than 5 tokens"):
        latency.fixed_inputs(1, 8, 5)
