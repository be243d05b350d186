r"""Schemes of ONNX Runtime: a classifier's graph in float32, in INT8 and INT4, and as an edge bundle deploys it.

INT4 is that of ONNX Runtime's own kernels: linear layers as MatMulNBits, tables as GatherBlockQuantized. Every BLOCK
weights along the input dimension (of a table: along a row) share a float32 scale s = (high - low) / 15 and a 4-bit zero
point z = round(-low / s) of their range, widened to hold 0: q = clip(round(w / s) + z, 0, 15) is stored. Inputs of
products are quantized to 8 bits token by token.

Calibrated, a matrix W (width, outputs) is rounded for its inputs X (positions, width), as quantized layers before give
them (Frantar et al. 2023, GPTQ): rows left make good for the error of row i, W[j] -= U[i, j] / U[i, i] * (W[i] -
rounded) for j > i, where U is the upper Cholesky factor of the inverse of H = X^T X + damping."""

import copy
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from edgemin_utils.encoders import empty_model, layer_shapes, longest_input, word_table
from edgemin_utils.errors import MethodRefused
from edgemin_utils.quantization.integers import pack_int4
from edgemin_utils.quantization.onnx_graph import Graph, classifier_graph, look_ups, operator
from edgemin_utils.quantization.schemes import Rows, Scheme, quiet_libraries
from edgemin_utils.quantization.sessions import OnnxSession

ONNX_FILE = "model.onnx"
BLOCK, LEVELS = 64, 15  # weights that share a scale and a zero point (0.6 of 4.6 bits a weight); steps of a grid
DAMPING = 0.01  # of the mean of H's diagonal, added to it: few rows leave directions of the inputs unseen
_LAYER = 4  # products of one: query, key and value at once, the attention's output, two of feed-forward
_DEFAULT_TYPE = {"DefaultTensorType": TensorProto.FLOAT}  # of what ONNX's own inference does not know


class OnnxClassifier(nn.Module):
    """A classifier in ONNX Runtime on the CPU, called like a torch model, with as many threads as torch has then.
    `graph` is serialized or a file, `shapes` are those of `layer_shapes`, `notes` what `OnnxScheme` says of it."""

    def __init__(self, graph: bytes | Path, config: PretrainedConfig, shapes: Mapping[str, Any], notes: dict[str, Any]):
        super().__init__()
        self.graph, self.config, self.shapes, self.notes = graph, config, shapes, notes
        self.stored_sizes = {name: tuple(size) for name, size in notes["sizes"].items()}
        self._session = functools.lru_cache(1)(lambda threads: OnnxSession(graph, threads))
        self.session()  # what is no text classifier is refused now

    def forward(self, input_ids: torch.Tensor, **others: torch.Tensor) -> SequenceClassifierOutput:
        """Logits, float32 (batch, labels), from int64 tensors (batch, tokens); see `OnnxSession`."""
        return SequenceClassifierOutput(logits=torch.from_numpy(self.session()({"input_ids": input_ids, **others})))

    @functools.cached_property
    def structure(self) -> nn.Module:
        """The torch modules that the graph was exported from, without weights."""
        return empty_model(self.config, self.shapes)

    def session(self) -> OnnxSession:
        """The session for torch's present number of threads."""
        return self._session(torch.get_num_threads())


@dataclass(frozen=True)
class OnnxScheme(Scheme):
    """The graph with weights of few bits; biases, norms, small tables and products of activations stay float32. 8-bit
    matrices are signed and symmetric; their inputs are quantized as they come, unsigned, with one scale for the whole
    batch, or by fixed scales of a range that training rows show: MinMax (all of it), Percentile (its middle 99.999 %),
    Entropy (whose 128 steps lose least, by Kullback-Leibler divergence). 4-bit weights are as above."""

    matrices: int = 32  # bits: 32, 8 or 4
    table: int = 32  # bits of the word embedding
    channels: bool = False  # one scale for every output of an 8-bit matrix
    ranges: str = ""  # of fixed scales
    compensated: bool = False  # 4-bit matrices are rounded by GPTQ
    edge: bool = False  # the graph of a bundle, which sees in rows whether texts come in pairs

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        """Whether it looks at training rows."""
        return bool(self.ranges) or self.compensated or self.edge

    def quantize(self, model: PreTrainedModel, rows: Rows, longest: int) -> nn.Module:
        pair = any(bool(row["token_type_ids"].any()) for row in rows if "token_type_ids" in row)
        graph = classifier_graph(model, self.matrices != 4 and not self.ranges, self.edge, pair, longest)
        with quiet_libraries():
            if self.ranges:
                quantize_statically(graph, self.ranges, rows)
            elif self.matrices == 8:
                quantize_dynamically(graph, self.table == 8 and not self.edge, self.channels)
            # ONNX Runtime's quantizers do not know a 4-bit table; 4-bit matrices are fitted to what it gives.
            for node in look_ups(graph, word=True) if self.table == 4 else []:
                pack_table(graph, node)
            if self.edge:
                quantize_tables(graph)
            if self.matrices == 4:
                pack_products(graph, rows if self.compensated else ())
        operators, sizes = graph.operators(), graph.sizes(model)
        self._check(model, graph, sizes)
        # Names of operators and types, which only quantizers ask for, are of a small model a tenth of the file.
        del graph.model.graph.value_info[:]
        for node in graph.model.graph.node:
            node.name = ""
        fused = sum(operators.get(name, 0) for name in ("Attention", "QAttention", "MultiHeadAttention"))
        notes = {"sizes": sizes, "operators": operators, "fused_attention": fused, "last_layer_first_token": self.edge}
        if self.edge:  # whose graph has no further positions
            model.config.max_position_embeddings -= longest_input(model) - longest
        return OnnxClassifier(graph.serialized(), model.config, layer_shapes(model), notes)

    def save(self, quantized: nn.Module, folder: Path) -> None:
        graph = cast(OnnxClassifier, quantized).graph
        (folder / ONNX_FILE).write_bytes(graph if isinstance(graph, bytes) else graph.read_bytes())

    def load(self, folder: Path, config: PretrainedConfig, saved: Mapping[str, Any]) -> nn.Module:
        return OnnxClassifier(folder / ONNX_FILE, config, saved, saved["notes"])

    def _check(self, model: PreTrainedModel, graph: Graph, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Raises MethodRefused where quantizers passed over a matrix, or the inputs of an 8-bit layer."""
        bits: dict[nn.Module, int] = {word_table(model): self.table}
        bits |= {module: self.matrices for module in model.modules() if isinstance(module, nn.Linear)}
        low = [sizes[f"{name}.weight"] for name, module in model.named_modules() if bits.get(module, 32) < 32]
        left = sum(size >= 4 * count for count, size in low)
        restored = {name for node in graph.nodes if node.op_type == "DequantizeLinear" for name in node.output}
        products = [node.input for node in graph.nodes if node.op_type == "MatMul"]
        half = sum(weight in restored and states not in restored for states, weight in products)
        if left or half:
            raise MethodRefused(f"ONNX Runtime left {left} of {len(low)} matrices, inputs of {half} layers in float32")


def quantize_dynamically(graph: Graph, table: bool, channels: bool) -> None:
    """Makes matrices, and with `table` the word embedding, signed 8-bit in place; inputs are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"op_types_to_quantize": ["MatMul", "Attention", *["Gather"] * table], "weight_type": QuantType.QInt8}
    options |= {"nodes_to_exclude": [node.name for node in look_ups(graph, word=False)]}
    _through_file(graph, quantize_dynamic, per_channel=channels, extra_options=dict(_DEFAULT_TYPE), **options)


def quantize_statically(graph: Graph, ranges: str, rows: Rows) -> None:
    """Makes matrices, projections apart from attention, signed 8-bit in place, and gives their inputs fixed ranges."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    session = OnnxSession(graph.serialized())
    # ONNX's own inference knows nothing of fused operators, and the quantizer passes over tensors of unknown type.
    fused = [name for node in graph.nodes if node.domain for name in node.output]
    graph.model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in fused)
    reader = _Reader(session.feed(row) for row in rows)
    options = {"quant_format": QuantFormat.QDQ, "op_types_to_quantize": ["MatMul"], "weight_type": QuantType.QInt8}
    options |= {"activation_type": QuantType.QUInt8, "calibrate_method": CalibrationMethod[ranges]}
    # One row at a time (a stride of 1), so that the outputs of no more than one lie in memory.
    more = {"CalibStridedMinMax": 1, "OpTypesToExcludeOutputQuantization": ["MatMul"], **_DEFAULT_TYPE}
    _through_file(graph, quantize_static, calibration_data_reader=reader, extra_options=more, **options)


def quantize_tables(graph: Graph) -> None:
    """Makes tables of more than two rows that are left in float32 INT8 with one scale a row, in place."""
    made, shapes = {}, {name: item.dims for name, item in graph.tensors().items() if len(item.dims) == 2}
    for node in graph.nodes:
        if node.op_type == "Gather" and shapes.get(node.input[0], [0])[0] > 2:
            (table, ids), name = node.input, node.output[0]
            parts = zip(("quantized", "scale"), quantize_rows(graph.array(table)), strict=True)
            taken = [(f"{name}_row_{part}", graph.store(f"{table}_{part}", value)) for part, value in parts]
            made[name] = [operator("Gather", [stored, ids], one) for one, stored in taken]
            made[name].append(operator("Cast", [f"{name}_row_quantized"], f"{name}_float", to=TensorProto.FLOAT))
            made[name].append(operator("Mul", [f"{name}_float", f"{name}_row_scale"], name))
    graph.replace(made)


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 (rows, size), float32 (rows, 1)): each row as integers of at most 127 and their scale."""
    scales = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / 127
    return np.rint(table / np.where(scales == 0, 1, scales)).astype(np.int8), scales


class _Reader(list[Mapping[str, np.ndarray]]):
    def set_range(self, start_index: int, end_index: int) -> None:
        self.waiting = iter(self[start_index:end_index])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.waiting, None)


def _through_file(graph: Graph, quantize: Callable[..., None], **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        quantize(graph.model, path := str(Path(folder) / ONNX_FILE), **options)
        graph.model = onnx.load(path)


def grid_of_blocks(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scales, zero points), float32 (blocks, outputs), of a matrix (width, outputs), its blocks along the width."""
    filled = np.pad(matrix.astype(np.float32), ((0, -len(matrix) % BLOCK), (0, 0)))
    parts = filled.reshape(-1, BLOCK, matrix.shape[1])
    low, high = np.minimum(parts.min(axis=1), 0), np.maximum(parts.max(axis=1), 0)
    scales = ((high - low) / np.float32(LEVELS)).astype(np.float32)
    return scales, np.clip(np.rint(-low / np.where(scales == 0, np.float32(1), scales)), 0, LEVELS).astype(np.float32)


def block_integers(matrix: np.ndarray, products: np.ndarray | None = None) -> np.ndarray:
    """Integers, uint8 (width, outputs), of a matrix; by GPTQ with `products`, X^T X, float64 (width, width)."""
    scales, zero_points = (np.repeat(each, BLOCK, axis=0)[: len(matrix)] for each in grid_of_blocks(matrix))
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


def pack_products(graph: Graph, rows: Rows = ()) -> None:
    """Stores weights of MatMuls in 4 bits, in place, fitted to `rows`, inputs of one row each, (1, tokens), if any."""
    nodes = [node for node in graph.nodes if node.op_type == "MatMul" and node.input[1] in graph.tensors()]
    for start in range(0, len(nodes), _LAYER):
        products, made = products_of_inputs(graph, nodes[start : start + _LAYER], rows) if rows else {}, {}
        for node in nodes[start : start + _LAYER]:
            (states, name), output = node.input, node.output[0]
            matrix = graph.array(name)
            scales, zero_points = grid_of_blocks(matrix)
            # MatMulNBits reads (outputs, blocks, BLOCK / 2), padded, (outputs, blocks), (outputs, ceil(blocks / 2)).
            integers = np.pad(block_integers(matrix, products.get(states)), ((0, -len(matrix) % BLOCK), (0, 0)))
            packed, zeros = (pack_int4(torch.from_numpy(each.T)).numpy() for each in (integers, zero_points))
            packed = packed.reshape(matrix.shape[1], -1, BLOCK // 2)
            parts = {"integers": packed, "scale": scales.T, "zero_point": zeros}
            inputs = [states, *(graph.store(f"{name}_{part}", value) for part, value in parts.items())]
            # Levels below 4 compute in floating point.
            sizes: Any = {"K": matrix.shape[0], "N": matrix.shape[1], "bits": 4, "block_size": BLOCK}
            made[output] = [operator("MatMulNBits", inputs, output, accuracy_level=4, **sizes)]
        graph.replace(made)


def products_of_inputs(graph: Graph, nodes: Sequence[onnx.NodeProto], rows: Rows) -> dict[str, np.ndarray]:
    """Input of every product -> its X^T X, float64 (width, width), over all tokens of all rows."""
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    shown = copy.deepcopy(graph.model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = OnnxSession(shown.SerializeToString(), torch.get_num_threads())
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        for name, value in zip(names, session.session.run(names, session.feed(row)), strict=True):
            states = value.reshape(-1, value.shape[-1]).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + states.T @ states
    return sums


def pack_table(graph: Graph, look_up: onnx.NodeProto) -> None:
    """Stores the table that an operator looks rows up in in 4 bits, in place; the rows are unpacked."""
    name, table = look_up.input[0], graph.array(look_up.input[0])
    scales, zero_points = (each.T for each in grid_of_blocks(table.T))
    packed = helper.tensor_dtype_to_np_dtype(TensorProto.UINT4)
    integers = graph.store(f"{name}_integers", block_integers(table.T).T.astype(packed))
    zero_point = graph.store(f"{name}_zero_point", zero_points.astype(packed))
    inputs = [integers, look_up.input[1], graph.store(f"{name}_scale", scales), zero_point]
    axes: Any = {"gather_axis": 0, "quantize_axis": 1}
    made = operator("GatherBlockQuantized", inputs, look_up.output[0], block_size=BLOCK, **axes)
    graph.replace({look_up.output[0]: [made]})
