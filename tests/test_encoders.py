"""Layers, captured states and cut shapes of the four families, against transformers' own outputs and by hand."""

import pytest
import torch
from small_models import logits, small_batch, small_model

from edgemin_utils import encoders
from edgemin_utils.encoders import captured_states, describe_model, encoder_layers, model_with_layers, scratch_model
from edgemin_utils.errors import ModelError
from edgemin_utils.training import model_inputs

PARTS = "query key value attention_output feed_forward_in feed_forward_out".split()


def test_layers_show_the_projections_of_every_family(family):
    model = small_model(family)
    whole = {"family": family, "layers": 3, "hidden_size": 48, "vocabulary_size": 60}
    assert describe_model(model) == {**whole, "heads": [4, 4, 4], "intermediate_sizes": [96, 96, 96]}
    for layer in encoder_layers(model):
        shapes = [tuple(getattr(layer, part).weight.shape) for part in PARTS]
        assert shapes == [(48, 48)] * 4 + [(96, 48), (48, 96)]
        assert len({id(getattr(layer, part)) for part in PARTS}) == 6  # not one found six times


def test_student_of_all_layers_is_its_teacher_and_of_some_is_that_sub_network(family):
    model, batch = small_model(family), small_batch()
    torch.testing.assert_close(logits(model_with_layers(model, [0, 1, 2]), batch), logits(model, batch))
    student = model_with_layers(model, [0, -1])
    assert describe_model(student)["layers"] == 2 and student.config.num_hidden_layers == 2
    first, _, last = encoder_layers(model)
    for taken, source in zip(encoder_layers(student), (first, last), strict=True):
        torch.testing.assert_close(taken.query.weight, source.query.weight)
        assert taken.query.weight is not source.query.weight  # a copy: training it leaves the teacher alone


def test_cutting_heads_keeps_their_rows_in_order(family):
    model = small_model(family)
    layer = encoder_layers(model)[1]
    original = layer.query.weight.detach()
    layer.keep_heads([3, 0])
    assert layer.num_heads == 2 and not encoders.has_equal_shapes(model)
    torch.testing.assert_close(layer.query.weight.detach(), torch.cat([original[0:12], original[36:48]]))


def test_what_cannot_be_is_refused_by_name():
    model = small_model()
    assert [encoders.layer_number(model, number) for number in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for kept in ([], [4], [1, 1], [-1]):
        with pytest.raises(ModelError, match="cannot stay of a layer's units; give one or more of 0 to 3"):
            encoder_layers(model)[0].keep_heads(kept)
    for layers in ([], [3], [0, -4]):
        with pytest.raises(ModelError, match="layers"):
            model_with_layers(model, layers)
    with pytest.raises(ModelError, match="'gpt2' is not supported"):
        scratch_model("gpt2", 1, 8, 2, 8, 10, ["a", "b"], 16)
    for name, message in (("query.3", "has no layer 3"), ("output.0", "no state 'output.0'")):
        with pytest.raises(ModelError, match=message), captured_states(model, [name]):
            pass


def test_inputs_and_positions_of_the_families():
    assert encoders.input_names(small_model("bert")) == ("input_ids", "attention_mask", "token_type_ids")
    assert encoders.input_names(small_model("distilbert")) == ("input_ids", "attention_mask")
    model = small_model("roberta")  # whose first positions belong to padding
    assert encoders.longest_input(model) == encoders.longest_input(small_model("bert")) == 64
    assert torch.isfinite(logits(model, small_batch(rows=1, tokens=64))).all()


def test_captured_states_are_those_that_transformers_gives_out(family):
    model, batch = small_model(family), small_batch()
    names = ["embeddings", *(f"{what}.{layer}" for what in ("hidden", "cls") for layer in (0, 1, 2, -1))]
    with captured_states(model, names) as states:
        whole = model(**model_inputs(model, batch), output_hidden_states=True).hidden_states
    theirs = [*whole, whole[-1], *(hidden[:, 0] for hidden in (*whole[1:], whole[-1]))]
    torch.testing.assert_close([states[name] for name in names], theirs)
    assert {encoders.state_width(model, name) for name in names} == {48}


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 2, 3]])
def test_attention_by_hand_from_captured_states_is_the_layers_own_also_when_cut(family, kept):
    model, batch = small_model(family, layers=1), small_batch()
    encoder_layers(model)[0].keep_heads(kept)
    with captured_states(model, ["query.0", "key.0", "value.0", "context.0"]) as states:
        model(**model_inputs(model, batch))
    by_head = {name: state.unflatten(-1, (len(kept), 12)).transpose(1, 2) for name, state in states.items()}
    query, key, value = (by_head[f"{name}.0"] for name in ("query", "key", "value"))
    scores = (query @ key.transpose(-1, -2)) / 12**0.5
    scores = scores.masked_fill(batch["attention_mask"][:, None, None, :] == 0, -1e9)
    context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(states["context.0"], context, atol=1e-5, rtol=1e-4)
    assert {encoders.state_width(model, name) for name in states} == {12 * len(kept)}


def test_a_pass_that_stops_early_gives_the_same_states_and_leaves_the_model_as_it_was(family):
    model, batch, names = small_model(family), small_batch(), ["query.1", "value.1"]
    computed = []
    encoder_layers(model)[2].query.register_forward_hook(lambda *_: computed.append(True))
    with captured_states(model, names) as whole:
        model(**model_inputs(model, batch))
    computed.clear()
    with captured_states(model, names, stop_early=True) as early:
        model(**model_inputs(model, batch))
        pytest.fail("the context ends with the pass")
    assert not computed
    assert all(torch.equal(whole[name], early[name]) for name in names)
    assert logits(model, batch).shape == (3, 2) and computed
