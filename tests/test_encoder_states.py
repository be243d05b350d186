"""Captured states, against transformers' own outputs and against attention computed by hand."""

import copy

import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model

from edgemin_utils.distillation import losses
from edgemin_utils.encoder_states import captured_states, state_width
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.training import model_inputs


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_captured_states_are_the_ones_attention_is_computed_from(family):
    """Attention recomputed by hand from the captured query, key and value gives the layer's attention output."""
    model, batch = small_model(family, layers=1), small_batch(rows=1)
    layer, taken = encoder_layers(model)[0], {}
    handle = layer.attention_output.register_forward_pre_hook(lambda _m, inputs: taken.update(context=inputs[0]))
    with captured_states(model, ["query.0", "key.0", "value.0"]) as states:
        model(**model_inputs(model, batch))
    handle.remove()
    query, key, value = (states[f"{name}.0"].view(1, 9, 4, 12).transpose(1, 2) for name in ("query", "key", "value"))
    context = ((query @ key.transpose(-1, -2)) / 12**0.5).softmax(-1) @ value
    torch.testing.assert_close(taken["context"], context.transpose(1, 2).reshape(1, 9, 48), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_captured_states_are_those_that_transformers_gives_out(family):
    model, batch = small_model(family), small_batch()
    model.set_attn_implementation("eager")
    names = ["embeddings", *(f"{what}.{layer}" for layer in range(3) for what in ("hidden", "cls", "query", "key"))]
    with captured_states(model, names) as states:
        output = model(**model_inputs(model, batch), output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(states["embeddings"], output.hidden_states[0])
    real = batch["attention_mask"].bool()
    for layer in range(3):
        torch.testing.assert_close(states[f"hidden.{layer}"], output.hidden_states[layer + 1])
        torch.testing.assert_close(states[f"cls.{layer}"], output.hidden_states[layer + 1][:, 0])
        scores = losses.relation_scores(states[f"query.{layer}"], states[f"key.{layer}"], 4)
        attention = losses.log_attention(scores, batch["attention_mask"]).exp()
        torch.testing.assert_close(attention.transpose(1, 2)[real], output.attentions[layer].transpose(1, 2)[real])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_widths_are_known_before_a_forward_pass(family):
    model, batch = small_model(family), small_batch()
    if family == "electra":  # the one family whose embeddings may be narrower than its layers
        config = copy.deepcopy(model.config)
        config.embedding_size = 16
        model = type(model)(config).eval()
    encoder_layers(model)[1].keep_heads([0, 3])
    names = ["embeddings", "hidden.1", "cls.1", "query.0", "query.1", "value.1", "context.1"]
    with captured_states(model, names) as states:
        model(**model_inputs(model, batch))
    assert {name: state_width(model, name) for name in names} == {name: states[name].shape[-1] for name in names}
    assert state_width(model, "context.1") == 24


def test_attention_is_recomputed_for_layers_whose_heads_were_cut():
    model, batch = small_model(layers=1), small_batch()
    encoder_layers(model)[0].keep_heads([0, 2, 3])
    with captured_states(model, ["query.0", "key.0", "value.0", "context.0"]) as states:
        model(**model_inputs(model, batch))
    scores = losses.relation_scores(states["query.0"], states["key.0"], encoder_layers(model)[0].num_heads)
    attention = losses.log_attention(scores, batch["attention_mask"]).exp()
    value = states["value.0"].view(3, 9, 3, 12).transpose(1, 2)
    context = (attention @ value).transpose(1, 2).reshape(3, 9, 36)
    torch.testing.assert_close(context, states["context.0"], atol=1e-5, rtol=1e-4)
