"""The tables of notebook 04 that set schemes, formats and orders side by side."""

from pathlib import Path

import pytest

from edgemin_utils.records import Record
from edgemin_utils.tables import scheme_tables

METRICS = {"dev": {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}}


def record(steps: tuple[str, ...] = (), **results) -> Record:
    return Record(Path("somewhere"), {"results": results, "stage": "x", "variant": "y", "steps": steps})


def quantized(size: int, fast: float, **method) -> Record:
    latency = [
        {"input": "1x32", "model": model, "median_ms": median} for model, median in (("fp32", 6.0), ("quantized", fast))
    ]
    return record(
        size={"model_bytes": size},
        metrics=METRICS,
        agreement={"dev": 0.96},
        quick_latency=latency,
        method={"arithmetic": "INT8 somewhere", **method},
    )


def test_schemes_stand_beside_the_float_model_and_refused_ones_keep_their_row():
    table = scheme_tables.chain_schemes_table(
        record(size={"model_bytes": 2_000_000}, metrics=METRICS),
        {"one": quantized(500_000, 2.0), "other": record(refused="no kernel for it")},
    ).set_index("Scheme")
    assert table.loc["one", "Smaller"] == "4.00x" and table.loc["one", "Faster at 1x32 (quick look)"] == "3.00x"
    assert table.loc["one", "Same answer % (dev)"] == "96.0" and table.loc["FP32 (PyTorch)", "MB"] == "2.00"
    assert table.loc["other", "Note"] == "refused: no kernel for it" and table.loc["other", "MB"] == ""


def test_fused_graphs_are_those_of_onnx_runtime():
    graph = quantized(1, 1.0, operators={"MatMul": 9, "Attention": 3}, fusion="one operator a layer")
    table = scheme_tables.fused_graphs_table({"torch": quantized(1, 1.0), "onnx": graph, "no": record(refused="why")})
    assert table.to_dict("records") == [
        {
            "Scheme": "onnx",
            "Attention": "one operator a layer",
            "Operators": 12,
            "Most frequent": "9 MatMul, 3 Attention",
        }
    ]


def test_quantize_aware_training_before_and_after():
    def at(value):
        return {"dev": {"accuracy": value}}

    row = scheme_tables.aware_table(
        {
            "a": record(
                metrics=at(0.83),
                metrics_before=at(0.82),
                fake_quantization="int4",
                metrics_fake_quantized=at(0.81),
                metrics_before_fake_quantized=at(0.6),
            )
        }
    ).iloc[0]
    assert row.tolist() == ["a", "INT4", "dev", "82.0", "60.0", "83.0", "81.0"]


def test_orders_name_their_steps():
    table = scheme_tables.chain_orders_table(
        {
            "paper": record(
                ("distill:a", "prune:b"), metrics=METRICS, size={"model_bytes": 1_000_000, "stored_weights": 1234}
            ),
            "other": record(("prune:b", "distill:a"), refused="heads differ"),
        }
    )
    assert table["Steps"].tolist() == ["distill:a, then prune:b", "prune:b, then distill:a"]
    assert table["Weights"].tolist() == ["1,234", ""] and table["Note"].tolist() == ["", "refused: heads differ"]


def test_the_most_sensitive_layer_is_named():
    rows = [
        {"layer": layer, "format": number_format, "accuracy": 0.7, "agreement": 0.9, "divergence": divergence}
        for number_format, values in (("int8", (1e-3, 2e-3, 5e-2)), ("int4", (4e-1, 2e-3, 1e-3)))
        for layer, divergence in zip("abc", values, strict=True)
    ]
    first, second, both = scheme_tables.sensitivity_sentences({"layers": rows, "accuracy": 0.75})
    assert first.startswith("INT8: `c`") and "0.05 nats; median of the 3 layers 0.002" in first
    assert "10.0 % of the answers and accuracy by -5.0 points" in first
    assert second.startswith("INT4: `a`") and "3 are the same" in both


@pytest.mark.parametrize("records", [{}, {"torch": quantized(1, 1.0)}])
def test_no_onnx_scheme_gives_no_row(records):
    assert len(scheme_tables.fused_graphs_table(records)) == 0


BUNDLE = {
    "models": {"model.onnx": {"what": "INT8 everywhere"}},
    "files": {"a": {"bytes": 400_000}, "b": {"bytes": 100_000}},
    "measured": {
        "model_bytes": 400_000,
        "accuracy": {"dev": {"rows": 100, "bundle": 0.8, "agreement": 0.97}},
        "latency": [
            {"input": "1x32", "model": model, "median_ms": median, "iqr_ms": 0.1, "runs": 30}
            for model, median in (("bundle", 1.5), ("pytorch", 6.0))
        ],
    },
}


def test_the_bundle_is_one_more_row_and_a_refused_one_says_why():
    source = record(size={"model_bytes": 2_000_000}, metrics=METRICS)
    table = scheme_tables.bundle_table(source, {"one": quantized(500_000, 2.0)}, BUNDLE)
    row = table.set_index("Scheme").loc["edge bundle"]
    assert (row["MB"], row["Smaller"], row["Faster at 1x32 (quick look)"]) == ("0.40", "5.00x", "4.00x")
    # Wilson's interval of 80 of 100 rows.
    assert row["Accuracy % (dev)"] == "80.0 [71.1, 86.7]" and row["Same answer % (dev)"] == "97.0"
    assert row["Note"] == "INT8 everywhere"
    first, last = scheme_tables.bundle_sentences(BUNDLE)
    assert first.startswith("1x32: 1.50 ms on one thread (IQR 0.10, 30 runs)") and "takes 6.00 ms" in first
    assert "0.50 MB in 2 files" in last
    refused = {"refused": "it would lose 3 points"}
    assert "refused: it would lose" in scheme_tables.bundle_table(source, {}, refused)["Note"].iloc[-1]
    assert scheme_tables.bundle_sentences(refused) == ["There is no bundle: it would lose 3 points."]
