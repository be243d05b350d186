"""Size and operations of a model that is only an .onnx file: weights from its initializers, MACs from its products.

Operations are counted by one forward in which the inputs of every product are read out. ONNX's own shape inference
would need no run, but it stops at reshapes by computed sizes and does not know ONNX Runtime's fused operators.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from edgemin_utils.errors import ModelError
from edgemin_utils.measurement.onnx_session import INTEGER_TYPES
from edgemin_utils.measurement.parameters import PARTS, part_of

OTHER = "other"
# Type of an initializer -> bytes an element.
_FLOAT: Mapping[int, float] = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
}
_INTEGER: Mapping[int, float] = {
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT4: 0.5,
    TensorProto.UINT4: 0.5,
}
# Operator -> inputs that hold scales, zero points and the like, which are no weights.
_SCALE_INPUTS = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "QAttention": (3, 4, 6, 7),
    "MatMulNBits": (2, 3, 4),
    "GatherBlockQuantized": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
}
_SCALE_ENDINGS = ("_scale", "_zero_point", "_scales", "_zero_points", "_zp")
# Products: operator -> where its two factors stand.
_PRODUCTS = {
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "Gemm": (0, 1),
    "MatMulInteger": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "MatMulNBits": (0, 1),
}
_INTEGER_PRODUCTS = {
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "QGemm",
    "MatMulNBits",
    "QAttention",
}
# Fused attention: with its projection (input, weights), or of given query, key and value.
_PROJECTED_ATTENTION, _ATTENTION = ("Attention", "QAttention"), ("MultiHeadAttention", "Attention")
_NORMS = ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization")
_PASSING_ON = ("Cast", "Mul", "Add", "Identity", "DequantizeLinear", "Transpose", "Reshape", "Split")


@dataclass(frozen=True)
class GraphWeight:
    """One stored matrix, vector or table of a graph.

    Attributes:
        elements: weights in it, unpacked where several share a byte; 0 for scales and zero points.
        size: bytes as stored.
        precision: "int8" for integers and their scales, else "fp32".
        table: whether rows of it are looked up, so that one forward reads a few of them.
    """

    name: str
    part: str
    elements: int
    size: int
    precision: str
    shape: tuple[int, ...]
    table: bool


def read_graph(path: str | os.PathLike) -> onnx.ModelProto:
    """The model in an .onnx file, external weights included. Raises ModelError when there is none."""
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}; check the path")
    try:
        model = onnx.load(os.fspath(path))
    except Exception as error:  # protobuf's decoding errors have no common base with onnx's
        raise ModelError(f"{path} is no ONNX model: {str(error).splitlines()[0]}") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX model: its graph is empty")
    return model


def file_bytes(path: str | os.PathLike) -> int:
    """Bytes of an .onnx file and of the files beside it that hold its external weights."""
    model = onnx.load(os.fspath(path), load_external_data=False)
    places = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return sum(file.stat().st_size for file in (Path(path), *(Path(path).parent / place for place in places)))


def graph_weights(model: onnx.ModelProto) -> list[GraphWeight]:
    """Every weight of the graph: floating-point and 8- or 4-bit initializers (and constants) of more than one element.

    Numbers of positions, shapes and scalars are no weights. Scales and zero points come with 0 elements.
    """
    uses, found = _uses(model), []
    for name, tensor in _constants(model):
        kind, count = tensor.data_type, int(np.prod(tensor.dims)) if tensor.dims else 1
        scale = _is_scale(name, uses.get(name, ()))
        if kind not in _FLOAT and kind not in _INTEGER or (count == 1 and not scale):
            continue
        precision = "int8" if scale or kind in _INTEGER else "fp32"
        size = int(np.ceil(count * {**_FLOAT, **_INTEGER}[kind]))
        elements = 0 if scale else _unpacked(tensor, count, uses.get(name, ()))
        found.append(
            GraphWeight(
                name,
                _part(name, uses),
                elements,
                size,
                precision,
                tuple(tensor.dims),
                any(
                    node.op_type.startswith(("Gather", "EmbedLayer"))
                    for node, _ in _through(name, uses, ("DequantizeLinear",))
                ),
            )
        )
    return found


def parameters_of_graph(model: onnx.ModelProto) -> dict[str, Any]:
    """framework (elements of all initializers, constants and scales too: what the file lists), stored (weights
    alone), paper (None: its counting is torch's), parts (part -> weights, adding up to stored) and part_bytes (part
    -> {"fp32", "int8"}). Weights whose part cannot be told are under "other"."""
    parts = dict.fromkeys((*PARTS, OTHER), 0)
    sizes = {part: {"fp32": 0, "int8": 0} for part in parts}
    for weight in graph_weights(model):
        parts[weight.part] += weight.elements
        sizes[weight.part][weight.precision] += weight.size
    if not any(sizes[OTHER].values()):
        del parts[OTHER], sizes[OTHER]
    listed = sum(int(np.prod(tensor.dims)) if tensor.dims else 1 for tensor in model.graph.initializer)
    return {"framework": listed, "stored": sum(parts.values()), "paper": None, "parts": parts, "part_bytes": sizes}


def vocabulary_size(model: onnx.ModelProto) -> int | None:
    """Rows of the table that input_ids are looked up in; None where the graph does not show it."""
    uses, shapes = _uses(model), {name: tuple(tensor.dims) for name, tensor in _constants(model)}
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node, _ in _through("input_ids", uses, ("Cast", "Identity", "Reshape")):
        for name in node.input if node.op_type.startswith(("Gather", "EmbedLayer")) else ():
            if name in made_by and made_by[name].op_type in ("DequantizeLinear", "Cast"):
                name = made_by[name].input[0]
            if len(shapes.get(name, ())) == 2:
                return int(shapes[name][0])
    return None


def graph_macs(model: onnx.ModelProto, batch: int, length: int) -> dict[str, int]:
    """Multiply-accumulates of one forward by arithmetic, {"fp32", "int8"}: of every matrix product and attention.

    Raises:
        ModelError: ONNX Runtime cannot run the graph on inputs of this size.
    """
    integers = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    products = [
        node
        for node in model.graph.node
        if node.op_type in _PRODUCTS or node.op_type in (*_PROJECTED_ATTENTION, *_ATTENTION)
    ]
    shapes = _shapes_of_inputs(model, products, batch, length)
    macs = {"fp32": 0, "int8": 0}
    for node in products:
        integer = node.op_type in _INTEGER_PRODUCTS or (len(node.input) > 1 and node.input[1] in integers)
        projection, attention = _macs_of_node(node, [shapes.get(name, ()) for name in node.input])
        macs["int8" if integer else "fp32"] += projection
        macs["fp32"] += attention
    return macs


# ---- products ---------------------------------------------------------------------------------------------------


def _macs_of_node(node: onnx.NodeProto, shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    """(MACs of the product with weights, MACs of attention scores and weighted sum) of one node."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in _PROJECTED_ATTENTION and node.domain == "com.microsoft":
        rows, tokens, width = shapes[0]
        columns = shapes[1][-1]
        sizes = attributes.get("qkv_hidden_sizes") or [columns // 3] * 3
        return rows * tokens * width * columns, rows * tokens * tokens * (sizes[1] + sizes[2])
    if node.op_type in _ATTENTION:
        return 0, _attention_macs(*shapes[:3])
    if node.op_type == "MatMulNBits":
        return _size(shapes[0][:-1]) * attributes["K"] * attributes["N"], 0
    first, second = (shapes[place] for place in _PRODUCTS[node.op_type])
    first, second = (
        first[::-1] if attributes.get(name) else first for first, name in ((first, "transA"), (second, "transB"))
    )
    rows = first[-2] if len(first) > 1 else 1
    outer = np.broadcast_shapes(first[:-2], second[:-2])
    return _size(outer) * rows * first[-1] * (second[-1] if len(second) > 1 else 1), 0


def _attention_macs(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> int:
    """Of (rows, tokens, heads x size) or (rows, heads, tokens, size) states."""
    heads = query[1] if len(query) == 4 else 1
    return query[0] * heads * query[-2] * key[-2] * (query[-1] + value[-1])


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) if shape else 1


def _shapes_of_inputs(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], batch: int, length: int
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that goes into `nodes` in one forward of (batch, length) tokens."""
    shapes = {name: tuple(tensor.dims) for name, tensor in _constants(model)}
    wanted = [name for name in dict.fromkeys(name for node in nodes for name in node.input) if name not in shapes]
    given = {item.name for item in (*model.graph.input, *model.graph.output)}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name and name not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keep every node
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {
            item.name: np.ones((batch, length), dtype=INTEGER_TYPES.get(item.type, np.int64))
            for item in session.get_inputs()
        }
        names = [item.name for item in session.get_outputs()]
        shapes |= {name: np.shape(value) for name, value in zip(names, session.run(names, feed), strict=True)}
    except Exception as error:  # ONNX Runtime has an exception class of its own for every status
        raise ModelError(
            f"the graph cannot be run on {batch} x {length} tokens, so its operations cannot be counted: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return shapes


# ---- weights ----------------------------------------------------------------------------------------------------

Uses = Mapping[str, list[tuple[onnx.NodeProto, int]]]


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """(name, tensor) of initializers and of Constant nodes."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant":
            for item in node.attribute:
                if item.name == "value":
                    yield node.output[0], item.t


def _uses(model: onnx.ModelProto) -> Uses:
    """Name of a value -> (node, number of the input) of every node that takes it."""
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, place))
    return uses


def _is_scale(name: str, uses: Sequence[tuple[onnx.NodeProto, int]]) -> bool:
    return name.endswith(_SCALE_ENDINGS) or any(place in _SCALE_INPUTS.get(node.op_type, ()) for node, place in uses)


def _unpacked(tensor: TensorProto, count: int, uses: Sequence[tuple[onnx.NodeProto, int]]) -> int:
    """Weights in an initializer of `count` elements; MatMulNBits packs several into each, and so does
    GatherBlockQuantized where its table is of bytes rather than of 4-bit integers."""
    for node, place in uses:
        sizes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "MatMulNBits" and place == 1:
            return sizes["K"] * sizes["N"]
        if node.op_type == "GatherBlockQuantized" and place == 0 and tensor.data_type == TensorProto.UINT8:
            return count * (8 // sizes.get("bits", 4))
    return count


def _through(name: str, uses: Uses, passing: tuple[str, ...], steps: int = 4) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Nodes that take a value, also behind nodes of the kinds `passing`."""
    for node, place in uses.get(name, ()):
        yield node, place
        if steps and node.op_type in passing:
            for output in node.output:
                yield from _through(output, uses, passing, steps - 1)


def _part(name: str, uses: Uses) -> str:
    """The part that a weight belongs to: by its name, by the scope of the node that takes it, or by the name of the
    bias that is added to its product; exporters often rename the matrices themselves."""
    for candidate in _telling_names(name, uses):
        try:
            return part_of(candidate)
        except ModelError:
            continue
    return OTHER


def _telling_names(name: str, uses: Uses) -> Iterator[str]:
    yield name
    for node, _ in uses.get(name, ()):
        scopes = {item.key: item.value for item in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        yield from (text.strip(" '\"[]") for text in reversed(scopes.split(",")))
        yield node.name.replace("/", ".")
        if node.op_type in _NORMS:
            yield "norm"
        if node.op_type in (*_PROJECTED_ATTENTION, *_ATTENTION):
            yield "x.attention.x"
    for node, _ in list(_through(name, uses, (*_PRODUCTS, *_PASSING_ON), steps=4)):
        if node.op_type in ("Add", "BiasGelu", "FastGelu", "SkipLayerNormalization"):
            # A sum with norm takes the norm's own bias before that of the product.
            added = node.input[4:] if node.op_type == "SkipLayerNormalization" else node.input
            yield from (other for other in added if other.endswith(".bias"))
        if node.op_type in _ATTENTION:
            yield "x.attention.x"
