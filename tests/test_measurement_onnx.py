"""A bare .onnx file: its weights, products and inputs against the torch model that it was exported from."""

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from small_models import export_onnx, small_batch, small_model, tokenized_sentences

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import onnx_graphs
from edgemin_utils.measurement.deployed import DeployedClassifier
from edgemin_utils.measurement.onnx_session import OnnxSession
from edgemin_utils.measurement.operations import closed_formula_macs, macs_by_precision
from edgemin_utils.measurement.parameters import stored_weights, weights_by_part
from edgemin_utils.quantization import quantize


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A BERT of unequal layers, and its .onnx file in FP32 and INT8."""
    folder = tmp_path_factory.mktemp("onnx")
    model = small_model(layers=2)
    encoder_layers(model)[0].keep_heads([1, 2, 3])
    encoder_layers(model)[1].keep_neurons(range(40))
    path = export_onnx(model, folder / "model.onnx")
    graph = onnx.load(path)
    del graph.graph.value_info[:]  # the exporter's notes make the quantizer's shape inference fail
    onnx.save(graph, folder / "clean.onnx")
    quantize_dynamic(folder / "clean.onnx", folder / "int8.onnx")
    return model, path, folder / "int8.onnx"


def test_a_deployed_classifier_reads_texts_in_a_process_without_torch(exported, tmp_path):
    """Its own process imports no torch; its logits are those of the torch model on the same tokens."""
    model, path, _ = exported
    rows, tokenizer = tokenized_sentences(3)
    with pytest.raises(ModelError, match="must hold one .onnx file and a tokenizer.json"):
        DeployedClassifier(str(tmp_path))
    shutil.copy(path, tmp_path / "model.onnx")
    tokenizer.save_pretrained(tmp_path)
    text = tokenizer.decode(rows[0]["input_ids"], skip_special_tokens=True)
    with torch.inference_mode():
        wanted = model(**tokenizer(text, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(DeployedClassifier(str(tmp_path)).logits_of(text), wanted, atol=1e-4)
    code = (
        "import sys; from edgemin_utils.measurement.deployed import load_deployed; load_deployed(sys.argv[1]); "
        "print({'torch', 'transformers', 'onnx'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        DeployedClassifier(str(tmp_path))


@pytest.mark.parametrize("form", [1, 2])
def test_weights_and_parts_are_those_of_the_torch_model(exported, form):
    found = onnx_graphs.parameters_of_graph(onnx_graphs.read_graph(exported[form]))
    assert found["parts"] == weights_by_part(exported[0])
    assert found["stored"] == stored_weights(exported[0]) <= found["framework"]
    assert found["paper"] is None


def test_parts_of_a_fused_graph_are_those_of_the_torch_model(exported):
    """In a fused graph a product's bias sits in the sum with norm behind it."""
    model = small_model(layers=2)
    encoder_layers(model)[1].keep_neurons(range(40))
    with torch.no_grad():
        for weights in model.parameters():  # the exporter stores equal ones, as fresh biases are, once
            weights += 0.01 * torch.randn_like(weights)
    graph = onnx.load_from_string(quantize(model, "onnx-dynamic-int8-embeddings").graph)
    assert any(node.op_type == "SkipLayerNormalization" for node in graph.graph.node)
    found = onnx_graphs.parameters_of_graph(graph)
    assert {part: found["parts"][part] for part in ("norms", "feed_forward", "attention", "head")} == {
        part: count for part, count in weights_by_part(model).items() if part != "embeddings"
    }


def test_bytes_are_one_a_weight_where_it_is_int8(exported):
    model, path, int8 = exported
    sizes = onnx_graphs.parameters_of_graph(onnx_graphs.read_graph(path))["part_bytes"]
    assert sizes == {part: {"fp32": 4 * count, "int8": 0} for part, count in weights_by_part(model).items()}
    sizes = onnx_graphs.parameters_of_graph(onnx_graphs.read_graph(int8))["part_bytes"]
    words = (60 + 64 + 2) * 48
    # Three tables, each with a FP32 scale and an 8-bit zero point.
    assert sizes["embeddings"] == {"fp32": 0, "int8": words + 3 * (4 + 1)}
    assert sizes["norms"]["int8"] == 0
    assert onnx_graphs.file_bytes(int8) == int8.stat().st_size > sum(sum(part.values()) for part in sizes.values())


@pytest.mark.parametrize("batch, length", [(1, 24), (3, 7)])
def test_macs_are_the_closed_formulas(exported, batch, length):
    model, path, int8 = exported
    whole = closed_formula_macs(model, batch, length)
    assert onnx_graphs.graph_macs(onnx_graphs.read_graph(path), batch, length) == {"fp32": whole, "int8": 0}
    assert onnx_graphs.graph_macs(onnx_graphs.read_graph(int8), batch, length) == macs_by_precision(
        quantize(model, "dynamic-int8"), batch, length
    )


def test_vocabulary_and_inputs_come_from_the_file(exported):
    for path in exported[1:]:
        assert onnx_graphs.vocabulary_size(onnx_graphs.read_graph(path)) == 60
        assert OnnxSession(path).input_names == ("input_ids", "attention_mask", "token_type_ids")


def test_session_gives_the_torch_models_logits(exported):
    model, path, int8 = exported
    batch = {name: value for name, value in small_batch().items() if name != "labels"}
    with torch.inference_mode():
        logits = model(**batch).logits.numpy()
    np.testing.assert_allclose(OnnxSession(path)(batch), logits, atol=1e-5)
    assert np.abs(OnnxSession(int8)(batch) - logits).max() < 0.2 * np.abs(logits).max()
    # A missing mask stands for real tokens everywhere.
    whole = {"input_ids": batch["input_ids"][:1]}
    np.testing.assert_allclose(OnnxSession(path)(whole), logits[:1], atol=1e-5)


def fused_graph(node: onnx.NodeProto, weights: dict) -> onnx.ModelProto:
    """One node between a look-up of input_ids and the output, as ONNX Runtime's optimizer writes them."""
    table = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    stored = [numpy_helper.from_array(value, name) for name, value in {"table": table, **weights}.items()]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["states"]), node]
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "l"])
    graph = helper.make_graph(
        nodes, "fused", [tokens], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)], stored
    )
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    )


def test_fused_attention_counts_its_projection_and_both_products():
    weights = {"qkv_weight": np.ones((16, 48), np.float32), "qkv_bias": np.ones(48, np.float32)}
    node = helper.make_node(
        "Attention", ["states", "qkv_weight", "qkv_bias"], ["out"], domain="com.microsoft", num_heads=2
    )
    model = fused_graph(node, weights)
    assert onnx_graphs.graph_macs(model, 2, 5)["fp32"] == 2 * (5 * 16 * 48 + 2 * 5 * 5 * 16)
    parts = onnx_graphs.parameters_of_graph(model)["parts"]
    assert parts["attention"] == 16 * 48 + 48 and parts["other"] == 50 * 16  # a table whose name tells nothing


def test_gemm_counts_transposed_weights():
    graph = fused_graph(helper.make_node("MatMul", ["states", "w"], ["out"]), {"w": np.ones((16, 3), np.float32)})
    assert onnx_graphs.graph_macs(graph, 2, 5) == {"fp32": 2 * 5 * 16 * 3, "int8": 0}
    node = helper.make_node("Gemm", ["a", "w"], ["out"], transA=1, transB=1)
    assert onnx_graphs._macs_of_node(node, [(16, 5), (3, 16)]) == (5 * 16 * 3, 0)


def test_packed_four_bit_weights_are_unpacked_in_the_count():
    packed = np.zeros((8, 1, 8), np.uint8)  # 8 outputs, one block of 16 inputs, two weights a byte
    node = helper.make_node(
        "MatMulNBits", ["states", "w", "scales"], ["out"], domain="com.microsoft", K=16, N=8, bits=4, block_size=16
    )
    model = fused_graph(node, {"w": packed, "scales": np.ones(8, np.float32)})
    found = {weight.name: weight for weight in onnx_graphs.graph_weights(model)}
    assert found["w"].elements == 16 * 8 and found["w"].size == 64 and found["scales"].elements == 0
    assert onnx_graphs.graph_macs(model, 1, 5) == {"fp32": 0, "int8": 5 * 16 * 8}


def test_tables_of_four_bits_are_unpacked_in_the_count():
    """Of 4-bit integers, and of bytes that each hold two."""
    for kind, table in (
        ("UINT4", helper.make_tensor("t", TensorProto.UINT4, (50, 32), bytes(50 * 16), raw=True)),
        ("UINT8", numpy_helper.from_array(np.zeros((50, 16), np.uint8), "t")),
    ):
        node = helper.make_node(
            "GatherBlockQuantized",
            ["t", "input_ids", "scales"],
            ["out"],
            domain="com.microsoft",
            quantize_axis=1,
            block_size=32,
        )
        model = fused_graph(node, {"scales": np.ones((50, 1), np.float32)})
        del model.graph.node[0]
        model.graph.initializer.append(table)
        weights = {weight.name: weight for weight in onnx_graphs.graph_weights(model)}
        assert (weights["t"].elements, weights["t"].size, weights["t"].table) == (50 * 32, 50 * 16, True), kind
        assert weights["scales"].elements == 0 and onnx_graphs.vocabulary_size(model) == 50


def test_what_is_no_model_is_refused(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x00 no model")
    for function in (onnx_graphs.read_graph, OnnxSession):
        with pytest.raises(ModelError, match="broken.onnx"):
            function(broken)
        with pytest.raises(ModelError, match="there is no file"):
            function(tmp_path / "absent.onnx")
    images = helper.make_graph(
        [helper.make_node("Relu", ["pixels"], ["out"])],
        "vision",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3])],
    )
    onnx.save(helper.make_model(images, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "v.onnx")
    with pytest.raises(ModelError, match="takes pixels; a text classifier takes integers, input_ids among them"):
        OnnxSession(tmp_path / "v.onnx")
