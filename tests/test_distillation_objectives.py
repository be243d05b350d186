"""The objectives on small models: what they match, that they match it rightly, and what they refuse."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from small_models import FAMILY_NAMES, small_batch, small_model, small_rows
from torch.nn import functional

from edgemin_utils import names
from edgemin_utils.distillation import losses, objective
from edgemin_utils.distillation.hidden_states import PatientLast, PatientSkip
from edgemin_utils.distillation.objective import IMPLEMENTATIONS, Objective, find_objective, recovery_loss
from edgemin_utils.distillation.relations import Relations, relation_matrices
from edgemin_utils.distillation.teacher import Teacher, teacher_signals
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.rows.tokens import tokenize_rows, train_tokenizer
from edgemin_utils.settings import load_settings
from edgemin_utils.training import batches, label_loss, model_inputs, train

DISTILLED = tuple(name for name in IMPLEMENTATIONS if not name.startswith("none"))
ONLY_INSIDE = {"soft_target_weight": 1.0, "relation_heads": 12}


class Asked:
    """A teacher that is asked batch by batch, of any batch."""

    require_same_tokens = None

    def __init__(self, model):
        self.model = model

    def signals(self, names):
        return lambda batch: teacher_signals(self.model, batch, names)


def phases(name, teacher, student, seed=0, **overrides):
    settings = load_settings("demo", {**ONLY_INSIDE, **overrides})
    return find_objective(name, settings, seed).phases(Asked(teacher), student)


def test_the_names_are_those_of_the_language_and_each_has_its_module():
    assert set(IMPLEMENTATIONS) == {name for name, method in names.METHODS.items() if method.kind == "distillation"}
    with pytest.raises(SettingError, match="did you mean 'minilmv2'"):
        find_objective("minilm2", load_settings())


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
def test_padding_changes_nothing_and_parts_sum_to_the_loss(name):
    teacher, student, batch = small_model(layers=3).double(), small_model(layers=2, seed=1).double(), small_batch()
    longer = {key: functional.pad(value, (0, 3)) if value.dim() == 2 else value for key, value in batch.items()}
    for phase in phases(name, teacher, student):
        (plain, parts), (padded, _) = (phase.loss(student, rows) for rows in (batch, longer))
        assert float(plain.detach()) > 0
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=0)
        used = [value for part, value in parts.items() if part != "labels"]  # at soft_target_weight 1
        torch.testing.assert_close(sum(used), plain)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_objective_trains_as_many_epochs(name):
    found = phases(name, small_model(), small_model(layers=2), distillation_epochs=2, prediction_epochs=3)
    assert [phase.epochs for phase in found] in ([5], [2, 3])
    assert [phase.evaluates for phase in found] == ([True] if len(found) == 1 else [False, True])
    assert all(phase.transfer == (not name.startswith("none")) for phase in found)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("name, heads", [*((name, 4) for name in DISTILLED), ("shd", 2), ("shd", 6)])
def test_every_family_learns_by_every_objective(name, heads, family):
    teacher, student = small_model(layers=3), small_model(family, layers=2, hidden_size=24, heads=heads, seed=1)
    for phase in phases(name, teacher, student):
        loss, _ = phase.loss(student, small_batch())
        loss.backward()
        assert float(loss.detach()) > 0 and float(encoder_layers(student)[0].query.weight.grad.abs().max()) > 0


def shown(model, batch):
    """By transformers: logits (rows, labels), and of each row without padding hidden states (the embeddings first) and
    attention, one array a layer."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**model_inputs(model, batch), output_hidden_states=True, output_attentions=True)
    rows = list(enumerate(batch["attention_mask"].sum(1).tolist()))
    hidden = [[each[row, :length].numpy() for each in outputs.hidden_states] for row, length in rows]
    attention = [[each[row, :, :length, :length].numpy() for each in outputs.attentions] for row, length in rows]
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
    errors = ([(own[place] @ matrix - theirs[other]) ** 2 for theirs, own in rows] for place, other in pairs)
    return sum(np.concatenate(each).mean() for each in errors)


def squeezed_by_least_squares(layer, attention, states):
    """Four heads' attention (heads, tokens, tokens) of one row squeezed to two; `states` are the layer's input."""
    weight = layer.attention_output.weight.detach().numpy().T.reshape(layer.num_heads, layer.head_size, -1)
    outputs, squeezed = of_heads(layer, "value", states) @ weight, []
    for one, other in ((0, 1), (2, 3)):
        both = outputs[one] + outputs[other]
        target = attention[one] @ outputs[one] + attention[other] @ outputs[other] - attention[other] @ both
        given = ((attention[one] - attention[other]) @ both).ravel()[:, None]
        share = np.linalg.lstsq(given, target.ravel(), rcond=None)[0][0].clip(0, 1)
        squeezed.append(share * attention[one] + (1 - share) * attention[other])
    return np.stack(squeezed)


@pytest.mark.parametrize("name", ["logits", "distilbert", "pkd", "pkd-last", "shd"])
def test_the_loss_is_the_answers_and_two_and_a_half_times_what_is_inside(name):
    """A teacher of five layers and four heads, a student of three and two: layers 2, 4 and 5 from 1, or 3 and 4."""
    teacher, batch = small_model(layers=5).double(), small_batch()
    student = small_model(layers=3, hidden_size=24, heads=2, seed=1).double()
    weights = {"intermediate_weight": 2.5, "soft_target_weight": 0.6, "temperature": 3.0}
    (phase,) = phases(name, teacher, student, **weights)
    matrix = phase.projections.double().weight.detach().numpy().T if phase.projections else None
    loss, _ = phase.loss(student, batch)
    their_logits, their_hidden, their_attention = shown(teacher, batch)
    own_logits, own_hidden, own_attention = shown(student, batch)
    inside = 0.0
    if name == "distilbert":
        theirs, own = (np.concatenate([row[-1] for row in hidden]) for hidden in (their_hidden, own_hidden))
        inside = (1 - (unit(theirs) * unit(own @ matrix)).sum(-1)).mean()
    elif name == "shd":
        for place, other in enumerate((1, 3, 4)):
            layer = encoder_layers(teacher)[other]
            distances = [
                rel_entr(squeezed_by_least_squares(layer, theirs[other], states[other]), own[place]).sum(-1)
                for theirs, states, own in zip(their_attention, their_hidden, own_attention, strict=True)
            ]
            inside += np.concatenate(distances, axis=1).mean()
    elif name.startswith("pkd"):
        rows = list(zip(their_hidden, own_hidden, strict=True))
        for place, other in enumerate((2, 4) if name == "pkd" else (3, 4), start=1):
            errors = [((unit(own[place][0] @ matrix) - unit(theirs[other][0])) ** 2).sum() for theirs, own in rows]
            inside += np.mean(errors)
    wanted = answers(their_logits, own_logits, batch["labels"].numpy(), 0.6, 3.0) + 2.5 * inside
    assert (inside > 0.01 or name == "logits") and float(loss.detach()) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["minilmv2", "minilm"])
def test_relations_are_those_of_the_named_layers_heads_and_pairs(name):
    """MiniLM is MiniLMv2 with its own pairs, the last layers and the heads themselves."""
    teacher, batch = small_model(layers=3).double(), small_batch()
    student = small_model(layers=2, hidden_size=24, seed=1).double()
    chosen = {"relation_pairs": "query-query,query-key,value-value", "relation_weights": "1,2,0.5"}
    phase = phases(name, teacher, student, teacher_layer=1, student_layer=0, relation_heads=12, **chosen)[0]
    (_, their_hidden, _), (_, own_hidden, _) = (shown(model, batch) for model in (teacher, student))
    weights = {"query-query": 1, "query-key": 2, "value-value": 0.5}
    heads, other, place = 12, 1, 0
    if name == "minilm":
        weights, heads, other, place = {"query-key": 1, "value-value": 1}, 4, 2, 1
    wanted = 0.0
    for pair, weight in weights.items():
        divergences = []
        for theirs, own in zip(their_hidden, own_hidden, strict=True):
            distributions = []
            for model, number, states in ((teacher, other, theirs[other]), (student, place, own[place])):
                layer = encoder_layers(model)[number]
                parts = [np.concatenate(list(of_heads(layer, one, states)), -1) for one in pair.split("-")]
                parts = [part.reshape(len(states), heads, -1).transpose(1, 0, 2) for part in parts]
                scores = parts[0] @ parts[1].transpose(0, 2, 1) / np.sqrt(parts[0].shape[-1])
                distributions.append(softmax(scores, -1))
            divergences.append(rel_entr(*distributions).sum(-1))
        wanted += weight * np.concatenate(divergences, axis=1).mean()
    loss, parts = phase.loss(student, batch)
    assert list(parts) == list(weights) and float(loss.detach()) == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    # Nothing after the matched projections learns from relations.
    assert encoder_layers(student)[place].query.weight.grad is not None
    assert encoder_layers(student)[place].feed_forward_in.weight.grad is student.classifier.weight.grad is None


def test_tinybert_matches_embeddings_hidden_states_and_attention():
    """Attention by scores whose softmax is transformers' attention."""
    teacher, student = small_model(layers=3).double(), small_model(layers=2, hidden_size=24, seed=1).double()
    batch, pairs = small_batch(), ((1, 2), (2, 3))
    phase = phases("tinybert", teacher, student)[0]
    assert sum(value.numel() for value in phase.projections.parameters()) == 2 * 24 * 48
    matrices = {key: value.weight.detach().numpy().T for key, value in phase.projections.double().items()}
    parts = {part: float(value.detach()) for part, value in phase.loss(student, batch)[1].items()}
    (_, their_hidden, their_attention), (_, own_hidden, own_attention) = shown(teacher, batch), shown(student, batch)

    def scores(model, place, states, attention):
        layer = encoder_layers(model)[place - 1]
        query, key = (of_heads(layer, name, states[place - 1]) for name in ("query", "key"))
        found = query @ key.transpose(0, 2, 1) / np.sqrt(layer.head_size)
        np.testing.assert_allclose(softmax(found, -1), attention[place - 1], atol=1e-12)
        return found

    attention = 0.0
    for place, other in pairs:
        rows = zip(their_hidden, their_attention, own_hidden, own_attention, strict=True)
        errors = [(scores(teacher, other, *row[:2]) - scores(student, place, *row[2:])) ** 2 for row in rows]
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
    vectors = torch.from_numpy(theirs), torch.from_numpy(own @ matrices[1])  # the loss itself: test_distillation_losses
    contrast = losses.contrastive_loss(*vectors, batch["labels"], 0.1)
    assert parts["row contrast"] == pytest.approx(float(contrast), rel=1e-6)


def test_relation_matrices_are_the_distributions_of_the_first_row_and_what_is_matched():
    model, batch = small_model(), small_batch(rows=2)
    view = Relations(load_settings("demo", {"relation_heads": 12, "teacher_layer": 1})).relations(Asked(model), model)
    assert view == (("query-query", "key-key", "value-value"), 12, 1, 2)
    matrices = relation_matrices(model, batch, -1, ["query-query", "query-key"], 4)
    torch.testing.assert_close(matrices["query-query"].sum(-1), torch.ones(9))
    attention = shown(model, batch)[2][0][-1].mean(0)
    np.testing.assert_allclose(matrices["query-key"].numpy(), attention, atol=1e-6)


@pytest.mark.parametrize(
    "teacher, student, expected",
    [(12, 6, [2, 4, 6, 8, 10, 12]), (12, 4, [3, 6, 9, 12]), (6, 3, [2, 4, 6]), (4, 3, [2, 3, 4]), (2, 4, [1, 1, 2, 2])],
)
def test_layers_are_spread_as_published(teacher, student, expected):
    models = [small_model(layers=count, hidden_size=12, heads=2) for count in (teacher, student)]
    assert [(own + 1, other + 1) for own, other in objective.uniform_layers(*models)] == list(enumerate(expected, 1))
    if (teacher, student) == (12, 6):  # PKD, section 3.2
        assert [other + 1 for _, other in PatientSkip(load_settings()).layers(*models)] == [2, 4, 6, 8, 10]
        assert [other + 1 for _, other in PatientLast(load_settings()).layers(*models)] == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    "name, student, overrides, message",
    [
        ("tinybert", {"heads": 6}, {}, "teacher layer 0 has 4 heads and student layer 0 has 6"),
        ("minilm", {"heads": 2}, {}, "teacher layer 2 has 4 heads and student layer 2 has 2"),
        ("pkd", {"layers": 1}, {}, "give it two layers or more"),
        ("pkd-last", {"layers": 5}, {}, "this student has 2 more than its teacher"),
        ("minilmv2", {"hidden_size": 40}, {}, "relation_heads = 12 does not divide the student's hidden size 40"),
        ("minilmv2", {}, {"teacher_layer": 7}, "no layer 7; it has 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(name, student, overrides, message):
    with pytest.raises(MethodRefused, match=message):
        phases(name, small_model(), small_model(**student), **overrides)


ROWS = small_rows(23)


def rows_of(rows, settings, **sizes):
    model = small_model(vocabulary_size=len(rows.tokenizer), **sizes)
    return Teacher(model, rows.tokenizer, rows, load_settings("demo", settings))


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_signals_are_the_teachers_own_whatever_the_padding_and_cached_where_they_fit(gigabytes, monkeypatch):
    teacher = rows_of(ROWS, {"teacher_cache_gigabytes": gigabytes, "evaluation_batch_size": 5})
    names_of, passes = ("logits", "embeddings", "cls.1", "hidden.-1", "context.0", "query.2"), []
    source = teacher.signals(names_of)
    teacher.model.register_forward_hook(lambda *_: passes.append(True))
    assert not teacher._cache  # nothing is computed before it is asked for
    for positions, batch in batches(ROWS.train.select(range(3, 17)), ROWS.tokenizer, 6):
        batch["position"] = torch.from_numpy(positions.copy()) + 3
        fresh = teacher_signals(teacher.model, batch, names_of)
        kept, real = source(batch), batch["attention_mask"].bool()
        assert set(kept) >= set(names_of)
        for name in names_of:
            both = (kept[name], fresh[name]) if name in ("logits", "cls.1") else (kept[name][real], fresh[name][real])
            torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)
            if gigabytes and name not in ("logits", "cls.1"):
                assert float(kept[name][~real].abs().sum()) == 0
    assert len(passes) - 3 == (5 if gigabytes else 3)  # one over all rows, or one for each batch
    assert set(teacher._cache) == (set(names_of) if gigabytes else set())


def test_students_share_what_was_computed_and_make_room_where_it_does_not_fit():
    batch = next(batches(ROWS.train, ROWS.tokenizer, 4))[1]
    size = 48 * 4 * (sum(ROWS.train["length"])) / 1e9
    teacher = rows_of(ROWS, {"teacher_cache_gigabytes": 2.5 * size})
    for name, kept in (("query.0", ["query.0"]), ("key.0", ["key.0", "query.0"]), ("value.0", ["value.0"])):
        teacher.signals([name])(batch)
        assert sorted(teacher._cache) == kept


def test_a_teacher_reads_rows_through_its_own_tokenizer_and_refuses_other_tokens():
    other = train_tokenizer(ROWS.data.train["sentence"][:3], 44)
    rows = tokenize_rows(ROWS.data, other, 32, token_types=True)
    teacher = Teacher(small_model(vocabulary_size=len(ROWS.tokenizer)), ROWS.tokenizer, rows, load_settings())
    assert teacher.rows.train["input_ids"][:] == ROWS.train["input_ids"][:]
    student = small_model(vocabulary_size=len(other), layers=2)
    settings = load_settings("demo", {"batch_size": 8, "relation_heads": 12})
    with pytest.raises(MethodRefused, match="since the vocabulary was cut .* of 23 train rows have other tokens"):
        train(student, rows, find_objective("minilmv2", settings).phases(teacher, student), settings, 0)
    assert not teacher._cache
    train(student, rows, find_objective("logits", settings).phases(teacher, student), settings, 0)
    assert list(teacher._cache) == ["logits"]


def test_recovery_learns_from_labels_and_the_teacher_where_there_is_one():
    teacher = rows_of(ROWS, {})
    assert recovery_loss(None, teacher.settings) is label_loss
    batch = next(batches(ROWS.train, ROWS.tokenizer, 8))[1]
    student = small_model(vocabulary_size=len(ROWS.tokenizer), seed=1).double()
    settings = load_settings("demo", {"soft_target_weight": 0.3, "temperature": 4.0})
    loss = recovery_loss(teacher, settings)(student, batch)[0]
    logits = [shown(model, batch)[0] for model in (teacher.model, student)]
    assert float(loss.detach()) == pytest.approx(answers(*logits, batch["labels"].numpy(), 0.3, 4.0), rel=1e-5)


def test_projections_are_seeded_trained_and_left_behind():
    teacher = rows_of(ROWS, {})
    settings = load_settings("demo", {"batch_size": 8, "distillation_epochs": 1})
    weights, keys = [], set(small_model(hidden_size=24).state_dict())
    for seed in (0, 0, 1):
        student = small_model(vocabulary_size=len(ROWS.tokenizer), hidden_size=24, seed=1)
        phase = find_objective("tinybert", settings, seed).phases(teacher, student)[0]
        before = phase.projections["hidden"].weight.detach().clone()
        log = train(student, ROWS, [phase], settings, 0)
        after = phase.projections["hidden"].weight.detach()
        assert not torch.equal(before, after) and set(student.state_dict()) == keys
        assert log.phases[0]["projection_parameters"] == 2 * 24 * 48
        weights.append(after)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_objective_of_ones_own_is_named_trained_and_sees_the_states_it_names(monkeypatch):
    monkeypatch.setattr(objective, "IMPLEMENTATIONS", dict(IMPLEMENTATIONS))
    monkeypatch.setattr(names, "METHODS", dict(names.METHODS))
    monkeypatch.setattr(names, "OWN_CODE", {})

    class LastHidden(Objective):
        """Mean squared error of the last hidden states, beside the labels."""

        states = ("logits", "hidden.-1")

        def loss(self, student, teacher, batch):
            error = losses.hidden_state_error(teacher["hidden.-1"], student["hidden.-1"], batch["attention_mask"])
            return error + losses.label_divergence(student["logits"], batch["labels"])

    objective.register("last-hidden", LastHidden)
    settings = load_settings("demo", {"batch_size": 8, "distillation_epochs": 2, "prediction_epochs": 6})
    assert names.METHODS["last-hidden"].kind == "distillation"
    teacher, student = rows_of(ROWS, {}), small_model(vocabulary_size=len(ROWS.tokenizer), layers=2, seed=1)
    log = train(student, ROWS, find_objective("last-hidden", settings).phases(teacher, student), settings, 0)
    assert [(phase["name"], phase["epochs"]) for phase in log.phases] == [("distillation", 8)]
    assert log.history[-1]["loss"] < log.history[0]["loss"]
    for name in ("minilmv2", "Mine"):  # taken, and no name
        with pytest.raises(SettingError, match=name):
            objective.register(name, LastHidden)
