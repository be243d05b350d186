"""A classifier as an ONNX graph, fused as deployed graphs are.

PyTorch's exporter writes the graph; ONNX Runtime's transformer optimizer then replaces attention, the two norms with
their skip connections and the activation with single operators. Two patterns of the exported graph are written the way
the optimizer looks for them; they compute the same.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import encoder_layers, input_names, longest_input
from edgemin_utils.errors import MethodRefused
from edgemin_utils.library_messages import quiet_onnx

if TYPE_CHECKING:
    import onnx

OPSET = 18
FUSED_DOMAIN = "com.microsoft"  # of ONNX Runtime's fused operators
# Exported and original logits may differ by this much, relative to the largest logit: the order of sums.
EXPORT_TOLERANCE = 1e-3


def export_graph(model: PreTrainedModel) -> "onnx.ModelProto":
    """The graph of a float classifier: input_ids, attention_mask and, where the model has them, token_type_ids as int64
    (batch, tokens), both free; logits as float32 (batch, labels).

    Raises:
        MethodRefused: torch exports no graph.
    """
    with quiet_onnx():
        exported = copy.deepcopy(model).cpu().eval()
        exported.set_attn_implementation("eager")
        names = input_names(model)
        batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=longest_input(model))
        example = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in names)
        program = torch.onnx.export(
            _FromPositions(exported, names),
            example,
            input_names=list(names),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(({0: batch, 1: tokens},) * len(names),),
            opset_version=OPSET,
            verbose=False,
        )
        if program is None:
            raise MethodRefused("torch.onnx.export gave no graph; this version of torch has no exporter of its own")
        graph = program.model_proto
    # Shapes noted while exporting; ONNX Runtime's own inference stumbles over them.
    del graph.graph.value_info[:]
    # Where in the source each operator came from: as large as a small model, and of no use to who runs it.
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.graph.input):
        part.doc_string = ""
        del part.metadata_props[:]
    return graph


def fuse(graph: "onnx.ModelProto", model: nn.Module, attention: bool = True) -> "onnx.ModelProto":
    """The graph of `export_graph`, which is changed, with fused operators.

    Args:
        attention: False leaves attention as single products.
    """
    with quiet_onnx():
        from onnx import TensorProto, helper
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_by_fusion

        _write_patterns(graph, model)
        options = FusionOptions("bert")
        options.enable_attention = attention
        # A mask of zeros and ones for every token; the default, a length a row, would be wrong for any other mask.
        options.use_raw_attention_mask(True)
        # The word embedding stays an operator of its own, which can be quantized.
        options.enable_embed_layer_norm = False
        # 0: each layer's heads are read from its own shapes, so that layers may have unequal numbers of them.
        fused = optimize_by_fusion(graph, "bert", num_heads=0, hidden_size=0, optimization_options=options).model
    drop_unused(fused)
    # ONNX's own inference knows nothing of these operators, and a quantizer passes over tensors of unknown type.
    fused.graph.value_info.extend(
        helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        for node in fused.graph.node
        if node.domain == FUSED_DOMAIN
        for output in node.output[:1]
    )
    if all(item.domain != FUSED_DOMAIN for item in fused.opset_import):
        fused.opset_import.append(helper.make_opsetid(FUSED_DOMAIN, 1))
    return fused


def check_against(model: PreTrainedModel, logits_of: Any, longest: int = 16) -> None:
    """Raises MethodRefused if the graph does not compute what the model computes.

    Args:
        logits_of: from inputs to logits (batch, labels), as the graph computes them.
        longest: most tokens that the graph takes; at least 2.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = min(16, longest, longest_input(model))
    ids = torch.randint(0, model.config.vocab_size, (3, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.tensor([[tokens], [tokens - tokens // 3], [2]])).long()
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id or 0)
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask).logits
    error = (logits_of({"input_ids": ids, "attention_mask": mask}) - wanted).abs().max()
    if not error <= EXPORT_TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise MethodRefused(
            f"the exported graph does not compute what the model computes (logits differ by "
            f"{float(error):.2g}); these versions of torch and onnxruntime do not go together"
        )


def operator_counts(graph: "onnx.ModelProto") -> dict[str, int]:
    """Operator -> how often it stands in the graph, the most frequent first."""
    return dict(Counter(node.op_type for node in graph.graph.node).most_common())


class _FromPositions(nn.Module):
    """A classifier as a function of its inputs by position, with the attention mask as what is added to the scores: the
    form that BERT exports have always had, and that the optimizer knows."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        mask = named["attention_mask"][:, None, None, :].to(torch.float32)
        named["attention_mask"] = (1.0 - mask) * torch.finfo(torch.float32).min
        return self.model(**named).logits


def _write_patterns(graph: "onnx.ModelProto", model: nn.Module) -> None:
    """The mask gains its two dimensions one after the other; attention scores are divided, not multiplied: the
    optimizer takes the first product above the sum of scores and mask for the mask's; and each projection says how
    many heads it is split into."""
    from onnx import helper, numpy_helper

    nodes = graph.graph.node
    constants = {constant.name: constant for constant in graph.graph.initializer}
    maker = {output: node for node in nodes for output in node.output}

    def constant(name: str, value: Any) -> str:
        graph.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    for node in list(nodes):
        second = _value(constants, node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Unsqueeze" and second is not None and second.tolist() == [1, 2]:
            place = list(nodes).index(node)
            nodes.insert(
                place,
                helper.make_node(
                    "Unsqueeze", [node.input[0], constant("mask_axis_1", [1])], ["mask_of_rows"], name="mask_of_rows"
                ),
            )
            node.input[0], node.input[1] = "mask_of_rows", constant("mask_axis_2", [2])
        elif (
            node.op_type == "Mul"
            and second is not None
            and second.ndim == 0
            and node.input[0] in maker
            and maker[node.input[0]].op_type == "MatMul"
        ):
            node.op_type = "Div"
            node.input[1] = constant(f"{node.output[0]}_divisor", (1 / second).astype(np.float32))
    split = [
        node
        for node in nodes
        if node.op_type == "Reshape"
        and node.input[1] in maker
        and maker[node.input[1]].op_type == "Concat"
        and len(maker[node.input[1]].input) == 4
    ]
    layers = encoder_layers(model)
    for number, node in enumerate(split):  # query, key and value of the first layer, of the second, ...
        layer = layers[number // 3]
        del node.attribute[:]  # allowzero, under which a zero would not stand for the size that is there
        node.input[1] = constant(f"{node.output[0]}_shape", np.array([0, 0, layer.num_heads, layer.head_size]))


def _value(constants: Mapping[str, Any], name: str) -> np.ndarray | None:
    from onnx import numpy_helper

    return numpy_helper.to_array(constants[name]) if name in constants else None


def drop_unused(graph: "onnx.ModelProto") -> None:
    """Removes stored tensors that no operator reads; fusing leaves some behind."""
    used = {name for node in graph.graph.node for name in node.input}
    kept = [constant for constant in graph.graph.initializer if constant.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    del graph.graph.value_info[:]


def set_nodes(graph: "onnx.ModelProto", nodes: Sequence[Any]) -> None:
    """Replaces the graph's operators."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
