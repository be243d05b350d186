"""The objectives on small models: what they match, that they match it rightly, and what they refuse."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from small_models import FAMILY_NAMES, small_batch, small_model, tokenized_sentences
from torch.nn import functional

from edgemin_utils.config import load_settings
from edgemin_utils.distillation import find_objective, losses, shd
from edgemin_utils.distillation.objective import Lesson, RelationView, uniform_layers
from edgemin_utils.distillation.pkd import PatientLast, PatientSkip
from edgemin_utils.distillation.relations import relation_loss, relation_matrices
from edgemin_utils.distillation.shd import squeezed_attention
from edgemin_utils.distillation.soft_targets import soft_target_loss
from edgemin_utils.encoder_states import captured_states
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.objectives import EVERY_OBJECTIVE
from edgemin_utils.teacher_signals import CachedSignals, signal_source, teacher_signals
from edgemin_utils.training import batches, model_inputs, train_phases

PAIRS = ("query-query", "key-key", "value-value")
PROJECTIONS = ("query", "key", "value")
DISTILLED = tuple(name for name in EVERY_OBJECTIVE if name != "none")
ONLY_INSIDE = {"soft_target_weight": 1.0, "relation_heads": 12}


def lesson(name, teacher, student, **overrides):
    """The objective of that name, and its lesson with signals straight from the teacher."""
    objective, settings = find_objective(name), load_settings("demo", {**ONLY_INSIDE, **overrides})
    plain = Lesson(settings, teacher, student)
    names = objective.signals(plain)
    return objective, dataclasses.replace(plain, signals=lambda batch: teacher_signals(teacher, batch, names))


def phases(name, teacher, student, **overrides):
    objective, given = lesson(name, teacher, student, **overrides)
    return objective.phases(given)


# ---- every objective -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTILLED)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    model, batch = small_model(layers=2).double(), small_batch()
    for phase in phases(name, model, model):
        if phase.name == "row relations":
            continue  # rows of one label go on to attract each other: the contrast is no distance to the teacher
        model.zero_grad()
        loss, parts = phase.loss(model, batch)
        loss.backward()
        assert abs(float(loss.detach())) < 1e-7, (phase.name, parts)
        assert all(value.grad is None or float(value.grad.abs().max()) < 1e-7 for value in model.parameters())


@pytest.mark.parametrize("name", DISTILLED)
def test_padding_changes_nothing(name):
    teacher, student, batch = small_model(layers=3).double(), small_model(layers=2, seed=1).double(), small_batch()
    longer = {key: functional.pad(value, (0, 3)) if value.dim() == 2 else value for key, value in batch.items()}
    for phase in phases(name, teacher, student):
        plain, padded = (float(phase.loss(student, rows)[0].detach()) for rows in (batch, longer))
        assert plain > 0 and padded == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("name", DISTILLED)
def test_gradients_agree_with_finite_differences(name):
    """Along one random direction of all weights, learned projections included."""
    heads = 4 if name in ("tinybert", "minilm") else 2
    teacher = small_model(layers=2).double()
    student = small_model(layers=2, hidden_size=24, heads=heads, seed=1).double()
    batch = small_batch()
    for phase in phases(name, teacher, student, soft_target_weight=0.6):
        modules = [student] + ([phase.projections.double()] if phase.projections else [])
        weights = [value for module in modules for value in module.parameters()]
        generator = torch.Generator().manual_seed(3)
        directions = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in weights]

        def moved(step, phase=phase, weights=weights, directions=directions):
            with torch.no_grad():
                for value, direction in zip(weights, directions, strict=True):
                    value.add_(direction, alpha=step)
            return float(phase.loss(student, batch)[0].detach())

        loss, _ = phase.loss(student, batch)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        slope = sum(
            float((gradient * direction).sum())
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None
        )
        ahead, behind = moved(1e-6), moved(-2e-6)
        moved(1e-6)
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-4), phase.name


@pytest.mark.parametrize("name", DISTILLED)
def test_a_phases_parts_are_named_and_sum_to_its_loss(name):
    teacher, student, batch = small_model(layers=3), small_model(layers=2, seed=1), small_batch()
    for phase in phases(name, teacher, student):
        loss, parts = phase.loss(student, batch)
        used = sum(value for part, value in parts.items() if part != "labels")  # at soft_target_weight 1
        torch.testing.assert_close(loss, used)


@pytest.mark.parametrize("name", EVERY_OBJECTIVE)
def test_every_objective_trains_as_many_epochs(name):
    teacher, student = small_model(layers=3), small_model(layers=2)
    found = phases(name, teacher, student, distillation_epochs=2, prediction_epochs=3)
    assert sum(phase.epochs for phase in found) == 5
    assert [phase.evaluates for phase in found] == [True] if len(found) == 1 else [False, True]


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("name", DISTILLED)
def test_every_family_learns_by_every_objective(name, family):
    teacher, student = small_model(layers=3), small_model(family, layers=2, hidden_size=24, seed=1)
    batch = small_batch()
    for phase in phases(name, teacher, student):
        loss, _ = phase.loss(student, batch)
        loss.backward()
        assert float(loss.detach()) > 0 and float(encoder_layers(student)[0].query.weight.grad.abs().max()) > 0


def test_unknown_objective_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'minilmv2'"):
        find_objective("minilm2")


# ---- one by one ------------------------------------------------------------------------------------------------


def test_soft_target_loss_is_cross_entropy_at_weight_zero():
    model, batch = small_model(), small_batch()
    signals = {"logits": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}
    loss, parts = soft_target_loss(lambda _batch: signals, 2.0, 0.0)(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = functional.cross_entropy(logits, batch["labels"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["labels"], expected)
    mixed, parts = soft_target_loss(lambda _batch: signals, 2.0, 0.3)(model, batch)
    torch.testing.assert_close(mixed, 0.3 * parts["soft targets"] + 0.7 * parts["labels"])


@pytest.mark.parametrize(
    "teacher, student, expected",
    [(12, 6, [2, 4, 6, 8, 10, 12]), (12, 4, [3, 6, 9, 12]), (6, 3, [2, 4, 6]), (4, 3, [2, 3, 4]), (2, 4, [1, 1, 2, 2])],
)
def test_layers_are_spread_as_published(teacher, student, expected):
    teacher, student = (small_model(layers=count, hidden_size=12, heads=2) for count in (teacher, student))
    assert [(own + 1, other + 1) for own, other in uniform_layers(teacher, student)] == list(enumerate(expected, 1))


def test_patient_layers_are_the_papers():
    """Section 3.2: for twelve teacher layers and six of the student, Skip {2, 4, 6, 8, 10} and Last {7, ..., 11}."""
    teacher, student = (small_model(layers=count, hidden_size=12, heads=2) for count in (12, 6))
    assert [other + 1 for _, other in PatientSkip().layers(teacher, student)] == [2, 4, 6, 8, 10]
    assert [other + 1 for _, other in PatientLast().layers(teacher, student)] == [7, 8, 9, 10, 11]


# By NumPy from transformers' own hidden states (the embeddings first) and attention, row by row without padding.


def shown(model, batch):
    """Of a double model: logits (rows, labels), and of each row hidden states and attention, one array a layer."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**model_inputs(model, batch), output_hidden_states=True, output_attentions=True)
    lengths = batch["attention_mask"].sum(1).tolist()
    hidden = [[each[row, :length].numpy() for each in outputs.hidden_states] for row, length in enumerate(lengths)]
    attention = [
        [each[row, :, :length, :length].numpy() for each in outputs.attentions] for row, length in enumerate(lengths)
    ]
    return outputs.logits.numpy(), hidden, attention


def of_heads(layer, name, states):
    """A projection of a row's states (tokens, hidden), by head: (heads, tokens, head size)."""
    linear = getattr(layer, name)
    projected = states @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    return projected.reshape(len(states), layer.num_heads, layer.head_size).transpose(1, 0, 2)


def answers(teacher_logits, logits, labels, weight, temperature):
    """`weight` times Hinton's soft targets and the rest times cross-entropy with the labels."""
    soft = rel_entr(softmax(teacher_logits / temperature, -1), softmax(logits / temperature, -1)).sum(-1).mean()
    hard = -log_softmax(logits, -1)[range(len(labels)), labels].mean()
    return weight * temperature**2 * soft + (1 - weight) * hard


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def similarity(vectors):
    """Distributions over the vectors (count, hidden), by scaled dot products."""
    return softmax(vectors @ vectors.T / np.sqrt(vectors.shape[-1]), -1)


def squared_error(teacher, student, matrix, pairs):
    """Mean squared error of projected hidden states over all real tokens, summed over (student, teacher) places."""
    rows = list(zip(teacher, student, strict=True))
    return sum(
        np.concatenate([(own[place] @ matrix - theirs[other]) ** 2 for theirs, own in rows]).mean()
        for place, other in pairs
    )


def squeezed_by_least_squares(layer, attention, states):
    """Four heads' attention (heads, tokens, tokens) of one row squeezed to two; `states` are the layer's input."""
    values = of_heads(layer, "value", states)
    weight = layer.attention_output.weight.detach().numpy().T.reshape(layer.num_heads, layer.head_size, -1)
    outputs, squeezed = values @ weight, []
    together = values.transpose(1, 0, 2).reshape(len(states), -1) @ layer.attention_output.weight.detach().numpy().T
    np.testing.assert_allclose(outputs.sum(0), together, atol=1e-12)
    for one, other in ((0, 1), (2, 3)):
        both = outputs[one] + outputs[other]
        target = attention[one] @ outputs[one] + attention[other] @ outputs[other] - attention[other] @ both
        given = ((attention[one] - attention[other]) @ both).ravel()[:, None]
        share = np.linalg.lstsq(given, target.ravel(), rcond=None)[0][0].clip(0, 1)
        squeezed.append(share * attention[one] + (1 - share) * attention[other])
    return np.stack(squeezed)


@pytest.mark.parametrize("name", ["distilbert", "pkd", "pkd-last", "shd"])
def test_the_loss_is_the_answers_and_two_and_a_half_times_what_is_inside(name):
    """A teacher of five layers and four heads, a student of three and two: layers 2, 4 and 5 from 1, or 3 and 4."""
    teacher, batch = small_model(layers=5).double(), small_batch()
    student = small_model(layers=3, hidden_size=24, heads=2, seed=1).double()
    weights = {"intermediate_weight": 2.5, "soft_target_weight": 0.6, "temperature": 3.0}
    (phase,) = phases(name, teacher, student, **weights)
    matrix = phase.projections.double().weight.detach().numpy().T if phase.projections else None
    loss, _ = phase.loss(student, batch)
    (their_logits, their_hidden, their_attention), (own_logits, own_hidden, own_attention) = (
        shown(model, batch) for model in (teacher, student)
    )
    if name == "distilbert":
        theirs, own = (np.concatenate([row[-1] for row in hidden]) for hidden in (their_hidden, own_hidden))
        inside = (1 - (unit(theirs) * unit(own @ matrix)).sum(-1)).mean()
    elif name == "shd":
        inside = 0.0
        for place, other in enumerate((1, 3, 4)):
            layer = encoder_layers(teacher)[other]
            distances = [
                rel_entr(squeezed_by_least_squares(layer, theirs[other], states[other]), own[place]).sum(-1)
                for theirs, states, own in zip(their_attention, their_hidden, own_attention, strict=True)
            ]
            inside += np.concatenate(distances, axis=1).mean()
    else:
        inside = sum(
            np.mean(
                [
                    ((unit(own[place][0] @ matrix) - unit(theirs[other][0])) ** 2).sum()
                    for theirs, own in zip(their_hidden, own_hidden, strict=True)
                ]
            )
            for place, other in enumerate((2, 4) if name == "pkd" else (3, 4), start=1)
        )
    wanted = answers(their_logits, own_logits, batch["labels"].numpy(), 0.6, 3.0) + 2.5 * inside
    assert inside > 0.01 and float(loss.detach()) == pytest.approx(wanted, rel=1e-6)


def test_tinybert_matches_embeddings_hidden_states_and_attention():
    """Attention by scores whose softmax is transformers' attention."""
    teacher, student = small_model(layers=3).double(), small_model(layers=2, hidden_size=24, seed=1).double()
    batch, pairs = small_batch(), ((1, 2), (2, 3))
    phase = phases("tinybert", teacher, student)[0]
    assert sum(value.numel() for value in phase.projections.parameters()) == 2 * 24 * 48
    matrices = {key: value.weight.detach().numpy().T for key, value in phase.projections.double().items()}
    parts = {part: float(value.detach()) for part, value in phase.loss(student, batch)[1].items()}
    (_, their_hidden, their_attention), (_, own_hidden, own_attention) = (
        shown(model, batch) for model in (teacher, student)
    )

    def scores(model, place, states, attention):
        layer = encoder_layers(model)[place - 1]
        query, key = (of_heads(layer, name, states[place - 1]) for name in ("query", "key"))
        found = query @ key.transpose(0, 2, 1) / np.sqrt(layer.head_size)
        np.testing.assert_allclose(softmax(found, -1), attention[place - 1], atol=1e-12)
        return found

    attention = 0.0
    for place, other in pairs:
        errors = [
            (scores(teacher, other, *theirs) - scores(student, place, *own)) ** 2
            for theirs, own in zip(
                zip(their_hidden, their_attention, strict=True),
                zip(own_hidden, own_attention, strict=True),
                strict=True,
            )
        ]
        attention += np.concatenate([each.reshape(4, -1) for each in errors], axis=1).mean()
    assert parts["attention"] == pytest.approx(attention, rel=1e-6)
    for part, matrix, places in (("embeddings", "embeddings", ((0, 0),)), ("hidden states", "hidden", pairs)):
        wanted = squared_error(their_hidden, own_hidden, matrices[matrix], places)
        assert parts[part] == pytest.approx(wanted, rel=1e-6)


def test_mlkd_matches_tokens_and_then_rows():
    """Embeddings and hidden states of every token, then rows by their last [CLS] vectors."""
    teacher, student = small_model(layers=3).double(), small_model(layers=2, hidden_size=24, seed=1).double()
    batch, parts, matrices = small_batch(), {}, []
    batch["labels"] = torch.tensor([0, 1, 0])
    for phase in phases("mlkd", teacher, student):
        matrices.append(phase.projections.double().weight.detach().numpy().T)
        parts |= {part: float(value.detach()) for part, value in phase.loss(student, batch)[1].items()}
    their_hidden, own_hidden = (shown(model, batch)[1] for model in (teacher, student))
    rows = list(zip(their_hidden, own_hidden, strict=True))
    tokens = np.concatenate([rel_entr(similarity(theirs[0]), similarity(own[0])).sum(-1) for theirs, own in rows])
    assert parts["embeddings"] == pytest.approx(tokens.mean(), rel=1e-6)
    wanted = squared_error(their_hidden, own_hidden, matrices[0], ((1, 2), (2, 3)))
    assert parts["hidden states"] == pytest.approx(wanted, rel=1e-6)
    theirs, own = (np.stack([row[-1][0] for row in hidden]) for hidden in (their_hidden, own_hidden))
    wanted = rel_entr(similarity(theirs), similarity(own)).sum(-1).mean()
    assert parts["row similarity"] == pytest.approx(wanted, rel=1e-6)
    vectors = unit(np.concatenate([theirs, own @ matrices[1]]))
    near = np.exp(vectors @ vectors.T / 0.1) * (1 - np.eye(6))
    # Of rows labelled 0, 1, 0, 0, 1, 0 (the teacher's and the student's): the others of each one's label.
    others = ((2, 3, 5), (4,), (0, 3, 5), (0, 2, 5), (1,), (0, 2, 3))
    contrast = [-np.log(near[row, list(same)] / near[row].sum()).mean() for row, same in enumerate(others)]
    assert parts["row contrast"] == pytest.approx(np.mean(contrast), rel=1e-6)


def test_mlkd_takes_as_many_parts_of_the_heads_as_both_models_have():
    teacher, student, batch = small_model(heads=4), small_model(heads=6, seed=1), small_batch()
    phase = phases("mlkd", teacher, student)[0]
    names = [f"context.{layer}" for layer in range(3)]
    states = []
    for model in (teacher, student):
        with captured_states(model, names) as found:
            model(**model_inputs(model, batch))
        states.append(found)
    expected = sum(
        losses.relation_divergence(
            *(losses.relation_scores(each[name], each[name], 2) for each in states), batch["attention_mask"]
        )
        for name in names
    )
    torch.testing.assert_close(phase.loss(student, batch)[1]["attention heads"], expected)


@pytest.mark.parametrize("heads", [(4, 2), (2, 4), (4, 3)])
def test_squeezed_attention_of_unequal_heads_is_compared(heads):
    teacher, student = (small_model(heads=count, seed=count) for count in heads)
    batch = small_batch()
    loss, parts = phases("shd", teacher, student)[0].loss(student, batch)
    loss.backward()
    assert float(parts["attention"].detach()) > 0
    assert float(encoder_layers(student)[0].query.weight.grad.abs().max()) > 0


def test_a_squeezed_layer_of_enough_heads_is_its_own_attention():
    layer = encoder_layers(small_model())[0]
    states = [torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    mask = torch.ones(2, 5)
    torch.testing.assert_close(
        squeezed_attention(layer, states, mask, 4), losses.log_attention(losses.relation_scores(*states[:2], 4), mask)
    )
    torch.testing.assert_close(squeezed_attention(layer, states, mask, 3).exp().sum(-1), torch.ones(2, 3, 5))


def test_heads_are_squeezed_by_what_they_give_to_the_layers_output(monkeypatch):
    """Summed over the heads, the outputs X are the values times the output projection's weight, without its bias."""
    layer, given = encoder_layers(small_model())[0], []
    monkeypatch.setattr(shd, "squeeze_heads", lambda attention, outputs, *_: given.append(outputs) or attention)
    states = [torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    squeezed_attention(layer, states, torch.ones(2, 5), 2)
    (outputs,), weight = given, layer.attention_output.weight.detach()
    assert outputs.shape == (2, 4, 5, 48)
    torch.testing.assert_close(outputs.sum(1), states[2] @ weight.T)
    torch.testing.assert_close(outputs[:, 1], states[2][..., 12:24] @ weight[:, 12:24].T)


def test_minilm_is_minilmv2_with_its_own_pairs_layers_and_heads():
    teacher, student, batch = small_model(layers=3), small_model(layers=2, seed=1), small_batch()
    names = [f"{name}.2" for name in PROJECTIONS]
    view = RelationView(("query-key", "value-value"), 4, 2, 1)
    expected, _ = relation_loss(lambda rows: teacher_signals(teacher, rows, names), view, (1, 1))(student, batch)
    torch.testing.assert_close(phases("minilm", teacher, student)[0].loss(student, batch)[0], expected)


def test_relation_loss_takes_the_layers_and_weights_it_is_told():
    teacher, student, batch = small_model(layers=3), small_model(layers=2, hidden_size=24, seed=1), small_batch()
    names = [f"{name}.1" for name in PROJECTIONS]
    view = RelationView(("query-query", "query-key", "value-value"), 12, 1, 0)
    loss_function = relation_loss(lambda rows: teacher_signals(teacher, rows, names), view, (1.0, 2.0, 0.5))
    loss, parts = loss_function(student, batch)
    torch.testing.assert_close(loss, parts["query-query"] + 2 * parts["query-key"] + 0.5 * parts["value-value"])
    loss.backward()
    with_gradient = {
        name
        for name, value in student.named_parameters()
        if value.grad is not None and float(value.grad.abs().sum()) > 0
    }
    assert any("layer.0.attention.self.query" in name for name in with_gradient)
    # Nothing after the matched projections learns from relations.
    assert not any("layer.1." in name or "classifier" in name or "layer.0.output" in name for name in with_gradient)


def test_all_nine_pairs_are_there():
    teacher, student, batch = small_model(), small_model(hidden_size=24, seed=1), small_batch()
    pairs = [f"{first}-{second}" for first in PROJECTIONS for second in PROJECTIONS]
    phase = phases("minilmv2", teacher, student, relation_pairs=pairs, relation_weights=[1.0] * 9)[0]
    loss, parts = phase.loss(student, batch)
    assert list(parts) == pairs and len({round(float(value.detach()), 6) for value in parts.values()}) == 9
    torch.testing.assert_close(loss, sum(parts.values()))


def test_minilmv2_names_its_phases_and_signals():
    teacher, student = small_model(), small_model(layers=2)
    objective, given = lesson("minilmv2", teacher, student, distillation_epochs=2, prediction_epochs=3)
    assert objective.signals(given) == ("key.2", "query.2", "value.2", "logits")
    assert [(phase.name, phase.epochs) for phase in objective.phases(given)] == [("relations", 2), ("soft targets", 3)]


def test_relation_matrices_are_distributions():
    model, batch = small_model(), small_batch(rows=2)
    matrices = relation_matrices(model, batch, -1, PAIRS, 4)
    assert set(matrices) == set(PAIRS)
    for matrix in matrices.values():
        assert matrix.shape == (9, 9)
        torch.testing.assert_close(matrix.sum(-1), torch.ones(9))


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, student, message",
    [
        ("tinybert", {"heads": 6}, "teacher layer 0 has 4 heads and student layer 0 has 6"),
        ("minilm", {"heads": 2}, "teacher layer 2 has 4 heads and student layer 2 has 2"),
        ("pkd", {"layers": 1}, "give it two layers or more"),
        ("pkd-last", {"layers": 5}, "this student has 2 more than its teacher"),
        ("minilmv2", {"hidden_size": 40}, "relation_heads = 12 does not divide the student's hidden size 40"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(name, student, message):
    with pytest.raises(MethodRefused, match=message):
        find_objective(name).phases(lesson(name, small_model(), small_model(**student))[1])


def test_a_teacher_layer_that_is_not_there_is_refused():
    with pytest.raises(MethodRefused, match="no layer 7; it has 3"):
        lesson("minilmv2", small_model(), small_model(), teacher_layer=7)


# ---- training --------------------------------------------------------------------------------------------------


def test_projections_are_seeded_trained_and_left_behind():
    rows, tokenizer = tokenized_sentences(16)
    teacher = small_model(vocabulary_size=len(tokenizer))
    weights, keys = [], set(small_model(vocabulary_size=len(tokenizer), hidden_size=24).state_dict())
    for seed in (0, 0, 1):
        student = small_model(vocabulary_size=len(tokenizer), hidden_size=24, seed=1)
        objective, given = lesson("tinybert", teacher, student, batch_size=8, distillation_epochs=1)
        phase = objective.phases(dataclasses.replace(given, seed=seed))[0]
        before = phase.projections["hidden"].weight.detach().clone()
        log = train_phases(student, rows, [phase], tokenizer, given.settings, 0)
        after = phase.projections["hidden"].weight.detach()
        assert not torch.equal(before, after) and set(student.state_dict()) == keys
        assert log.phases[0]["projection_parameters"] == 2 * 24 * 48
        weights.append(after)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "names", [("logits", "query.2", "value.0"), ("logits", "embeddings", "cls.1", "hidden.1", "context.0")]
)
def test_cached_signals_are_the_teachers_own_whatever_the_padding(names):
    rows, tokenizer = tokenized_sentences(23)
    teacher = small_model(vocabulary_size=len(tokenizer))
    cached = CachedSignals(teacher, rows, tokenizer, names, batch_size=5)
    for positions, batch in batches(rows.select(range(3, 17)), tokenizer, 6):
        batch["position"] = torch.from_numpy(positions.copy()) + 3
        fresh, kept = teacher_signals(teacher, batch, names), cached(batch)
        assert set(kept) == set(names) and len(kept) == len(names)
        real = batch["attention_mask"].bool()
        for name in names:
            assert kept[name].shape == fresh[name].shape
            if kept[name].dim() == 2:
                torch.testing.assert_close(kept[name], fresh[name], atol=1e-5, rtol=1e-4)
            else:
                torch.testing.assert_close(kept[name][real], fresh[name][real], atol=1e-5, rtol=1e-4)
                assert float(kept[name][~real].abs().sum()) == 0


def test_signals_are_cached_only_where_they_fit():
    rows, tokenizer = tokenized_sentences(8)
    teacher = small_model(vocabulary_size=len(tokenizer))
    for names, values in ((("query.0",), sum(rows["length"]) * 48), (("cls.0", "logits"), len(rows) * 48)):
        needed = values * 4 / 1e9
        assert isinstance(signal_source(teacher, rows, tokenizer, names, 4, needed), CachedSignals)
        assert not isinstance(signal_source(teacher, rows, tokenizer, names, 4, needed * 0.99), CachedSignals)


def test_relation_heads_must_divide():
    states = torch.zeros(1, 3, 48)
    with pytest.raises(ModelError, match="7 relation heads do not divide the hidden size 48"):
        losses.relation_scores(states, states, 7)
