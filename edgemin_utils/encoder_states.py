"""What passes inside a model during a forward pass, by name: projections, heads' outputs, layers' outputs, embeddings.

Names are the same for every family, so that a teacher's states and a student's can be set against each other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgemin_utils.encoders import embeddings_of, encoder_layers
from edgemin_utils.errors import ModelError


@contextmanager
def captured_states(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, every forward pass fills the dictionary with the named states.

    Layers count from 0. Gradients flow through what is captured. A name is one of

    - "query.3", "key.3", "value.3": that projection of layer 3, (batch, tokens, heads * head_size);
    - "context.3": what the heads of layer 3 give to the output projection, (batch, tokens, heads * head_size);
    - "hidden.3": the output of layer 3, (batch, tokens, hidden_size);
    - "cls.3": the same of the first token alone, (batch, hidden_size);
    - "embeddings": the normalized sum of the embeddings, (batch, tokens, embedding size).

    Raises:
        ModelError: a layer that the model does not have.
    """
    states, handles = dict[str, torch.Tensor](), []
    try:
        for name in names:
            module, takes_input, pick = _state_place(model, name)
            if takes_input:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _module, inputs, name=name, pick=pick: states.__setitem__(name, pick(inputs))
                    )
                )
            else:
                handles.append(
                    module.register_forward_hook(
                        lambda _module, _inputs, output, name=name, pick=pick: states.__setitem__(name, pick(output))
                    )
                )
        yield states
    finally:
        for handle in handles:
            handle.remove()


def state_width(model: PreTrainedModel, name: str) -> int:
    """Size of the last dimension of the state that `captured_states` calls `name`."""
    what, number = _read_state(model, name)
    if what == "embeddings":
        return getattr(model.config, "embedding_size", model.config.hidden_size)
    if what in ("hidden", "cls"):
        return model.config.hidden_size
    return encoder_layers(model)[number].query.out_features


def _read_state(model: PreTrainedModel, name: str) -> tuple[str, int]:
    what, _, number = name.partition(".")
    if what == "embeddings":
        return what, 0
    count = len(encoder_layers(model))
    if not 0 <= int(number) < count:
        raise ModelError(f"the model has no layer {number}; it has {count} (0 to {count - 1})")
    return what, int(number)


def _state_place(model: PreTrainedModel, name: str) -> tuple[nn.Module, bool, Callable[[Any], torch.Tensor]]:
    """The module where a state passes, whether it goes in (rather than comes out), and how to take it from there."""
    what, number = _read_state(model, name)
    if what == "embeddings":
        return embeddings_of(model), False, _first
    layer = encoder_layers(model)[number]
    if what == "context":
        return layer.attention_output, True, _first
    if what == "hidden":
        return layer.module, False, _first
    if what == "cls":
        return layer.module, False, lambda output: _first(output)[:, 0]
    return getattr(layer, what), False, _first


def _first(value: Any) -> torch.Tensor:
    """The tensor, or the first of several."""
    return value[0] if isinstance(value, tuple) else value
