"""GPTQ's rounding: against rounding to nearest, a closed formula of two weights, and the error that it is to lower."""

import numpy as np
import onnx
import pytest
import torch
from four_bit_grid import grid_of_blocks as grid_by_hand
from onnx import TensorProto, helper, numpy_helper
from small_models import small_batch, small_model
from torch import nn

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.quantization import error_compensation
from edgemin_utils.quantization.error_compensation import compensated_integers, grid_of_blocks, products_of_inputs
from edgemin_utils.quantization.onnx_export import export_graph, fuse
from edgemin_utils.quantization.onnx_int4 import INT4_BLOCK, quantize_to_int4, separate_products

WIDTH, OUTPUTS = 150, 6
"""Two blocks of 64 and one of 22."""


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(0).normal(0.02, 0.1, (WIDTH, OUTPUTS)).astype(np.float32)


def rounded(integers, matrix):
    scales, zero_points = (np.repeat(values, INT4_BLOCK, 0)[:WIDTH] for values in grid_of_blocks(matrix, INT4_BLOCK))
    return (integers - zero_points) * scales


def test_uncorrelated_inputs_are_rounded_to_nearest(matrix):
    by_hand, scales, zero_points = grid_by_hand(matrix.T)
    found = grid_of_blocks(matrix, INT4_BLOCK)
    np.testing.assert_allclose(found[0], scales.T, rtol=1e-6)
    np.testing.assert_array_equal(found[1], zero_points.T)
    products = np.diag(np.random.default_rng(1).uniform(0.5, 2, WIDTH))
    np.testing.assert_array_equal(compensated_integers(matrix, products, INT4_BLOCK), by_hand.T)


def test_a_second_weight_makes_good_for_the_first(monkeypatch):
    """Of two inputs with X^T X = [[a, b], [b, c]], the second weight that errs least is w2 + b / c (w1 - q1)."""
    monkeypatch.setattr(error_compensation, "DAMPING", 0)
    generator = np.random.default_rng(2)
    weights = generator.uniform(-1, 1, (2, 500)).astype(np.float32)
    states = generator.normal(size=(50, 2)) @ np.array([[1, 0.9], [0, 0.4]])
    products = states.T @ states
    (scale,), (zero_point,) = grid_of_blocks(weights, 2)
    first = np.clip(np.rint(weights[0] / scale) + zero_point, 0, 15)
    wanted = weights[1] + products[0, 1] / products[1, 1] * (weights[0] - (first - zero_point) * scale)
    second = np.clip(np.rint(wanted / scale) + zero_point, 0, 15)
    integers = compensated_integers(weights, products, 2)
    np.testing.assert_array_equal(integers, [first, second])
    assert (integers[1] != np.clip(np.rint(weights[1] / scale) + zero_point, 0, 15)).any()


def test_the_product_of_correlated_inputs_changes_less_than_under_rounding_to_nearest(matrix):
    generator = np.random.default_rng(3)
    states = generator.normal(size=(400, 20)) @ generator.normal(size=(20, WIDTH))
    products = states.T @ states
    compensated = rounded(compensated_integers(matrix, products, INT4_BLOCK), matrix)
    nearest = rounded(compensated_integers(matrix, np.eye(WIDTH), INT4_BLOCK), matrix)
    errors = [np.linalg.norm(states @ (matrix - one)) for one in (compensated, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_integers_are_stored_as_the_kernel_reads_them(matrix):
    """Packed anew from uncorrelated inputs, the quantizer's own bytes come out."""
    graph = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["states", "matrix"], ["product"], name="linear")],
            "linear",
            [helper.make_tensor_value_info("states", TensorProto.FLOAT, [None, WIDTH])],
            [helper.make_tensor_value_info("product", TensorProto.FLOAT, [None, OUTPUTS])],
            [numpy_helper.from_array(matrix, "matrix")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    quantized = quantize_to_int4(graph, ["MatMul"])
    stored = {item.name: numpy_helper.to_array(item).copy() for item in quantized.graph.initializer}
    error_compensation.compensate(quantized, {"product": matrix}, {"product": np.eye(WIDTH)})
    for item in quantized.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(item), stored[item.name])
    error_compensation.compensate(quantized, {"product": matrix}, {"product": np.ones((WIDTH, WIDTH))})
    assert any((numpy_helper.to_array(item) != stored[item.name]).any() for item in quantized.graph.initializer)


def test_products_are_those_of_what_goes_into_each_layer():
    model, batch = small_model(layers=2), small_batch(3, 9)
    rows = [{name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")} for row in range(3)]
    graph = fuse(export_graph(model), model)
    separate_products(graph)
    assert isinstance(graph, onnx.ModelProto)
    found = products_of_inputs(graph, rows)
    assert len(found) == 2 * 4 + 2  # of a layer: query, key and value at once, two outputs, one in between
    stored = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
    weights = {node.output[0]: stored.get(node.input[1]) for node in graph.graph.node if node.op_type == "MatMul"}
    linear = [[layer.query, layer.key, layer.value] for layer in encoder_layers(model)]
    together = {id(module) for modules in linear for module in modules}
    linear += [[module] for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in together]
    assert len(linear) == len(found)
    for modules in linear:
        matrix, seen = np.hstack([module.weight.detach().numpy().T for module in modules]), []
        # The pooler and the classifier see one vector a row, (1, width); the layers (1, tokens, width).
        hook = modules[0].register_forward_hook(
            lambda _module, inputs, _output, seen=seen: seen.append(inputs[0].flatten(0, -2).double().numpy())
        )
        with torch.inference_mode():
            for row in rows:
                model(**row)
        hook.remove()
        (output,) = (name for name in found if np.array_equal(weights[name], matrix))
        np.testing.assert_allclose(found[output], sum(each.T @ each for each in seen), rtol=1e-3, atol=1e-4)
