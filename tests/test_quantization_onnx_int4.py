"""INT4 for ONNX Runtime's kernels: the grid by hand, what the operators compute with it, and the graph made ready."""

import logging
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from four_bit_grid import grid_of_blocks, rounded
from onnx import TensorProto, helper, numpy_helper
from small_models import small_batch, small_model

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused
from edgemin_utils.library_messages import quiet_onnx
from edgemin_utils.measurement import onnx_graphs
from edgemin_utils.measurement.operations import macs_by_precision
from edgemin_utils.measurement.parameters import bytes_by_part, weights_by_part
from edgemin_utils.quantization import onnx_int4, quantize
from edgemin_utils.quantization.onnx_export import fuse, operator_counts
from edgemin_utils.quantization.onnx_int4 import quantize_to_int4, separate_products
from edgemin_utils.quantization.onnx_schemes import exported

WIDTH, OUTPUTS, ROWS = 150, 5, 7
"""Two blocks of 64 and one of 22."""


@pytest.fixture(scope="module")
def ragged():
    """A model of 3 and 4 heads and of 96 and 40 neurons; no vector of it is equal to another."""
    model = small_model(layers=2)
    encoder_layers(model)[0].keep_heads([0, 1, 3])
    encoder_layers(model)[1].keep_neurons(range(40))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def looked_up():
    """float32 (ROWS, WIDTH) and (WIDTH, OUTPUTS), and the graph of rows looked up and of given rows' product."""
    generator = np.random.default_rng(0)
    table, matrix = (
        generator.normal(0.02, 0.1, shape).astype(np.float32) for shape in ((ROWS, WIDTH), (WIDTH, OUTPUTS))
    )
    table[3] = np.abs(table[3])  # a row on one side of 0, which is still on its grid
    stored = [numpy_helper.from_array(value, name) for name, value in (("table", table), ("matrix", matrix))]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look_up"),
        helper.make_node("MatMul", ["states", "matrix"], ["product"], name="linear"),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("states", TensorProto.FLOAT, ["n", WIDTH]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "product")]
    graph = helper.make_model(
        helper.make_graph(nodes, "two", inputs, outputs, stored),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 18)],
    )
    with quiet_onnx():
        return table, matrix, quantize_to_int4(graph, ["MatMul", "Gather"])


def halves(packed: np.ndarray) -> np.ndarray:
    """4-bit integers from bytes, the low half of each first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def test_integers_scales_and_zero_points_are_those_worked_out_by_hand(looked_up):
    table, matrix, graph = looked_up
    stored = {item.name: item for item in graph.graph.initializer}
    used = {node.op_type: node for node in graph.graph.node}
    packed, scales, zero_points = (numpy_helper.to_array(stored[name]) for name in used["MatMulNBits"].input[1:4])
    found = [halves(packed).reshape(OUTPUTS, -1)[:, :WIDTH], scales.reshape(OUTPUTS, 3), halves(zero_points)[:, :3]]
    for one, wanted in zip(found, grid_of_blocks(matrix.T), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6)
    gathered = used["GatherBlockQuantized"].input
    bytes_of = [np.frombuffer(stored[gathered[place]].raw_data, np.uint8) for place in (0, 3)]
    found = [
        halves(bytes_of[0])[: ROWS * WIDTH].reshape(ROWS, WIDTH),
        numpy_helper.to_array(stored[gathered[2]]),
        halves(bytes_of[1])[: ROWS * 3].reshape(ROWS, 3),
    ]
    for one, wanted in zip(found, grid_of_blocks(table), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6)
    # 5 outputs of 3 blocks, each of 32 bytes and a scale, and 2 bytes of zero points; 7 rows of 150, none padded.
    sizes = {
        node: sum(len(stored[used[node].input[place]].raw_data) for place in places)
        for node, places in onnx_int4.STORED_INPUTS.items()
    }
    assert sizes == {"MatMulNBits": 5 * (3 * (32 + 4) + 2), "GatherBlockQuantized": 525 + 4 * 21 + 11}


def test_operators_compute_with_the_rounded_weights(looked_up):
    table, matrix, graph = looked_up
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    states = generator.integers(-127, 128, (4, WIDTH)).astype(np.float32)
    states[:, [5, 70, 140]] = 127  # so that every block's own scale is 1, and rounding to 8 bits changes nothing
    ids = np.array([3, 0, 6, 3])
    rows, product = session.run(None, {"ids": ids, "states": states})
    np.testing.assert_allclose(rows, rounded(table)[ids], atol=1e-6)
    np.testing.assert_allclose(product, states @ rounded(matrix.T).T, rtol=1e-4, atol=2e-3)
    # Inputs off that grid move by half a step of their block at most.
    states = generator.normal(size=(4, WIDTH)).astype(np.float32)
    product = session.run(["product"], {"ids": ids, "states": states})[0]
    steps = np.repeat(
        np.stack([np.abs(states[:, start : start + 64]).max(1) for start in (0, 64, 128)], 1) / 127, 64, 1
    )
    furthest = steps[:, :WIDTH] / 2 @ np.abs(rounded(matrix.T).T)
    assert (np.abs(product - states @ rounded(matrix.T).T) <= furthest + 1e-4).all()


def test_separated_products_compute_what_the_model_computes(ragged):
    graph = fuse(exported(ragged), ragged)
    assert operator_counts(graph)["Attention"] == operator_counts(graph)["Gemm"] == 2
    separate_products(graph)
    counts = operator_counts(graph)
    assert counts["MultiHeadAttention"] == 2 and counts["MatMul"] == 2 * 4 + 2
    assert not {"Attention", "Gemm"} & counts.keys()
    batch = small_batch(4, 11)
    batch["attention_mask"][0, [2, 5]] = 0  # a mask with holes
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: batch[name].numpy() for name in names})[0]
    with torch.inference_mode():
        wanted = ragged(**{name: batch[name] for name in names}).logits.numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_bare_graph_is_counted_like_the_float_model(ragged):
    """Weights, bytes and MACs of the file against the float model's and the scheme's own sizes."""
    made = quantize(ragged, "onnx-int4-embeddings")
    graph = onnx.load_from_string(made.graph)
    found = onnx_graphs.parameters_of_graph(graph)
    assert found["parts"] == weights_by_part(ragged)
    assert {part: sum(sizes.values()) for part, sizes in found["part_bytes"].items()} == bytes_by_part(made)
    assert onnx_graphs.graph_macs(graph, 2, 9) == macs_by_precision(made, 2, 9)
    assert onnx_graphs.vocabulary_size(graph) == 60


def test_a_version_that_treats_the_graph_otherwise_is_refused(ragged, monkeypatch):
    monkeypatch.setattr(onnx_int4, "quantize_to_int4", lambda graph, *_others: graph)
    with pytest.raises(MethodRefused, match=r"stores 0 bytes in 4-bit operators where .* take \d\d,\d{3};"):
        quantize(ragged, "onnx-int4")


def test_the_quantizer_leaves_logging_as_it_was(monkeypatch):
    """It sets the root logger up when it is imported."""
    name = "onnxruntime.quantization.matmul_nbits_quantizer"
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    for quiet in (False, True):
        monkeypatch.delitem(sys.modules, name, raising=False)
        if quiet:
            with quiet_onnx():
                __import__(name)
            assert logging.root.handlers == [] and logging.root.level == level
        else:
            __import__(name)
            assert logging.root.handlers  # else there is nothing to keep quiet
            logging.root.handlers.clear()
            logging.root.setLevel(level)
