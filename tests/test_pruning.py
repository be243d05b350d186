import numpy as np
import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model, tokenized_sentences

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import SettingError
from edgemin_utils.pruning import (
    accuracy_as_heads_go,
    find_criterion,
    full_masks,
    gradient_importance,
    magnitude_importance,
    masked_units,
    normalized_by_layer,
    parameters_of_units,
    plan_removal,
    random_importance,
    removal_order,
    remove_units,
)
from edgemin_utils.training import label_loss, predict

REMOVED = {"heads": [[0, 3], [], [1]], "neurons": [[5], list(range(40)), []]}


def logits(model, batch):
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("units", ["heads", "neurons"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_pruned_equals_masked(family, units):
    model, batch = small_model(family), small_batch()
    masks = full_masks(model, units)
    for mask, numbers in zip(masks, REMOVED[units], strict=True):
        mask[numbers] = 0
    with masked_units(model, masks, units):
        masked = logits(model, batch)
    untouched = logits(model, batch)
    remove_units(model, REMOVED[units], units)
    torch.testing.assert_close(logits(model, batch), masked, atol=2e-5, rtol=1e-4)
    assert (masked - untouched).abs().max() > 1e-3  # the mask did something


@pytest.mark.parametrize("units", ["heads", "neurons"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_parameters_removed_equal_the_closed_formula(family, units):
    model = small_model(family)
    before = sum(p.numel() for p in model.parameters())
    formula = parameters_of_units(model, REMOVED[units], units)
    remove_units(model, REMOVED[units], units)
    assert before - sum(p.numel() for p in model.parameters()) == formula
    # Three heads of size 12 in hidden size 48, or 41 neurons.
    assert formula == (3 * (4 * 12 * 48 + 3 * 12) if units == "heads" else 41 * (2 * 48 + 1))


@pytest.mark.parametrize("units", ["heads", "neurons"])
def test_gradient_importance_is_the_leave_a_little_out_loss_difference(units):
    """|dL/dmask| against the central difference of the loss when a unit is scaled by 1 ± epsilon, row by row."""
    rows, tokenizer = tokenized_sentences(6)
    model = small_model(vocabulary_size=len(tokenizer)).double()
    importance = gradient_importance(model, rows, tokenizer, double_loss, 4, units)
    epsilon, total = 1e-5, 0.0
    for place in range(len(rows)):
        batch = {"input_ids": torch.tensor([rows[place]["input_ids"]]), "labels": torch.tensor([rows[place]["labels"]]),
                 "attention_mask": torch.ones(1, rows[place]["length"], dtype=torch.long)}
        losses = []
        for factor in (1 + epsilon, 1 - epsilon):
            masks = [mask.double() for mask in full_masks(model, units)]
            masks[1][2] = factor
            with masked_units(model, masks, units), torch.no_grad():
                losses.append(float(double_loss(model, batch)[0]))
        total += abs(losses[0] - losses[1]) / (2 * epsilon)
    assert importance[1][2] == pytest.approx(total / len(rows), rel=1e-4)
    assert [len(values) for values in importance] == [4] * 3 if units == "heads" else [96] * 3


def double_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"]), {}


def test_importance_of_a_head_that_does_nothing_is_zero():
    rows, tokenizer = tokenized_sentences(8)
    model = small_model(vocabulary_size=len(tokenizer))
    with torch.no_grad():
        encoder_layers(model)[1].attention_output.weight[:, 24:36] = 0  # head 2 reaches nothing
    importance = gradient_importance(model, rows, tokenizer, label_loss, 4)
    assert importance[1][2] == 0 and (np.delete(importance[1], 2) > 0).all()


def test_magnitude_by_hand():
    model = small_model(layers=1)
    layer = encoder_layers(model)[0]
    with torch.no_grad():
        for linear in (layer.query, layer.key, layer.value, layer.attention_output, layer.feed_forward_in,
                       layer.feed_forward_out):
            linear.weight.zero_()
        layer.query.weight[12:24] = 1.0  # head 1: 12 x 48 ones
        layer.attention_output.weight[:, 12:24] = 2.0  # and 48 x 12 twos
        layer.feed_forward_in.weight[7] = 3.0  # neuron 7: 48 threes
    np.testing.assert_allclose(magnitude_importance(model)[0], [0, (576 * 1 + 576 * 4) ** 0.5, 0, 0], rtol=1e-6)
    neurons = magnitude_importance(model, units="neurons")[0]
    assert neurons[7] == pytest.approx((48 * 9) ** 0.5) and np.count_nonzero(neurons) == 1


def test_random_importance_depends_on_the_seed_alone():
    model = small_model()
    first, second, other = (random_importance(model, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_plan_counts_as_the_paper_does():
    """int(0.2 * 12) is 2 heads in each layer: 24 of 144, 16.7 %, not 20 %."""
    importance = [np.arange(12.0)] * 12
    assert plan_removal(importance, 0.2) == [[0, 1]] * 12
    assert sum(map(len, plan_removal(importance, 0.2, "global"))) == int(0.2 * 144) == 28


def test_global_plan_leaves_one_head_in_every_layer():
    importance = [np.array([1.0, 2.0, 3.0]), np.array([1.0, 1e-9, 1e-9])]
    removed = plan_removal(importance, 0.9, "global")
    assert removed == [[0, 1], [1, 2]]
    assert plan_removal(importance, 0.34, "global") == [[], [1, 2]]


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(SettingError, match="at least 0 and under 1"):
        plan_removal([np.arange(4.0)], ratio)


def test_a_ratio_of_zero_removes_nothing():
    model = small_model()
    before = sum(p.numel() for p in model.parameters())
    removed = plan_removal(magnitude_importance(model), 0)
    assert removed == [[], [], []]
    remove_units(model, removed)
    assert sum(p.numel() for p in model.parameters()) == before


def test_normalized_layers_have_length_one():
    for values in normalized_by_layer([np.array([3.0, 4.0]), np.array([1e-3, 0.0])]):
        assert np.linalg.norm(values) == pytest.approx(1)


def test_removal_order_is_least_important_first_without_the_last_of_a_layer():
    assert removal_order([np.array([3.0, 4.0]), np.array([0.1, 1.0])]) == [(1, 0), (0, 0)]


def test_scan_starts_at_the_whole_model_and_ends_at_one_head_a_layer():
    rows, tokenizer = tokenized_sentences(30)
    model = small_model(vocabulary_size=len(tokenizer))
    order = removal_order(magnitude_importance(model))
    points = accuracy_as_heads_go(model, rows, tokenizer, order, 16)
    labels = np.asarray(rows["labels"])
    assert [point["removed"] for point in points] == list(range(10))  # 12 heads, 3 layers keep one each
    assert points[0]["accuracy"] == (predict(model, rows, tokenizer).argmax(1) == labels).mean()
    removed = [[head for layer, head in order if layer == number] for number in range(3)]
    remove_units(model, removed)
    assert points[-1]["accuracy"] == (predict(model, rows, tokenizer).argmax(1) == labels).mean()
    few = accuracy_as_heads_go(small_model(vocabulary_size=len(tokenizer)), rows, tokenizer, order, 16, most_points=3)
    assert [point["removed"] for point in few] == [0, 3, 6, 9]


def test_unknown_criterion_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'gradient'"):
        find_criterion("gradients")
