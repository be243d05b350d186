"""Classifiers, and the one place that knows how families name their parts: all else sees `EncoderLayer` and states."""

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

# What a family calls its list of layers, the parts of a layer, and, in its config, the feed-forward size.
_PARTS = "layers query key value attention_output feed_forward_in feed_forward_out intermediate_size".split()
_BERT = """encoder.layer attention.self.query attention.self.key attention.self.value attention.output.dense
    intermediate.dense output.dense intermediate_size""".split()
_DISTILBERT = """transformer.layer attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2
    hidden_dim""".split()
_NAMES = {"bert": _BERT, "distilbert": _DISTILBERT, "roberta": _BERT, "electra": _BERT, "mobilebert": _BERT}
FAMILIES = {family: dict(zip(_PARTS, names, strict=True)) for family, names in _NAMES.items()}


@dataclass(frozen=True)
class EncoderLayer:
    """A layer, read live from the model. Weights: query, key, value (heads * head_size, hidden_size), attention_output
    its transpose; feed_forward_in (intermediate_size, hidden_size), feed_forward_out its transpose."""

    module: nn.Module
    paths: Mapping[str, str]
    head_size: int

    def __getattr__(self, name: str) -> nn.Linear:
        """One of those six, or its quantized form, which is called and measured alike."""
        if name not in _PARTS:
            raise AttributeError(name)
        return cast(nn.Linear, self.module.get_submodule(self.paths[name]))

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
        self._keep(kept, self.head_size, "query key value".split(), "attention_output")

    def keep_neurons(self, kept: Sequence[int]) -> None:
        """Cuts the layer down to these neurons; raises ModelError as `keep_heads`."""
        self._keep(kept, 1, ["feed_forward_in"], "feed_forward_out")

    def _keep(self, kept: Sequence[int], size: int, ins: Sequence[str], out: str) -> None:
        there = torch.arange(getattr(self, ins[0]).out_features).unflatten(0, (-1, size))
        if not kept or len({*kept} & {*range(len(there))}) < len(kept):
            raise ModelError(f"{list(kept)} cannot stay of a layer's units; give one or more of 0 to {len(there) - 1}")
        for name in (*ins, out):
            with torch.no_grad():
                cut = prune_linear_layer(getattr(self, name), there[sorted(kept)].flatten(), dim=int(name == out))
            self.module.set_submodule(self.paths[name], cut)


def parts_of(family: str) -> Mapping[str, str]:
    """What a family calls its parts; raises ModelError where it is not supported."""
    if family not in FAMILIES:
        raise ModelError(f"model family {family!r} is not supported; supported families: {', '.join(FAMILIES)}")
    return FAMILIES[family]


def encoder_layers(model: PreTrainedModel) -> list[EncoderLayer]:
    """The model's transformer layers, first to last."""
    config, parts = model.config, parts_of(model.config.model_type)
    size = getattr(config, "true_hidden_size", config.hidden_size) // config.num_attention_heads  # MobileBERT's is thin
    layers = cast(nn.ModuleList, model.base_model.get_submodule(parts["layers"]))
    return [EncoderLayer(module, parts, size) for module in layers]


def embeddings_of(model: PreTrainedModel) -> nn.Module:
    """The module whose output is the normalized sum of a model's embeddings, (batch, tokens, embedding size)."""
    return model.base_model.embeddings


class FactorizedEmbedding(nn.Sequential):
    """A word embedding of low rank: `table` (tokens, rank) times the transpose of `widen` (size, rank)."""

    def __init__(self, tokens: int, rank: int, size: int, padding: int | None = None):
        super().__init__()
        self.table, self.widen = nn.Embedding(tokens, rank, padding), nn.Linear(rank, size, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        """The word embedding that it stands for, (tokens, size)."""
        return self.table.weight @ self.widen.weight.T


def word_table(model: PreTrainedModel) -> nn.Embedding:
    """The table in which tokens are looked up: the word embedding, or its first factor."""
    word = model.get_input_embeddings()
    return word.table if isinstance(word, FactorizedEmbedding) else word


def layer_number(model: PreTrainedModel, layer: int) -> int:
    """`layer` counted from 0, where a negative one counts from the last; raises MethodRefused if it is not there."""
    count = len(encoder_layers(model))
    if not -count <= layer < count:
        raise MethodRefused(f"the model has no layer {layer}; it has {count} (0 to {count - 1}, or -1 for the last)")
    return layer % count


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Which of input_ids, attention_mask and token_type_ids the model takes; a single type (RoBERTa) counts as none."""
    names = ("input_ids", "attention_mask")
    return (*names, "token_type_ids") if getattr(model.config, "type_vocab_size", 0) > 1 else names


def require_whole_layers(model: PreTrainedModel, what: str) -> None:
    """Raises MethodRefused for MobileBERT, whose layers have parts that `what` knows nothing of."""
    if hasattr(model.config, "true_hidden_size"):
        raise MethodRefused(f"{what} knows nothing of MobileBERT's bottlenecks; take another student or a torch scheme")


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
    """While open, every forward pass fills the dictionary with the named states, through which gradients flow; with
    `stop_early` the context ends once all are there. Layers count from 0, or from the last as -1; raises ModelError for
    one that is not there. A name is one of
    - "query.3", "key.3", "value.3": that projection of layer 3, (batch, tokens, heads * head_size);
    - "context.3": what the heads of layer 3 give to the output projection, of the same shape;
    - "hidden.3": what layer 3 gives out, (batch, tokens, hidden_size); "cls.3": its first token, (batch, hidden_size);
    - "embeddings": the normalized sum of the embeddings, (batch, tokens, embedding size)."""
    states = dict[str, torch.Tensor]()

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        states[name] = value[:, 0] if name.startswith("cls.") else value
        if stop_early and len(states) == len(names):
            raise _EnoughError

    with suppress(_EnoughError), ExitStack() as stack:
        for name in names:
            module, _ = _find_state(model, name)
            # A context is what goes in rather than what comes out; a hook gets either as its last argument.
            hook = module.register_forward_pre_hook if name.startswith("context.") else module.register_forward_hook
            stack.enter_context(hook(lambda *seen, name=name: keep(name, seen[-1])))
        yield states


def state_width(model: PreTrainedModel, name: str) -> int:
    """Size of the last dimension of the state that `captured_states` calls `name`."""
    return _find_state(model, name)[1]


def _find_state(model: PreTrainedModel, name: str) -> tuple[nn.Module, int]:
    """The module that gives out a state (takes it in, if it is a context), and the state's width."""
    what, _, number = name.partition(".")
    if what == "embeddings":
        narrow = model.config.model_type == "electra"  # which widens them behind the norm
        return embeddings_of(model), model.config.embedding_size if narrow else model.config.hidden_size
    if what not in "query key value context hidden cls".split() or not number.removeprefix("-").isdigit():
        raise ModelError(f"there is no state {name!r}; states are called as in query.0, hidden.-1 or embeddings")
    layer = encoder_layers(model)[layer_number(model, int(number))]
    if what in ("hidden", "cls"):
        return layer.module, model.config.hidden_size
    return getattr(layer, what.replace("context", "attention_output")), layer.query.out_features


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
    """A classifier with random weights (drawn from torch's global generator) of a family that `parts_of` knows."""
    sizes = {"hidden_size": hidden_size, "num_attention_heads": heads, "vocab_size": vocabulary_size}
    sizes |= {"num_hidden_layers": layers, parts_of(family)["intermediate_size"]: intermediate_size}
    sizes["max_position_embeddings"] = max_length + (pad_token_id + 1 if family == "roberta" else 0)  # behind padding
    sizes |= {"embedding_size": hidden_size} if family == "electra" else {}
    config = AutoConfig.for_model(family, pad_token_id=pad_token_id, initializer_range=initializer_range, **sizes)
    set_labels(config, labels)
    model = AutoModelForSequenceClassification.from_config(config)
    set_dropout(model, dropout)
    return model


def model_with_layers(source: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of `source` with these layers alone (negative: from the last); raises ModelError for no or wrong ones."""
    count = len(encoder_layers(source))
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ModelError(f"layers {list(layers)} cannot be taken from a model of {count} layers (0 to {count - 1})")
    model = copy.deepcopy(source)
    kept = nn.ModuleList(encoder_layers(model)[layer].module for layer in layers)
    model.base_model.set_submodule(parts_of(model.config.model_type)["layers"], kept)
    model.config.num_hidden_layers = len(layers)
    return model


def set_dropout(model: PreTrainedModel, dropout: float) -> None:
    """Sets every dropout probability of a model and its config."""
    model.config.update({name: dropout for name in vars(model.config) if "dropout" in name})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def set_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Sets the label names, in id order, and that this is classification, also where they are two numbers."""
    config.num_labels, config.id2label = len(labels), dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def layer_shapes(model: PreTrainedModel) -> dict[str, list[int]]:
    """Heads and feed-forward size of every layer and the rank of a `FactorizedEmbedding`, as config.json keeps them."""
    heads, neurons = zip(*((layer.num_heads, layer.intermediate_size) for layer in encoder_layers(model)), strict=True)
    word = model.get_input_embeddings()
    rank = {"embedding_rank": [word.table.embedding_dim]} if isinstance(word, FactorizedEmbedding) else {}
    return {"heads": list(heads), "intermediate_sizes": list(neurons), **rank}


def has_equal_shapes(model: PreTrainedModel) -> bool:
    """Whether every layer still has the heads and feed-forward size that the config names."""
    neurons = getattr(model.config, parts_of(model.config.model_type)["intermediate_size"])
    return [set(sizes) for sizes in layer_shapes(model).values()] == [{model.config.num_attention_heads}, {neurons}]


def empty_model(
    config: PretrainedConfig, shapes: Mapping[str, Sequence[int]], attention_implementation: str = "sdpa"
) -> PreTrainedModel:
    """A model of these `layer_shapes`, its parameters on torch's meta device; raises ModelError if they do not fit."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention_implementation)
        if "embedding_rank" in shapes:
            word, (rank,) = model.get_input_embeddings(), shapes["embedding_rank"]
            sizes = (word.num_embeddings, rank, word.embedding_dim, word.padding_idx)
            model.set_input_embeddings(FactorizedEmbedding(*sizes))
        layers = encoder_layers(model)
        heads, neurons = (shapes.get(kind, ()) for kind in ("heads", "intermediate_sizes"))
        if not len(layers) == len(heads) == len(neurons):
            raise ModelError(f"config.json names {len(layers)} layers but shapes of {len(heads)}")
        for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
            layer.keep_heads(range(kept_heads))
            layer.keep_neurons(range(kept_neurons))
    return model


def fill_parameters(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Makes the tensors, of any shape, the parameters of an `empty_model`; raises ModelError unless all fit."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := {name for name, _ in shapes.items() ^ given.items()}:
        raise ModelError(f"{len(wrong)} weights do not fit the config or are missing, such as {min(wrong)}")
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        setattr(model.get_submodule(owner), part, nn.Parameter(tensor))
