import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model

from edgemin_utils.encoders import (
    describe_model,
    encoder_layers,
    has_equal_shapes,
    input_names,
    layer_number,
    longest_input,
    model_with_layers,
    scratch_model,
)
from edgemin_utils.errors import ModelError


def logits(model, batch):
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_layers_show_the_projections_of_every_family(family):
    model = small_model(family)
    assert describe_model(model) == {
        "family": family,
        "layers": 3,
        "hidden_size": 48,
        "vocabulary_size": 60,
        "heads": [4, 4, 4],
        "intermediate_sizes": [96, 96, 96],
    }
    for layer in encoder_layers(model):
        assert layer.query.weight.shape == layer.key.weight.shape == layer.value.weight.shape == (48, 48)
        assert layer.attention_output.weight.shape == (48, 48)
        assert layer.feed_forward_in.weight.shape == (96, 48) and layer.feed_forward_out.weight.shape == (48, 96)
        # Six different matrices, not one found six times.
        assert (
            len(
                {
                    id(part)
                    for part in (
                        layer.query,
                        layer.key,
                        layer.value,
                        layer.attention_output,
                        layer.feed_forward_in,
                        layer.feed_forward_out,
                    )
                }
            )
            == 6
        )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_student_of_all_layers_is_its_teacher_and_of_some_is_that_sub_network(family):
    model, batch = small_model(family), small_batch()
    torch.testing.assert_close(logits(model_with_layers(model, [0, 1, 2]), batch), logits(model, batch))
    student = model_with_layers(model, [0, -1])
    assert describe_model(student)["layers"] == 2 and student.config.num_hidden_layers == 2
    first, _, last = encoder_layers(model)
    for taken, source in zip(encoder_layers(student), (first, last), strict=True):
        torch.testing.assert_close(taken.query.weight, source.query.weight)
        assert taken.query.weight is not source.query.weight  # a copy: training it leaves the teacher alone
    assert not torch.allclose(logits(student, batch), logits(model, batch))


@pytest.mark.parametrize("layers", [[], [3], [0, -4]])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(ModelError, match="layers"):
        model_with_layers(small_model(), layers)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cutting_a_head_changes_the_four_matrices_and_nothing_else(family):
    model = small_model(family)
    before = {name: tuple(value.shape) for name, value in model.named_parameters()}
    encoder_layers(model)[1].keep_heads([3, 0])
    changed = {name for name, value in model.named_parameters() if tuple(value.shape) != before[name]}
    assert len(changed) == 7  # query, key, value: weight and bias; output: weight
    assert encoder_layers(model)[1].num_heads == 2 and not has_equal_shapes(model)
    assert torch.isfinite(logits(model, small_batch())).all()


def test_kept_heads_hold_the_original_rows_in_order():
    model = small_model()
    original = encoder_layers(model)[0].query.weight.detach().clone()
    encoder_layers(model)[0].keep_heads([2, 0])
    torch.testing.assert_close(
        encoder_layers(model)[0].query.weight.detach(), torch.cat([original[0:12], original[24:36]])
    )


@pytest.mark.parametrize("kept", [[], [4], [1, 1], [-1]])
def test_impossible_cuts_are_refused(kept):
    with pytest.raises(ModelError, match="head"):
        encoder_layers(small_model())[0].keep_heads(kept)


def test_input_names_leave_out_token_types_where_there_is_but_one():
    assert input_names(small_model("bert")) == ("input_ids", "attention_mask", "token_type_ids")
    assert input_names(small_model("distilbert")) == ("input_ids", "attention_mask")


def test_longest_input_leaves_room_for_roberta_padding_positions():
    assert longest_input(small_model("bert")) == 64
    model = small_model("roberta")
    assert longest_input(model) == 64
    batch = small_batch(rows=1, tokens=64)
    assert torch.isfinite(logits(model, batch)).all()


def test_layer_numbers_count_from_the_end_when_negative():
    model = small_model()
    assert [layer_number(model, number) for number in (0, 2, -1, -3)] == [0, 2, 2, 0]
    with pytest.raises(ModelError, match="has no layer 3"):
        layer_number(model, 3)


def test_families_and_sizes_that_cannot_work_are_refused_by_name():
    with pytest.raises(ModelError, match="'gpt2' is not supported"):
        scratch_model("gpt2", 1, 8, 2, 8, 10, ["a", "b"], 16)
    with pytest.raises(ModelError, match="hidden size 10 is not a multiple of 4"):
        scratch_model("bert", 1, 10, 4, 8, 10, ["a", "b"], 16)


def test_paper_profile_models_have_the_published_parameter_counts():
    """DistilBERT-base with two labels: 66,955,010; MiniLM-L12-H384: 33,360,770 (derived from the shapes by hand).

    DistilBERT: 30522*768 + 512*768 + 2*768 embeddings; 6 layers of 4*(768*768+768) + 2*768*3072 + 3072 + 768 + 4*768;
    head 768*768 + 768 + 2*768 + 2.
    """
    with torch.device("meta"):
        teacher = scratch_model("distilbert", 6, 768, 12, 3072, 30522, ["a", "b"], 512)
        student = scratch_model("bert", 12, 384, 12, 1536, 30522, ["a", "b"], 512)
    by_hand = (
        (30522 + 512 + 2) * 768
        + 6 * (4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768)
        + 768 * 768
        + 768
        + 2 * 768
        + 2
    )
    assert sum(p.numel() for p in teacher.parameters()) == by_hand == 66_955_010
    assert sum(p.numel() for p in student.parameters()) == 33_360_770
