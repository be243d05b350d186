import numpy as np
import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model, tokenized_sentences

from edgemin_utils.config import PRUNING_CRITERIA
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.pruning import (
    Progress,
    accuracy_as_units_go,
    find_criterion,
    full_masks,
    gradient_importance,
    gradient_l2_importance,
    layer_removal_order,
    leave_one_out_importance,
    magnitude_importance,
    masked_units,
    normalized_by_layer,
    parameters_of_layers,
    parameters_of_units,
    plan_layers,
    plan_removal,
    random_importance,
    removal_order,
    remove_units,
    taylor_importance,
    without_layers,
)
from edgemin_utils.training import label_loss, predict

REMOVED = {"heads": [[0, 3], [], [1]], "neurons": [[5], list(range(40)), []]}
FROM_DATA = {"gradient": gradient_importance, "gradient-l2": gradient_l2_importance, "taylor": taylor_importance}


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


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_heads_neurons_and_a_layer_cut_together_equal_their_masks(family):
    """Every layer another shape, and the middle one gone."""
    model, batch = small_model(family), small_batch()
    masks = {units: full_masks(model, units) for units in ("heads", "neurons", "layers")}
    for units, removed in REMOVED.items():
        for mask, numbers in zip(masks[units], removed, strict=True):
            mask[numbers] = 0
    masks["layers"][1][0] = 0
    with (
        masked_units(model, masks["heads"]),
        masked_units(model, masks["neurons"], "neurons"),
        masked_units(model, masks["layers"], "layers"),
    ):
        masked = logits(model, batch)
    by_formula = sum(parameters_of_units(model, removed, units) for units, removed in REMOVED.items())
    before = sum(p.numel() for p in model.parameters())
    for units, removed in REMOVED.items():
        remove_units(model, removed, units)
    by_formula += parameters_of_layers(model, [1])  # of its ragged shape
    model = without_layers(model, [1])
    torch.testing.assert_close(logits(model, batch), masked, atol=2e-5, rtol=1e-4)
    assert before - sum(p.numel() for p in model.parameters()) == by_formula


def test_a_masked_layer_passes_its_input_through_whatever_the_others_do():
    model, batch = small_model(), small_batch()
    masks = full_masks(model, "layers")
    with masked_units(model, masks, "layers"):
        torch.testing.assert_close(logits(model, batch), logits(small_model(), batch), atol=1e-5, rtol=1e-5)
    masks[0][0] = masks[2][0] = 0
    with masked_units(model, masks, "layers"):
        masked = logits(model, batch)
    torch.testing.assert_close(logits(without_layers(model, [0, 2]), batch), masked, atol=2e-5, rtol=1e-4)


def test_parameters_of_a_layer_by_hand():
    """Hidden size 48, 4 heads of 12, 96 neurons: 4 (48 x 48 + 48) + 2 x 48 x 96 + 96 + 48 + 2 x 2 x 48."""
    assert parameters_of_layers(small_model(), [0]) == 4 * (48 * 48 + 48) + 2 * 48 * 96 + 96 + 48 + 4 * 48


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


@pytest.mark.parametrize("units", ["heads", "neurons", "layers"])
def test_gradient_importance_is_the_leave_a_little_out_loss_difference(units):
    """|dL/dmask| against the central difference of the loss when a unit is scaled by 1 ± epsilon, row by row."""
    rows, tokenizer = tokenized_sentences(6)
    model = small_model(vocabulary_size=len(tokenizer)).double()
    importance = gradient_importance(model, rows, tokenizer, double_loss, 4, units)
    place_of = {"heads": 2, "neurons": 2, "layers": 0}
    epsilon, total = 1e-5, 0.0
    for place in range(len(rows)):
        batch = {
            "input_ids": torch.tensor([rows[place]["input_ids"]]),
            "labels": torch.tensor([rows[place]["labels"]]),
            "attention_mask": torch.ones(1, rows[place]["length"], dtype=torch.long),
        }
        losses = []
        for factor in (1 + epsilon, 1 - epsilon):
            masks = [mask.double() for mask in full_masks(model, units)]
            masks[1][place_of[units]] = factor
            with masked_units(model, masks, units), torch.no_grad():
                losses.append(float(double_loss(model, batch)[0]))
        total += abs(losses[0] - losses[1]) / (2 * epsilon)
    assert importance[1][place_of[units]] == pytest.approx(total / len(rows), rel=1e-4)
    assert [len(values) for values in importance] == [{"heads": 4, "neurons": 96, "layers": 1}[units]] * 3


def test_gradient_l2_is_the_length_of_the_gradient_that_autograd_gives():
    """Row by row: a head's activations are perturbed by a tensor of zeros, whose gradient is taken."""
    rows, tokenizer = tokenized_sentences(5)
    model = small_model(vocabulary_size=len(tokenizer)).double()
    importance = gradient_l2_importance(model, rows, tokenizer, double_loss, 3)
    total = 0.0
    for place in range(len(rows)):
        batch = {
            "input_ids": torch.tensor([rows[place]["input_ids"]]),
            "labels": torch.tensor([rows[place]["labels"]]),
            "attention_mask": torch.ones(1, rows[place]["length"], dtype=torch.long),
        }
        nudge = torch.zeros(1, rows[place]["length"], 48, dtype=torch.float64, requires_grad=True)
        handle = encoder_layers(model)[1].attention_output.register_forward_pre_hook(
            lambda _module, inputs, nudge=nudge: (inputs[0] + nudge,)
        )
        double_loss(model, batch)[0].backward()
        handle.remove()
        total += float(nudge.grad[0, :, 24:36].norm())  # head 2
    assert importance[1][2] == pytest.approx(total / len(rows), rel=1e-6)


def test_taylor_is_the_gradient_score_averaged_over_a_units_activations():
    """Where all rows have M activations, it is 1/M of the gradient score; one row alone shows M = tokens x width."""
    rows, tokenizer = tokenized_sentences(12)
    model = small_model(vocabulary_size=len(tokenizer))
    same = rows.filter(lambda row: row["length"] == rows[0]["length"])
    assert len(same) > 1
    for units, width in (("heads", 12), ("neurons", 1), ("layers", 48)):
        taylor, gradient = (
            score(model, same, tokenizer, label_loss, 4, units) for score in (taylor_importance, gradient_importance)
        )
        for one, other in zip(taylor, gradient, strict=True):
            np.testing.assert_allclose(one * rows[0]["length"] * width, other, rtol=1e-4)


def test_leave_one_out_is_the_loss_of_the_cut_model_minus_that_of_the_whole():
    rows, tokenizer = tokenized_sentences(10)

    def mean_loss(model):
        logits = torch.from_numpy(predict(model, rows, tokenizer))
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(rows["labels"])))

    def model():
        return small_model(vocabulary_size=len(tokenizer))

    heads, layers = (
        leave_one_out_importance(model(), rows, tokenizer, label_loss, 4, units) for units in ("heads", "layers")
    )
    whole, headless = mean_loss(model()), model()
    remove_units(headless, [[], [2], []])
    assert heads[1][2] == pytest.approx(mean_loss(headless) - whole, abs=1e-5)
    assert [values[0] for values in layers] == pytest.approx(
        [mean_loss(without_layers(model(), [number])) - whole for number in range(3)], abs=1e-5
    )
    with pytest.raises(MethodRefused, match="neurons are too many"):
        leave_one_out_importance(model(), rows, tokenizer, label_loss, 4, "neurons")


@pytest.mark.parametrize("criterion", FROM_DATA)
def test_batches_and_padding_do_not_change_importance(criterion):
    rows, tokenizer = tokenized_sentences(7)
    model = small_model(vocabulary_size=len(tokenizer)).double()
    one, many = (FROM_DATA[criterion](model, rows, tokenizer, double_loss, size) for size in (1, 7))
    for first, second in zip(one, many, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-8)


def double_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"]), {}


@pytest.mark.parametrize("criterion", FROM_DATA)
def test_importance_of_a_head_that_does_nothing_is_zero(criterion):
    rows, tokenizer = tokenized_sentences(8)
    model = small_model(vocabulary_size=len(tokenizer))
    with torch.no_grad():
        encoder_layers(model)[1].attention_output.weight[:, 24:36] = 0  # head 2 reaches nothing
    importance = FROM_DATA[criterion](model, rows, tokenizer, label_loss, 4)
    assert importance[1][2] == 0 and (np.delete(importance[1], 2) > 0).all()


def test_magnitude_by_hand():
    model = small_model(layers=1)
    layer = encoder_layers(model)[0]
    with torch.no_grad():
        for linear in (
            layer.query,
            layer.key,
            layer.value,
            layer.attention_output,
            layer.feed_forward_in,
            layer.feed_forward_out,
        ):
            linear.weight.zero_()
        layer.query.weight[12:24] = 1.0  # head 1: 12 x 48 ones
        layer.attention_output.weight[:, 12:24] = 2.0  # and 48 x 12 twos
        layer.feed_forward_in.weight[7] = 3.0  # neuron 7: 48 threes
    np.testing.assert_allclose(magnitude_importance(model)[0], [0, (576 * 1 + 576 * 4) ** 0.5, 0, 0], rtol=1e-6)
    neurons = magnitude_importance(model, units="neurons")[0]
    assert neurons[7] == pytest.approx((48 * 9) ** 0.5) and np.count_nonzero(neurons) == 1
    assert magnitude_importance(model, units="layers")[0] == pytest.approx([(576 * 5 + 48 * 9) ** 0.5])


def test_a_share_is_not_lost_to_binary_rounding():
    assert 0.29 * 200 < 58 and plan_removal([np.arange(200.0)], 0.29) == [list(range(58))]


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


def test_what_stays_is_rounded_up_to_a_multiple():
    importance = [np.arange(100.0), np.arange(30.0), np.arange(8.0)]
    removed = plan_removal(importance, 0.5, multiple=16)
    # 50 stay: 64. 15 stay: 16. 4 stay: 16, more than there are, so all 8.
    assert [100 - len(removed[0]), 30 - len(removed[1]), 8 - len(removed[2])] == [64, 16, 8]
    assert removed[0] == list(range(36))  # the least important of those that were to go
    assert plan_removal(importance, 0, multiple=16) == [[], [], []]
    everywhere = plan_removal([np.array([1.0, 1e-9, 1e-9, 1e-9]), np.arange(1.0, 5.0)], 0.5, "global", multiple=2)
    assert everywhere == [[1, 2], []]  # one of the three stays after all, and the other layer's one too


def test_rounds_remove_what_one_cut_would():
    """Per layer and global, whatever importance says in between: the same numbers are gone in the end."""
    generator = np.random.default_rng(0)
    for scope in ("layer", "global"):
        left, counts, seen = [10, 7, 12], (10, 7, 12), []
        for number in range(1, 4):
            removed = plan_removal(
                [generator.random(count) for count in left], 0.5, scope, 1, Progress(counts, number, 3)
            )
            left = [count - len(numbers) for count, numbers in zip(left, removed, strict=True)]
            seen.append(sum(counts) - sum(left))
        whole = plan_removal([generator.random(count) for count in counts], 0.5, scope)
        assert seen[-1] == sum(map(len, whole)) and seen == sorted(seen) and seen[0] < seen[1] < seen[2]
        assert min(left) >= 1
        if scope == "layer":
            assert left == [5, 4, 6]


@pytest.mark.parametrize(
    "which, gone",
    [
        ("top-2", [2, 3]),
        ("least-2", [1, 3]),
        ("0-2", [0, 2]),
        ("3", [3]),
        ("spaced-0.5", [0, 2]),
        ("spaced-0.25", [2]),
        ("spaced-0.9", [0, 1, 2]),
    ],
)
def test_layers_to_drop(which, gone):
    importance = [np.array([value]) for value in (4.0, 1.0, 3.0, 2.0)]
    assert plan_layers(which, range(4), importance) == gone


@pytest.mark.parametrize(
    "count, share, stay",
    [(12, 0.5, [1, 3, 5, 7, 9, 11]), (3, 0.5, [0, 2]), (2, 0.5, [1]), (12, 0.34, [0, 2, 3, 5, 6, 8, 9, 11])],
)
def test_what_stays_is_evenly_spaced(count, share, stay):
    gone = plan_layers(f"spaced-{share}", range(count))
    assert sorted(set(range(count)) - set(gone)) == stay
    gaps = np.diff([-1, *stay])  # counted from the embeddings: no gap differs from another by more than one layer
    assert gaps.max() - gaps.min() <= 1 and len(gone) == int(share * count)


def test_layers_go_in_rounds_by_their_source_numbers():
    first, second = (Progress((1,) * 4, number, 2) for number in (1, 2))
    assert plan_layers("0-2", range(4), None, first) == [2] and plan_layers("0-2", [0, 1, 3], None, second) == [0]
    assert plan_layers("spaced-0.5", range(4), None, first) == [2]
    assert plan_layers("spaced-0.5", [0, 1, 3], None, second) == [0]
    assert plan_layers("top-3", range(4), None, first) == [3]
    assert plan_layers("top-3", [0, 1, 2], None, second) == [1, 2]
    # The least important one is chosen anew among those that are left.
    assert plan_layers("least-2", [0, 1, 3], [np.array([value]) for value in (4.0, 5.0, 1.0)], second) == [3]


@pytest.mark.parametrize(
    "which, message",
    [
        ("top-3", "at least one must stay"),
        ("0-1-2", "at least one must stay"),
        ("spaced-0.2", "is no layer; ask for a larger share"),
        ("3", "layer 3 cannot be dropped from a model of 3 layers"),
    ],
)
def test_layers_that_cannot_go_are_refused(which, message):
    with pytest.raises(MethodRefused, match=message):
        plan_layers(which, range(3), [np.ones(1)] * 3)


def test_layer_order_leaves_one():
    assert layer_removal_order([np.array([value]) for value in (2.0, 1.0, 3.0)]) == [(1, 0), (0, 0)]


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
    points = accuracy_as_units_go(model, rows, tokenizer, order, 16)
    labels = np.asarray(rows["labels"])
    assert [point["removed"] for point in points] == list(range(10))  # 12 heads, 3 layers keep one each
    assert points[0]["accuracy"] == (predict(model, rows, tokenizer).argmax(1) == labels).mean()
    removed = [[head for layer, head in order if layer == number] for number in range(3)]
    remove_units(model, removed)
    assert points[-1]["accuracy"] == (predict(model, rows, tokenizer).argmax(1) == labels).mean()
    layers = accuracy_as_units_go(model, rows, tokenizer, [(2, 0), (0, 0)], 16, "layers")
    assert layers[2]["accuracy"] == (predict(without_layers(model, [0, 2]), rows, tokenizer).argmax(1) == labels).mean()
    few = accuracy_as_units_go(small_model(vocabulary_size=len(tokenizer)), rows, tokenizer, order, 16, most_points=3)
    assert [point["removed"] for point in few] == [0, 3, 6, 9]


def test_every_criterion_that_settings_know_is_a_function():
    for name in PRUNING_CRITERIA:
        assert find_criterion(name).__name__ == f"{name.replace('-', '_')}_importance"


def test_unknown_criterion_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'gradient'"):
        find_criterion("gradients")
