"""The one place that knows how BERT, DistilBERT, RoBERTa and ELECTRA name their parts.

Everything else sees `EncoderLayer`: the query, key, value and output projections of one layer, its two feed-forward
matrices and its head size. Also here: making classifiers, and cutting their layers to unequal shapes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from edgemin_utils.config import nearest
from edgemin_utils.errors import MethodRefused, ModelError


@dataclass(frozen=True)
class Family:
    """Attribute paths of one architecture; paths within a layer are relative to the layer."""

    config_class: type[PretrainedConfig]
    encoder: str
    layers: str
    query: str
    key: str
    value: str
    attention_output: str
    feed_forward_in: str
    feed_forward_out: str
    sizes: Mapping[str, str]


_BERT_SIZES = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
_DISTILBERT_SIZES = {"layers": "n_layers", "hidden_size": "dim", "heads": "n_heads", "intermediate_size": "hidden_dim"}


def _bert_like(config_class: type[PretrainedConfig], encoder: str) -> Family:
    return Family(
        config_class,
        encoder,
        "encoder.layer",
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        _BERT_SIZES,
    )


FAMILIES: dict[str, Family] = {
    "bert": _bert_like(BertConfig, "bert"),
    "distilbert": Family(
        DistilBertConfig,
        "distilbert",
        "transformer.layer",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
        _DISTILBERT_SIZES,
    ),
    "roberta": _bert_like(RobertaConfig, "roberta"),
    "electra": _bert_like(ElectraConfig, "electra"),
}


@dataclass(frozen=True)
class EncoderLayer:
    """One transformer layer of any supported family, read live from the model.

    Weights are `nn.Linear`: query, key, value (heads * head_size, hidden_size); attention_output (hidden_size,
    heads * head_size); feed_forward_in (intermediate_size, hidden_size); feed_forward_out (hidden_size,
    intermediate_size).
    """

    module: nn.Module
    paths: Family
    head_size: int

    @property
    def query(self) -> nn.Linear:
        """Projection of the queries, weight (heads * head_size, hidden_size)."""
        return self._linear(self.paths.query)

    @property
    def key(self) -> nn.Linear:
        """Projection of the keys, weight (heads * head_size, hidden_size)."""
        return self._linear(self.paths.key)

    @property
    def value(self) -> nn.Linear:
        """Projection of the values, weight (heads * head_size, hidden_size)."""
        return self._linear(self.paths.value)

    @property
    def attention_output(self) -> nn.Linear:
        """What joins the heads again, weight (hidden_size, heads * head_size)."""
        return self._linear(self.paths.attention_output)

    @property
    def feed_forward_in(self) -> nn.Linear:
        """The first feed-forward matrix, weight (intermediate_size, hidden_size)."""
        return self._linear(self.paths.feed_forward_in)

    @property
    def feed_forward_out(self) -> nn.Linear:
        """The second feed-forward matrix, weight (hidden_size, intermediate_size)."""
        return self._linear(self.paths.feed_forward_out)

    @property
    def num_heads(self) -> int:
        """Attention heads that the layer has now."""
        return self.query.out_features // self.head_size

    @property
    def intermediate_size(self) -> int:
        """Feed-forward neurons that the layer has now."""
        return self.feed_forward_in.out_features

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Cuts the layer down to the heads numbered in `kept`: rows of query, key and value, columns of the output.

        Raises:
            ModelError: no head would stay, or a number is not a head of this layer.
        """
        _check_kept(kept, self.num_heads, "attention head")
        units = torch.cat([torch.arange(head * self.head_size, (head + 1) * self.head_size) for head in sorted(kept)])
        for path in (self.paths.query, self.paths.key, self.paths.value):
            self._replace(path, _keep_rows(self._linear(path), units))
        self._replace(self.paths.attention_output, _keep_columns(self.attention_output, units))

    def keep_neurons(self, kept: Sequence[int]) -> None:
        """Cuts the feed-forward layer down to the neurons numbered in `kept`.

        Raises:
            ModelError: no neuron would stay, or a number is not a neuron of this layer.
        """
        _check_kept(kept, self.intermediate_size, "feed-forward neuron")
        units = torch.tensor(sorted(kept))
        self._replace(self.paths.feed_forward_in, _keep_rows(self.feed_forward_in, units))
        self._replace(self.paths.feed_forward_out, _keep_columns(self.feed_forward_out, units))

    def _linear(self, path: str) -> nn.Linear:
        """A linear layer, or its quantized form, which is called and measured alike."""
        return cast(nn.Linear, self.module.get_submodule(path))

    def _replace(self, path: str, linear: nn.Linear) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.module.get_submodule(parent), name, linear)


def family_of(config: PretrainedConfig) -> Family:
    """The family of a config.

    Raises:
        ModelError: an architecture that is not supported, by name.
    """
    name = config.model_type
    if name not in FAMILIES:
        raise ModelError(f"model family {name!r} is not supported; supported families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def encoder_layers(model: PreTrainedModel) -> list[EncoderLayer]:
    """The model's transformer layers, first to last."""
    family = family_of(model.config)
    size = model.config.hidden_size // model.config.num_attention_heads
    layers = cast(nn.ModuleList, model.get_submodule(family.encoder).get_submodule(family.layers))
    return [EncoderLayer(module, family, size) for module in layers]


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """The module whose output is the normalized sum of a model's embeddings, (batch, tokens, embedding size)."""
    return model.get_submodule(family_of(model.config).encoder).get_submodule("embeddings")


def layer_number(model: PreTrainedModel, layer: int) -> int:
    """`layer` counted from 0, where a negative number counts from the last.

    Raises:
        MethodRefused: the model has no such layer.
    """
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
    return usable_positions(model.config.to_dict())


def usable_positions(config: Mapping[str, Any]) -> int:
    """Positions for tokens in a model of that config.json. RoBERTa's first ones are taken up by padding, whose number
    is 1 where the file leaves it out.

    Raises:
        KeyError: the config names no positions.
    """
    reserved = config.get("pad_token_id", 1) + 1 if config.get("model_type") == "roberta" else 0
    return config["max_position_embeddings"] - reserved


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """Family, layers, hidden_size, vocabulary_size, and the heads and feed-forward size of every layer."""
    layers = encoder_layers(structure_of(model))
    return {
        "family": model.config.model_type,
        "layers": len(layers),
        "hidden_size": model.config.hidden_size,
        "vocabulary_size": model.config.vocab_size,
        "heads": [layer.num_heads for layer in layers],
        "intermediate_sizes": [layer.intermediate_size for layer in layers],
    }


def is_exported(model: nn.Module) -> bool:
    """Whether the model runs outside torch, so that its modules cannot be looked into or traced."""
    return hasattr(model, "structure")


def structure_of(model: PreTrainedModel) -> PreTrainedModel:
    """The modules that tell a model's shapes: its own, or those that an exported model keeps a note of (`structure`,
    on torch's meta device, without weights)."""
    return model.structure if is_exported(model) else model


# ---- making models ---------------------------------------------------------------------------------------------


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
) -> PreTrainedModel:
    """A classifier with random weights (drawn from torch's global generator).

    Raises:
        ModelError: unknown family, or a hidden size that the heads do not divide.
    """
    if family not in FAMILIES:
        raise ModelError(f"model family {family!r} is not supported; {nearest(family, FAMILIES)}")
    if hidden_size % heads:
        raise ModelError(f"hidden size {hidden_size} is not a multiple of {heads} attention heads")
    paths = FAMILIES[family]
    sizes = {"layers": layers, "hidden_size": hidden_size, "heads": heads, "intermediate_size": intermediate_size}
    # RoBERTa counts positions from pad_token_id + 1.
    positions = max_length + pad_token_id + 1 if family == "roberta" else max_length
    config = paths.config_class(
        vocab_size=vocabulary_size,
        max_position_embeddings=positions,
        pad_token_id=pad_token_id,
        **{paths.sizes[name]: value for name, value in sizes.items()},
    )
    if family == "electra":
        config.embedding_size = hidden_size
    set_labels(config, labels)
    set_dropout(config, dropout)
    return AutoModelForSequenceClassification.from_config(config)


def model_with_layers(source: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of `source` with only the given encoder layers (counted from 0, negative from the last) and all of its
    embeddings and head.

    Raises:
        ModelError: no layer is named, or one that the source does not have.
    """
    count = len(encoder_layers(source))
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ModelError(f"layers {list(layers)} cannot be taken from a model of {count} layers (0 to {count - 1})")
    model = copy.deepcopy(source)
    family = family_of(model.config)
    encoder = model.get_submodule(family.encoder)
    parent, _, name = family.layers.rpartition(".")
    kept = nn.ModuleList(encoder.get_submodule(family.layers)[layer] for layer in layers)
    setattr(encoder.get_submodule(parent), name, kept)
    setattr(model.config, family.sizes["layers"], len(layers))
    return model


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Sets every dropout probability of a supported family's config."""
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
        "classifier_dropout",
        "summary_last_dropout",
    ):
        if hasattr(config, name):
            setattr(config, name, dropout)


def set_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Sets the label names, in id order, and that this is classification."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    # Also for two numeric-looking labels: this is classification, never regression.
    config.problem_type = "single_label_classification"


# ---- layers of unequal shapes -----------------------------------------------------------------------------------


def has_equal_shapes(model: PreTrainedModel) -> bool:
    """Whether every layer still has the heads and feed-forward size that the config names."""
    intermediate = getattr(model.config, family_of(model.config).sizes["intermediate_size"])
    return all(
        layer.num_heads == model.config.num_attention_heads and layer.intermediate_size == intermediate
        for layer in encoder_layers(model)
    )


def layer_shapes(model: PreTrainedModel) -> dict[str, list[int]]:
    """Heads and feed-forward size of every layer, as config.json keeps them for a cut model."""
    layers = encoder_layers(model)
    return {
        "heads": [layer.num_heads for layer in layers],
        "intermediate_sizes": [layer.intermediate_size for layer in layers],
    }


def model_from_shapes(
    config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str = "sdpa"
) -> PreTrainedModel:
    """A model of `config` with random weights whose layers have the given heads and feed-forward sizes.

    Raises:
        ModelError: the shapes do not fit the config's layers.
    """
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention_implementation)
    layers = encoder_layers(model)
    if not len(layers) == len(shapes["heads"]) == len(shapes["intermediate_sizes"]):
        raise ModelError(f"config.json names {len(layers)} layers but shapes of {len(shapes['heads'])}")
    for layer, heads, neurons in zip(layers, shapes["heads"], shapes["intermediate_sizes"], strict=True):
        layer.keep_heads(range(heads))
        layer.keep_neurons(range(neurons))
    return model


def empty_model(
    config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str = "sdpa"
) -> PreTrainedModel:
    """As `model_from_shapes`, with parameters that have shapes but no memory (torch's meta device), for weights that
    are read from a file: no random ones are drawn first. Buffers, which no file holds, have their values.

    Raises:
        ModelError: the shapes do not fit the config's layers.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return model_from_shapes(config, shapes, attention_implementation)


def fill_parameters(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Makes the tensors, by name, the parameters of an `empty_model`; they are not copied.

    Raises:
        ModelError: a name or a shape is none of the model's, or a parameter is left without a tensor.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [name for name, tensor in tensors.items() if shapes.get(name) != tensor.shape]
    wrong += [name for name in shapes if name not in tensors]
    if wrong:
        raise ModelError(f"{len(wrong)} weights do not fit the config or are missing, such as {min(wrong)}")
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        setattr(model.get_submodule(owner), part, nn.Parameter(tensor))


def _check_kept(kept: Sequence[int], count: int, what: str) -> None:
    if not kept:
        raise ModelError(f"at least one {what} must stay in each layer")
    if len(set(kept)) != len(kept) or any(not 0 <= unit < count for unit in kept):
        raise ModelError(f"{what}s {list(kept)} are not distinct numbers from 0 to {count - 1}")


def _keep_rows(linear: nn.Linear, rows: torch.Tensor) -> nn.Linear:
    kept = nn.Linear(linear.in_features, len(rows), bias=linear.bias is not None, device=linear.weight.device)
    rows = rows.to(linear.weight.device)
    with torch.no_grad():
        kept.weight.copy_(linear.weight[rows])
        if linear.bias is not None:
            kept.bias.copy_(linear.bias[rows])
    return kept


def _keep_columns(linear: nn.Linear, columns: torch.Tensor) -> nn.Linear:
    kept = nn.Linear(len(columns), linear.out_features, bias=linear.bias is not None, device=linear.weight.device)
    with torch.no_grad():
        kept.weight.copy_(linear.weight[:, columns.to(linear.weight.device)])
        if linear.bias is not None:
            kept.bias.copy_(linear.bias)
    return kept
