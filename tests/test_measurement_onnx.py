"""A bare .onnx file: its weights and products against the torch model that it was exported from."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from small_models import export_onnx, small_batch, small_model

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.measured import GraphModel, graph_file, graph_weights, open_model, products_of_graph
from edgemin_utils.measurement.operations import closed_formula_macs, macs_of, size_of
from edgemin_utils.quantization.schemes import quantize, save_quantized


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A BERT of unequal layers, and its .onnx file in FP32 and INT8."""
    folder, model = tmp_path_factory.mktemp("onnx"), small_model(layers=2)
    encoder_layers(model)[0].keep_heads([1, 2, 3])
    encoder_layers(model)[1].keep_neurons(range(40))
    path = export_onnx(model, folder / "model.onnx")
    graph = onnx.load(path)
    del graph.graph.value_info[:]  # the exporter's notes make the quantizer's shape inference fail
    quantize_dynamic(graph, folder / "int8.onnx")
    return model, path, folder / "int8.onnx"


def test_weights_bytes_and_macs_are_those_of_the_torch_model(exported):
    model, path, int8 = exported
    found = [GraphModel(each).describe([24]) for each in (path, int8)]
    whole, small = (each["size"] for each in found)
    assert whole["stored_weights"] == small["stored_weights"] == size_of(model)["stored_weights"]
    assert whole["integer_bytes"] == 0
    matrices = sum(one.numel() for name, one in model.named_parameters() if one.dim() == 2)
    assert matrices <= small["integer_bytes"] < 1.05 * matrices  # a byte each, and scales
    assert small["file_bytes"] == int8.stat().st_size
    attention = 2 * 24 * 24 * (3 + 4) * 12
    macs = closed_formula_macs(model, 1, 24)
    for each, integer in zip(found, (0, macs - attention), strict=True):
        assert each["operations"] == {"1x24": {"macs": macs, "int8_macs": integer}}
    products, read = GraphModel(path).work(24)
    assert macs_of(item for item in products if item.kind == "attention")["macs"] == attention
    tables = model.bert.embeddings.word_embeddings.weight.numel() + (64 + 2) * 48
    assert read == 4 * (size_of(model)["stored_weights"] - tables)


def test_a_stages_graph_is_counted_with_fused_attention(tmp_path):
    model = small_model(layers=2)
    save_quantized(quantize(model, "onnx-int8"), tmp_path, "onnx-int8")
    graph = GraphModel(graph_file(tmp_path))
    found = graph.describe([24, 512])
    assert list(found["operations"]) == ["1x24"] and found["size"]["stored_weights"] == size_of(model)["stored_weights"]
    assert found["operations"]["1x24"]["macs"] == pytest.approx(closed_formula_macs(model, 1, 24), rel=0.01)
    opened = open_model(tmp_path)
    assert not isinstance(opened, GraphModel)  # as it was evaluated
    batch = {"input_ids": torch.full((1, 7), 9)}
    np.testing.assert_allclose(graph.predict(batch), opened.predict(batch), atol=1e-5)


def test_logits_are_the_torch_models(exported):
    model, path, _ = exported
    batch = {name: value for name, value in small_batch().items() if name != "labels"}
    opened = open_model(path)
    with torch.inference_mode():
        np.testing.assert_allclose(opened.predict(batch), model(**batch).logits, atol=1e-5)
    assert (opened.vocabulary_size, opened.longest, opened.folder) == (10, None, path.parent)
    (path.parent / "config.json").write_text('{"vocab_size": 60, "max_position_embeddings": 64}')
    assert (open_model(path).vocabulary_size, open_model(path).longest) == (60, 64)


def one_node(path, kind: str, inputs: str, stored: dict, **attributes):
    """One of ONNX Runtime's own nodes, behind a look-up of input_ids where it does not take them itself."""
    node = helper.make_node(kind, inputs.split(), ["out"], domain="com.microsoft", **attributes)
    looked_up = [] if "input_ids" in node.input else [helper.make_node("Gather", ["table", "input_ids"], ["states"])]
    stored = stored | ({"table": np.ones((50, 16), np.float32)} if looked_up else {})
    tensors = [numpy_helper.from_array(one, name) for name, one in stored.items() if isinstance(one, np.ndarray)]
    tensors += [one for one in stored.values() if isinstance(one, TensorProto)]
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "l"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph([*looked_up, node], "one", [tokens], [out], tensors)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=sets), path)
    return path


def test_fused_attention_counts_its_projection_and_both_products(tmp_path):
    stored = {"weight": np.ones((16, 48), np.float32), "bias": np.ones(48, np.float32)}
    path = one_node(tmp_path / "a.onnx", "Attention", "states weight bias", stored, num_heads=2)
    assert macs_of(products_of_graph(path, 2, 5)) == {"macs": 2 * (5 * 16 * 48 + 2 * 5 * 5 * 16), "int8_macs": 0}


def test_packed_four_bit_weights_are_unpacked_in_the_count(tmp_path):
    # 8 outputs, one block of 16 inputs, two weights a byte.
    stored = {"w": np.zeros((8, 1, 8), np.uint8), "scales": np.ones(8, np.float32)}
    path = one_node(tmp_path / "n.onnx", "MatMulNBits", "states w scales", stored, K=16, N=8, bits=4, block_size=16)
    found = graph_weights(path).set_index("size")
    assert found.loc[64].to_dict() == {"elements": 16 * 8, "integer": True, "table": False}
    assert found.loc[32].to_dict() == {"elements": 0, "integer": True, "table": False}  # the scales
    assert macs_of(products_of_graph(path, 1, 5)) == {"macs": 5 * 16 * 8, "int8_macs": 5 * 16 * 8}


@pytest.mark.parametrize("kind", ["UINT4", "UINT8"])
def test_tables_of_four_bits_are_unpacked_in_the_count(tmp_path, kind):
    table = helper.make_tensor("t", TensorProto.UINT4, (50, 32), bytes(50 * 16), raw=True)
    stored = {"t": table if kind == "UINT4" else np.zeros((50, 16), np.uint8), "scales": np.ones((50, 1), np.float32)}
    options = {"quantize_axis": 1, "block_size": 32}
    path = one_node(tmp_path / "t.onnx", "GatherBlockQuantized", "t input_ids scales", stored, **options)
    weights = graph_weights(path).set_index("elements")
    assert (weights.loc[50 * 32, "size"], weights.loc[50 * 32, "table"]) == (50 * 16, True) and 0 in weights.index


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "two").mkdir()
    for name in "broken.onnx notes.txt two/a.onnx two/b.onnx".split():
        (tmp_path / name).write_text("no model")
    refused = {"broken.onnx": "broken.onnx cannot be loaded", "absent.onnx": "there is no file", "absent": "absent"}
    refused |= {"notes.txt": "is a file, and not an .onnx file", "two": "name one: a.onnx, b.onnx"}
    for name, message in refused.items():
        with pytest.raises(ModelError, match=message):
            open_model(tmp_path / name)
