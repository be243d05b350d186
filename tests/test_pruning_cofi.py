"""CoFi: hard concrete masks in closed form, sparsity in parameters, the Lagrangian's pull, and a cut like its masks."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import special
from small_models import logits, small_batch, small_model, small_rows

from edgemin_utils.distillation.losses import hidden_state_error
from edgemin_utils.distillation.teacher import Teacher, student_states
from edgemin_utils.encoders import describe_model
from edgemin_utils.errors import MethodRefused
from edgemin_utils.pruning import cofi
from edgemin_utils.pruning.cofi import Masks, cofi_rounds, cut_by, masked
from edgemin_utils.pruning.cut import Cut
from edgemin_utils.settings import load_settings
from edgemin_utils.training import BatchMaker, train

HEAD, NEURON = 4 * 12 * 48 + 3 * 12, 2 * 48 + 1  # parameters of one, at a hidden size of 48 and heads of 12
SETTINGS = load_settings("demo", {"batch_size": 8, "recovery_epochs": 4})


def masks_at(log_alphas, target=0.5):
    """Masks whose log α are these, one list of vectors for all layers' heads and then neurons."""
    masks = Masks(small_model(), target, 10, 1e-3)
    for moved, wanted in zip(masks.moved, log_alphas, strict=True):
        moved.data = torch.as_tensor(wanted, dtype=torch.float32) - cofi.START
    masks.pace = 1.0
    return masks


def drawn_alphas(seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 2, 1 + count) for count in (4, 4, 4, 96, 96, 96)]


def test_draws_are_hard_concrete_and_expected_sparsity_is_their_mean_and_a_sum_by_hand():
    """A unit's chance is that of uniform draws which lift the stretched sigmoid of Louizos et al. above zero."""
    alphas, left, whole = drawn_alphas(), 0.0, 3 * (4 * HEAD + 96 * NEURON)
    masks = masks_at(alphas)
    for place, values in enumerate(alphas):
        chances = 1 - special.expit(special.logit(0.1 / 1.2) / 1.5 - values)
        left += (HEAD if place < 3 else NEURON) * chances[0] * chances[1:].sum()
    assert masks.expected_sparsity().item() == pytest.approx(1 - left / whole, rel=1e-5)
    torch.manual_seed(0)
    draws = [masks.draw() for _ in range(3000)]
    drawn = [masks.sparsity([(units > 0).float() for units in draw]).item() for draw in draws]
    assert np.mean(drawn) == pytest.approx(1 - left / whole, abs=0.01)
    torch.manual_seed(0)
    for units, values in zip(draws[0], alphas, strict=True):
        u = torch.rand(len(values)).double().numpy()
        z = np.clip(1.2 * special.expit((special.logit(u) + values) * 1.5) - 0.1, 0, 1)
        np.testing.assert_allclose(units.detach(), z[0] * z[1:], atol=1e-5)


@pytest.mark.parametrize("target, pull", [(0.9, -1), (0.1, 1)])
def test_the_lagrangian_pulls_masks_to_the_target_and_pushes_its_multipliers_apart(target, pull):
    """Under the target descent shuts masks and lowers the first multiplier; over it the opposite; the second rises."""
    masks = masks_at(drawn_alphas(), target)
    masks.step = masks.steps  # the target has risen to the whole
    masks.multipliers.data = torch.tensor([pull * 0.5, 1.0])
    gap = masks.expected_sparsity().item() - target
    value = masks.constraint()
    value.backward()
    assert value.item() == pytest.approx(pull * 0.5 * gap + gap**2, rel=1e-4) and np.sign(gap) == pull
    assert all((pull * moved.grad <= 0).all() for moved in masks.moved)  # descent moves log α by -gradient
    np.testing.assert_allclose(masks.multipliers.grad, [-gap, -(gap**2)], rtol=1e-4)
    masks.step = 0
    assert masks.constraint().item() == pytest.approx(pull * 0.5 * (gap + target) + (gap + target) ** 2, rel=1e-4)


def test_a_step_is_quickened_and_its_gradient_is_not():
    masks = Masks(small_model(), 0.5, steps=50, learning_rate=1e-3)
    assert masks.pace * 1e-3 * 50 / 2 == pytest.approx(cofi.TRAVEL)
    masks.moved[0].data += 1e-4
    assert masks.log_alphas()[0][0].item() == pytest.approx(cofi.START + 1e-4 * masks.pace, rel=1e-5)
    masks.log_alphas()[0].sum().backward()
    assert (masks.moved[0].grad == 1).all()


def test_a_cut_computes_what_its_masks_compute_and_loses_what_the_formula_says(family):
    """The second layer's two blocks are shut, of the first its attention, of the third its feed-forward."""
    model, batch, alphas = small_model(family), small_batch(), drawn_alphas()
    for vector, block in zip(alphas, [-9, -9, 3, 3, -9, -9], strict=True):
        vector[0] = block
    masks = masks_at(alphas, 0.75)
    factors, before, untouched = masks.settled(), model.num_parameters(), logits(model, batch)
    assert [bool(units.any()) for units in factors] == [False, False, True, True, False, False]
    with masked(model, factors) as alive:
        wanted = logits(model, batch)
    assert alive == [0, 2] and (wanted - untouched).abs().max() > 1e-3
    cut = Cut(model, "cofi")
    cut_by(cut, factors)
    torch.testing.assert_close(logits(cut.model, batch), wanted, atol=2e-5, rtol=1e-4)
    shapes = describe_model(cut.model)
    heads, neurons = ((factors[place] > 0).sum().item() for place in (2, 3))
    assert (shapes["heads"], shapes["intermediate_sizes"], cut.removed) == ([1, heads], [neurons, 1], [[1]])
    units, whole = (1 + heads) * HEAD + (neurons + 1) * NEURON, 3 * (4 * HEAD + 96 * NEURON)
    assert before - cut.model.num_parameters() == cut.parameters_removed == whole - units + 6 * 48
    assert masks.sparsity(cofi.kept_units([one > 0 for one in factors])).item() == pytest.approx(1 - units / whole)


@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shift", [4.0, -4.0])  # all open, and all but shut
def test_a_cut_holds_its_target_whatever_the_masks_say(target, shift):
    """Units go in the order of their own or their block's log α, whichever is lower."""
    alphas = [values + shift for values in drawn_alphas(1)]
    masks = masks_at(alphas, target)
    factors = masks.settled()
    gone = masks.sparsity(cofi.kept_units([units > 0 for units in factors])).item()
    assert target <= gone < target + 0.07  # a head is 5 % of the units' parameters
    scores = np.concatenate([np.minimum(values[0], values[1:]) for values in alphas])
    kept = torch.cat(factors).numpy() > 0
    assert scores[kept].min() > scores[~kept].max()


def test_each_teacher_layer_teaches_the_nearest_living_layer():
    rows = small_rows(8)
    models = [small_model(layers=layers, vocabulary_size=len(rows.tokenizer), seed=layers) for layers in (3, 6)]
    # The middle layer never lives, the others' blocks always do.
    masks = masks_at([np.full(1 + count, log_alpha) for count in (4, 96) for log_alpha in (40, -40, 40)])
    phase = cofi.mask_phase(models[0], masks, SETTINGS, Teacher(models[1], rows.tokenizer, rows, SETTINGS), 0)
    batch = BatchMaker(rows.train, rows.tokenizer)(range(4))
    _, found = phase.loss(models[0], batch)
    wanted = student_states(models[1], batch, [f"hidden.{layer}" for layer in (0, 2, 3, 5)])
    with masked(models[0], masks.draw()):  # always the same, so far from zero
        given = student_states(models[0], batch, ["hidden.0", "hidden.2"])
    states, mask = given.values(), batch["attention_mask"]
    nearest = [min(hidden_state_error(theirs, own, mask).item() for own in states) for theirs in wanted.values()]
    assert found["nearest layers"].item() == pytest.approx(sum(nearest), rel=1e-4)


@pytest.mark.parametrize("taught", [True, False])
def test_masks_are_learned_and_then_shut_units_go(taught):
    rows = small_rows(64)
    model, other = (small_model(vocabulary_size=len(rows.tokenizer), seed=seed) for seed in (0, 1))
    teacher = Teacher(other, rows.tokenizer, rows, SETTINGS) if taught else None
    for cut in cofi_rounds(model, "0.5", SETTINGS, teacher, rows):
        if cut.phase:
            assert (cut.round, cut.rounds, cut.parameters_removed) == (1, 2, 0)
            phase = dataclasses.replace(cut.phase, epochs=2, learning_rate=SETTINGS.recovery_learning_rate)
            history = train(model, rows, [phase], SETTINGS, 0).history
    assert history[-1]["sparsity"] > history[0]["sparsity"] and ("nearest layers" in history[0]) == taught
    assert cut.round == 2 and cut.parameters_removed >= 0.5 * 3 * (4 * HEAD + 96 * NEURON)
    with pytest.raises(MethodRefused, match="leave recovery_epochs"):
        next(cofi_rounds(model, "0.5", dataclasses.replace(SETTINGS, recovery_epochs=0), None, rows))
    with pytest.raises(MethodRefused, match="keeps nothing at a sparsity of 0.5"):
        Masks(model, 0.5, 10, 1e-3).settled()  # nothing learned: no unit before another
