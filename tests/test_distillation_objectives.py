"""The objectives on small models: what they match, by NumPy, that they match it rightly, and what they refuse."""

from itertools import takewhile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from small_models import small_batch, small_model, small_rows
from torch.nn import functional

from edgemin_utils import names
from edgemin_utils.distillation import losses, objective
from edgemin_utils.distillation.focus import confounding_run
from edgemin_utils.distillation.layers import PatientLast, PatientSkip, squeeze_heads
from edgemin_utils.distillation.objective import IMPLEMENTATIONS, Objective, find_objective, recovery_loss
from edgemin_utils.distillation.relations import Relations, relation_matrices
from edgemin_utils.distillation.teacher import Teacher, teacher_signals
from edgemin_utils.encoders import embeddings_of, encoder_layers
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.rows.tokens import tokenize_rows, train_tokenizer
from edgemin_utils.settings import load_settings
from edgemin_utils.training import batches, label_loss, model_inputs, train

DISTILLED = tuple(name for name in IMPLEMENTATIONS if not name.startswith("none"))
REAL = small_batch()["attention_mask"].numpy() == 1
ONLY_INSIDE = {"soft_target_weight": 1.0, "relation_heads": 12}
ROWS = small_rows(23)
SPREAD = [(12, 6, [2, 4, 6, 8, 10, 12]), (12, 4, [3, 6, 9, 12]), (6, 3, [2, 4, 6]), (4, 3, [2, 3, 4])]
SPREAD += [(2, 4, [1, 1, 2, 2])]
REFUSED = [(name, {"layers": 5}, {}, "this student has 2 layers more") for name in ("pkd-last", "arc")]
REFUSED += [("pkd", {"layers": 1}, {}, "give it two layers or more"), ("minilm2", {}, {}, "did you mean 'minilmv2'")]
REFUSED += [("tinybert", {"heads": 6}, {}, "teacher layer 0 has 4 heads and student layer 0 has 6")]
REFUSED += [("minilm", {"heads": 2}, {}, "teacher layer 2 has 4 heads and student layer 2 has 2")]
REFUSED += [("minilmv2", {"hidden_size": 40}, {}, "relation_heads = 12 does not divide the student's hidden size 40")]
REFUSED += [("minilmv2", {}, {"teacher_layer": 7}, "no layer 7; it has 3")]


def asked(model):
    """A teacher that is asked batch by batch, of any batch."""
    made = {"signals": lambda names: lambda batch: teacher_signals(model, batch, names), "require_same_tokens": None}
    return SimpleNamespace(model=model, **made)


def phases(name, teacher, student, **overrides):
    settings = load_settings("demo", {**ONLY_INSIDE, **overrides})
    return find_objective(name, settings).phases(asked(teacher), student)


def models(layers=3, of_student=2, hidden_size=24, heads=4):
    """A teacher and a narrower student in float64, and a batch."""
    student = small_model(layers=of_student, hidden_size=hidden_size, heads=heads, seed=1)
    return small_model(layers=layers).double(), student.double(), small_batch()


def matrix_of(linear):
    return linear.double().weight.detach().numpy().T


def floats(parts):
    return {name: float(value.detach()) for name, value in parts.items()}


def drawn_loss(phase, model, batch):
    """The phase's loss after a fixed seed: arc draws which layers stand in; here the first of two does."""
    torch.manual_seed(0)
    return phase.loss(model, batch)


def random_states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", DISTILLED)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    model, batch = small_model(layers=2).double(), small_batch()
    for phase in phases(name, model, model):
        if phase.name == "row relations":
            continue  # rows of one label go on to attract each other: the contrast is no distance to the teacher
        model.zero_grad()
        loss, parts = phase.loss(model, batch)
        loss.backward()
        assert abs(loss.item()) < 1e-7, (phase.name, parts)
        assert all(value.grad is None or float(value.grad.abs().max()) < 1e-7 for value in model.parameters())


@pytest.mark.parametrize("name", DISTILLED)
def test_padding_changes_nothing_and_parts_sum_to_the_loss(name):
    teacher, student, batch = models(hidden_size=48)
    longer = {key: functional.pad(value, (0, 3)) if value.dim() == 2 else value for key, value in batch.items()}
    for phase in phases(name, teacher, student):
        (plain, parts), (padded, _) = (drawn_loss(phase, student, rows) for rows in (batch, longer))
        assert float(plain.detach()) > 0
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=0)
        used = [value for part, value in parts.items() if part != "labels"]  # at soft_target_weight 1
        torch.testing.assert_close(sum(used), plain)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_objective_trains_as_many_epochs(name):
    found = phases(name, small_model(), small_model(layers=2), distillation_epochs=2, prediction_epochs=3)
    assert sum(phase.epochs for phase in found) == 5 and found[-1].epochs == (3 if len(found) > 1 else 5)
    assert [phase.evaluates for phase in found] == [False] * (len(found) - 1) + [True]
    assert all(phase.transfer == (not name.startswith("none")) for phase in found)


@pytest.mark.parametrize("name, heads", [*((name, 4) for name in DISTILLED), ("shd", 2), ("shd", 6), ("internal", 6)])
def test_every_family_learns_by_every_objective(name, heads, family):
    teacher, student = small_model(layers=3), small_model(family, layers=2, hidden_size=24, heads=heads, seed=1)
    for phase in phases(name, teacher, student):
        loss, _ = drawn_loss(phase, student, small_batch())
        loss.backward()
        assert loss.item() > 0 and float(encoder_layers(student)[0].query.weight.grad.abs().max()) > 0


def shown(model, batch):
    """By transformers: logits (rows, labels), hidden states (layers + 1, rows, tokens, hidden), the embeddings first,
    and attention (layers, rows, heads, tokens, tokens), zero for keys that are padding."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**model_inputs(model, batch), output_hidden_states=True, output_attentions=True)
    return [torch.stack(list(each)).numpy() for each in (outputs.logits, outputs.hidden_states, outputs.attentions)]


def of_heads(model, number, name, hidden, heads=None):
    """A projection of the input of layer `number`, hidden[number], by head: (..., heads, tokens, head size)."""
    layer = encoder_layers(model)[number]
    projected = hidden[number] @ getattr(layer, name).weight.detach().numpy().T
    projected = projected + getattr(layer, name).bias.detach().numpy()
    return projected.reshape(*projected.shape[:-1], heads or layer.num_heads, -1).swapaxes(-2, -3)


def dots(first, second):
    return first @ second.swapaxes(-1, -2) / np.sqrt(first.shape[-1])


def scores(model, number, hidden, pair="query-key", heads=None):
    return dots(*(of_heads(model, number, name, hidden, heads) for name in pair.split("-")))


def over_keys(scores):
    """Distributions over the keys of `small_batch` that are no padding, (rows, heads, tokens, tokens)."""
    return softmax(np.where(REAL[:, None, None], scores, -np.inf), -1)


def divergence(teacher, student):
    """Mean KL of distributions (rows, heads, tokens, tokens) over heads and the real tokens of `small_batch`."""
    return rel_entr(teacher, student).sum(-1).swapaxes(1, 2)[REAL].mean()


def answers(teacher_logits, logits, labels, weight, temperature):
    """`weight` times Hinton's soft targets and the rest times cross-entropy with the labels; a row without adds 0."""
    soft = rel_entr(softmax(teacher_logits / temperature, -1), softmax(logits / temperature, -1)).sum(-1).mean()
    hard = -(log_softmax(logits, -1)[range(len(labels)), labels] * (labels >= 0)).mean()
    return weight * temperature**2 * soft + (1 - weight) * hard


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def squeezed_by_least_squares(model, number, attention, hidden):
    """Four heads' attention (heads, tokens, tokens) of one row squeezed to two; it is zero from and to padding."""
    weight = encoder_layers(model)[number].attention_output.weight.detach().numpy().T.reshape(4, 12, 48)
    outputs, squeezed = of_heads(model, number, "value", hidden) @ weight, []
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
    teacher, student, batch = models(5, 3, heads=2)
    batch["labels"] = torch.tensor([1, -1, 0])
    (phase,) = phases(name, teacher, student, intermediate_weight=2.5, soft_target_weight=0.6, temperature=3.0)
    matrix, inside = matrix_of(phase.projections) if phase.projections else None, 0.0
    loss = float(phase.loss(student, batch)[0].detach())
    their_logits, theirs, their_attention = shown(teacher, batch)
    own_logits, own, own_attention = shown(student, batch)
    if name == "distilbert":
        inside = 1 - (unit(theirs[-1][REAL]) * unit(own[-1][REAL] @ matrix)).sum(-1).mean()
    elif name == "shd":
        for place, other in enumerate((1, 3, 4)):
            attention = their_attention[other] * REAL[:, None, :, None]
            rows = [squeezed_by_least_squares(teacher, other, attention[row], theirs[:, row]) for row in range(3)]
            inside += divergence(np.stack(rows), own_attention[place])
    elif name.startswith("pkd"):
        for place, other in enumerate((2, 4) if name == "pkd" else (3, 4), start=1):
            inside += ((unit(own[place, :, 0] @ matrix) - unit(theirs[other, :, 0])) ** 2).sum(-1).mean()
    wanted = answers(their_logits, own_logits, batch["labels"].numpy(), 0.6, 3.0) + 2.5 * inside
    assert (inside > 0.01 or name == "logits") and loss == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["minilmv2", "minilm"])
def test_relations_are_those_of_the_named_layers_heads_and_pairs(name):
    """MiniLM is MiniLMv2 with its own pairs, the last layers and the heads themselves."""
    teacher, student, batch = models()
    chosen = {"relation_pairs": "query-query,query-key,value-value", "relation_weights": "1,2,0.5"}
    phase = phases(name, teacher, student, teacher_layer=1, student_layer=0, relation_heads=12, **chosen)[0]
    weights, heads, other, place = {"query-query": 1, "query-key": 2, "value-value": 0.5}, 12, 1, 0
    if name == "minilm":
        weights, heads, other, place = {"query-key": 1, "value-value": 1}, 4, 2, 1
    sides = [(model, number, shown(model, batch)[1]) for model, number in ((teacher, other), (student, place))]
    by_pair = {pair: divergence(*(over_keys(scores(*side, pair, heads)) for side in sides)) for pair in weights}
    loss, parts = phase.loss(student, batch)
    assert floats(parts) == pytest.approx(by_pair, rel=1e-6)
    assert loss.item() == pytest.approx(sum(weights[pair] * by_pair[pair] for pair in weights), rel=1e-6)


def test_tinybert_matches_embeddings_hidden_states_and_attention():
    """Attention by scores whose softmax is transformers' attention."""
    teacher, student, batch = models()
    phase = phases("tinybert", teacher, student)[0]
    matrices, parts = [matrix_of(one) for one in phase.projections.values()], phase.loss(student, batch)[1]
    (_, theirs, their_attention), (_, own, own_attention) = (shown(model, batch) for model in (teacher, student))
    embeddings = ((own[0] @ matrices[0] - theirs[0])[REAL] ** 2).mean()
    wanted = {"embeddings": embeddings, "hidden states": 0.0, "attention": 0.0}
    for place, other in ((0, 1), (1, 2)):
        wanted["hidden states"] += ((own[place + 1] @ matrices[1] - theirs[other + 1])[REAL] ** 2).mean()
        both = np.stack([scores(teacher, other, theirs), scores(student, place, own)])
        np.testing.assert_allclose(over_keys(both), [their_attention[other], own_attention[place]], atol=1e-12)
        squares = ((both[0] - both[1]) ** 2).transpose(0, 2, 3, 1)
        wanted["attention"] += squares[REAL[:, None] & REAL[..., None]].mean()
    assert floats(parts) == pytest.approx(wanted, rel=1e-6)


def test_mlkd_matches_tokens_and_then_rows():
    """Embeddings, heads' outputs and hidden states of every token, then rows by their last [CLS] vectors."""
    (teacher, student, batch), parts, matrices = models(), {}, []
    batch["labels"] = torch.tensor([0, 1, 0])
    for phase in phases("mlkd", teacher, student):
        matrices.append(matrix_of(phase.projections))
        parts |= floats(phase.loss(student, batch)[1])
    (_, theirs, their_attention), (_, own, own_attention) = (shown(model, batch) for model in (teacher, student))
    embeddings = (over_keys(dots(states, states)) for states in (theirs[0][:, None], own[0][:, None]))
    wanted = {"embeddings": divergence(*embeddings), "attention heads": 0.0, "hidden states": 0.0}
    for place, other in ((0, 1), (1, 2)):
        outputs = [their_attention[other] @ of_heads(teacher, other, "value", theirs)]
        outputs.append(own_attention[place] @ of_heads(student, place, "value", own))
        wanted["attention heads"] += divergence(*(over_keys(dots(one, one)) for one in outputs))
        wanted["hidden states"] += ((own[place + 1] @ matrices[0] - theirs[other + 1])[REAL] ** 2).mean()
    rows = theirs[-1][:, 0], own[-1][:, 0]
    wanted["row similarity"] = rel_entr(*(softmax(dots(one, one), -1) for one in rows)).sum(-1).mean()
    vectors = torch.from_numpy(rows[0]), torch.from_numpy(rows[1] @ matrices[1])  # the loss itself has its own test
    wanted["row contrast"] = float(losses.contrastive_loss(*vectors, batch["labels"], 0.1))
    assert {name: parts[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_internal_adds_attention_and_first_tokens_layer_by_layer():
    (teacher, student, batch), attention, first = models(), 0.0, 0.0
    found = phases("internal", teacher, student, distillation_epochs=3)
    assert [phase.epochs for phase in found] == [1.5, 1.5, 1]
    matrix = matrix_of(found[0].projections)
    (_, theirs, their_attention), (_, own, own_attention) = (shown(model, batch) for model in (teacher, student))
    for phase, place, other in zip(found, (0, 1), (1, 2), strict=False):
        attention += divergence(their_attention[other], own_attention[place])
        first += 1 - (unit(theirs[other + 1, :, 0]) * unit(own[place + 1, :, 0] @ matrix)).sum(-1).mean()
        loss, parts = phase.loss(student, batch)
        assert floats(parts) == pytest.approx({"attention": attention, "[CLS] vectors": first}, rel=1e-6)
        assert loss.item() == pytest.approx(attention + first, rel=1e-6)


@pytest.mark.parametrize("replaced", [(True, True), (True, False), (False, True), (False, False)])
def test_arc_runs_the_teachers_layers_where_the_students_do_not_stand_in(replaced, monkeypatch):
    """By transformers' own layers: teacher layers 1 and 2 are the first group."""
    (teacher, student, _), batch = models(), small_batch(rows=1)
    before, phase, last = phases("arc", teacher, student, soft_target_weight=0.6, temperature=3.0)
    assert [each.epochs for each in (before, phase, last)] == [0.5, 0.5, 1]
    up, down = (phase.projections.double()[way].weight.T for way in ("up", "down"))
    hidden, layers = student.bert.embeddings(batch["input_ids"]), teacher.bert.encoder.layer
    for layer, group, stands_in in zip(student.bert.encoder.layer, (layers[:2], layers[2:]), replaced, strict=True):
        hidden = layer(hidden) if stands_in else torch.nn.Sequential(*group)(hidden @ up) @ down
    logits = student.classifier(student.bert.pooler(hidden)).detach().numpy()
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([0.49 if one else 0.51 for one in replaced]))
    loss = phase.loss(student, batch)[0]
    wanted = answers(shown(teacher, batch)[0], logits, batch["labels"].numpy(), 0.6, 3.0)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    assert all(value.grad is None for value in teacher.parameters())


def run_by_hand(teacher, student, ids):
    """The hidden tokens of a row without padding, from gradient norms and ids, all lists, by loops."""
    free = [at for at in range(1, len(ids)) if ids[at] != ids[-1]]
    scaled = [(np.array(norms)[free] - min(norms[at] for at in free)) for norms in (teacher, student)]
    difference = np.subtract(*(norms / max(norms.max(), 1e-9) for norms in scaled))
    threshold = min(sorted(difference)[len(free) // 10], -1e-12)
    chosen = {at for at, value in zip(free, difference, strict=True) if value <= threshold}
    at = free[difference.argmin()]
    return {place for way in (range(at, 0, -1), range(at, len(ids))) for place in takewhile(chosen.__contains__, way)}


def test_focus_hides_the_run_of_tokens_that_moves_the_student_and_not_the_teacher():
    generator = np.random.default_rng(0)
    lengths, ids = (45, 38, 6, 3), torch.from_numpy(generator.integers(5, 12, (4, 45)))
    mask = (torch.arange(45) < torch.tensor(lengths)[:, None]).long()
    teacher, student = generator.random((2, 4, 45, 1))
    student[:, 10:14] += 9  # several neighbours
    given = confounding_run(torch.from_numpy(teacher), torch.from_numpy(student), ids, mask)
    for row, length in enumerate(lengths):
        by_hand = run_by_hand(teacher[row, :length, 0], student[row, :length, 0], ids[row, :length].tolist())
        assert set(given[row].nonzero().flatten().tolist()) == by_hand
    assert len(by_hand) <= 1 and given.sum(1).max() > 2
    assert not confounding_run(torch.from_numpy(teacher), torch.from_numpy(teacher), ids, mask).any()


@pytest.mark.parametrize("label", [0, 1, -1])
def test_gradients_are_those_of_finite_differences(label):
    """Where a row has no label, of the loss of the model's own answer."""
    model, batch = small_model().double(), {key: value[:1] for key, value in small_batch().items()}
    batch["labels"] = torch.tensor([label])
    answer = label if label >= 0 else int(shown(model, batch)[0].argmax())
    steps = 1e-5 * torch.cat([torch.eye(9 * 48), -torch.eye(9 * 48)]).double().unflatten(1, (9, 48))
    many = {key: value.repeat(len(steps), *[1] * (value.dim() - 1)) for key, value in batch.items()}
    with embeddings_of(model).register_forward_hook(lambda _, __, output: output + steps):
        loss = -log_softmax(shown(model, many)[0], -1)[:, answer].reshape(2, 9, 48)
    expected = np.linalg.norm((loss[0] - loss[1]) / 2e-5, axis=-1)
    found = teacher_signals(model, batch, ["gradient", "logits"])
    assert not found["logits"].requires_grad
    np.testing.assert_allclose(found["gradient"][0, :, 0].numpy(), expected, rtol=1e-5)


def test_focus_learns_the_teachers_answers_without_those_tokens():
    (teacher, student, _), batch = models(), small_batch(seed=2)  # in the second row the teacher's answer changes
    (phase,) = phases("focus", teacher, student, intermediate_weight=2.5, soft_target_weight=0.6, temperature=3.0)
    norms = [teacher_signals(model, batch, ["gradient"])["gradient"] for model in (teacher, student)]
    left = batch["attention_mask"].clone()
    for row, length in enumerate(left.sum(1).tolist()):
        rows = (each[row, :length, 0].tolist() for each in norms)
        left[row, list(run_by_hand(*rows, batch["input_ids"][row, :length].tolist()))] = 0
    assert (left.sum(1) == batch["attention_mask"].sum(1) - 1).all()
    hidden_from = {**batch, "attention_mask": left}
    whole, hidden = ([shown(model, rows)[0] for model in (teacher, student)] for rows in (batch, hidden_from))
    same = whole[0].argmax(-1) == hidden[0].argmax(-1)
    focused = [np.where(same[:, None], *both) for both in zip(hidden, whole, strict=True)]
    labels = batch["labels"].numpy()
    wanted = answers(*whole, labels, 0.6, 3.0) + 2.5 * answers(*focused, labels, 1.0, 3.0)
    assert same.tolist() == [True, False, True]
    assert float(phase.loss(student, batch)[0].detach()) == pytest.approx(wanted, rel=1e-6)


def test_relation_matrices_are_the_distributions_of_the_first_row_and_what_is_matched():
    model, batch = small_model(), small_batch(rows=2)
    view = Relations(load_settings("demo", {"relation_heads": 12, "teacher_layer": 1})).relations(asked(model), model)
    assert view == (("query-query", "key-key", "value-value"), 12, 1, 2, (1.0, 1.0, 1.0))
    matrix = relation_matrices(model, batch, -1, ["query-query", "query-key"], 4)["query-key"]
    np.testing.assert_allclose(matrix.numpy(), shown(model, batch)[2][-1, 0].mean(0), atol=1e-6)


@pytest.mark.parametrize("teacher, student, expected", SPREAD)
def test_layers_are_spread_as_published(teacher, student, expected):
    models = [small_model(layers=count, hidden_size=12, heads=2) for count in (teacher, student)]
    assert [(own + 1, other + 1) for own, other in objective.uniform_layers(*models)] == list(enumerate(expected, 1))
    if (teacher, student) == (12, 6):  # PKD, section 3.2
        assert [other + 1 for _, other in PatientSkip(load_settings()).layers(*models)] == [2, 4, 6, 8, 10]
        assert [other + 1 for _, other in PatientLast(load_settings()).layers(*models)] == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("name, student, overrides, message", REFUSED)
def test_what_does_not_fit_is_refused_with_a_sentence(name, student, overrides, message):
    with pytest.raises((MethodRefused, SettingError), match=message):
        phases(name, small_model(), small_model(**student), **overrides)


def teacher_of_rows(**settings):
    model = small_model(vocabulary_size=len(ROWS.tokenizer))
    return Teacher(model, ROWS.tokenizer, ROWS, load_settings("demo", settings))


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_signals_are_the_teachers_own_whatever_the_padding_and_cached_where_they_fit(gigabytes):
    teacher = teacher_of_rows(teacher_cache_gigabytes=gigabytes, evaluation_batch_size=5)
    names_of, passes = ("logits", "embeddings", "cls.1", "hidden.-1", "context.0", "query.2", "gradient"), []
    source = teacher.signals(names_of)
    teacher.model.register_forward_hook(lambda *_: passes.append(True))
    assert not teacher._cache  # nothing is computed before it is asked for
    for positions, batch in batches(ROWS.train.select(range(3, 17)), ROWS.tokenizer, 6):
        batch["position"] = torch.from_numpy(positions.copy()) + 3
        fresh, kept = teacher_signals(teacher.model, batch, names_of), source(batch)
        for name in names_of:
            real = ... if name in ("logits", "cls.1") else batch["attention_mask"].bool()
            torch.testing.assert_close(kept[name][real], fresh[name][real], atol=1e-5, rtol=1e-4)
            assert not gigabytes or real is ... or float(kept[name][~real].abs().sum()) == 0
    assert len(passes) - 3 == (5 if gigabytes else 3)  # one over all rows, or one for each batch
    assert set(teacher._cache) == (set(names_of) if gigabytes else set())


def test_students_share_what_was_computed_and_make_room_where_it_does_not_fit():
    batch = next(batches(ROWS.train, ROWS.tokenizer, 4))[1]
    teacher = teacher_of_rows(teacher_cache_gigabytes=2.5 * 48 * 4 * sum(ROWS.train["length"]) / 1e9)
    for name, kept in (("query.0", ["query.0"]), ("key.0", ["key.0", "query.0"]), ("value.0", ["value.0"])):
        teacher.signals([name])(batch)
        assert sorted(teacher._cache) == kept


def test_a_teacher_reads_rows_through_its_own_tokenizer_and_refuses_other_tokens():
    other = train_tokenizer(ROWS.data.train["sentence"][:3], 44)
    student = small_model(vocabulary_size=len(other), layers=2)
    rows = tokenize_rows(ROWS.data, other, 32, configs=[student.config])
    teacher = Teacher(small_model(vocabulary_size=len(ROWS.tokenizer)), ROWS.tokenizer, rows, load_settings())
    assert teacher.rows.train["input_ids"][:] == ROWS.train["input_ids"][:]
    settings = load_settings("demo", {"batch_size": 8, "relation_heads": 12})
    with pytest.raises(MethodRefused, match="since the vocabulary was cut .* of 23 train rows have other tokens"):
        train(student, rows, find_objective("minilmv2", settings).phases(teacher, student), settings, 0)
    assert not teacher._cache
    train(student, rows, find_objective("logits", settings).phases(teacher, student), settings, 0)
    assert list(teacher._cache) == ["logits"]


def test_recovery_learns_from_labels_and_as_from_logits_where_there_is_a_teacher():
    (teacher, student, batch), settings = models(), load_settings("demo")
    assert recovery_loss(None, settings) is label_loss
    (phase,) = find_objective("logits", settings).phases(asked(teacher), student)
    torch.testing.assert_close(recovery_loss(asked(teacher), settings)(student, batch), phase.loss(student, batch))


def test_projections_are_seeded_trained_and_left_behind():
    settings = load_settings("demo", {"batch_size": 8, "distillation_epochs": 1})
    trained, teacher = [], teacher_of_rows()
    for seed in (0, 0, 1):
        student = small_model(vocabulary_size=len(ROWS.tokenizer), hidden_size=24, seed=1)
        keys, phase = {*student.state_dict()}, find_objective("tinybert", settings, seed).phases(teacher, student)[0]
        before = phase.projections["hidden"].weight.detach().clone()
        log = train(student, ROWS, [phase], settings, 0)
        trained.append(phase.projections["hidden"].weight.detach())
        assert not torch.equal(before, trained[-1]) and {*student.state_dict()} == keys
        assert log.phases[0]["projection_parameters"] == 2 * 24 * 48
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_an_objective_of_ones_own_is_named_trained_and_sees_the_states_it_names(monkeypatch):
    for module, table in ((objective, "IMPLEMENTATIONS"), (names, "METHODS"), (names, "OWN_CODE")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))

    class LastHidden(Objective):
        states = ("hidden.-1",)

        def loss(self, student, teacher, batch):
            return losses.hidden_state_error(teacher["hidden.-1"], student["hidden.-1"], batch["attention_mask"])

    objective.register("last-hidden", LastHidden)
    known = {name for name, method in names.METHODS.items() if method.kind == "distillation"}
    assert known == {"last-hidden", *IMPLEMENTATIONS}
    settings = load_settings("demo", {"batch_size": 8, "distillation_epochs": 2, "prediction_epochs": 6})
    student = small_model(vocabulary_size=len(ROWS.tokenizer), layers=2, seed=1)
    log = train(student, ROWS, find_objective("last-hidden", settings).phases(teacher_of_rows(), student), settings, 0)
    assert [(phase["name"], phase["epochs"]) for phase in log.phases] == [("distillation", 8)]
    assert log.history[-1]["loss"] < log.history[0]["loss"]


def test_contrastive_loss_equals_numpy():
    teacher, student, labels = random_states(4, 6), random_states(4, 6, seed=1), torch.tensor([0, 1, -1, 1])
    vectors = unit(np.concatenate([each.numpy()[[0, 1, 3]] for each in (teacher, student)]))  # the third has no label
    similar, named, total = vectors @ vectors.T / 0.1, [0, 1, 1] * 2, 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        whole = np.log(np.exp(similar[i, others]).sum())
        total -= np.mean([similar[i, j] - whole for j in others if named[j] == named[i]])
    assert float(losses.contrastive_loss(teacher, student, labels)) == pytest.approx(total / 6, rel=1e-10)
    nothing = losses.contrastive_loss(teacher, student.requires_grad_(), torch.full((4,), -1))
    nothing.backward()
    assert float(nothing.detach()) == 0 and float(student.grad.abs().sum()) == 0


@pytest.mark.parametrize("heads, count", [(9, 3), (12, 8), (6, 5), (4, 4)])
def test_squeezed_heads_stay_distributions_and_merge_in_the_published_rounds(heads, count):
    mask = small_batch()["attention_mask"]
    attention = losses.log_attention(random_states(3, heads, 9, 9), mask).exp()
    squeezed = squeeze_heads(attention, random_states(3, heads, 9, 5), mask, count)
    assert squeezed.shape == (3, count, 9, 9) and float(squeezed.min()) >= 0
    torch.testing.assert_close(squeezed.sum(-1), torch.ones(3, count, 9).double())
    if heads == 9:  # four pairs and the last head, then two pairs and the last head again
        torch.testing.assert_close(squeezed[:, -1], attention[:, -1])


def test_half_precision_is_raised_first():
    half, single = random_states(2, 5, 6).bfloat16(), random_states(2, 5, 6).bfloat16().float()
    assert losses.relation_scores(half, half, 2).dtype == torch.float32
    assert abs(float(losses.cosine_distance(half, single, torch.ones(2, 5)))) < 1e-6
