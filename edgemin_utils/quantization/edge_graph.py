"""A classifier as the ONNX graph of an edge bundle: as small and as fast as ONNX Runtime's CPU kernels make it.

Starts from the exported and fused graph. What is particular to it was found by timing single operators:

- ONNX Runtime's sum with norm (SkipLayerNormalization) takes several times as long as a sum and a norm, so it is taken
  apart; the bias that it held then goes into the integer product before it.
- A classifier looks at the first token alone, so everything behind the last attention is computed for that token.
- Tables of embeddings are INT8 with one scale a row; positions that no input reaches are left out; where there is one
  text, its constant token type is part of the positions.
- Matrices and word embeddings may have 4 bits instead (see `onnx_int4`): smaller, and matrices then slower.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgemin_utils.encoders import longest_input
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.library_messages import quiet_onnx
from edgemin_utils.quantization.onnx_export import check_against, drop_unused, fuse, set_nodes
from edgemin_utils.quantization.onnx_int4 import int4_tensors, quantize_to_int4, separate_products
from edgemin_utils.quantization.onnx_model import open_session
from edgemin_utils.quantization.onnx_schemes import exported, other_look_ups, quantize_dynamically

if TYPE_CHECKING:
    import onnx

TOKEN_TYPES = "token_type_ids"
BITS = (8, 4)
"""Bits that weights of a bundle may have, the default first."""
# Stored in float32 at most: vectors such as biases, norms and scales, and the rows of token types.
LARGEST_FLOAT_TABLE_ROWS = 2
# Operators that treat every token by itself.
_TOKEN_BY_TOKEN = {"Add", "Sum", "MatMul", "Gemm", "LayerNormalization", "BiasGelu", "Gelu", "FastGelu"}
_FIRST_TOKEN = "first_token"


def edge_graph(
    model: nn.Module,
    longest: int,
    pair: bool,
    matrix_bits: int = 8,
    embedding_bits: int = 8,
    rows: Sequence[Mapping[str, torch.Tensor]] = (),
) -> "onnx.ModelProto":
    """The quantized graph of a float classifier: input_ids, attention_mask and, only where a pair of texts needs them,
    token_type_ids as int64 (batch, tokens); logits as float32 (batch, labels).

    Linear layers of 8 bits have signed weights, symmetric, one scale an output; their inputs are quantized in the call,
    unsigned, with one scale for the whole batch. Word and position embeddings of 8 bits are signed with one scale a
    row. What has 4 bits is as in `onnx_int4`; positions keep 8.

    Args:
        model: a float model of any supported family, also one of unequal layers.
        longest: most tokens an input will have.
        pair: whether the model was trained on pairs, and so told apart by token types.
        matrix_bits, embedding_bits: 8 or 4, of linear layers and of the word embedding.
        rows: training rows, inputs of one each as tensors (1, tokens), on which 4-bit matrices are to change least
            (`error_compensation`); without any they are rounded to nearest.

    Raises:
        MethodRefused: the graph does not compute what the model computes, or keeps a matrix in float32.
        SettingError: other numbers of bits.
    """
    for what, bits in (("matrices", matrix_bits), ("embeddings", embedding_bits)):
        if bits not in BITS:
            raise SettingError(f"{what} of a bundle have 8 or 4 bits, and not {bits}")
    graph = fuse(exported(model), model)
    separate_norms(graph)
    if not pair:
        fold_token_types(graph)
    keep_positions(graph, min(longest, longest_input(model)), model)
    compute_first_token_alone(graph)
    check_against(model, functools.partial(_float_logits, graph), longest)
    graph = _quantized(graph, model, matrix_bits, embedding_bits, rows)
    drop_unused(graph)
    _check_small(graph)
    return graph


def _quantized(
    graph: "onnx.ModelProto",
    model: nn.Module,
    matrix_bits: int,
    embedding_bits: int,
    rows: Sequence[Mapping[str, torch.Tensor]],
) -> "onnx.ModelProto":
    with quiet_onnx():
        if matrix_bits == 8:
            graph = quantize_dynamically(graph, ["MatMul", "Attention"], per_channel=True)
        else:
            separate_products(graph)
            graph = quantize_to_int4(graph, ["MatMul"], rows=rows)
        if embedding_bits == 4:
            graph = quantize_to_int4(graph, ["Gather"], other_look_ups(graph, model))
    for node in [node for node in graph.graph.node if node.op_type == "Gather" and _is_table(graph, node.input[0])]:
        quantize_table(graph, node)
    return graph


# ---- changes of the float graph -----------------------------------------------------------------------------------


def separate_norms(graph: "onnx.ModelProto") -> None:
    """Writes every SkipLayerNormalization as sums and a LayerNormalization, in place; the bias goes to the product."""
    from onnx import helper

    made_by_product = {node.output[0] for node in graph.graph.node if node.op_type == "MatMul"}
    nodes = []
    for node in graph.graph.node:
        if node.op_type != "SkipLayerNormalization":
            nodes.append(node)
            continue
        first, second, scale, shift, bias = (*node.input, "", "")[:5]
        if second in made_by_product:
            first, second = second, first
        name = node.name or node.output[0]
        if bias:
            nodes.append(helper.make_node("Add", [first, bias], [f"{name}_biased"], name=f"{name}_bias"))
            first = f"{name}_biased"
        # Sum, because ONNX Runtime puts an Add and the norm behind it together again when it loads the graph.
        nodes.append(helper.make_node("Sum", [first, second], [f"{name}_sum"], name=f"{name}_sum"))
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-12)
        nodes.append(
            helper.make_node(
                "LayerNormalization",
                [f"{name}_sum", scale, shift],
                [node.output[0]],
                name=f"{name}_norm",
                axis=-1,
                epsilon=epsilon,
            )
        )
    set_nodes(graph, nodes)


def fold_token_types(graph: "onnx.ModelProto") -> None:
    """Makes the token type of a single text (0) a part of every position, in place; the input goes."""
    from onnx import numpy_helper

    nodes = list(graph.graph.node)
    looked_up = next((node for node in nodes if node.op_type == "Gather" and node.input[1] == TOKEN_TYPES), None)
    if looked_up is None:
        return
    added = next(node for node in nodes if node.op_type == "Add" and looked_up.output[0] in node.input)
    other = next(name for name in added.input if name != looked_up.output[0])
    for node in nodes:
        node.input[:] = [other if name == added.output[0] else name for name in node.input]
    set_nodes(graph, [node for node in nodes if node not in (looked_up, added)])
    types, positions = _constant(graph, looked_up.input[0]), _constant(graph, _position_table(graph))
    table = numpy_helper.to_array(positions) + numpy_helper.to_array(types)[:1]
    positions.CopyFrom(numpy_helper.from_array(table, positions.name))
    kept = [item for item in graph.graph.input if item.name != TOKEN_TYPES]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)


def keep_positions(graph: "onnx.ModelProto", longest: int, model: nn.Module) -> None:
    """Cuts the table of positions down to the rows that inputs of `longest` tokens use, in place."""
    from onnx import numpy_helper

    positions = _constant(graph, _position_table(graph))
    table = numpy_helper.to_array(positions)
    reserved = len(table) - longest_input(model)
    positions.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(table[: reserved + longest]), positions.name))


def compute_first_token_alone(graph: "onnx.ModelProto") -> None:
    """Computes for the first token alone what only the first token's output is read of, in place.

    From the operator that picks the first token, goes back over operators that treat every token by itself and whose
    result goes nowhere else; what comes in there from before is cut to its first token.
    """
    from onnx import helper, numpy_helper

    nodes = list(graph.graph.node)
    constants = {constant.name for constant in graph.graph.initializer}
    takers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    pick = _picking_node(graph)
    alone = [pick]
    for node in reversed(nodes):
        if node.op_type in _TOKEN_BY_TOKEN and all(
            any(taker is one for one in alone) for taker in takers.get(node.output[0], [None])
        ):
            alone.append(node)
    inner = {node.output[0] for node in alone}
    behind = [node for node in alone if node is not pick]
    if not behind or pick.input[0] not in inner:
        return
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), _FIRST_TOKEN))
    cuts: dict[str, Any] = {}
    for node in behind:
        for place, name in enumerate(node.input):
            if name and name not in constants and name not in inner:
                cuts[name] = cuts.get(name) or helper.make_node(
                    "Gather", [name, _FIRST_TOKEN], [f"{name}_{_FIRST_TOKEN}"], name=f"{name}_{_FIRST_TOKEN}", axis=1
                )
                node.input[place] = cuts[name].output[0]
    ordered = []
    for node in nodes:
        ordered.append(node)
        ordered += [cuts[name] for name in node.output if name in cuts]
    set_nodes(graph, ordered)


# ---- embeddings ---------------------------------------------------------------------------------------------------


def quantize_table(graph: "onnx.ModelProto", gather: Any) -> None:
    """Makes the table that `gather` looks rows up in INT8 with one scale a row, in place; the rows come out as
    before, rounded."""
    from onnx import TensorProto, helper, numpy_helper

    table, rows = gather.input[0], gather.output[0]
    values = numpy_helper.to_array(_constant(graph, table))
    quantized, scales = quantize_rows(values)
    graph.graph.initializer.append(numpy_helper.from_array(quantized, f"{table}_quantized"))
    graph.graph.initializer.append(numpy_helper.from_array(scales, f"{table}_scale"))
    names = {part: f"{rows}_{part}" for part in ("quantized", "integers", "scale")}
    made = [
        helper.make_node(
            "Gather", [f"{table}_quantized", gather.input[1]], [names["quantized"]], name=f"{gather.name}_quantized"
        ),
        helper.make_node("Gather", [f"{table}_scale", gather.input[1]], [names["scale"]], name=f"{gather.name}_scale"),
        helper.make_node(
            "Cast", [names["quantized"]], [names["integers"]], name=f"{gather.name}_integers", to=TensorProto.FLOAT
        ),
        helper.make_node("Mul", [names["integers"], names["scale"]], [rows], name=f"{gather.name}_rows"),
    ]
    nodes = list(graph.graph.node)
    place = nodes.index(gather)
    set_nodes(graph, [*nodes[:place], *made, *nodes[place + 1 :]])


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 (rows, size), float32 (rows, 1)): each row as integers of at most 127 and their scale."""
    scales = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / 127
    integers = np.rint(table / np.where(scales == 0, 1, scales))
    return integers.astype(np.int8), scales


# ---- what the graph holds -----------------------------------------------------------------------------------------


def _float_logits(graph: "onnx.ModelProto", inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    session = open_session(graph.SerializeToString(), threads=1)
    given = {TOKEN_TYPES: torch.zeros_like(inputs["input_ids"]), **inputs}
    feed = {item.name: given[item.name].numpy() for item in session.get_inputs()}
    return torch.from_numpy(session.run(None, feed)[0])


def _check_small(graph: "onnx.ModelProto") -> None:
    """Raises MethodRefused if a matrix is left in float32: ONNX Runtime's quantizer passes over what it does not
    know."""
    from onnx import TensorProto

    small = int4_tensors(graph)  # their scales are matrices too
    left = [
        constant.name
        for constant in graph.graph.initializer
        if constant.data_type == TensorProto.FLOAT
        and len(constant.dims) > 1
        and min(constant.dims) > LARGEST_FLOAT_TABLE_ROWS
        and constant.name not in small
    ]
    if left:
        raise MethodRefused(
            f"ONNX Runtime left {len(left)} matrices in float32, such as {left[0]}; these versions of "
            "torch and onnxruntime do not go together"
        )


def _is_table(graph: "onnx.ModelProto", name: str) -> bool:
    constant = next((item for item in graph.graph.initializer if item.name == name), None)
    return constant is not None and len(constant.dims) == 2 and constant.dims[0] > LARGEST_FLOAT_TABLE_ROWS


def _position_table(graph: "onnx.ModelProto") -> str:
    return next(item.name for item in graph.graph.initializer if item.name.endswith("position_embeddings.weight"))


def _constant(graph: "onnx.ModelProto", name: str) -> Any:
    return next(item for item in graph.graph.initializer if item.name == name)


def _picking_node(graph: "onnx.ModelProto") -> Any:
    """The operator that takes the first token of every row: the last look-up along the tokens."""
    return [
        node
        for node in graph.graph.node
        if node.op_type == "Gather" and any(item.name == "axis" and item.i == 1 for item in node.attribute)
    ][-1]
