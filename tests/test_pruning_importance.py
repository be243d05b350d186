"""Masks and criteria: against finite differences, autograd, cut models and weights set by hand."""

import numpy as np
import pytest
import torch
from small_models import logits, small_batch, small_model, small_rows

from edgemin_utils.encoders import encoder_layers, model_with_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.pruning.cut import remove_units
from edgemin_utils.pruning.importance import full_masks, importance, importance_by, masked_units, register_criterion
from edgemin_utils.settings import CRITERIA, load_settings
from edgemin_utils.training import batches, predict

REMOVED = {"heads": [[0, 3], [], [1]], "neurons": [[5], list(range(40)), []]}


def double_loss(model, batch):
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(found, batch["labels"]), {}


@pytest.fixture
def asked():
    rows = small_rows(12)
    return small_model(vocabulary_size=len(rows.tokenizer)), rows.train, rows.tokenizer


def test_heads_neurons_and_a_layer_cut_together_equal_their_masks(family):
    """Every layer another shape, and the middle one gone."""
    model, batch = small_model(family), small_batch()
    masks = {units: full_masks(model, units) for units in REMOVED}
    for units, removed in REMOVED.items():
        for mask, numbers in zip(masks[units], removed, strict=True):
            mask[numbers] = 0
    untouched = logits(model, batch)
    with masked_units(model, masks["heads"]), masked_units(model, masks["neurons"], "neurons"):
        without_units = logits(model, batch)
        with masked_units(model, [torch.ones(1), torch.zeros(1), torch.ones(1)], "layers"):
            masked = logits(model, batch)
    for units, removed in REMOVED.items():
        remove_units(model, removed, units)
    assert (without_units - untouched).abs().max() > 1e-3  # the masks did something
    torch.testing.assert_close(logits(model, batch), without_units, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits(model_with_layers(model, [0, 2]), batch), masked, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("units, place", [("heads", 2), ("neurons", 2), ("layers", 0)])
def test_gradient_importance_is_the_leave_a_little_out_loss_difference(asked, units, place):
    """|dL/dmask| against the central difference of the loss when a unit is scaled by 1 ± epsilon, row by row."""
    model, rows, tokenizer = asked
    found = importance("gradient", model.double(), rows, tokenizer, units, 5, loss=double_loss)
    epsilon, total = 1e-5, 0.0
    for _, batch in batches(rows, tokenizer, 1):
        losses, masks = [], [mask.double() for mask in full_masks(model, units)]
        for factor in (1 + epsilon, 1 - epsilon):
            masks[1][place] = factor
            with masked_units(model, masks, units), torch.no_grad():
                losses.append(float(double_loss(model, batch)[0]))
        total += abs(losses[0] - losses[1]) / (2 * epsilon)
    assert found[1][place] == pytest.approx(total / len(rows), rel=1e-4)
    assert [len(values) for values in found] == [{"heads": 4, "neurons": 96, "layers": 1}[units]] * 3


def test_gradient_l2_is_the_length_of_the_gradient_that_autograd_gives(asked):
    """Row by row: a head's activations are perturbed by a tensor of zeros, whose gradient is taken."""
    model, rows, tokenizer = asked
    found, total = importance("gradient-l2", model.double(), rows, tokenizer, batch_size=5, loss=double_loss), 0.0
    for _, batch in batches(rows, tokenizer, 1):
        nudge = torch.zeros(1, batch["input_ids"].shape[1], 48, dtype=torch.float64, requires_grad=True)
        output = encoder_layers(model)[1].attention_output
        with output.register_forward_pre_hook(lambda _module, inputs, nudge=nudge: (inputs[0] + nudge,)):
            double_loss(model, batch)[0].backward()
        total += float(nudge.grad[0, :, 24:36].norm())  # head 2
    assert found[1][2] == pytest.approx(total / len(rows), rel=1e-6)


def test_taylor_is_the_gradient_score_averaged_over_a_units_activations(asked):
    """Where all rows have M activations, it is 1/M of the gradient score; one row alone shows M = tokens x width."""
    model, rows, tokenizer = asked
    same = rows.filter(lambda row: row["length"] == rows[0]["length"])
    assert len(same) > 1
    for units, width in (("heads", 12), ("neurons", 1), ("layers", 48)):
        taylor, gradient = (importance(name, model, same, tokenizer, units, 4) for name in ("taylor", "gradient"))
        for one, other in zip(taylor, gradient, strict=True):
            np.testing.assert_allclose(one * rows[0]["length"] * width, other, rtol=1e-4)


def test_leave_one_out_is_the_loss_of_the_cut_model_minus_that_of_the_whole(asked):
    model, rows, tokenizer = asked

    def mean_loss(model):
        found = torch.from_numpy(predict(model, rows, tokenizer))
        return float(torch.nn.functional.cross_entropy(found, torch.tensor(rows["labels"])))

    heads, layers = (importance("leave-one-out", model, rows, tokenizer, units, 5) for units in ("heads", "layers"))
    whole = mean_loss(model)
    wanted = [mean_loss(model_with_layers(model, kept)) - whole for kept in ([1, 2], [0, 2], [0, 1])]
    assert [values[0] for values in layers] == pytest.approx(wanted, abs=1e-5)
    remove_units(model, [[], [2], []])
    assert heads[1][2] == pytest.approx(mean_loss(model) - whole, abs=1e-5)
    with pytest.raises(MethodRefused, match="neurons are too many"):
        importance("leave-one-out", model, rows, tokenizer, "neurons")


@pytest.mark.parametrize("criterion", ["gradient", "gradient-l2", "taylor"])
def test_batches_and_padding_do_not_change_importance_and_a_head_that_does_nothing_has_none(asked, criterion):
    model, rows, tokenizer = asked
    encoder_layers(model.double())[1].attention_output.weight.data[:, 24:36] = 0  # head 2 reaches nothing
    one, many = (importance(criterion, model, rows, tokenizer, "heads", size, 0, double_loss) for size in (1, 12))
    for first, second in zip(one, many, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-8)
    assert one[1][2] == 0 and (np.delete(one[1], 2) > 0).all()


def test_magnitude_by_hand():
    model = small_model(layers=1)
    layer = encoder_layers(model)[0]
    for parameter in model.parameters():
        parameter.data.zero_()
    layer.query.weight.data[12:24] = 1.0  # head 1: 12 x 48 ones
    layer.attention_output.weight.data[:, 12:24] = 2.0  # and 48 x 12 twos
    layer.feed_forward_in.weight.data[7] = 3.0  # neuron 7: 48 threes
    found = {units: importance("magnitude", model, None, None, units)[0] for units in ("heads", "neurons", "layers")}
    np.testing.assert_allclose(found["heads"], [0, (576 * 1 + 576 * 4) ** 0.5, 0, 0], rtol=1e-6)
    assert found["neurons"][7] == pytest.approx((48 * 9) ** 0.5) and np.count_nonzero(found["neurons"]) == 1
    assert found["layers"] == pytest.approx([(576 * 5 + 48 * 9) ** 0.5])


def test_random_importance_depends_on_the_draw_alone():
    first, second, other = (importance("random", small_model(), None, None, draw=draw) for draw in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_criteria_are_known_by_name_and_asked_of_the_first_rows(asked, request):
    model, rows, tokenizer = asked

    def of_ones_own(asked):
        return asked.expected(lambda activations, gradients, real: activations.square().sum((1, 3)).sqrt())

    request.addfinalizer(lambda: CRITERIA.remove("activation"))
    register_criterion("activation", of_ones_own)
    found = importance_by(load_settings("demo", {"criterion": "activation"}), rows, tokenizer)(model, "heads")
    assert (found[0] > 0).all() and [len(values) for values in found] == [4, 4, 4]
    assert all(len(importance(name, *asked, "layers")) == 3 for name in CRITERIA)
    by = importance_by(load_settings("demo", {"importance_rows": 5}), rows, tokenizer, seed=3)
    wanted = importance("gradient", model, rows.select(range(5)), tokenizer)
    assert all(np.allclose(one, other) for one, other in zip(by(model, "heads"), wanted, strict=True))
    with pytest.raises(SettingError, match="did you mean 'gradient'"):
        importance("gradients", *asked)
