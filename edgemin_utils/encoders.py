"""The one place that knows how BERT, DistilBERT, RoBERTa and ELECTRA name their parts: all else sees `EncoderLayer` and
`captured_states`. Also here: making classifiers, and cutting their layers to unequal shapes."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import prune_linear_layer

from edgemin_utils.errors import MethodRefused, ModelError
from edgemin_utils.rows.tokens import usable_positions
from edgemin_utils.settings import nearest

_DROPOUTS = """hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout seq_classif_dropout
    classifier_dropout summary_last_dropout""".split()
# What a family calls the list of layers in its encoder, the parts within a layer, and feed-forward size in its config;
# what else a config holds transformers itself gives by one name for all.
_PARTS = "layers query key value attention_output feed_forward_in feed_forward_out intermediate_size".split()
_BERT = """encoder.layer attention.self.query attention.self.key attention.self.value attention.output.dense
    intermediate.dense output.dense intermediate_size""".split()
_DISTILBERT = """transformer.layer attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2
    hidden_dim""".split()
FAMILIES: dict[str, dict[str, str]] = {
    family: dict(zip(_PARTS, names, strict=True))
    for family, names in {"bert": _BERT, "distilbert": _DISTILBERT, "roberta": _BERT, "electra": _BERT}.items()
}


def _projection(name: str) -> nn.Linear:
    """A linear layer of `EncoderLayer`, or its quantized form, which is called and measured alike."""
    # A property, typed as what reading it gives.
    return cast(nn.Linear, property(lambda layer: layer.module.get_submodule(layer.paths[name])))


@dataclass(frozen=True)
class EncoderLayer:
    """A layer of any supported family, read live from the model. Weights: query, key, value (heads * head_size,
    hidden_size); attention_output its transpose; feed_forward_in (intermediate_size, hidden_size); feed_forward_out."""

    module: nn.Module
    paths: Mapping[str, str]
    head_size: int

    query = _projection("query")
    key = _projection("key")
    value = _projection("value")
    attention_output = _projection("attention_output")
    feed_forward_in = _projection("feed_forward_in")
    feed_forward_out = _projection("feed_forward_out")

    @property
    def num_heads(self) -> int:
        """Attention heads that the layer has now."""
        return self.query.out_features // self.head_size

    @property
    def intermediate_size(self) -> int:
        """Feed-forward neurons that the layer has now."""
        return self.feed_forward_in.out_features

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Cuts the layer down to these heads; raises ModelError where none would stay or one is not there."""
        _check_kept(kept, self.num_heads, "attention head")
        units = torch.cat([torch.arange(head * self.head_size, (head + 1) * self.head_size) for head in sorted(kept)])
        self._cut("query key value".split(), "attention_output", units)

    def keep_neurons(self, kept: Sequence[int]) -> None:
        """Cuts the layer down to these neurons; raises ModelError as `keep_heads`."""
        _check_kept(kept, self.intermediate_size, "feed-forward neuron")
        self._cut(["feed_forward_in"], "feed_forward_out", torch.tensor(sorted(kept)))

    def _cut(self, ins: Sequence[str], out: str, units: torch.Tensor) -> None:
        """Keeps these rows of the matrices that make the units and these columns of the one that takes them."""
        with torch.no_grad():
            for name in (*ins, out):
                cut = prune_linear_layer(getattr(self, name), units, dim=1 if name == out else 0)
                parent, _, attribute = self.paths[name].rpartition(".")
                setattr(self.module.get_submodule(parent), attribute, cut)


def _check_kept(kept: Sequence[int], count: int, what: str) -> None:
    if not kept:
        raise ModelError(f"at least one {what} must stay in each layer")
    if len(set(kept)) != len(kept) or any(not 0 <= unit < count for unit in kept):
        raise ModelError(f"{what}s {list(kept)} are not distinct numbers from 0 to {count - 1}")


def parts_of(config: PretrainedConfig) -> Mapping[str, str]:
    """What the family of a config calls its parts; raises ModelError where it is not supported."""
    name = config.model_type
    if name not in FAMILIES:
        raise ModelError(f"model family {name!r} is not supported; supported families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def encoder_layers(model: PreTrainedModel) -> list[EncoderLayer]:
    """The model's transformer layers, first to last."""
    parts, size = parts_of(model.config), model.config.hidden_size // model.config.num_attention_heads
    layers = cast(nn.ModuleList, model.base_model.get_submodule(parts["layers"]))
    return [EncoderLayer(module, parts, size) for module in layers]


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """The module whose output is the normalized sum of a model's embeddings, (batch, tokens, embedding size)."""
    return model.base_model.embeddings


def layer_number(model: PreTrainedModel, layer: int) -> int:
    """`layer` counted from 0, where a negative one counts from the last; raises MethodRefused if it is not there."""
    count = len(encoder_layers(model))
    if not -count <= layer < count:
        raise MethodRefused(f"the model has no layer {layer}; it has {count} (0 to {count - 1}, or -1 for the last)")
    return layer % count


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Which of input_ids, attention_mask and token_type_ids the model takes; a vocabulary of one token type (as
    RoBERTa has) counts as none."""
    names = ("input_ids", "attention_mask")
    return (*names, "token_type_ids") if getattr(model.config, "type_vocab_size", 0) > 1 else names


def longest_input(model: PreTrainedModel) -> int:
    """Most tokens the model has positions for."""
    return usable_positions(model.config.to_dict()) or 0


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """Family, layers, hidden_size, vocabulary_size, and the heads and feed-forward size of every layer."""
    config, structure = model.config, structure_of(model)
    sizes = {"layers": len(encoder_layers(structure)), "hidden_size": config.hidden_size}
    return {"family": config.model_type, **sizes, "vocabulary_size": config.vocab_size, **layer_shapes(structure)}


def is_exported(model: nn.Module) -> bool:
    """Whether the model runs outside torch, so that its modules cannot be looked into or traced."""
    return hasattr(model, "structure")


def structure_of(model: PreTrainedModel) -> PreTrainedModel:
    """The modules that tell a model's shapes: its own, or those that an exported one notes (without weights)."""
    return model.structure if is_exported(model) else model


class _EnoughError(Exception):
    """Ends a forward pass of which everything that is wanted has been captured."""


@contextmanager
def captured_states(
    model: PreTrainedModel, names: Sequence[str], stop_early: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """While open, every forward pass fills the dictionary with the named states, through which gradients flow. Layers
    count from 0, or from the last as -1. A name is one of

    - "query.3", "key.3", "value.3": that projection of layer 3, (batch, tokens, heads * head_size);
    - "context.3": what the heads of layer 3 give to the output projection, of the same shape;
    - "hidden.3": what layer 3 gives out, (batch, tokens, hidden_size); "cls.3": its first token, (batch, hidden_size);
    - "embeddings": the normalized sum of the embeddings, (batch, tokens, embedding size).

    With `stop_early` the context ends with the forward pass inside it, as soon as every state is there; nothing behind
    that is computed. Raises ModelError for a layer that the model does not have."""
    states = dict[str, torch.Tensor]()

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        states[name] = value[:, 0] if name.startswith("cls.") else value
        if stop_early and len(states) == len(names):
            raise _EnoughError

    def place(name: str) -> nn.Module:
        what, number = _read_state(model, name)
        layer = encoder_layers(model)[number]
        of = {"context": layer.attention_output, "embeddings": embeddings_of(model)}
        return of.get(what) or (layer.module if what in ("hidden", "cls") else getattr(layer, what))

    with ExitStack() as stack:
        stack.enter_context(suppress(_EnoughError))
        for name in names:
            if name.startswith("context."):  # what goes into the module rather than what comes out
                handle = place(name).register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs))
            else:
                handle = place(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            stack.callback(handle.remove)
        yield states


def state_width(model: PreTrainedModel, name: str) -> int:
    """Size of the last dimension of the state that `captured_states` calls `name`."""
    what, number = _read_state(model, name)
    if what == "embeddings":
        return getattr(model.config, "embedding_size", model.config.hidden_size)
    return model.config.hidden_size if what in ("hidden", "cls") else encoder_layers(model)[number].query.out_features


def _read_state(model: PreTrainedModel, name: str) -> tuple[str, int]:
    what, _, number = name.partition(".")
    if what == "embeddings":
        return what, 0
    if what not in "query key value context hidden cls".split() or not number.removeprefix("-").isdigit():
        raise ModelError(f"there is no state {name!r}; states are called as in query.0, hidden.-1 or embeddings")
    return what, layer_number(model, int(number))


def scratch_model(
    family: str,
    layers: int,
    hidden_size: int,
    heads: int,
    intermediate_size: int,
    vocabulary_size: int,
    labels: Sequence[str],
    max_length: int,
    pad_token_id: int = 0,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
) -> PreTrainedModel:
    """A classifier with random weights (drawn from torch's global generator); raises ModelError for an unknown family,
    or a hidden size that the heads do not divide."""
    if family not in FAMILIES:
        raise ModelError(f"model family {family!r} is not supported; {nearest(family, FAMILIES)}")
    if hidden_size % heads:
        raise ModelError(f"hidden size {hidden_size} is not a multiple of {heads} attention heads")
    sizes = {"hidden_size": hidden_size, "num_attention_heads": heads, "vocab_size": vocabulary_size}
    sizes |= {"num_hidden_layers": layers, FAMILIES[family]["intermediate_size"]: intermediate_size}
    # RoBERTa counts positions from pad_token_id + 1.
    sizes["max_position_embeddings"] = max_length + (pad_token_id + 1 if family == "roberta" else 0)
    if family == "electra":
        sizes["embedding_size"] = hidden_size
    config = AutoConfig.for_model(family, pad_token_id=pad_token_id, initializer_range=initializer_range, **sizes)
    set_labels(config, labels)
    model = AutoModelForSequenceClassification.from_config(config)
    set_dropout(model, dropout)
    return model


def model_with_layers(source: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of `source` with these layers alone (negative ones from the last); raises ModelError where none is named,
    or one that is not there."""
    count = len(encoder_layers(source))
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ModelError(f"layers {list(layers)} cannot be taken from a model of {count} layers (0 to {count - 1})")
    model = copy.deepcopy(source)
    kept = nn.ModuleList(encoder_layers(model)[layer].module for layer in layers)
    parent, _, name = parts_of(model.config)["layers"].rpartition(".")
    setattr(model.base_model.get_submodule(parent), name, kept)
    model.config.num_hidden_layers = len(layers)
    return model


def set_dropout(model: PreTrainedModel, dropout: float) -> None:
    """Sets every dropout probability of a model and its config."""
    for name in _DROPOUTS:
        if hasattr(model.config, name):
            setattr(model.config, name, dropout)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def set_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Sets the label names, in id order, and that this is classification."""
    config.num_labels, config.id2label = len(labels), dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    # Also for two numeric-looking labels: this is classification, never regression.
    config.problem_type = "single_label_classification"


def layer_shapes(model: PreTrainedModel) -> dict[str, list[int]]:
    """Heads and feed-forward size of every layer, as config.json keeps them for a cut model."""
    heads, neurons = zip(*((layer.num_heads, layer.intermediate_size) for layer in encoder_layers(model)), strict=True)
    return {"heads": list(heads), "intermediate_sizes": list(neurons)}


def has_equal_shapes(model: PreTrainedModel) -> bool:
    """Whether every layer still has the heads and feed-forward size that the config names."""
    neurons = getattr(model.config, parts_of(model.config)["intermediate_size"])
    return [set(sizes) for sizes in layer_shapes(model).values()] == [{model.config.num_attention_heads}, {neurons}]


def empty_model(
    config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str = "sdpa"
) -> PreTrainedModel:
    """A model of `config` with layers of these heads and feed-forward sizes, its parameters on torch's meta device, for
    weights from a file; buffers, which no file holds, have their values. Raises ModelError where shapes do not fit."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention_implementation)
        layers = encoder_layers(model)
        if not len(layers) == len(shapes["heads"]) == len(shapes["intermediate_sizes"]):
            raise ModelError(f"config.json names {len(layers)} layers but shapes of {len(shapes['heads'])}")
        for layer, heads, neurons in zip(layers, shapes["heads"], shapes["intermediate_sizes"], strict=True):
            layer.keep_heads(range(heads))
            layer.keep_neurons(range(neurons))
    return model


def fill_parameters(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Makes the tensors, by name, the parameters of an `empty_model`; not copied. Raises ModelError where a name or a
    shape is none of the model's, or a parameter is left without a tensor."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [name for name, tensor in tensors.items() if shapes.get(name) != tensor.shape]
    wrong += [name for name in shapes if name not in tensors]
    if wrong:
        raise ModelError(f"{len(wrong)} weights do not fit the config or are missing, such as {min(wrong)}")
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        setattr(model.get_submodule(owner), part, nn.Parameter(tensor))
