"""Rounding a matrix to 4 bits so that what it computes on given inputs changes least (Frantar et al. 2023, GPTQ).

For inputs X (positions, width) and a matrix W (width, outputs), the columns of X are taken one after another. Weight i
of every output is rounded to its block's grid, and the error is made good for by the weights that are not rounded yet:
W[j] -= U[i, j] / U[i, i] * (W[i] - rounded) for j > i, where U is the upper Cholesky factor of the inverse of
H = X^T X + damping. With uncorrelated inputs that is rounding to nearest. The grids are those of the weights as they
were, so that scales and zero points are as `onnx_int4` says.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgemin_utils.quantization.integers import pack_int4

if TYPE_CHECKING:
    import onnx

LEVELS = 15  # steps of a 4-bit grid
DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: few rows leave directions of the inputs unseen."""


def grid_of_blocks(matrix: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(scales, zero points), float32 (blocks, outputs), of a float32 matrix (width, outputs) whose blocks lie along the
    width: 16 numbers from a block's lowest weight to its highest, 0 among them."""
    width, outputs = matrix.shape
    blocks = -(-width // block)
    padded = np.zeros((blocks * block, outputs), np.float32)
    padded[:width] = matrix
    parts = padded.reshape(blocks, block, outputs)
    low, high = np.minimum(parts.min(axis=1), 0), np.maximum(parts.max(axis=1), 0)
    scales = ((high - low) / np.float32(LEVELS)).astype(np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)
    return scales, np.clip(np.rint(-low / divisors), 0, LEVELS).astype(np.float32)


def compensated_integers(matrix: np.ndarray, products: np.ndarray, block: int) -> np.ndarray:
    """Integers from 0 to 15, uint8 (width, outputs), on the grids of `grid_of_blocks`.

    Args:
        matrix: float32 (width, outputs).
        products: X^T X of the inputs, float64 (width, width).
    """
    scales, zero_points = grid_of_blocks(matrix, block)
    factor = _inverse_factor(products)
    weights, integers = matrix.astype(np.float64), np.empty(matrix.shape, np.uint8)
    for place in range(len(matrix)):
        scale, zero_point = scales[place // block], zero_points[place // block]
        divisor = np.where(scale == 0, np.float32(1), scale)
        integers[place] = np.clip(np.rint(weights[place] / divisor) + zero_point, 0, LEVELS)
        error = weights[place] - (integers[place] - zero_point) * scale
        weights[place + 1 :] -= np.outer(factor[place, place + 1 :] / factor[place, place], error)
    return integers


def _inverse_factor(products: np.ndarray) -> np.ndarray:
    """U, upper triangular, with U^T U the inverse of the damped `products`."""
    damped = products.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * np.diag(damped).mean() + np.finfo(np.float32).tiny
    inverse = np.linalg.inv(damped)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T


def products_of_inputs(graph: "onnx.ModelProto", rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Output of every MatMul with stored weights -> X^T X of what goes into it, float64 (width, width), over all tokens
    of all rows.

    Args:
        graph: in float32.
        rows: inputs of one row each, tensors (1, tokens); inputs of the graph that a row lacks are zeros.
    """
    from onnx import ValueInfoProto

    from edgemin_utils.quantization.onnx_model import open_session

    stored = {constant.name for constant in graph.graph.initializer}
    matrices = {
        node.output[0]: node.input[0]
        for node in graph.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }
    shown = type(graph)()
    shown.CopyFrom(graph)
    wanted = list(dict.fromkeys(matrices.values()))
    shown.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    session = open_session(shown.SerializeToString(), threads=torch.get_num_threads())
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        ids = row["input_ids"]
        feed = {item.name: row.get(item.name, torch.zeros_like(ids)).numpy() for item in session.get_inputs()}
        for name, value in zip(wanted, session.run(wanted, feed), strict=True):
            states = value.reshape(-1, value.shape[-1]).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + states.T @ states
    return {output: sums[states] for output, states in matrices.items()}


def compensate(
    quantized: "onnx.ModelProto", matrices: Mapping[str, np.ndarray], products: Mapping[str, np.ndarray]
) -> None:
    """Replaces the integers of every MatMulNBits node by compensated ones, in place.

    Args:
        quantized: the graph after rounding to nearest.
        matrices, products: output of a product -> its float32 matrix (width, outputs), and `products_of_inputs`.
    """
    from onnx import helper, numpy_helper

    constants = {constant.name: constant for constant in quantized.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type != "MatMulNBits" or node.output[0] not in matrices:
            continue
        attributes: dict[str, Any] = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        block, matrix = attributes["block_size"], matrices[node.output[0]]
        stored = constants[node.input[1]]
        shape = tuple(stored.dims)
        integers = compensated_integers(matrix, products[node.output[0]], block)
        packed = packed_blocks(integers, block).reshape(shape)
        stored.CopyFrom(numpy_helper.from_array(packed, stored.name))


def packed_blocks(integers: np.ndarray, block: int) -> np.ndarray:
    """MatMulNBits' form of integers (width, outputs) from 0 to 15: uint8 (outputs, blocks, block / 2); a last block is
    filled up with zeros."""
    filled = np.pad(integers, ((0, -len(integers) % block), (0, 0)))
    return pack_int4(torch.from_numpy(filled.T.copy())).numpy().reshape(filled.shape[1], -1, block // 2)
