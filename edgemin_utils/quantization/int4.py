r"""Weights of 4 bits for ONNX Runtime's own kernels: linear layers as MatMulNBits, tables as GatherBlockQuantized.
Every BLOCK weights along the input dimension (of a table: along a row) share a float32 scale s = (high - low) / 15 and
a 4-bit zero point z = round(-low / s), where low and high are their range, widened to hold 0; a weight w is stored as
q = clip(round(w / s) + z, 0, 15). Inputs of products are quantized to 8 bits token by token.

Calibrated, a matrix is rounded so that what it computes on training rows changes least (Frantar et al. 2023, GPTQ). For
inputs X (positions, width), as quantized layers before give them, and a matrix W (width, outputs), row i is rounded in
turn, and those left make good for the error: W[j] -= U[i, j] / U[i, i] * (W[i] - rounded) for j > i, where U is the
upper Cholesky factor of the inverse of H = X^T X + damping."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from edgemin_utils.quantization.integers import pack_int4
from edgemin_utils.quantization.onnx_graph import Graph, operator
from edgemin_utils.quantization.schemes import Rows
from edgemin_utils.quantization.sessions import OnnxSession

BLOCK, LEVELS = 64, 15  # weights that share a scale and a zero point (0.6 of 4.6 bits a weight); steps of a grid
DAMPING = 0.01  # of the mean of H's diagonal, added to it: few rows leave directions of the inputs unseen
_LAYER = 4  # products of one: query, key and value at once, the attention's output, two of feed-forward


def grid_of_blocks(matrix: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """(scales, zero points), float32 (blocks, outputs), of a float32 matrix (width, outputs) whose blocks lie along the
    width: 16 numbers from a block's lowest weight to its highest, 0 among them."""
    filled = np.pad(matrix.astype(np.float32), ((0, -len(matrix) % block), (0, 0)))
    parts = filled.reshape(-1, block, matrix.shape[1])
    low, high = np.minimum(parts.min(axis=1), 0), np.maximum(parts.max(axis=1), 0)
    scales = ((high - low) / np.float32(LEVELS)).astype(np.float32)
    return scales, np.clip(np.rint(-low / np.where(scales == 0, np.float32(1), scales)), 0, LEVELS).astype(np.float32)


def block_integers(matrix: np.ndarray, products: np.ndarray | None = None, block: int = BLOCK) -> np.ndarray:
    """Integers from 0 to 15, uint8 (width, outputs), of a float32 matrix on the grids of `grid_of_blocks`; `products`,
    X^T X of the inputs, float64 (width, width), are for GPTQ's rounding, None rounds to nearest."""
    scales, zero_points = (np.repeat(each, block, axis=0)[: len(matrix)] for each in grid_of_blocks(matrix, block))
    divisors = np.where(scales == 0, np.float32(1), scales)
    if products is None:
        return np.clip(np.rint(matrix / divisors) + zero_points, 0, LEVELS).astype(np.uint8)
    damped = products.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * np.diag(damped).mean() + np.finfo(np.float32).tiny
    inverse = np.linalg.inv(damped)
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T  # U, upper triangular, with U^T U the inverse
    weights, integers = matrix.astype(np.float64), np.empty(matrix.shape, np.uint8)
    for place in range(len(matrix)):
        integers[place] = np.clip(np.rint(weights[place] / divisors[place]) + zero_points[place], 0, LEVELS)
        error = weights[place] - (integers[place] - zero_points[place]) * scales[place]
        weights[place + 1 :] -= np.outer(factor[place, place + 1 :] / factor[place, place], error)
    return integers


def quantize_products(graph: Graph, rows: Rows = ()) -> None:
    """Stores every MatMul with weights in 4 bits, in place, so that products change least on `rows`, inputs of one row
    each, (1, tokens); without any, weights are rounded to nearest."""
    nodes = [node for node in graph.nodes if node.op_type == "MatMul" and node.input[1] in graph.tensors()]
    for start in range(0, len(nodes), _LAYER):
        products, made = products_of_inputs(graph, nodes[start : start + _LAYER], rows) if rows else {}, {}
        for node in nodes[start : start + _LAYER]:
            (states, name), output = node.input, node.output[0]
            matrix = graph.array(name)
            scales, zero_points = grid_of_blocks(matrix)
            # MatMulNBits reads (outputs, blocks, BLOCK / 2), filled up with zeros, (outputs, blocks) and (outputs,
            # ceil(blocks / 2)).
            integers = np.pad(block_integers(matrix, products.get(states)), ((0, -len(matrix) % BLOCK), (0, 0)))
            packed = _packed(integers.T).reshape(matrix.shape[1], -1, BLOCK // 2)
            parts = {"integers": packed, "scale": scales.T, "zero_point": _packed(zero_points.T)}
            inputs = [states, *(graph.store(f"{name}_{part}", value) for part, value in parts.items())]
            # Levels below 4 compute in floating point.
            sizes: Any = {"K": matrix.shape[0], "N": matrix.shape[1], "bits": 4, "block_size": BLOCK}
            made[output] = [operator("MatMulNBits", inputs, output, accuracy_level=4, **sizes)]
        graph.replace(made)


def _packed(integers: np.ndarray) -> np.ndarray:
    return pack_int4(torch.from_numpy(integers.astype(np.int16))).numpy()


def products_of_inputs(graph: Graph, nodes: Sequence[onnx.NodeProto], rows: Rows) -> dict[str, np.ndarray]:
    """Input of every product -> its X^T X, float64 (width, width), over all tokens of all rows."""
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    shown = onnx.ModelProto()
    shown.CopyFrom(graph.model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = OnnxSession(shown.SerializeToString(), torch.get_num_threads())
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        for name, value in zip(names, session.session.run(names, session.feed(row)), strict=True):
            states = value.reshape(-1, value.shape[-1]).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + states.T @ states
    return sums


def quantize_table(graph: Graph, look_up: onnx.NodeProto) -> None:
    """Stores the table that an operator looks rows up in in 4 bits, in place; the rows are unpacked."""
    name, table = look_up.input[0], graph.array(look_up.input[0])
    scales, zero_points = (each.T for each in grid_of_blocks(table.T))
    for part, values in ((f"{name}_integers", block_integers(table.T).T), (f"{name}_zero_point", zero_points)):
        packed = _packed(values.reshape(1, -1)).tobytes()
        graph.store(part, helper.make_tensor(part, TensorProto.UINT4, values.shape, packed, True))
    inputs = [f"{name}_integers", look_up.input[1], graph.store(f"{name}_scale", scales), f"{name}_zero_point"]
    axes: Any = {"gather_axis": 0, "quantize_axis": 1}
    made = operator("GatherBlockQuantized", inputs, look_up.output[0], block_size=BLOCK, **axes)
    graph.replace({look_up.output[0]: [made]})
