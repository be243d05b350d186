"""Schemes of ONNX Runtime: the exported model in float32, and its dynamic and static INT8 forms."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from edgemin_utils.encoders import encoder_layers, input_names, layer_shapes
from edgemin_utils.errors import MethodRefused
from edgemin_utils.library_messages import quiet_onnx
from edgemin_utils.quantization.onnx_export import check_against, export_graph, fuse, operator_counts
from edgemin_utils.quantization.onnx_model import ONNX_FILE, OnnxClassifier, with_notes
from edgemin_utils.quantization.scheme import Scheme

if TYPE_CHECKING:
    import onnx

# A fused graph has operators of which ONNX's shape inference knows nothing: what it cannot infer is float32.
_UNKNOWN_IS_FLOAT = {"DefaultTensorType": 1}
_LINEAR_OPERATORS = ["MatMul", "Gemm"]
# The last model's exported graph by its digest: a chain quantizes one model by several schemes, and exporting takes
# seconds.
_last_export: "dict[str, onnx.ModelProto]" = {}


class OnnxScheme(Scheme):
    """What the schemes of ONNX Runtime share: export and fusion before, notes on the graph after."""

    needs = ("onnx", "onnxruntime", "onnxscript")
    fuses_attention = True

    def quantize(self, model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]] = ()) -> nn.Module:
        graph = fuse(exported(model), model, self.fuses_attention)
        float_model = _classifier(graph, model, float_sizes(model), self.fuses_attention)
        check_against(model, lambda inputs: float_model(**inputs).logits)
        with quiet_onnx():
            graph, sizes = self.transform(graph, model, rows)
        return _classifier(graph, model, sizes, self.fuses_attention)

    def transform(
        self, graph: "onnx.ModelProto", model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]]
    ) -> tuple["onnx.ModelProto", dict[str, tuple[int, int]]]:
        """The graph as the scheme stores it, and name -> (weights, bytes) of every weight in it."""
        return graph, float_sizes(model)

    def save(self, quantized: nn.Module, folder: Path) -> None:
        cast(OnnxClassifier, quantized).save(folder)

    def load(
        self, folder: Path, config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str
    ) -> nn.Module:
        return OnnxClassifier(folder / ONNX_FILE, config, shapes)

    def describe(self, quantized: nn.Module) -> dict[str, Any]:
        notes = cast(OnnxClassifier, quantized).notes
        return {
            **super().describe(quantized),
            **{name: notes[name] for name in ("operators", "fused_attention", "fusion")},
        }


@dataclass(frozen=True)
class OnnxFloat(OnnxScheme):
    """The exported, fused graph in float32: what the INT8 graphs are to be compared with."""

    source = "torch.onnx export, fused by ONNX Runtime's transformer optimizer"
    arithmetic = "FP32 in ONNX Runtime"


@dataclass(frozen=True)
class OnnxDynamic(OnnxScheme):
    """Linear layers with signed 8-bit weights, symmetric; activations are quantized as they come, unsigned, with one
    scale for the whole batch.

    Attributes:
        per_channel: one scale for every output of a layer rather than one for the whole matrix.
        embeddings: whether the word embedding is quantized too (unsigned 8 bit, one scale).
    """

    per_channel: bool = False
    embeddings: bool = False
    source = "onnxruntime.quantization.quantize_dynamic on the fused graph"
    arithmetic = "INT8 products in ONNX Runtime, activations quantized batch by batch"

    def transform(
        self, graph: "onnx.ModelProto", model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]]
    ) -> tuple["onnx.ModelProto", dict[str, tuple[int, int]]]:
        operators = ["MatMul", "Attention"] + (["Gather"] if self.embeddings else [])
        quantized = quantize_dynamically(graph, operators, self.per_channel, other_look_ups(graph, model))
        return quantized, _int8_sizes(quantized, model, self.per_channel, self.embeddings)


@dataclass(frozen=True)
class OnnxStatic(OnnxScheme):
    """Linear layers with signed 8-bit weights, symmetric, one scale a matrix, and with fixed scales for their inputs,
    taken from training rows. A row's logits do not depend on the rows beside it. Products of activations, as in
    attention, stay float32, as in the dynamic schemes.

    Attention is not fused: this quantizer does not know the operator and would leave its projections in float32.

    Attributes:
        method: how a range is taken from what the rows show: MinMax (all of it), Percentile (its middle 99.999 %) or
            Entropy (the range whose 128 steps lose least, by Kullback-Leibler divergence).
    """

    method: str
    calibrated = True
    fuses_attention = False
    arithmetic = "INT8 products in ONNX Runtime, fixed activation scales"

    @property
    def source(self) -> str:
        return f"onnxruntime.quantization.quantize_static, {self.method} calibration, QDQ format"

    def transform(
        self, graph: "onnx.ModelProto", model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]]
    ) -> tuple["onnx.ModelProto", dict[str, tuple[int, int]]]:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        # One row at a time (a stride of 1), so that the outputs of no more than one lie in memory.
        options = {"CalibStridedMinMax": 1, "OpTypesToExcludeOutputQuantization": _LINEAR_OPERATORS}
        quantized = _through_file(
            lambda path: quantize_static(
                graph,
                path,
                _rows_reader(rows, input_names(model)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_LINEAR_OPERATORS,
                nodes_to_exclude=_activation_products(graph),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[self.method],
                extra_options=options,
            )
        )
        _check_inputs_are_quantized(quantized)
        return quantized, _int8_sizes(quantized, model, per_channel=False, embeddings=False)


def _rows_reader(rows: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str]) -> Any:
    """Hands calibration exactly the given rows, each once."""
    from onnxruntime.quantization import CalibrationDataReader

    class RowsReader(CalibrationDataReader):
        def __init__(self) -> None:
            self.set_range(0, len(rows))

        def __len__(self) -> int:
            return len(rows)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.waiting = iter(rows[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.waiting, None)
            return (
                None
                if row is None
                else {name: row.get(name, torch.zeros_like(row["input_ids"])).numpy() for name in names}
            )

    return RowsReader()


def _through_file(quantize: Callable[[str], None]) -> "onnx.ModelProto":
    """What the quantizer wrote: it returns nothing."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / ONNX_FILE)
        quantize(path)
        return onnx.load(path)


def quantize_dynamically(
    graph: "onnx.ModelProto", operators: Sequence[str], per_channel: bool, excluded: Sequence[str] = ()
) -> "onnx.ModelProto":
    """The graph with signed 8-bit weights in the given operators but for the nodes named in `excluded`, and with
    activations that are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _through_file(
        lambda path: quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=list(operators),
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            extra_options=dict(_UNKNOWN_IS_FLOAT),
        )
    )


def exported(model: PreTrainedModel) -> "onnx.ModelProto":
    """A copy of the model's graph, exported only if it is not the model that was exported last."""
    digest = hashlib.sha256(repr((model.config.to_json_string(), layer_shapes(model))).encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    if digest.hexdigest() not in _last_export:
        _last_export.clear()
        _last_export[digest.hexdigest()] = export_graph(model)
    return _copy(_last_export[digest.hexdigest()])


def _classifier(
    graph: "onnx.ModelProto", model: nn.Module, sizes: Mapping[str, tuple[int, int]], fuses_attention: bool
) -> OnnxClassifier:
    operators = operator_counts(graph)
    fused = sum(operators.get(name, 0) for name in ("Attention", "QAttention", "MultiHeadAttention"))
    notes = {
        "sizes": sizes,
        "operators": operators,
        "fused_attention": fused,
        "fusion": _fusion_note(model, fused, fuses_attention),
    }
    return OnnxClassifier(with_notes(_copy(graph), notes), model.config, layer_shapes(model))


def _copy(graph: "onnx.ModelProto") -> "onnx.ModelProto":
    copied = type(graph)()
    copied.CopyFrom(graph)
    return copied


def _fusion_note(model: nn.Module, fused: int, fuses_attention: bool) -> str:
    layers = encoder_layers(model)
    if not fuses_attention:
        return "attention is left as single products, so that its projections can be quantized"
    if fused == len(layers):
        return f"attention is one operator in each of the {fused} layers"
    return f"attention is fused in {fused} of {len(layers)} layers"


def other_look_ups(graph: "onnx.ModelProto", model: PreTrainedModel) -> list[str]:
    """Names of the look-ups that are not the word embedding's; position and token-type tables stay float32."""
    shapes = {constant.name: tuple(constant.dims) for constant in graph.graph.initializer}
    word = tuple(model.get_input_embeddings().weight.shape)
    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "Gather" and not (shapes.get(node.input[0]) == word and node.input[1] == "input_ids")
    ]


def _activation_products(graph: "onnx.ModelProto") -> list[str]:
    """Names of the products of two activations, which are not linear layers."""
    constants = {constant.name for constant in graph.graph.initializer}
    return [node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] not in constants]


def _check_inputs_are_quantized(graph: "onnx.ModelProto") -> None:
    """Raises MethodRefused if a layer has INT8 weights but computes with float32 inputs."""
    restored = {output for node in graph.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    half = [
        node.name
        for node in graph.graph.node
        if node.op_type in _LINEAR_OPERATORS and node.input[1] in restored and node.input[0] not in restored
    ]
    if half:
        raise MethodRefused(f"ONNX Runtime left the inputs of {len(half)} layers in float32, such as {half[0]}")


def float_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (weights, bytes) of a model in float32."""
    return {name: (parameter.numel(), 4 * parameter.numel()) for name, parameter in model.named_parameters()}


def _int8_sizes(
    graph: "onnx.ModelProto", model: PreTrainedModel, per_channel: bool, embeddings: bool
) -> dict[str, tuple[int, int]]:
    """Name -> (weights, bytes): one byte a quantized weight, five for each scale with its zero point.

    Raises:
        MethodRefused: the graph does not hold as many INT8 weights as the layers that were to be quantized.
    """
    sizes = float_sizes(model)
    matrices = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (embeddings and module is model.get_input_embeddings())
    }
    for name, module in matrices.items():
        scales = module.weight.shape[0] if per_channel and isinstance(module, nn.Linear) else 1
        sizes[name] = (module.weight.numel(), module.weight.numel() + 5 * scales)
    wanted, found = sum(module.weight.numel() for module in matrices.values()), _eight_bit_weights(graph)
    if wanted != found:
        raise MethodRefused(
            f"ONNX Runtime quantized {found:,} weights where the model has {wanted:,} in the layers "
            "that the scheme is for; this version treats the graph otherwise"
        )
    return sizes


def _eight_bit_weights(graph: "onnx.ModelProto") -> int:
    from onnx import TensorProto

    return sum(
        int(np.prod(constant.dims))
        for constant in graph.graph.initializer
        if constant.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(constant.dims) == 2
    )
