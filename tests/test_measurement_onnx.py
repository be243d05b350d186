"""A stage's and a bundle's graph: what is counted of it against what ONNX Runtime says that it ran."""

import json
import math

import numpy as np
import pytest
import torch
from small_models import small_batch, small_model, unequal

from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.measured import open_model
from edgemin_utils.measurement.operations import macs_of
from edgemin_utils.quantization.schemes import quantize, save_quantized
from edgemin_utils.quantization.sessions import make_session, session_options

ROW = {"input_ids": torch.full((1, 24), 9), "attention_mask": torch.ones(1, 24, dtype=torch.int64)}


def macs_that_ran(path, length: int, folder) -> int:
    """By the shapes in ONNX Runtime's profile; fused attention counts both products, and its own projection."""
    options, total = session_options(1), 0
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = make_session(path, options)
    session.run(None, {item.name: np.ones((1, length), np.int64) for item in session.get_inputs()})
    with open(session.end_profiling()) as file:
        events = [event for event in json.load(file) if event["name"].endswith("_kernel_time")]
    for operator, taken, made in ([event["args"][name] for name in PROFILED] for event in events):
        inputs, outputs = ([*shapes[0].values()][0] if shapes else [] for shapes in (taken, made))
        if "Attention" in operator:
            _, tokens, width = outputs
            projections = 0 if operator == "MultiHeadAttention" else tokens * inputs[-1] * 3 * width
            total += 2 * tokens * tokens * width + projections
        elif "MatMul" in operator or "Gemm" in operator:
            total += math.prod(outputs) * inputs[-1]
    return total


PROFILED = ("op_name", "input_type_shape", "output_type_shape")


@pytest.mark.parametrize("scheme", ["onnx-float32", "onnx-int8", "edge-int8", "edge-int8-int4", "edge-int4"])
@pytest.mark.parametrize("make", [small_model, unequal])
def test_products_are_those_that_ran(make, scheme, tmp_path):
    model = make()
    save_quantized(quantize(model, scheme, [ROW], 64), tmp_path, scheme)
    opened, graph = open_model(tmp_path), tmp_path / "model.onnx"
    products, read = opened.work(24)
    assert macs_of(products)["macs"] == macs_that_ran(graph, 24, tmp_path)
    assert opened.describe([24, 512])["operations"]["1x24"]["macs"] == macs_of(products)["macs"]
    assert 0 < read < graph.stat().st_size and opened.longest == 64 and opened.vocabulary_size == 60
    batch = {name: value for name, value in small_batch().items() if name != "labels"}
    with torch.inference_mode():
        np.testing.assert_allclose(opened.predict(batch), model(**batch).logits, atol=0.2)


def test_what_says_nothing_of_its_model_is_refused(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")  # of a version that left config.json out
    (tmp_path / "alone.onnx").write_text("no model")
    for source in (tmp_path, tmp_path / "alone.onnx"):
        with pytest.raises(ModelError, match="make the bundle anew"):
            open_model(source)
    with pytest.raises(ModelError, match="there is no model folder"):
        open_model(tmp_path / "absent")
