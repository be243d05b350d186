"""The losses: hand-worked values, properties, and an independent NumPy version of each in float64."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from edgemin_utils.distillation import losses
from edgemin_utils.distillation.shd import squeeze_heads
from edgemin_utils.errors import ModelError

MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5, [1] + [0] * 6])


def random_states(*shape, seed=0):
    """Float64, so that the NumPy versions are met to many digits."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(mask, *states):
    """The real tokens of each row, as NumPy arrays."""
    for row, length in enumerate(mask.sum(1).tolist()):
        yield [each[row, :length].numpy() for each in states]


def divergence(teacher_scores, student_scores):
    """KL of each row of two score matrices, from the definition."""
    teacher, student = softmax(teacher_scores, axis=-1), softmax(student_scores, axis=-1)
    return (teacher * np.log(teacher / student)).sum(-1)


def relations(first, second, heads):
    """Score matrices, one a head, of (tokens, hidden) arrays."""
    size = first.shape[-1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        yield first[:, part] @ second[:, part].T / np.sqrt(size)


# ---- relations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3, 6])
@pytest.mark.parametrize("pair", [(0, 0), (0, 1)])
def test_relation_divergence_equals_the_independent_numpy_version(heads, pair):
    teacher = [random_states(4, 7, 24, seed=seed) for seed in pair]
    student = [random_states(4, 7, 12, seed=seed + 2) for seed in pair]  # another hidden size
    ours = losses.relation_divergence(
        losses.relation_scores(*teacher, heads), losses.relation_scores(*student, heads), MASK
    )
    total, count = 0.0, 0
    for first, second, third, fourth in rows_of(MASK, *teacher, *student):
        for theirs, own in zip(relations(first, second, heads), relations(third, fourth, heads), strict=True):
            total, count = total + divergence(theirs, own).sum(), count + len(theirs)
    assert float(ours) == pytest.approx(total / count, rel=1e-10)


def test_hand_worked_two_tokens():
    """One head of size 1, teacher tokens (1, 0), student tokens (0, 0).

    Teacher scores [[1, 0], [0, 0]]: rows (e/(e+1), 1/(e+1)) and (1/2, 1/2); student rows are (1/2, 1/2).
    KL of row 1: p ln(2p) + q ln(2q) with p = 0.7310586 and q = 0.2689414, that is 0.11094; of row 2: 0. The mean over
    two tokens is half of it.
    """
    p = np.e / (np.e + 1)
    by_hand = (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))) / 2
    teacher, student = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 2, 1)
    ours = losses.relation_divergence(
        losses.relation_scores(teacher, teacher, 1), losses.relation_scores(student, student, 1), torch.ones(1, 2)
    )
    assert float(ours) == pytest.approx(by_hand, abs=1e-7) and by_hand == pytest.approx(0.05547, abs=1e-5)


def test_more_relation_heads_than_attention_heads_are_free():
    states = random_states(1, 3, 48)
    assert losses.relation_scores(states, states, 48).shape == (1, 48, 3, 3)
    with pytest.raises(ModelError, match="7 relation heads do not divide the hidden size 48"):
        losses.relation_scores(states, states, 7)


# ---- soft targets ----------------------------------------------------------------------------------------------


def test_soft_targets_follow_hinton():
    """T² KL by hand for one row; its gradient tends to (student - teacher) / labels as T grows (section 2.1)."""
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]], requires_grad=True)
    p, q = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum(), np.exp([0.0, 0.5]) / np.exp([0.0, 0.5]).sum()
    by_hand = 4 * (p * np.log(p / q)).sum()
    assert losses.soft_target_divergence(teacher, student, 2.0).item() == pytest.approx(by_hand, rel=1e-6)
    centred = (student - student.mean()) - (teacher - teacher.mean())
    losses.soft_target_divergence(teacher, student, 1000.0).backward()
    torch.testing.assert_close(student.grad, centred.detach() / 2, atol=1e-2, rtol=1e-2)


# ---- the others against NumPy ----------------------------------------------------------------------------------


def test_soft_targets_and_labels_equal_numpy():
    teacher, student, labels = random_states(5, 3), random_states(5, 3, seed=1), torch.tensor([0, 2, 1, 1, -1])
    expected = 9 * divergence(teacher.numpy() / 3, student.numpy() / 3).mean()
    assert float(losses.soft_target_divergence(teacher, student, 3.0)) == pytest.approx(expected, rel=1e-10)
    # The last row has no label: it counts as a row, and adds nothing.
    by_row = [-log_softmax(row)[label] for row, label in zip(student.numpy(), labels.numpy(), strict=True)]
    assert float(losses.label_divergence(student, labels)) == pytest.approx(sum(by_row[:4]) / 5, rel=1e-10)


def test_attention_error_equals_numpy():
    teacher, student = random_states(4, 2, 7, 7), random_states(4, 2, 7, 7, seed=1)
    squared, count = 0.0, 0
    for row, length in enumerate(MASK.sum(1).tolist()):
        for head in range(2):
            difference = (teacher - student)[row, head, :length, :length].numpy()
            squared, count = squared + (difference**2).sum(), count + length**2
    assert float(losses.attention_error(teacher, student, MASK)) == pytest.approx(squared / count, rel=1e-10)


def test_hidden_state_error_and_cosine_distance_equal_numpy():
    teacher, student = random_states(4, 7, 6), random_states(4, 7, 6, seed=1)
    theirs, own = (np.concatenate([states for (states,) in rows_of(MASK, each)]) for each in (teacher, student))
    assert float(losses.hidden_state_error(teacher, student, MASK)) == pytest.approx(((theirs - own) ** 2).mean())
    cosine = (theirs * own).sum(1) / np.linalg.norm(theirs, axis=1) / np.linalg.norm(own, axis=1)
    assert float(losses.cosine_distance(teacher, student, MASK)) == pytest.approx((1 - cosine).mean(), rel=1e-10)


def test_patience_equals_numpy_and_two_minus_twice_the_cosine():
    teacher, student = random_states(4, 6), random_states(4, 6, seed=1)
    theirs, own = (each.numpy() / np.linalg.norm(each.numpy(), axis=1, keepdims=True) for each in (teacher, student))
    ours = float(losses.patience(teacher, student))
    assert ours == pytest.approx(((theirs - own) ** 2).sum(1).mean(), rel=1e-10)
    assert ours == pytest.approx((2 - 2 * (theirs * own).sum(1)).mean(), rel=1e-10)


def test_sample_divergence_equals_numpy():
    teacher, student = random_states(5, 8), random_states(5, 3, seed=1)
    theirs, own = (each.numpy() @ each.numpy().T / np.sqrt(each.shape[1]) for each in (teacher, student))
    assert float(losses.sample_divergence(teacher, student)) == pytest.approx(divergence(theirs, own).mean(), rel=1e-10)


def test_contrastive_loss_equals_numpy():
    teacher, student, labels = random_states(4, 6), random_states(4, 6, seed=1), torch.tensor([0, 1, -1, 1])
    kept = [0, 1, 3]  # the third row has no label
    vectors = np.concatenate([each.numpy()[kept] for each in (teacher, student)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    named, total = [0, 1, 1] * 2, 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        whole = np.log(sum(np.exp(vectors[i] @ vectors[j] / 0.1) for j in others))
        positives = [j for j in others if named[j] == named[i]]
        total -= np.mean([vectors[i] @ vectors[j] / 0.1 - whole for j in positives])
    assert float(losses.contrastive_loss(teacher, student, labels, 0.1)) == pytest.approx(total / 6, rel=1e-10)
    nothing = losses.contrastive_loss(teacher, student.requires_grad_(), torch.full((4,), -1), 0.1)
    nothing.backward()
    assert float(nothing) == 0 and float(student.grad.abs().sum()) == 0


# ---- squeezed heads --------------------------------------------------------------------------------------------


def random_attention(heads, tokens=7, seed=0):
    return losses.log_attention(random_states(4, heads, tokens, tokens, seed=seed), MASK).exp()


def test_two_squeezed_heads_have_the_share_that_least_squares_gives():
    attention, outputs = random_attention(2), random_states(4, 2, 7, 5, seed=1)
    squeezed = squeeze_heads(attention, outputs, MASK, 1)
    for row, length in enumerate(MASK.sum(1).tolist()):
        (first, second), (x, y) = (each[row, :, :length].numpy() for each in (attention, outputs))
        first, second = first[:, :length], second[:, :length]
        target = (first @ x + second @ y - second @ (x + y)).ravel()
        share = np.linalg.lstsq(((first - second) @ (x + y)).ravel()[:, None], target, rcond=None)[0][0]
        share = min(max(share, 0), 1) if length > 1 else 0.5  # a single token: both heads look at it alone
        expected = share * first + (1 - share) * second
        np.testing.assert_allclose(squeezed[row, 0, :length, :length].numpy(), expected, atol=1e-12)


def test_squeezed_heads_stay_distributions_and_merge_in_the_published_rounds():
    for heads, count in ((9, 3), (12, 8), (6, 5), (4, 4)):
        squeezed = squeeze_heads(random_attention(heads), random_states(4, heads, 7, 5), MASK, count)
        assert squeezed.shape == (4, count, 7, 7) and float(squeezed.min()) >= 0
        torch.testing.assert_close(squeezed.sum(-1), torch.ones(4, count, 7, dtype=torch.float64))
    # 9 to 3: four pairs and the last head, then two pairs and the last head again.
    attention = random_attention(9)
    torch.testing.assert_close(squeeze_heads(attention, random_states(4, 9, 7, 5), MASK, 3)[:, -1], attention[:, -1])


def test_heads_that_attend_alike_are_squeezed_without_loss():
    one = random_attention(1).expand(-1, 4, -1, -1)
    torch.testing.assert_close(squeeze_heads(one, random_states(4, 4, 7, 5), MASK, 1), one[:, :1])


# ---- properties of all -----------------------------------------------------------------------------------------


def scores(states):
    return losses.relation_scores(states, states, 2)


# Name -> loss of two (batch, tokens, 6) states under a mask.
TOKEN_LOSSES = {
    "relation_divergence": lambda teacher, student, mask: losses.relation_divergence(
        scores(teacher), scores(student), mask
    ),
    "attention_error": lambda teacher, student, mask: losses.attention_error(scores(teacher), scores(student), mask),
    "hidden_state_error": losses.hidden_state_error,
    "cosine_distance": losses.cosine_distance,
}
# Name -> loss of two (batch, 6) vectors or logits.
ROW_LOSSES = {
    "soft_target_divergence": lambda teacher, student: losses.soft_target_divergence(teacher, student, 2.0),
    "patience": losses.patience,
    "sample_divergence": losses.sample_divergence,
}


@pytest.mark.parametrize("name", [*TOKEN_LOSSES, *ROW_LOSSES])
def test_loss_and_gradient_are_zero_when_student_equals_teacher(name):
    by_token = name in TOKEN_LOSSES
    states = random_states(2, 5, 6) if by_token else random_states(4, 6)
    student = states.clone().requires_grad_()
    loss = (
        TOKEN_LOSSES[name](states, student, torch.tensor([[1] * 5, [1] * 3 + [0] * 2]))
        if by_token
        else ROW_LOSSES[name](states, student)
    )
    loss.backward()
    assert abs(loss.item()) < 1e-14 and float(student.grad.abs().max()) < 1e-14


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_padding_changes_nothing(name):
    teacher, student, mask = random_states(2, 5, 6), random_states(2, 5, 6, seed=1), torch.ones(2, 5)
    padded = [
        torch.cat([states, 100 * random_states(2, 4, 6, seed=2)], dim=1).requires_grad_()
        for states in (teacher, student)
    ]
    longer = TOKEN_LOSSES[name](*padded, torch.cat([mask, torch.zeros(2, 4)], dim=1))
    assert float(longer) == pytest.approx(float(TOKEN_LOSSES[name](teacher, student, mask)), rel=1e-12)
    longer.backward()
    assert float(padded[1].grad[:, 5:].abs().sum()) == 0 < float(padded[1].grad[:, :5].abs().sum())


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_autograd_agrees_with_finite_differences_for_tokens(name):
    teacher, mask = random_states(1, 4, 6), torch.tensor([[1, 1, 1, 0]])
    student = random_states(1, 4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda states: TOKEN_LOSSES[name](teacher, states, mask), (student,))


@pytest.mark.parametrize("name", [*ROW_LOSSES, "label_divergence", "contrastive_loss"])
def test_autograd_agrees_with_finite_differences_for_rows(name):
    teacher, labels = random_states(4, 6), torch.tensor([0, 1, 1, -1])
    every = {
        **ROW_LOSSES,
        "label_divergence": lambda teacher, student: losses.label_divergence(student, labels),
        "contrastive_loss": lambda teacher, student: losses.contrastive_loss(teacher, student, labels, 0.5),
    }
    student = random_states(4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda states: every[name](teacher, states), (student,))


def test_half_precision_is_raised_first():
    half, single = random_states(2, 5, 6).bfloat16(), random_states(2, 5, 6).bfloat16().float()
    assert losses.relation_scores(half, half, 2).dtype == torch.float32
    torch.testing.assert_close(
        losses.cosine_distance(half, single, torch.ones(2, 5)), torch.tensor(0.0), atol=1e-6, rtol=0
    )
