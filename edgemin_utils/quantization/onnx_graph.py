"""A classifier as an ONNX graph of ONNX Runtime's fused operators: attention, norms with skip connections, Gelu.
In an edge bundle's a sum and a norm stand apart (SkipLayerNormalization takes several times as long), the last layer
is computed for the first token alone, and positions hold only what inputs reach, and the token type of single texts."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from edgemin_utils import encoders
from edgemin_utils.encoders import embeddings_of, encoder_layers, input_names, longest_input, word_table
from edgemin_utils.errors import MethodRefused
from edgemin_utils.quantization.sessions import OnnxSession

FUSED_DOMAIN, OPSET = "com.microsoft", 18  # of ONNX Runtime's fused operators; version of ONNX's own
TOKEN_TYPES = "token_type_ids"
TOLERANCE = 1e-3  # how much logits may differ, relative to the largest one: the order of sums
_ACTIVATIONS = {"Tanh": torch.tanh, "Relu": torch.relu, "Gelu": functional.gelu}


@dataclass
class Graph:
    """An ONNX model, changed by names of tensors and operators; `names`: the classifier's parameter -> its tensor."""

    model: onnx.ModelProto
    names: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The operators, in their order."""
        return list(self.model.graph.node)

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Puts an operator last; gives its output's name, which is its own."""
        self.model.graph.node.append(operator(kind, inputs, name, **attributes))
        return name

    def replace(self, made: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
        """Puts other operators in place of those whose first output is a key, and drops tensors that none reads."""
        nodes = [one for node in self.nodes for one in made.get(node.output[0], [node])]
        used, graph = {name for node in nodes for name in node.input}, self.model.graph
        kept = onnx.GraphProto(node=nodes, initializer=[one for name, one in self.tensors().items() if name in used])
        del graph.node[:], graph.initializer[:]
        graph.MergeFrom(kept)

    def tensors(self) -> dict[str, TensorProto]:
        """Name -> stored tensor."""
        return {item.name: item for item in self.model.graph.initializer}

    def array(self, name: str) -> np.ndarray:
        """The stored tensor of that name, of any shape."""
        return numpy_helper.to_array(self.tensors()[name])

    def store(self, name: str, value: np.ndarray) -> str:
        """Stores an array of any shape under a name, which it gives, unless there is one."""
        if name not in self.tensors():
            self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def operators(self) -> dict[str, int]:
        """Operator -> how often it stands in the graph, the most frequent first."""
        return dict(Counter(node.op_type for node in self.nodes).most_common())

    def sizes(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """The classifier's parameter -> (weights, bytes with scales and zero points); a tensor's have equal shares."""
        found, shared = {}, Counter(self.names.values())
        for name, parameter in model.named_parameters():
            start = self.names.get(name, "not stored")
            parts = [item for part, item in self.tensors().items() if part == start or part.startswith(f"{start}_")]
            # MatMulNBits takes two weights a byte, in three dimensions, others their own shape.
            counts = [int(np.prod(item.dims)) * (2 if len(item.dims) == 3 else 1) for item in parts]
            size = sum(len(item.raw_data) or numpy_helper.to_array(item).nbytes for item in parts)
            found[name] = (min(max(counts, default=0), parameter.numel()), size // max(1, shared[start]))
        return found

    def serialized(self) -> bytes:
        """The model as its file holds it."""
        return self.model.SerializeToString()


def operator(kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> onnx.NodeProto:
    """An operator of ONNX, or one of ONNX Runtime's fused ones, named as its output."""
    domain = None if onnx.defs.has(kind, OPSET) else FUSED_DOMAIN
    return helper.make_node(kind, inputs, [name], name, domain=domain, **attributes)


def look_ups(graph: Graph, word: bool) -> list[onnx.NodeProto]:
    """The operators that look something up: rows of the word embedding, or all others."""
    return [node for node in graph.nodes if node.op_type == "Gather" and word == (node.output[0] == "words")]


def classifier_graph(
    model: PreTrainedModel, attention: bool = True, edge: bool = False, pair: bool = True, longest: int | None = None
) -> Graph:
    """The graph from inputs, int64 (batch, tokens), to logits, float32 (batch, labels). Weights are called as in the
    model, but for query, key and value, together `qkv`, which with `attention` are part of its operator. Of a bundle's
    graph (`edge`) `pair`: inputs tell two texts apart, `longest`: their tokens. Raises MethodRefused if it differs."""
    encoders.require_whole_layers(model, "the graph")
    inputs = [name for name in input_names(model) if pair or not edge or name != TOKEN_TYPES]
    writer, layers, longest = _Writer(model, edge, inputs), encoder_layers(model), longest or longest_input(model)
    states = writer.embeddings(longest)
    mask = writer.graph.add("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    for layer in layers:
        states = writer.layer(layer, states, mask, attention, first_alone=edge and layer is layers[-1])
    writer.head(states if edge else writer.first_token(states))
    _check(model, writer.graph, longest)
    return writer.graph


class _Writer:
    def __init__(self, model: PreTrainedModel, edge: bool, inputs: Sequence[str]):
        self.model, self.edge, self.inputs = model, edge, inputs
        # As in the model, without what all names begin with: of a small model, names take most of the graph.
        start = re.compile(rf"^{model.base_model_prefix}\.((encoder|transformer)\.)?")
        self.whole = {module: name for name, module in model.named_modules()}
        self.names = {module: start.sub("", name) for module, name in self.whole.items()}
        apart = [model.get_input_embeddings(), *(layer.module for layer in encoder_layers(model))]
        inside = {module for whole in apart for module in whole.modules()}
        linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
        # Linear layers outside the layers: the last two are the head, what stands before them widens embeddings.
        self.widening, self.dense, self.labels = linear[:-2], *linear[-2:]
        given = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", model.config.num_labels])
        made = helper.make_graph([], "classifier", given, [logits])
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED_DOMAIN, 1)]
        self.graph = Graph(helper.make_model(made, ir_version=10, opset_imports=domains))

    def store(self, name: str, value: np.ndarray, *modules: nn.Module) -> str:
        self.graph.names |= {f"{self.whole[module]}.{name.rpartition('.')[2]}": name for module in modules}
        return self.graph.store(name, value)

    def stored(self, module: nn.Module, part: str = "weight") -> str:
        value = getattr(module, part).detach().numpy()
        return self.store(f"{self.names[module]}.{part}", value.T if isinstance(module, nn.Linear) else value, module)

    def first_token(self, states: str) -> str:
        return self.graph.add("Gather", [states, self.graph.store("first", np.array([0]))], f"{states}_first", axis=1)

    def product(self, module: nn.Linear, states: str) -> str:
        return self.graph.add("MatMul", [states, self.stored(module)], f"{self.names[module]}_product")

    def linear(self, module: nn.Linear, states: str) -> str:
        product = self.product(module, states)
        return self.graph.add("Add", [product, self.stored(module, "bias")], f"{self.names[module]}_sum")

    def norm(self, module: nn.LayerNorm, states: str) -> str:
        inputs = [states, self.stored(module), self.stored(module, "bias")]
        return self.graph.add("LayerNormalization", inputs, self.names[module], axis=-1, epsilon=module.eps)

    def embeddings(self, longest: int) -> str:
        graph, module = self.graph, embeddings_of(self.model)
        tables: dict[str, Any] = dict(module.named_children())
        word, positions = word_table(self.model), tables["position_embeddings"]
        types, table = tables.get("token_type_embeddings"), positions.weight.detach().numpy()
        reserved = len(table) - longest_input(self.model)  # RoBERTa's first ones, taken up by padding
        if self.edge:
            table, reserved = table[reserved : reserved + longest], 0
            if types is not None and TOKEN_TYPES not in self.inputs:
                table, types = table + types.weight.detach().numpy()[:1], None
        zero, one = graph.store("zero", np.array([0])), graph.store("one", np.array([1]))
        count = graph.add("Gather", [graph.add("Shape", ["input_ids"], "shape"), one], "count")
        ids = graph.store("position_ids", np.arange(reserved, len(table)))
        places = graph.add("Slice", [ids, zero, count], "places")
        stored = self.store(f"{self.names[positions]}.weight", table, positions)
        words = graph.add("Gather", [*self.words(word)], "words")
        whole = self.model.get_input_embeddings()
        looked_up = [words if whole is word else self.product(whole.widen, words)]
        looked_up += [graph.add("Gather", [stored, places], "positions")]
        if types is not None:
            ids = TOKEN_TYPES if TOKEN_TYPES in self.inputs else graph.store("no_type", np.array([[0]]))
            looked_up += [graph.add("Gather", [self.stored(types), ids], "types")]
        norm = next(part for part in module.modules() if isinstance(part, nn.LayerNorm))
        states = self.norm(norm, graph.add("Sum", looked_up, "embedded"))
        for linear in self.widening:
            states = self.linear(linear, states)
        return states

    def words(self, module: nn.Embedding) -> tuple[str, str]:
        """The word embedding and which of its rows are asked for; rows that many tokens share are stored once."""
        table, name = module.weight.detach().numpy(), f"{self.names[module]}.weight"
        rows, places = np.unique(table, axis=0, return_inverse=True) if self.edge else (table, np.arange(0))
        if len(rows) > 0.9 * len(table):
            return self.stored(module), "input_ids"
        kind = np.uint16 if len(rows) <= 2**16 else np.int32
        row_of = self.graph.store(f"{name}_places", places.reshape(-1).astype(kind))
        asked = self.graph.add("Gather", [row_of, "input_ids"], "word_places")
        return self.store(name, rows, module), self.graph.add("Cast", [asked], "word_rows", to=TensorProto.INT64)

    def layer(self, layer: Any, states: str, mask: str, attention: bool, first_alone: bool) -> str:
        graph, whole = self.graph, f"{self.names[layer.query].rpartition('.')[0]}.qkv"
        linear = (layer.query, layer.key, layer.value)
        parts = ((part, [getattr(one, part).detach().numpy().T for one in linear]) for part in ("weight", "bias"))
        weight, bias = (self.store(f"{whole}.{part}", np.concatenate(each, axis=-1), *linear) for part, each in parts)
        options: dict[str, Any] = {"num_heads": layer.num_heads, "mask_filter_value": float(np.finfo(np.float32).min)}
        if attention:
            attended = graph.add("Attention", [states, weight, bias, mask], f"{whole}_attention", **options)
        else:
            names = [f"{whole}_{part}" for part in ("query", "key", "value")]
            product = graph.add("MatMul", [states, weight], f"{whole}_product")
            graph.model.graph.node.append(helper.make_node("Split", [product], names, axis=-1, num_outputs=3))
            attended = graph.add("MultiHeadAttention", [*names, bias, mask], f"{whole}_attention", **options)
        if first_alone:
            states, attended = self.first_token(states), self.first_token(attended)
        norms = [module for module in layer.module.modules() if isinstance(module, nn.LayerNorm)]
        states = self.skip(layer.attention_output, attended, states, norms[0])
        widened = [self.product(layer.feed_forward_in, states), self.stored(layer.feed_forward_in, "bias")]
        activated = graph.add("BiasGelu", widened, f"{self.names[layer.module]}_gelu")
        return self.skip(layer.feed_forward_out, activated, states, norms[1])

    def skip(self, module: nn.Linear, states: str, before: str, norm: nn.LayerNorm) -> str:
        if self.edge:
            # Sum, because ONNX Runtime puts an Add and the norm behind it together again when it loads the graph.
            added = self.graph.add("Sum", [self.linear(module, states), before], f"{self.names[norm]}_sum")
            return self.norm(norm, added)
        scale, shift, bias = self.stored(norm), self.stored(norm, "bias"), self.stored(module, "bias")
        inputs = [self.product(module, states), before, scale, shift, bias]
        return self.graph.add("SkipLayerNormalization", inputs, self.names[norm], epsilon=norm.eps)

    def head(self, states: str) -> None:
        """Logits of the first token, (batch, 1, width); the activation is the one that the model is seen to have."""
        seen: list[torch.Tensor] = []
        before = self.dense.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        after = self.labels.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        with torch.no_grad(), before, after:  # each hook goes with the block
            self.model(input_ids=torch.tensor([[1, 2, 3]]))
        kind = min(_ACTIVATIONS, key=lambda name: float((_ACTIVATIONS[name](seen[0]) - seen[1]).abs().max()))
        activated = self.graph.add(kind, [self.linear(self.dense, states)], "activated")
        inputs = [self.linear(self.labels, activated), self.graph.store("token", np.array([1]))]
        self.graph.add("Squeeze", inputs, "logits")


def _check(model: PreTrainedModel, graph: Graph, longest: int) -> None:
    generator, tokens = torch.Generator().manual_seed(0), min(16, longest)
    ids = torch.randint(0, model.config.vocab_size, (3, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.tensor([[tokens], [tokens - tokens // 3], [2]])).long()
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id or 0)
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask).logits.numpy()
    error = np.abs(OnnxSession(graph.serialized())({"input_ids": ids, "attention_mask": mask}) - wanted).max()
    if not error <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
        raise MethodRefused(f"the ONNX graph does not compute what the model computes: logits differ by {error:.2g}")
