"""Weights of 4 bits for ONNX Runtime's own kernels: linear layers as MatMulNBits, word embeddings as
GatherBlockQuantized.

Of a matrix, every INT4_BLOCK weights along the input dimension (of a table: along a row) share a float32 scale s and a
4-bit zero point z. A weight w is stored as q = clip(round(w / s) + z, 0, 15) with s = (high - low) / 15 and
z = round(-low / s), where low and high are the block's range, widened to hold 0. Calibrated on training rows,
a matrix's weights are rounded to the same grids by `error_compensation` instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.errors import MethodRefused
from edgemin_utils.quantization.error_compensation import compensate, products_of_inputs
from edgemin_utils.quantization.onnx_export import FUSED_DOMAIN, set_nodes
from edgemin_utils.quantization.onnx_schemes import OnnxScheme, float_sizes, other_look_ups

if TYPE_CHECKING:
    import onnx

INT4_BLOCK = 64
"""Weights that share a scale and a zero point. Of 4.6 bits a weight, 0.6 are theirs."""
# Inputs of a product become 8-bit integers, every row and block by its own scale; levels below keep them in floating
# point.
_INT8_PRODUCTS = 4
# Operator -> places of its weights, scales and zero points.
STORED_INPUTS: Mapping[str, tuple[int, int, int]] = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}
_SHARED_ATTRIBUTES = ("num_heads", "mask_filter_value", "scale", "unidirectional")


@dataclass(frozen=True)
class OnnxInt4(OnnxScheme):
    """Linear layers with 4-bit weights in blocks. Where the processor has the kernels, their products are of 8-bit
    integers: weights are widened and inputs are quantized as they come, signed, each token's blocks by scales of their
    own, so that a row's logits do not depend on the rows beside it. Elsewhere weights are unpacked in the call and the
    product is in float32. Biases, norms, positions and token types stay float32.

    Attributes:
        embeddings: whether the word embedding is stored in 4 bits too; the rows looked up are unpacked.
        calibrated: whether matrices are rounded so that what they compute on training rows changes least (see
            `error_compensation`) rather than to the nearest.
    """

    embeddings: bool = False
    calibrated: bool = False
    arithmetic = (
        "INT4 weights in INT8 products in ONNX Runtime, inputs quantized token by token in blocks "
        f"(MatMulNBits, accuracy level {_INT8_PRODUCTS})"
    )

    @property
    def source(self) -> str:
        rounding = "GPTQ's rounding on training rows" if self.calibrated else "round to nearest"
        return f"onnxruntime's MatMulNBitsQuantizer on the fused graph, {rounding}, blocks of {INT4_BLOCK}"

    def transform(
        self, graph: "onnx.ModelProto", model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]]
    ) -> tuple["onnx.ModelProto", dict[str, tuple[int, int]]]:
        separate_products(graph)
        operators = ["MatMul"] + (["Gather"] if self.embeddings else [])
        quantized = quantize_to_int4(graph, operators, other_look_ups(graph, model), rows if self.calibrated else ())
        return quantized, _int4_sizes(quantized, model, self.embeddings)


def quantize_to_int4(
    graph: "onnx.ModelProto",
    operators: Iterable[str],
    excluded: Sequence[str] = (),
    rows: Sequence[Mapping[str, torch.Tensor]] = (),
) -> "onnx.ModelProto":
    """The graph, which is changed, with 4-bit weights in the given operators, MatMul and Gather, but for the nodes
    named in `excluded`.

    Args:
        rows: inputs of one row each, tensors (1, tokens), on which matrices are to change least; without any they are
            rounded to nearest.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(
        block_size=INT4_BLOCK,
        is_symmetric=False,
        accuracy_level=_INT8_PRODUCTS,
        bits=4,
        op_types_to_quantize=tuple(operators),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    products = products_of_inputs(graph, rows) if rows else {}
    matrices = {output: _matrix(graph, output) for output in products}
    quantizer = MatMulNBitsQuantizer(graph, nodes_to_exclude=list(excluded), algo_config=config)
    quantizer.process()
    compensate(quantizer.model.model, matrices, products)
    return quantizer.model.model


def _matrix(graph: "onnx.ModelProto", output: str) -> np.ndarray:
    """The float32 weights (width, outputs) of the product that gives `output`."""
    from onnx import numpy_helper

    name = next(node.input[1] for node in graph.graph.node if output in node.output)
    return numpy_helper.to_array(next(item for item in graph.graph.initializer if item.name == name))


def separate_products(graph: "onnx.ModelProto") -> None:
    """Makes every product with weights a MatMul of its own, in place: fused attention has no 4-bit form, nor has
    Gemm."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    separate_attention(graph)
    ONNXModel(graph).replace_gemm_with_matmul()


def separate_attention(graph: "onnx.ModelProto") -> None:
    """Writes every fused Attention as the product that gives query, key and value, their split, and a
    MultiHeadAttention that adds the bias, in place."""
    from onnx import helper

    nodes = []
    for node in graph.graph.node:
        if node.op_type != "Attention" or node.domain != FUSED_DOMAIN:
            nodes.append(node)
            continue
        states, weights, bias, mask = node.input[:4]
        kept = {
            item.name: helper.get_attribute_value(item) for item in node.attribute if item.name in _SHARED_ATTRIBUTES
        }
        name = node.name or node.output[0]
        parts = [f"{name}_{part}" for part in ("query", "key", "value")]
        nodes += [
            helper.make_node("MatMul", [states, weights], [f"{name}_projected"], name=f"{name}_projection"),
            helper.make_node("Split", [f"{name}_projected"], parts, name=f"{name}_split", axis=-1, num_outputs=3),
            helper.make_node(
                "MultiHeadAttention",
                [*parts, bias, mask],
                list(node.output[:1]),
                name=name,
                domain=FUSED_DOMAIN,
                **kept,
            ),
        ]
    set_nodes(graph, nodes)


def int4_tensors(graph: "onnx.ModelProto") -> set[str]:
    """Names of the weights, scales and zero points of all 4-bit operators."""
    return {node.input[place] for node in graph.graph.node for place in STORED_INPUTS.get(node.op_type, ())}


def _int4_sizes(graph: "onnx.ModelProto", model: PreTrainedModel, embeddings: bool) -> dict[str, tuple[int, int]]:
    """Name -> (weights, bytes), scales and zero points included.

    Raises:
        MethodRefused: the graph does not hold as many 4-bit weights as the layers that were to be quantized.
    """
    word = model.get_input_embeddings() if embeddings else None
    matrices: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) or module is word
    }
    taken = {f"{name}.weight": (module.weight.numel(), _bytes_of(module)) for name, module in matrices.items()}
    names = int4_tensors(graph)
    found = sum(len(item.raw_data) for item in graph.graph.initializer if item.name in names)
    wanted = sum(size for _, size in taken.values())
    if found != wanted:
        raise MethodRefused(
            f"ONNX Runtime stores {found:,} bytes in 4-bit operators where the layers that the scheme "
            f"is for take {wanted:,}; this version treats the graph otherwise"
        )
    return {**float_sizes(model), **taken}


def _bytes_of(module: Any) -> int:
    """Two weights a byte, a float32 scale a block, two zero points a byte. A matrix's last block is stored whole, and
    its zero points start a new byte with every output."""
    rows, width = module.weight.shape
    blocks = -(-width // INT4_BLOCK)
    if isinstance(module, nn.Linear):
        return rows * (blocks * (INT4_BLOCK // 2 + 4) + -(-blocks // 2))
    return -(-rows * width // 2) + 4 * rows * blocks + -(-rows * blocks // 2)
