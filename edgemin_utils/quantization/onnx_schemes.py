"""Schemes of ONNX Runtime: a classifier's graph in float32, in INT8 and INT4, and as an edge bundle deploys it."""

import functools
import tempfile
from collections.abc import Callable, Mapping
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

from edgemin_utils.encoders import empty_model, layer_shapes
from edgemin_utils.errors import MethodRefused
from edgemin_utils.quantization import int4
from edgemin_utils.quantization.onnx_graph import Graph, classifier_graph, look_ups, operator
from edgemin_utils.quantization.schemes import Rows, Scheme, quiet_libraries
from edgemin_utils.quantization.sessions import OnnxSession

ONNX_FILE = "model.onnx"
_DEFAULT_TYPE = {"DefaultTensorType": TensorProto.FLOAT}  # of what ONNX's own inference does not know


class OnnxClassifier(nn.Module):
    """A classifier that runs in ONNX Runtime on the CPU, called like a torch model, with as many threads as torch has
    then, so that every back end is measured alike. `graph` is serialized or a file, `shapes` are heads and feed-forward
    size of every layer, `notes` sizes, operators and fused_attention."""

    def __init__(self, graph: bytes | Path, config: PretrainedConfig, shapes: Mapping[str, Any], notes: dict[str, Any]):
        super().__init__()
        self.graph, self.config, self.shapes, self.notes = graph, config, shapes, notes
        self._threads, self._session = torch.get_num_threads(), OnnxSession(graph, torch.get_num_threads())

    def forward(self, input_ids: torch.Tensor, **others: torch.Tensor) -> SequenceClassifierOutput:
        """Logits, float32 (batch, labels), from int64 tensors (batch, tokens); see `OnnxSession`."""
        return SequenceClassifierOutput(logits=torch.from_numpy(self.session()({"input_ids": input_ids, **others})))

    @functools.cached_property
    def structure(self) -> nn.Module:
        """The torch modules that the graph was exported from, without weights."""
        return empty_model(self.config, self.shapes)

    def stored_sizes(self) -> dict[str, tuple[int, int]]:
        """Name of a parameter -> (weights, bytes) in the graph."""
        return {name: tuple(size) for name, size in self.notes["sizes"].items()}

    def session(self) -> OnnxSession:
        """The session for torch's present number of threads."""
        if torch.get_num_threads() != self._threads:
            self._threads, self._session = torch.get_num_threads(), OnnxSession(self.graph, torch.get_num_threads())
        return self._session


@dataclass(frozen=True)
class OnnxScheme(Scheme):
    """The graph with weights of few bits; biases, norms, small tables and products of activations stay float32. 8-bit
    matrices are signed and symmetric; their inputs are quantized as they come, unsigned, with one scale for the whole
    batch, or by fixed scales of a range that training rows show: MinMax (all of it), Percentile (its middle 99.999 %),
    Entropy (whose 128 steps lose least, by Kullback-Leibler divergence). 4-bit weights are as `int4` says."""

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
        separate = self.matrices == 4 or bool(self.ranges)
        graph = classifier_graph(model, not separate, self.edge, pair, longest)
        names = graph.names
        with quiet_libraries():
            if self.ranges:
                graph = quantize_statically(graph, self.ranges, rows)
            elif self.matrices == 8:
                graph = quantize_dynamically(graph, self.table == 8 and not self.edge, self.channels)
            # ONNX Runtime's quantizers do not know a 4-bit table; 4-bit matrices are fitted to what it gives.
            for node in look_ups(graph, word=True) if self.table == 4 else []:
                int4.quantize_table(graph, node)
            if self.edge:
                quantize_tables(graph)
            if self.matrices == 4:
                int4.quantize_products(graph, rows if self.compensated else ())
        graph.names = names
        operators, sizes = graph.operators(), graph.sizes(model)
        self._check(model, graph, sizes)
        # Names of operators and types, which only quantizers ask for, are of a small model a tenth of the file.
        del graph.model.graph.value_info[:]
        for node in graph.model.graph.node:
            node.name = ""
        fused = sum(operators.get(name, 0) for name in ("Attention", "QAttention", "MultiHeadAttention"))
        notes = {"sizes": sizes, "operators": operators, "fused_attention": fused}
        return OnnxClassifier(graph.serialized(), model.config, layer_shapes(model), notes)

    def save(self, quantized: nn.Module, folder: Path) -> None:
        graph = cast(OnnxClassifier, quantized).graph
        (folder / ONNX_FILE).write_bytes(graph if isinstance(graph, bytes) else graph.read_bytes())

    def load(self, folder: Path, config: PretrainedConfig, saved: Mapping[str, Any], attention: str) -> nn.Module:
        return OnnxClassifier(folder / ONNX_FILE, config, saved, saved["notes"])

    def describe(self, quantized: nn.Module) -> dict[str, Any]:
        kind = {32: "FP32", 8: "INT8 products", 4: "INT4 weights in INT8 products, inputs quantized token by token"}
        scales = "fixed activation scales" if self.ranges else "activations quantized batch by batch"
        how = {32: "", 8: f", quantize_{'static' if self.ranges else 'dynamic'} {self.ranges}", 4: ", blocks of 64"}
        notes = cast(OnnxClassifier, quantized).notes
        return {
            "source": f"fused graph{how[self.matrices]}{', GPTQ' * self.compensated}",
            "arithmetic": f"{kind[self.matrices]} in ONNX Runtime{f', {scales}' * (self.matrices == 8)}",
            **{name: notes[name] for name in ("operators", "fused_attention")},
        }

    def _check(self, model: PreTrainedModel, graph: Graph, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Raises MethodRefused for a matrix that is left in float32, or an 8-bit layer of a static graph that computes
        with float32 inputs: quantizers pass over what they do not know."""
        word, modules = model.get_input_embeddings(), dict(model.named_modules())
        few = {name: self.matrices for name, module in modules.items() if isinstance(module, nn.Linear)}
        few |= {name: self.table for name, module in modules.items() if module is word}
        low = [sizes[f"{name}.weight"] for name, bits in few.items() if bits < 32]
        left = sum(size >= 4 * count for count, size in low)
        restored = {name for node in graph.nodes if node.op_type == "DequantizeLinear" for name in node.output}
        products = [node.input for node in graph.nodes if node.op_type == "MatMul"]
        half = sum(weight in restored and states not in restored for states, weight in products)
        if left or half:
            what = f"{left} of {len(low)} matrices and the inputs of {half} layers"
            raise MethodRefused(f"ONNX Runtime left {what} in float32; this version treats the graph otherwise")


def quantize_dynamically(graph: Graph, table: bool, channels: bool) -> Graph:
    """The graph with signed 8-bit matrices, and word embedding if `table`, whose inputs are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"op_types_to_quantize": ["MatMul", "Attention", *["Gather"] * table], "per_channel": channels}
    options |= {"weight_type": QuantType.QInt8, "extra_options": dict(_DEFAULT_TYPE)}
    options |= {"nodes_to_exclude": [node.name for node in look_ups(graph, word=False)]}
    return _through_file(lambda path: quantize_dynamic(graph.model, path, **options))


def quantize_statically(graph: Graph, ranges: str, rows: Rows) -> Graph:
    """The graph, with projections apart from attention, with signed 8-bit weights and fixed ranges of their inputs."""
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
    options["extra_options"] = more
    return _through_file(lambda path: quantize_static(graph.model, path, reader, **options))


def quantize_tables(graph: Graph) -> None:
    """Makes tables of more than two rows that are left in float32 INT8 with one scale a row, in place."""
    made, shapes = {}, {name: item.dims for name, item in graph.tensors().items() if len(item.dims) == 2}
    for node in graph.nodes:
        if node.op_type == "Gather" and shapes.get(node.input[0], [0])[0] > 2:
            (table, ids), name = node.input, node.output[0]
            parts = zip(("quantized", "scale"), quantize_rows(graph.array(table)), strict=True)
            taken = [(f"{name}_{part}", graph.store(f"{table}_{part}", value)) for part, value in parts]
            made[name] = [operator("Gather", [stored, ids], one) for one, stored in taken]
            made[name].append(operator("Cast", [f"{name}_quantized"], f"{name}_float", to=TensorProto.FLOAT))
            made[name].append(operator("Mul", [f"{name}_float", f"{name}_scale"], name))
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


def _through_file(quantize: Callable[[str], None]) -> Graph:
    """What the quantizer wrote: it returns nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / ONNX_FILE)
        quantize(path)
        return Graph(onnx.load(path))
