"""The roofline: bounds worked out by hand, under every time that its peaks allow, and peaks of this machine."""

import math

import pytest
import torch
from small_models import small_model

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.measurement import roofline
from edgemin_utils.measurement.operations import closed_formula_macs
from edgemin_utils.measurement.roofline import Peaks, Work, bound_ms, with_bound, work_of_model
from edgemin_utils.quantization import quantize

PEAKS = Peaks(
    threads=1,
    fp32_macs_per_second=50e9,
    int8_macs_per_second=200e9,
    int8_kernel="made up",
    bandwidth=((2**20, 80e9), (2**24, 40e9), (2**28, 20e9)),
)


def test_bound_is_the_longer_of_arithmetic_and_reading():
    # 100 M / 50 G/s + 100 M / 200 G/s = 2.5 ms of arithmetic; 2 MB at 80 GB/s are 0.025 ms.
    assert bound_ms(Work(100_000_000, 100_000_000, 2_000_000), PEAKS) == pytest.approx(2.5)
    # 400 MB at 20 GB/s.
    assert bound_ms(Work(1_000_000, 0, 400_000_000), PEAKS) == pytest.approx(20)


def test_bandwidth_is_the_caches_for_a_model_that_fits_in_one():
    assert PEAKS.bytes_per_second(1000) == PEAKS.bytes_per_second(2**20) == PEAKS.bytes_per_second(2**24 - 1) == 80e9
    assert PEAKS.bytes_per_second(2**24) == 40e9
    assert PEAKS.bytes_per_second(2**40) == 20e9


def test_bound_is_below_every_time_of_a_machine_that_never_beats_its_peaks():
    """Synthetic timings: products and reads one after the other, each at most as fast as the peak."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        work = Work(*(int(value) for value in torch.randint(1, 10**9, (3,), generator=generator)))
        slower = 1 + torch.rand(3, generator=generator).double()
        seconds = (
            work.fp32_macs / PEAKS.fp32_macs_per_second * slower[0]
            + work.int8_macs / PEAKS.int8_macs_per_second * slower[1]
            + work.bytes_read / PEAKS.bytes_per_second(work.bytes_read) * slower[2]
        )
        row = with_bound({"median_ms": float(1e3 * seconds)}, [work], PEAKS)
        assert row["bound_ms"] <= row["median_ms"] and row["of_bound"] >= 1
        assert row["of_bound"] == row["median_ms"] / row["bound_ms"]


def test_bound_of_several_inputs_is_their_median():
    works = [Work(macs, 0, 0) for macs in (50_000_000, 100_000_000, 1_000_000_000)]
    assert with_bound({"median_ms": 4.0}, works, PEAKS)["bound_ms"] == pytest.approx(2)


def test_work_of_a_model_reads_every_matrix_and_the_rows_looked_up():
    model = small_model(layers=1)
    work = work_of_model(model, 1, 6)
    linear = sum(parameter.numel() for name, parameter in model.named_parameters() if "embeddings" not in name)
    norms = 2 * 48
    # Six rows of 48 numbers of words and of positions; both rows of the token types.
    assert work.bytes_read == 4 * (linear + norms + (6 + 6 + 2) * 48)
    assert (work.fp32_macs, work.int8_macs) == (closed_formula_macs(model, 1, 6), 0)


def test_work_of_a_quantized_ragged_model():
    model = small_model(layers=2)
    encoder_layers(model)[0].keep_heads([1])
    quantized = quantize(model, "dynamic-int8")
    whole, small = work_of_model(model, 2, 8), work_of_model(quantized, 2, 8)
    assert small.fp32_macs + small.int8_macs == whole.fp32_macs
    assert small.int8_macs > 10 * small.fp32_macs and small.bytes_read < whole.bytes_read / 2


def test_peaks_are_the_largest_products_and_reads_over_their_best_seconds(monkeypatch):
    """Every call takes half a second, MatMulInteger's a quarter; 2^29 MACs are those of the square product."""
    threads = set()

    def best_seconds(work, seconds):
        threads.add(torch.get_num_threads())
        return 0.25 if "_onnx_integer_product" in getattr(work, "__qualname__", "") else 0.5

    monkeypatch.setattr(roofline, "_best_seconds", best_seconds)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # another number than the one measured with
        found = roofline.measure_peaks(1)
        assert threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    bandwidth = tuple((2**power, 2.0 ** (power + 1)) for power in (18, 20, 22, 24, 26, 28))
    assert found == Peaks(1, 2.0**30, 2.0**31, "ONNX Runtime MatMulInteger", bandwidth)


def test_peaks_of_this_machine_are_numbers_in_a_plausible_order():
    before = torch.get_num_threads()
    found = roofline.measure_peaks(1, seconds=0.002)
    assert found.threads == 1 and torch.get_num_threads() == before
    assert math.isfinite(found.fp32_macs_per_second) and found.fp32_macs_per_second > 1e8
    assert found.int8_macs_per_second > 1e8 and found.int8_kernel
    sizes = [size for size, _ in found.bandwidth]
    assert sizes == sorted(sizes) and all(speed > 1e7 for _, speed in found.bandwidth)
