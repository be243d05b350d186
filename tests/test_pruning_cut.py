"""What goes, in how many rounds, by how many parameters; and what masking it costs."""

import dataclasses

import numpy as np
import pytest
from small_models import small_model, small_rows

from edgemin_utils.encoders import describe_model, encoder_layers, model_with_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.pruning import cut as cutting
from edgemin_utils.pruning.importance import importance
from edgemin_utils.settings import load_settings
from edgemin_utils.training import predict

PLAIN = load_settings("demo")
CUTS = [("heads", "0.5", {}), *(("layers", value, {}) for value in ("top-1", "0-2", "least-1"))]
CUTS += [("neurons", "0.3", {"multiple": 16, "rounds": 3}), ("neurons", "0.4", {"scope": "global"})]
UNRANKED = [("layers", "top-1", [[2]]), ("uncut", "", []), ("vocabulary", "", [[*range(20, 60)]])]
NUMBERED, RANKED = [np.arange(12.0)] * 12, [np.array([1.0, 2.0, 3.0]), np.array([1.0, 1e-9, 1e-9])]
PLANS = [
    (NUMBERED, (0.2,), [[0, 1]] * 12),  # int(0.2 * 12) is 2 heads in each layer: 24 of 144, 16.7 %, not 20 %
    ([np.arange(200.0)], (0.29,), [[*range(58)]]),  # although 0.29 * 200 < 58 in binary
    (NUMBERED, (0.2, "global"), [[0, 1, 2]] * 4 + [[0, 1]] * 8),  # int(0.2 * 144) is 28
    (RANKED, (0.9, "global"), [[0, 1], [1, 2]]),  # one stays in every layer
    (RANKED, (0.34, "global"), [[], [1, 2]]),
    ([np.array([3.0, 4.0]), np.array([0.1, 1.0])], (0.25, "global"), [[], [0]]),  # 3/5, 4/5 against about 0.1, 1
    # 50 stay: 64. 15 stay: 16. 4 stay: 16, more than there are, so all 8.
    ([np.arange(100.0), np.arange(30.0), np.arange(8.0)], (0.5, "layer", 16), [[*range(36)], [*range(14)], []]),
    ([np.arange(100.0)], (0, "layer", 16), [[]]),
    # One of the three stays after all, and the other layer's one too.
    ([np.array([1.0, 1e-9, 1e-9, 1e-9]), np.arange(1.0, 5.0)], (0.5, "global", 2), [[1, 2], []]),
]
LAYERS = [("top-2", 4, [2, 3]), ("least-2", 4, [1, 3]), ("0-2", 4, [0, 2]), ("3", 4, [3])]
# What stays is evenly spaced, counted from the embeddings: no gap differs from another by more than one layer.
LAYERS += [("spaced-0.5", 3, [1]), ("spaced-0.5", 12, [0, 2, 4, 6, 8, 10]), ("spaced-0.34", 12, [1, 4, 7, 10])]


def magnitude(model, units):
    return importance("magnitude", model, None, None, units)


@pytest.mark.parametrize("units, value, changes", CUTS)
def test_parameters_removed_equal_the_closed_formula_and_the_count(family, units, value, changes):
    *_, cut = cutting.rounds(small_model(family), units, value, dataclasses.replace(PLAIN, **changes), magnitude)
    shapes = describe_model(cut.model)
    # Hidden size 48, heads of 12, four heads and 96 neurons in each of three layers.
    heads, neurons = 12 - sum(shapes["heads"]), 3 * 96 - sum(shapes["intermediate_sizes"])
    by_hand = heads * (4 * 12 * 48 + 3 * 12) + neurons * (2 * 48 + 1) + (3 - shapes["layers"]) * 6 * 48
    assert small_model(family).num_parameters() - cut.model.num_parameters() == cut.parameters_removed == by_hand > 0


def test_what_is_gone_is_told_in_the_sources_numbers():
    """Three rounds over layers of eight heads, of which the first ones matter least."""
    sizes = []

    def by(model, units):
        return [np.arange(layer.num_heads, dtype=float) for layer in encoder_layers(model)]

    for cut in cutting.rounds(small_model(layers=4, heads=8), "heads", "0.5", dataclasses.replace(PLAIN, rounds=3), by):
        sizes.append(describe_model(cut.model)["heads"])
    assert sizes == [[7] * 4, [6] * 4, [4] * 4]  # int(0.5 x 8) = 4 in three rounds: 1, 2, 4
    assert cut.removed == [[0, 1, 2, 3]] * 4 and (cut.round, cut.rounds) == (3, 3)


@pytest.mark.parametrize("units, value, gone", UNRANKED)
def test_what_is_not_ranked_goes_in_one_round_and_needs_no_importance(units, value, gone):
    (cut,) = cutting.rounds(small_model(), units, value, dataclasses.replace(PLAIN, rounds=3), None, range(20))
    assert cut.removed == gone and bool(cut.parameters_removed) == (units != "uncut")
    assert cut.parameters_removed == small_model().num_parameters() - cut.model.num_parameters()
    assert cut.describe()["removed"] == ([40] if units == "vocabulary" else gone)


@pytest.mark.parametrize("values, asked, gone", PLANS)
def test_plans_by_hand(values, asked, gone):
    assert cutting.plan_removal(values, *asked) == gone


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rounds_remove_what_one_cut_would(scope):
    """Whatever importance says in between: as many are gone in the end."""
    generator = np.random.default_rng(0)
    left, counts, seen = [10, 7, 12], [10, 7, 12], [29]
    for number in range(1, 4):
        removed = cutting.plan_removal([generator.random(count) for count in left], 0.5, scope, 1, counts, (number, 3))
        left = [count - len(numbers) for count, numbers in zip(left, removed, strict=True)]
        seen.append(sum(left))
    assert seen[3] < seen[2] < seen[1] < seen[0] and min(left) >= 1
    assert left == [5, 4, 6] if scope == "layer" else seen[3] == 29 - int(0.5 * 29)


@pytest.mark.parametrize("which, count, gone", LAYERS)
def test_layers_to_drop(which, count, gone):
    values = [np.array([value]) for value in (4.0, 1.0, 3.0, 2.0)]
    assert cutting.plan_layers(which, count, values) == gone
    assert cutting.layer_removal_order(values) == [(1, 0), (3, 0), (2, 0)]  # one is left


def test_a_curve_starts_at_the_whole_model_and_ends_at_one_head_a_layer():
    made = small_rows(30)
    rows, tokenizer, labels = made.train, made.tokenizer, np.asarray(made.train["labels"])
    model = small_model(vocabulary_size=len(tokenizer))

    def accuracy(model):
        return (predict(model, rows, tokenizer).argmax(1) == labels).mean()

    order = cutting.removal_order(magnitude(model, "heads"))
    points = cutting.accuracy_as_units_go(model, rows, tokenizer, order, 16, "heads")
    assert [point["removed"] for point in points] == list(range(10))  # 12 heads, 3 layers keep one each
    assert points[0]["accuracy"] == accuracy(model)
    few = cutting.accuracy_as_units_go(model, rows, tokenizer, order, 16, "heads", 3)
    assert [point["removed"] for point in few] == [0, 3, 6, 9]
    cutting.remove_units(model, [[head for layer, head in order if layer == number] for number in range(3)])
    assert points[-1]["accuracy"] == accuracy(model)
    layers = cutting.accuracy_as_units_go(model, rows, tokenizer, [(2, 0), (0, 0)], 16, "layers")
    assert layers[2]["accuracy"] == accuracy(model_with_layers(model, [1]))


@pytest.mark.parametrize("units, total", [("heads", 8), ("neurons", 40), ("layers", 2)])
def test_a_scan_has_a_curve_for_every_order(units, total):
    rows = small_rows(20)
    model = small_model(layers=2, intermediate_size=20, vocabulary_size=len(rows.tokenizer))
    settings = load_settings("demo", {"scan_rows": 10, "importance_rows": 8, "random_draws": 2})
    found = cutting.scan_units(model, units, rows.train, rows.tokenizer, settings)
    more, left = ({"leave-one-out", "top"}, 1) if units == "layers" else (set(), 2)
    assert found["curves"].keys() == {"gradient", "magnitude", "random-1", "random-2", *more}
    assert all(curve[-1]["removed"] == total - left for curve in found["curves"].values())
    assert (found["total"], found["rows"], bool(found["importance"])) == (total, 10, units != "neurons")


def test_what_cannot_go_is_refused():
    layers = [(which, "one must stay") for which in ("least-3", "0-1-2")]
    for which, message in [*layers, ("3", "layer 3 cannot be dropped"), ("spaced-0.2", "is no layer")]:
        with pytest.raises(MethodRefused, match=message):
            cutting.plan_layers(which, 3, [np.ones(1)] * 3)
    for asked, message in (((1,), "and under 1"), ((-0.1,), "and under 1"), ((0.5, "globe"), "did you mean 'global'")):
        with pytest.raises(SettingError, match=message):
            cutting.plan_removal([np.arange(4.0)], *asked)
