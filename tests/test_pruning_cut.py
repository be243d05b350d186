"""What goes, in how many rounds, by how many parameters; and what masking it costs."""

import dataclasses

import numpy as np
import pytest
import torch
from small_models import FAMILY_NAMES, LABELS, small_model, small_rows, tokenized_sentences

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.encoders import describe_model, scratch_model
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.pruning import cut as cutting
from edgemin_utils.pruning.cut import plan_layers, plan_removal, removal_order, remove_units, rounds, without_layers
from edgemin_utils.pruning.importance import importance
from edgemin_utils.pruning.scan import accuracy_as_units_go, scan_units
from edgemin_utils.settings import load_settings
from edgemin_utils.training import Phase, label_loss, predict, train

PLAIN = load_settings("demo", {"batch_size": 8})


def magnitude(model, units):
    return importance("magnitude", model, None, None, units)


def cut_model(model, units, value, by=magnitude, **changes):
    """The cut after all rounds."""
    *_, cut = rounds(model, units, value, dataclasses.replace(PLAIN, **changes), by)
    return cut


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    "units, value, changes",
    [("heads", "0.5", {}), ("neurons", "0.3", {"multiple": 16, "rounds": 3}), ("neurons", "0.4", {"scope": "global"})]
    + [("layers", value, {}) for value in ("top-1", "0-2", "least-1")],
)
def test_parameters_removed_equal_the_closed_formula_and_the_count(family, units, value, changes):
    model = small_model(family)
    before = parameters(model)
    cut = cut_model(model, units, value, **changes)
    shapes = describe_model(cut.model)
    assert before - parameters(cut.model) == cut.parameters_removed > 0
    # Hidden size 48, heads of 12, four heads and 96 neurons a layer.
    whole_layer = 4 * (4 * 12 * 48 + 3 * 12) + 96 * (2 * 48 + 1) + 6 * 48
    left = sum(
        heads * (4 * 12 * 48 + 3 * 12) + neurons * (2 * 48 + 1) + 6 * 48
        for heads, neurons in zip(shapes["heads"], shapes["intermediate_sizes"], strict=True)
    )
    assert cut.parameters_removed == 3 * whole_layer - left


def test_what_is_gone_is_told_in_the_sources_numbers():
    """Three rounds over layers of eight heads whose importance is their own number."""
    left, sizes = [list(range(8)) for _ in range(4)], []

    def by(model, units):
        assert units == "heads"
        return [np.array(numbers, dtype=float) for numbers in left]

    for cut in rounds(small_model(layers=4, heads=8), "heads", "0.5", dataclasses.replace(PLAIN, rounds=3), by):
        left = [[head for head in range(8) if head not in gone] for gone in cut.removed]
        sizes.append(describe_model(cut.model)["heads"])
    assert sizes == [[7] * 4, [6] * 4, [4] * 4]  # int(0.5 x 8) = 4 in three rounds: 1, 2, 4
    assert cut.removed == [[0, 1, 2, 3]] * 4 and (cut.round, cut.rounds) == (3, 3)
    assert cut.describe()["importance"] == [list(range(8))] * 4  # of the first round


@pytest.mark.parametrize("units, value", [("layers", "top-1"), ("uncut", ""), ("vocabulary", "")])
def test_importance_is_asked_only_for_what_is_ranked_and_such_cuts_have_one_round(units, value):
    def by(model, units):
        raise AssertionError(units)

    model = small_model()
    kept = range(20) if units == "vocabulary" else ()
    (cut,) = rounds(model, units, value, dataclasses.replace(PLAIN, rounds=3), by, kept)
    gone = {"layers": [[2]], "uncut": [], "vocabulary": [list(range(20, 60))]}[units]
    assert cut.removed == gone and bool(cut.parameters_removed) == (units != "uncut")
    assert cut.parameters_removed == parameters(small_model()) - parameters(cut.model)
    assert cut.describe()["removed"] == ([40] if units == "vocabulary" else gone)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_ragged_models_are_saved_reloaded_and_trained_further(family, tmp_path):
    rows = small_rows(32)
    torch.manual_seed(0)
    model = scratch_model(family, 3, 48, 4, 96, len(rows.tokenizer), LABELS, 64, rows.tokenizer.pad_token_id, 0.0)
    cut = cut_model(cut_model(model.eval(), "heads", "0.5", scope="global").model, "neurons", "0.4", scope="global")
    assert len(set(describe_model(cut.model)["intermediate_sizes"])) > 1
    save_model(cut.model, tmp_path, rows.tokenizer)
    again = load_model(tmp_path)
    before = predict(again, rows.train, rows.tokenizer)
    assert np.array_equal(before, predict(cut.model, rows.train, rows.tokenizer))
    log = train(again, rows, [Phase("recovery", 2, 1e-3, label_loss)], PLAIN, 0)
    assert log.history[-1]["loss"] < log.history[0]["loss"]
    assert describe_model(again) == describe_model(cut.model)


def test_plan_counts_as_the_paper_does():
    """int(0.2 * 12) is 2 heads in each layer: 24 of 144, 16.7 %, not 20 %."""
    values = [np.arange(12.0)] * 12
    assert plan_removal(values, 0.2) == [[0, 1]] * 12
    assert sum(map(len, plan_removal(values, 0.2, "global"))) == int(0.2 * 144) == 28
    # A share is not lost to binary rounding.
    assert 0.29 * 200 < 58 and plan_removal([np.arange(200.0)], 0.29) == [list(range(58))]


def test_global_plan_leaves_one_head_in_every_layer():
    values = [np.array([1.0, 2.0, 3.0]), np.array([1.0, 1e-9, 1e-9])]
    assert plan_removal(values, 0.9, "global") == [[0, 1], [1, 2]]
    assert plan_removal(values, 0.34, "global") == [[], [1, 2]]
    # Layers are ranked together by shares of their length: 3/5, 4/5 against about 0.1, 1.
    assert removal_order([np.array([3.0, 4.0]), np.array([0.1, 1.0])]) == [(1, 0), (0, 0)]


def test_what_stays_is_rounded_up_to_a_multiple():
    values = [np.arange(100.0), np.arange(30.0), np.arange(8.0)]
    removed = plan_removal(values, 0.5, multiple=16)
    # 50 stay: 64. 15 stay: 16. 4 stay: 16, more than there are, so all 8.
    assert [100 - len(removed[0]), 30 - len(removed[1]), 8 - len(removed[2])] == [64, 16, 8]
    assert removed[0] == list(range(36))  # the least important of those that were to go
    assert plan_removal(values, 0, multiple=16) == [[], [], []]
    everywhere = plan_removal([np.array([1.0, 1e-9, 1e-9, 1e-9]), np.arange(1.0, 5.0)], 0.5, "global", multiple=2)
    assert everywhere == [[1, 2], []]  # one of the three stays after all, and the other layer's one too


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rounds_remove_what_one_cut_would(scope):
    """Whatever importance says in between: the same numbers are gone in the end."""
    generator = np.random.default_rng(0)
    left, counts, seen = [10, 7, 12], (10, 7, 12), []
    for number in range(1, 4):
        values = [generator.random(count) for count in left]
        removed = plan_removal(values, 0.5, scope, 1, counts, (number, 3))
        left = [count - len(numbers) for count, numbers in zip(left, removed, strict=True)]
        seen.append(sum(counts) - sum(left))
    whole = plan_removal([generator.random(count) for count in counts], 0.5, scope)
    assert seen[-1] == sum(map(len, whole)) and seen[0] < seen[1] < seen[2] and min(left) >= 1
    assert scope == "global" or left == [5, 4, 6]


@pytest.mark.parametrize(
    "which, gone",
    [("top-2", [2, 3]), ("least-2", [1, 3]), ("0-2", [0, 2]), ("3", [3])]
    + [("spaced-0.5", [0, 2]), ("spaced-0.25", [2]), ("spaced-0.9", [0, 1, 2])],
)
def test_layers_to_drop(which, gone):
    values = [np.array([value]) for value in (4.0, 1.0, 3.0, 2.0)]
    assert plan_layers(which, 4, values) == gone
    assert cutting.layer_removal_order(values) == [(1, 0), (3, 0), (2, 0)]  # one is left


@pytest.mark.parametrize(
    "count, share, stay",
    [(12, 0.5, [1, 3, 5, 7, 9, 11]), (3, 0.5, [0, 2]), (2, 0.5, [1]), (12, 0.34, [0, 2, 3, 5, 6, 8, 9, 11])],
)
def test_what_stays_is_evenly_spaced(count, share, stay):
    gone = plan_layers(f"spaced-{share}", count)
    assert sorted(set(range(count)) - set(gone)) == stay
    gaps = np.diff([-1, *stay])  # counted from the embeddings: no gap differs from another by more than one layer
    assert gaps.max() - gaps.min() <= 1 and len(gone) == int(share * count)


def test_a_curve_starts_at_the_whole_model_and_ends_at_one_head_a_layer():
    rows, tokenizer = tokenized_sentences(30)
    model, labels = small_model(vocabulary_size=len(tokenizer)), np.asarray(rows["labels"])

    def accuracy(model):
        return (predict(model, rows, tokenizer).argmax(1) == labels).mean()

    order = removal_order(magnitude(model, "heads"))
    points = accuracy_as_units_go(model, rows, tokenizer, order, 16)
    assert [point["removed"] for point in points] == list(range(10))  # 12 heads, 3 layers keep one each
    assert points[0]["accuracy"] == accuracy(model)
    few = accuracy_as_units_go(model, rows, tokenizer, order, 16, most_points=3)
    assert [point["removed"] for point in few] == [0, 3, 6, 9]
    remove_units(model, [[head for layer, head in order if layer == number] for number in range(3)])
    assert points[-1]["accuracy"] == accuracy(model)
    layers = accuracy_as_units_go(model, rows, tokenizer, [(2, 0), (0, 0)], 16, "layers")
    assert layers[2]["accuracy"] == accuracy(without_layers(model, [0, 2]))


@pytest.mark.parametrize("units, total", [("heads", 8), ("neurons", 40), ("layers", 2)])
def test_a_scan_has_a_curve_for_every_order(units, total):
    rows, tokenizer = tokenized_sentences(20)
    model = small_model(layers=2, intermediate_size=20, vocabulary_size=len(tokenizer))
    settings = load_settings("demo", {"scan_rows": 10, "importance_rows": 8, "random_draws": 2})
    found = scan_units(model, units, rows, rows, tokenizer, settings)
    orders = {"gradient", "magnitude", "random-1", "random-2"}
    orders |= {"leave-one-out", "top"} if units == "layers" else set()
    assert found["curves"].keys() == orders and (found["total"], found["rows"]) == (total, 10)
    assert all(curve[-1]["removed"] == total - (1 if units == "layers" else 2) for curve in found["curves"].values())
    assert bool(found["importance"]) == (units != "neurons")


@pytest.mark.parametrize(
    "call, message",
    [(lambda which=which: plan_layers(which, 3, [np.ones(1)] * 3), "one must stay") for which in ("top-3", "least-3")]
    + [(lambda: plan_layers("0-1-2", 3), "one must stay"), (lambda: plan_layers("3", 3), "layer 3 cannot be dropped")]
    + [(lambda: plan_layers("spaced-0.2", 3), "is no layer; ask for a larger share")]
    + [(lambda: plan_removal([np.arange(4.0)], 0.5, "globe"), "did you mean 'global'")]
    + [(lambda ratio=ratio: plan_removal([np.arange(4.0)], ratio), "and under 1") for ratio in (1, 1.5, -0.1)],
)
def test_what_cannot_go_is_refused(call, message):
    with pytest.raises((MethodRefused, SettingError), match=message):
        call()
