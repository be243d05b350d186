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


@pytest.mark.parametrize("heads", [1, 3, 6])
@pytest.mark.parametrize("pair", [(0, 0), (0, 1)])
def test_relation_divergence_equals_the_independent_numpy_version(heads, pair):
    teacher = [random_states(4, 7, 24, seed=seed) for seed in pair]
    student = [random_states(4, 7, 12, seed=seed + 2) for seed in pair]  # another hidden size
    ours = losses.relation_divergence(*(losses.relation_scores(*states, heads) for states in (teacher, student)), MASK)
    total, count = 0.0, 0
    for first, second, third, fourth in rows_of(MASK, *teacher, *student):
        for theirs, own in zip(relations(first, second, heads), relations(third, fourth, heads), strict=True):
            total, count = total + divergence(theirs, own).sum(), count + len(theirs)
    assert float(ours) == pytest.approx(total / count, rel=1e-10)


def test_more_relation_heads_than_attention_heads_are_free():
    states = random_states(1, 3, 48)
    assert losses.relation_scores(states, states, 48).shape == (1, 48, 3, 3)
    with pytest.raises(ModelError, match="7 relation heads do not divide the hidden size 48"):
        losses.relation_scores(states, states, 7)


def test_the_gradient_of_soft_targets_is_hintons_limit():
    """(student - teacher) / labels as T grows, of centred logits (section 2.1)."""
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]], requires_grad=True)
    losses.soft_target_divergence(teacher, student, 1000.0).backward()
    centred = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, centred.detach() / 2, atol=1e-2, rtol=1e-2)


def test_soft_targets_and_labels_equal_numpy():
    teacher, student, labels = random_states(5, 3), random_states(5, 3, seed=1), torch.tensor([0, 2, 1, 1, -1])
    expected = 9 * divergence(teacher.numpy() / 3, student.numpy() / 3).mean()
    assert float(losses.soft_target_divergence(teacher, student, 3.0)) == pytest.approx(expected, rel=1e-10)
    # The last row has no label: it counts as a row, and adds nothing.
    by_row = [-log_softmax(row)[label] for row, label in zip(student.numpy(), labels.numpy(), strict=True)]
    assert float(losses.label_divergence(student, labels)) == pytest.approx(sum(by_row[:4]) / 5, rel=1e-10)


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
    assert float(nothing.detach()) == 0 and float(student.grad.abs().sum()) == 0


def test_squeezed_heads_stay_distributions_and_merge_in_the_published_rounds():
    for heads, count in ((9, 3), (12, 8), (6, 5), (4, 4)):
        attention = losses.log_attention(random_states(4, heads, 7, 7), MASK).exp()
        squeezed = squeeze_heads(attention, random_states(4, heads, 7, 5), MASK, count)
        assert squeezed.shape == (4, count, 7, 7) and float(squeezed.min()) >= 0
        torch.testing.assert_close(squeezed.sum(-1), torch.ones(4, count, 7, dtype=torch.float64))
        if (heads, count) == (9, 3):  # four pairs and the last head, then two pairs and the last head again
            torch.testing.assert_close(squeezed[:, -1], attention[:, -1])


def test_half_precision_is_raised_first():
    half, single = random_states(2, 5, 6).bfloat16(), random_states(2, 5, 6).bfloat16().float()
    assert losses.relation_scores(half, half, 2).dtype == torch.float32
    assert abs(float(losses.cosine_distance(half, single, torch.ones(2, 5)))) < 1e-6
