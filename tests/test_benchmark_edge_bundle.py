"""The edge bundle's benchmark: what is put in which table, and that each contender answers."""

import numpy as np
import pytest
import torch
from small_models import small_model

from edgemin_utils.benchmark import __main__ as benchmarks
from edgemin_utils.benchmark import edge_bundle
from edgemin_utils.benchmark.edge_bundle import BUNDLE, FOUR_BIT_BUNDLES, TARGETS, Contender
from edgemin_utils.encoders import describe_model
from edgemin_utils.measurement.latency import LatencyResult, Protocol
from edgemin_utils.measurement.roofline import Peaks

SHORT = Protocol("short", warm_up=1, runs=4, seconds=0.0)
PEAKS = Peaks(1, 1e9, 2e9, "made up", ((1, 1e12),))


def test_targets_are_met_by_size_and_by_speed_apart():
    contenders = [
        Contender(name, size, len, 10)
        for name, size in zip((*TARGETS, BUNDLE), (60_000_000, 14_000_000, 15_000_000, 3_000_000), strict=True)
    ]
    milliseconds = np.array([[80.0, 19.0, 30.0, 10.0]] * 3)
    times = {32: LatencyResult((*TARGETS, BUNDLE), (milliseconds * 1e6).astype(np.int64), 1, SHORT)}
    table = edge_bundle.targets_table(contenders, times)
    assert table["what"].tolist() == ["size, MB", "1x32, ms"] * 3
    assert table["ratio"].tolist() == pytest.approx([20, 8, 14 / 3, 1.9, 5, 3])
    assert table["met"].tolist() == [True, True, False, False, True, True]
    assert table["theirs"].tolist() == pytest.approx([60, 80, 14, 19, 15, 30])
    assert (table["ours"].tolist()[:2], table["target"].tolist()) == ([3.0, 10.0], [20, 8, 5, 2, 5, 3])


def test_contenders_answer_and_stand_beside_their_bound(tmp_path):
    student = edge_bundle.compressed_student(small_model(layers=4))
    assert describe_model(student)["layers"] == 4 and describe_model(student)["vocabulary_size"] == 60
    contenders = [
        edge_bundle.torch_contender("eager", student, tmp_path),
        edge_bundle.torch_contender("INT8", student, tmp_path, "dynamic-int8"),
        *edge_bundle.bundle_contenders(student, tmp_path, longest=16),
    ]
    batch = edge_bundle.fixed_inputs(1, 9, 60, token_type_ids=True)
    with torch.inference_mode():
        first, *others = (np.asarray(contender.predict(batch)) for contender in contenders)
    assert all(np.abs(other - first).max() < 0.1 * np.abs(first).max() + 0.05 for other in others[:2])
    # Four bits move the logits of so small a model further, and differently.
    assert all(0.01 < np.abs(other - others[1]).max() < np.abs(first).max() for other in others[2:])
    assert [contender.name for contender in contenders[2:]] == [BUNDLE, *FOUR_BIT_BUNDLES]
    times = edge_bundle.time_contenders(contenders, SHORT, lengths=(8, 16))
    table = edge_bundle.contenders_table(contenders, times, PEAKS).set_index("name")
    assert table["MB"][BUNDLE] == (tmp_path / "bundle" / "model.onnx").stat().st_size / 1e6
    assert table["MB"].is_monotonic_decreasing
    work = contenders[0].work(16)
    assert table["bound_ms 1x16"]["eager"] == pytest.approx(1e3 * work.fp32_macs / 1e9)
    assert (table["of_bound 1x8"] == table["median_ms 1x8"] / table["bound_ms 1x8"]).all()
    operators = edge_bundle.operators_table(tmp_path / "bundle" / "model.onnx", 60, 9, runs=3).set_index("operator")
    assert operators["count"]["QAttention"] == 4 and operators["count"]["BiasGelu"] == 4
    # Four layers of three products each, pooler and classifier: every one with its bias and its inputs' rounding fused.
    assert operators["count"]["DynamicQuantizeMatMul"] == 14 and "SkipLayerNormalization" not in operators.index
    assert operators["share"].sum() == pytest.approx(1) and (operators["ms"] >= 0).all()


def test_the_papers_student_is_cut_to_the_sizes_named():
    student = small_model(layers=12, intermediate_size=1536, vocabulary_size=10_100)
    cut = describe_model(edge_bundle.compressed_student(student))
    assert (cut["layers"], set(cut["intermediate_sizes"]), cut["vocabulary_size"]) == (6, {768}, 10_000)


def test_what_is_not_installed_is_skipped_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_bundle.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(edge_bundle._Absent, match="openvino and nncf is not installed: python -m pip install openvino"):
        edge_bundle._openvino_int8(None, tmp_path, None)


def test_a_benchmark_is_chosen_by_name(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(
        benchmarks,
        "BENCHMARKS",
        {name: lambda options, name=name: called.append((name, options)) for name in benchmarks.BENCHMARKS},
    )
    assert benchmarks.main(["edge-bundle", "--full"]) == 0 and benchmarks.main([]) == 0
    assert called == [("edge-bundle", ["--full"]), ("training-speed", []), ("edge-bundle", [])]
    assert benchmarks.main(["edge-bundel"]) == 2
    assert "did you mean 'edge-bundle'?" in capsys.readouterr().err
