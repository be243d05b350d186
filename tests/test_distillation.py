import numpy as np
import pytest
import torch
from small_models import small_batch, small_model, tokenized_sentences

from edgemin_utils.config import load_settings
from edgemin_utils.distillation import (
    find_objective,
    relation_divergence,
    relation_loss,
    relation_matrices,
    relation_scores,
    soft_target_divergence,
    soft_target_loss,
)
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.teacher_signals import CachedSignals, signal_source, teacher_signals
from edgemin_utils.training import batches

PAIRS = ("query-query", "key-key", "value-value")
PROJECTIONS = ("query", "key", "value")


def relations_in_numpy(teacher, student, mask, heads):
    """MiniLMv2's loss for one pair of projections, written from the paper's equation with loops, in float64."""

    def distribution(states, row, head, length):
        size = states.shape[-1] // heads
        part = states[row, :length, head * size:(head + 1) * size].astype(np.float64)
        scores = part @ part.T / np.sqrt(size)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    total, count = 0.0, 0
    for row in range(len(mask)):
        length = int(mask[row].sum())
        for head in range(heads):
            t, s = (distribution(states, row, head, length) for states in (teacher, student))
            total += float((t * np.log(t / s)).sum())
            count += length
    return total / count


def random_states(rows, tokens, hidden, seed):
    return torch.randn(rows, tokens, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_relation_divergence_equals_the_independent_numpy_version(heads):
    teacher, student = random_states(4, 7, 24, 0), random_states(4, 7, 12, 1)  # unequal hidden sizes
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5, [1] + [0] * 6])
    ours = relation_divergence(relation_scores(teacher, teacher, heads), relation_scores(student, student, heads), mask)
    assert float(ours) == pytest.approx(relations_in_numpy(teacher.numpy(), student.numpy(), mask.numpy(), heads),
                                        rel=1e-5)


def test_hand_worked_two_tokens():
    """One head of size 1, teacher tokens (1, 0), student tokens (0, 0).

    Teacher scores [[1, 0], [0, 0]]: rows (e/(e+1), 1/(e+1)) and (1/2, 1/2); student rows are (1/2, 1/2).
    KL of row 1: p ln(2p) + q ln(2q) with p = 0.7310586 and q = 0.2689414, that is 0.11094; of row 2: 0. The mean over
    two tokens is half of it.
    """
    p = np.e / (np.e + 1)
    by_hand = (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))) / 2
    teacher, student = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 2, 1)
    ours = relation_divergence(relation_scores(teacher, teacher, 1), relation_scores(student, student, 1),
                               torch.ones(1, 2))
    assert float(ours) == pytest.approx(by_hand, abs=1e-7) and by_hand == pytest.approx(0.05547, abs=1e-5)


def test_loss_and_gradient_are_zero_when_student_equals_teacher():
    states = random_states(2, 5, 12, 0)
    student = states.clone().requires_grad_()
    loss = relation_divergence(relation_scores(states, states, 3), relation_scores(student, student, 3),
                               torch.ones(2, 5))
    loss.backward()
    assert abs(loss.item()) < 1e-7 and float(student.grad.abs().max()) < 1e-7
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert float(soft_target_divergence(logits, logits, 2.0)) == pytest.approx(0, abs=1e-7)


def test_padding_changes_nothing():
    teacher, student = random_states(2, 5, 12, 0), random_states(2, 5, 12, 1)
    mask = torch.ones(2, 5)
    padded = [torch.cat([states, 100 * random_states(2, 4, 12, 2)], dim=1) for states in (teacher, student)]
    longer = torch.cat([mask, torch.zeros(2, 4)], dim=1)
    plain = relation_divergence(relation_scores(teacher, teacher, 3), relation_scores(student, student, 3), mask)
    with_padding = relation_divergence(*(relation_scores(states, states, 3) for states in padded), longer)
    assert float(with_padding) == pytest.approx(float(plain), rel=1e-6)


def test_autograd_agrees_with_finite_differences():
    teacher = random_states(1, 4, 6, 0).double()
    mask = torch.tensor([[1, 1, 1, 0]])
    student = random_states(1, 4, 6, 1).double().requires_grad_()

    def loss(states):
        scores = states.view(1, 4, 2, 3).transpose(1, 2)
        other = teacher.view(1, 4, 2, 3).transpose(1, 2)
        return relation_divergence(other @ other.transpose(-1, -2), scores @ scores.transpose(-1, -2), mask)

    assert torch.autograd.gradcheck(loss, (student,))


def test_more_relation_heads_than_attention_heads_are_free():
    states = random_states(1, 3, 48, 0)
    assert relation_scores(states, states, 48).shape == (1, 48, 3, 3)
    with pytest.raises(ModelError, match="7 relation heads do not divide the hidden size 48"):
        relation_scores(states, states, 7)


def test_soft_targets_follow_hinton():
    """T² KL by hand for one row; its gradient tends to (student - teacher) / labels as T grows (section 2.1)."""
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]], requires_grad=True)
    p, q = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum(), np.exp([0.0, 0.5]) / np.exp([0.0, 0.5]).sum()
    by_hand = 4 * (p * np.log(p / q)).sum()
    assert soft_target_divergence(teacher, student, 2.0).item() == pytest.approx(by_hand, rel=1e-6)
    centred = (student - student.mean()) - (teacher - teacher.mean())
    soft_target_divergence(teacher, student, 1000.0).backward()
    torch.testing.assert_close(student.grad, centred.detach() / 2, atol=1e-2, rtol=1e-2)


def test_soft_target_loss_is_cross_entropy_at_weight_zero():
    model, batch = small_model(), small_batch()
    signals = {"logits": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}
    loss, parts = soft_target_loss(lambda _batch: signals, 2.0, 0.0)(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["labels"], expected)
    mixed, parts = soft_target_loss(lambda _batch: signals, 2.0, 0.3)(model, batch)
    torch.testing.assert_close(mixed, 0.3 * parts["soft targets"] + 0.7 * parts["labels"])


def test_relation_loss_takes_the_layers_and_weights_it_is_told():
    teacher, student, batch = small_model(layers=3), small_model(layers=2, hidden_size=24, seed=1), small_batch()
    names = [f"{name}.1" for name in PROJECTIONS]
    loss_function = relation_loss(lambda rows: teacher_signals(teacher, rows, names), 1, 0,
                                  ("query-query", "query-key", "value-value"), (1.0, 2.0, 0.5), 12)
    loss, parts = loss_function(student, batch)
    torch.testing.assert_close(loss, parts["query-query"] + 2 * parts["query-key"] + 0.5 * parts["value-value"])
    loss.backward()
    with_gradient = {name for name, value in student.named_parameters()
                     if value.grad is not None and float(value.grad.abs().sum()) > 0}
    assert any("layer.0.attention.self.query" in name for name in with_gradient)
    # Nothing after the matched projections learns from relations.
    assert not any("layer.1." in name or "classifier" in name or "layer.0.output" in name for name in with_gradient)


def test_relation_loss_of_a_student_that_is_its_teacher_is_zero():
    model, batch = small_model(), small_batch()
    names = [f"{name}.2" for name in PROJECTIONS]
    loss, _ = relation_loss(lambda rows: teacher_signals(model, rows, names), 2, 2, PAIRS, (1, 1, 1), 12)(model, batch)
    assert abs(float(loss)) < 1e-6


def test_cached_signals_are_the_teachers_own_whatever_the_padding():
    rows, tokenizer = tokenized_sentences(23)
    teacher = small_model(vocabulary_size=len(tokenizer))
    names = ("logits", "query.2", "value.0")
    cached = CachedSignals(teacher, rows, tokenizer, names, batch_size=5)
    for positions, batch in batches(rows.select(range(3, 17)), tokenizer, 6):
        batch["position"] = torch.from_numpy(positions.copy()) + 3
        fresh, kept = teacher_signals(teacher, batch, names), cached(batch)
        assert set(kept) == set(names)
        torch.testing.assert_close(kept["logits"], fresh["logits"], atol=1e-5, rtol=1e-4)
        real = batch["attention_mask"].bool()
        for name in ("query.2", "value.0"):
            assert kept[name].shape == fresh[name].shape
            torch.testing.assert_close(kept[name][real], fresh[name][real], atol=1e-5, rtol=1e-4)
            assert float(kept[name][~real].abs().sum()) == 0


def test_signals_are_cached_only_where_they_fit():
    rows, tokenizer = tokenized_sentences(8)
    teacher = small_model(vocabulary_size=len(tokenizer))
    needed = sum(rows["length"]) * 48 * 4 / 1e9
    assert isinstance(signal_source(teacher, rows, tokenizer, ("query.0",), 4, needed), CachedSignals)
    assert not isinstance(signal_source(teacher, rows, tokenizer, ("query.0",), 4, needed * 0.99), CachedSignals)


def test_minilmv2_phases_and_their_checks():
    settings = load_settings("demo", {"relation_heads": 12, "distillation_epochs": 2, "prediction_epochs": 3})
    teacher, student = small_model(), small_model(layers=2)
    objective = find_objective("minilmv2")
    assert objective.signals(settings, teacher) == ("key.2", "query.2", "value.2", "logits")
    phases = objective.phases(settings, teacher, student, None)
    assert [(phase.name, phase.epochs) for phase in phases] == [("relations", 2), ("soft targets", 3)]
    none = find_objective("none").phases(settings, teacher, student, None)
    assert [(phase.name, phase.epochs) for phase in none] == [("labels", 5)]  # as many epochs as distillation in all
    with pytest.raises(ModelError, match="relation_heads = 7 does not divide the teacher's hidden size 48"):
        objective.phases(load_settings("demo", {"relation_heads": 7}), teacher, student, None)


def test_unknown_objective_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'minilmv2'"):
        find_objective("minilm2")


def test_relation_matrices_are_distributions():
    model, batch = small_model(), small_batch(rows=2)
    matrices = relation_matrices(model, batch, -1, PAIRS, 4)
    assert set(matrices) == set(PAIRS)
    for matrix in matrices.values():
        assert matrix.shape == (9, 9)
        torch.testing.assert_close(matrix.sum(-1), torch.ones(9))
