import numpy as np
import pytest
import torch
from small_models import small_batch, small_model, tokenized_sentences

from edgemin_utils import training
from edgemin_utils.config import load_settings
from edgemin_utils.training import (
    GroupedByLength,
    Phase,
    batches,
    label_loss,
    model_inputs,
    predict,
    train_phases,
    training_precision,
)

SETTINGS = load_settings("demo", {"batch_size": 8, "warmup_ratio": 0.1})


def test_prediction_does_not_depend_on_batching_or_padding():
    rows, tokenizer = tokenized_sentences(21)
    model = small_model(vocabulary_size=len(tokenizer))
    one_by_one = []
    for row in rows:
        with torch.inference_mode():
            one_by_one.append(model(input_ids=torch.tensor([row["input_ids"]])).logits[0].numpy())
    for size in (1, 4, 64):
        np.testing.assert_allclose(predict(model, rows, tokenizer, size), np.stack(one_by_one), atol=1e-5)


def test_prediction_keeps_the_mode_and_needs_no_rows():
    rows, tokenizer = tokenized_sentences(4)
    model = small_model(vocabulary_size=len(tokenizer)).train()
    first, second = predict(model, rows, tokenizer), predict(model, rows, tokenizer)
    assert model.training and np.array_equal(first, second)  # no dropout while predicting
    assert predict(model, rows.select([]), tokenizer).shape == (0, 2)


def test_batches_cover_every_row_once_with_little_padding():
    rows, tokenizer = tokenized_sentences(20)
    seen, padding = [], 0
    for positions, batch in batches(rows, tokenizer, 6):
        seen += positions.tolist()
        padding += int((batch["attention_mask"] == 0).sum())
        assert batch["labels"].tolist() == [rows["labels"][place] for place in positions]
    assert sorted(seen) == list(range(20))
    lengths = sorted(rows["length"], reverse=True)
    assert padding == sum(6 * 0 + max(lengths[s : s + 6]) - n for s in range(0, 20, 6) for n in lengths[s : s + 6])


def test_label_loss_is_cross_entropy():
    model, batch = small_model(), small_batch()
    logits = model(**model_inputs(model, batch)).logits
    by_hand = -logits.log_softmax(-1)[torch.arange(3), batch["labels"]].mean()
    torch.testing.assert_close(label_loss(model, batch)[0], by_hand)


def train(seed, phases=None, rows=None, **overrides):
    tokenized, tokenizer = rows or tokenized_sentences(64)
    model = small_model(layers=1, vocabulary_size=len(tokenizer))
    phases = phases or [Phase("fine-tuning", 8, 5e-3, label_loss)]
    settings = load_settings("demo", {"batch_size": 8, **overrides})
    log = train_phases(model, tokenized, phases, tokenizer, settings, seed, tokenized.select(range(16)))
    return model, log, tokenized, tokenizer


def test_training_learns_and_logs_what_it_did():
    model, log, rows, tokenizer = train(0)
    accuracy = (predict(model, rows, tokenizer).argmax(1) == np.asarray(rows["labels"])).mean()
    assert accuracy == 1.0
    (phase,) = log.phases
    assert (phase["name"], phase["steps"], phase["precision"]) == ("fine-tuning", 64, "float32")
    assert phase["examples_per_second"] == pytest.approx(64 * 8 / phase["seconds"])
    assert [item["epoch"] for item in log.evaluations] == list(range(1, 9))
    assert log.evaluations[-1]["accuracy"] == 1.0 and log.history[-1]["loss"] < log.history[0]["loss"] / 2
    assert [item["step"] for item in log.history][-1] == 64 and not model.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = (train(seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_phases_follow_each_other_and_an_empty_one_is_skipped():
    seen = []

    def recording(name):
        def loss(model, batch):
            seen.append((name, batch["position"].tolist()))
            return label_loss(model, batch)

        return loss

    _, log, _, _ = train(
        0,
        [
            Phase("first", 1, 1e-3, recording("first"), evaluates=False),
            Phase("nothing", 0, 1e-3, recording("nothing")),
            Phase("second", 1.5, 1e-3, recording("second")),
        ],
    )
    assert [(phase["name"], phase["steps"]) for phase in log.phases] == [("first", 8), ("second", 12)]
    assert {name for name, _ in seen} == {"first", "second"}
    assert sorted(place for name, places in seen if name == "first" for place in places) == list(range(64))
    assert {item["phase"] for item in log.evaluations} == {"second"}
    assert [item["step"] for item in log.history] == sorted(item["step"] for item in log.history)
    assert log.history[-1]["step"] == 20 and log.history[-1]["epoch"] == pytest.approx(2.5)


def test_every_phase_warms_up_and_decays_linearly_to_zero(monkeypatch):
    """Of 8 steps a quarter is warm-up: step s has s / 2 of the peak before step 2, and (8 - s) / 6 from there on."""
    rates = []

    class Recording(training._CollectHistory):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.append({group["lr"] for group in optimizer.param_groups})

    monkeypatch.setattr(training, "_CollectHistory", Recording)
    train(0, [Phase("first", 1, 1e-3, label_loss), Phase("second", 1, 4e-3, label_loss)], warmup_ratio=0.25)
    shares = [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert all(len(groups) == 1 for groups in rates)  # with decay and without: one rate
    assert [rate for (rate,) in rates] == pytest.approx([peak * share for peak in (1e-3, 4e-3) for share in shares])


def test_length_grouping_leaves_less_padding_in_training():
    rows = tokenized_sentences(200)
    padding = {}
    for grouping in (True, False):
        counts = []

        def loss(model, batch, counts=counts):
            counts.append(int((batch["attention_mask"] == 0).sum()))
            return label_loss(model, batch)

        train(0, [Phase("one", 1, 1e-3, loss)], rows, length_grouping=grouping)
        padding[grouping] = sum(counts)
    assert padding[True] < padding[False] / 2


def test_precision_is_what_is_asked_for():
    assert training_precision(load_settings("demo", {"training_precision": "bfloat16"})) == "bfloat16"
    assert training_precision(SETTINGS) == "float32"
    assert training_precision(load_settings("demo", {"training_precision": "auto"})) in ("float32", "bfloat16")
    _, log, _, _ = train(0, training_precision="bfloat16")
    assert log.phases[0]["precision"] == "bfloat16" and log.evaluations[-1]["accuracy"] > 0.9


def test_a_gpu_that_only_emulates_half_precision_trains_in_float32(monkeypatch):
    auto = load_settings("demo", {"training_precision": "auto"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, precision in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert training_precision(auto) == precision


def test_length_grouped_order_is_a_fresh_permutation_each_epoch_of_alike_batches():
    lengths = np.random.default_rng(0).integers(3, 60, size=1003)
    orders = [list(order) for order in [GroupedByLength(lengths, 8, seed=5)] for _ in range(2)]
    again, other = list(GroupedByLength(lengths, 8, seed=5)), list(GroupedByLength(lengths, 8, seed=6))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1003))
    assert orders[0] == again and orders[0] != orders[1] and orders[0] != other

    def padding(order):
        batches_of = [lengths[order[start : start + 8]] for start in range(0, len(order), 8)]
        return sum(int((batch.max() - batch).sum()) for batch in batches_of), [batch.mean() for batch in batches_of]

    grouped, means = padding(orders[0])
    assert grouped < 0.2 * padding(np.random.default_rng(1).permutation(1003))[0]
    # Batches come in no order of length: neighbours are as unlike as any two.
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_a_model_trained_in_half_precision_predicts_as_its_saved_weights_do():
    """Autocast is for the loss: what is predicted afterwards, and recorded, is what a reloaded model gives."""
    rows, tokenizer = tokenized_sentences(16)
    model = small_model(vocabulary_size=len(tokenizer))
    settings = load_settings("demo", {"training_precision": "bfloat16"})
    train_phases(model, rows, [Phase("labels", 1, 1e-3, label_loss)], tokenizer, settings, 0)
    again = small_model(vocabulary_size=len(tokenizer))
    again.load_state_dict(model.state_dict())
    assert (predict(model, rows, tokenizer) == predict(again, rows, tokenizer)).all()
