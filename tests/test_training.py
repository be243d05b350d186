"""The training loop: what it learns, logs and reproduces, batches and predictions, also over two processes."""

import dataclasses
import itertools
import os
import socket
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_model, small_rows
from transformers import DataCollatorWithPadding

from edgemin_utils import training
from edgemin_utils.environment import from_main_process, is_main_process, joined_processes
from edgemin_utils.errors import MethodRefused, SettingError
from edgemin_utils.settings import load_settings
from edgemin_utils.training import GroupedByLength, Phase, batches, label_loss, model_inputs, predict, train

ROWS = small_rows(64, holdout=16)


def run(seed, *phases, rows=ROWS, precision=None, after_phase=None, model_dropout=0.1, **overrides):
    model = small_model(layers=1, vocabulary_size=len(rows.tokenizer), dropout=model_dropout)
    phases = phases or [Phase("fine-tuning", 8, 5e-3, label_loss)]
    settings = load_settings("demo", {"batch_size": 8} | overrides)
    return model, train(model, rows, phases, settings, seed, precision=precision, after_phase=after_phase)


def recording(seen, name):
    def loss(model, batch):
        seen.append((name, batch["position"].tolist()))
        return label_loss(model, batch)

    return loss


def test_prediction_does_not_depend_on_batching_padding_or_its_side():
    rows = small_rows(21)
    model = small_model(vocabulary_size=len(rows.tokenizer))
    with torch.inference_mode():
        one_by_one = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0].numpy() for row in rows.train]
    model.train()
    for side, size in itertools.product(("right", "left"), (1, 4, 64)):  # without dropout, whatever the model's mode
        rows.tokenizer.padding_side = side
        np.testing.assert_allclose(predict(model, rows.train, rows.tokenizer, size), one_by_one, atol=1e-5)
    assert model.training and predict(model, rows.train.select([]), rows.tokenizer).shape == (0, 2)


def test_batches_are_what_transformers_own_collator_makes_of_every_row_once_with_little_padding():
    rows, columns = ROWS.train.select(range(30, 50)), "input_ids attention_mask token_type_ids labels".split()
    seen, padding, collate = [], 0, DataCollatorWithPadding(ROWS.tokenizer)
    for places, ours in batches(rows, ROWS.tokenizer, 6):
        theirs = collate([rows.select_columns(columns)[int(place)] for place in places])
        torch.testing.assert_close(dict(ours), {**theirs, "position": torch.from_numpy(places)}, rtol=0, atol=0)
        seen, padding = [*seen, *places], padding + int((ours["attention_mask"] == 0).sum())
    assert sorted(seen) == list(range(20))
    lengths = sorted(rows["length"], reverse=True)
    assert padding == sum(max(lengths[s : s + 6]) - n for s in range(0, 20, 6) for n in lengths[s : s + 6])


def test_length_grouped_order_is_a_fresh_permutation_each_epoch_of_alike_batches():
    lengths = np.random.default_rng(0).integers(3, 60, size=1003)
    one, again, other = (GroupedByLength(lengths, 8, seed) for seed in (5, 5, 6))
    orders = [list(order) for order in (one, one, again, other)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1003))
    assert orders[0] == orders[2] and orders[0] != orders[1] and orders[0] != orders[3]
    shuffled = np.random.default_rng(1).permutation(1003)
    grouped, others = (np.split(lengths[order], range(8, 1003, 8)) for order in (orders[0], shuffled))
    padding, usual = (sum((batch.max() - batch).sum() for batch in each) for each in (grouped, others))
    assert padding < 0.2 * usual
    # Batches come in no order of length: neighbours are as unlike as any two.
    means = [batch.mean() for batch in grouped]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_training_learns_and_logs_what_it_did():
    model, log = run(0)
    assert (predict(model, ROWS.train, ROWS.tokenizer).argmax(1) == np.asarray(ROWS.train["labels"])).all()
    (phase,) = log.phases
    assert (phase["name"], phase["steps"], phase["precision"]) == ("fine-tuning", 64, "float32")
    assert phase["examples_per_second"] == pytest.approx(64 * 8 / phase["seconds"])
    assert [item["epoch"] for item in log.evaluations] == list(range(1, 9))
    assert log.evaluations[-1]["accuracy"] == 1.0 and log.history[-1]["loss"] < log.history[0]["loss"] / 2
    assert log.history[-1]["step"] == 64 and not model.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    phase = Phase("fine-tuning", 1, 5e-3, label_loss)
    first, second, other = (run(seed, phase)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_first_step_is_adamw_on_the_clipped_gradient():
    """Moments after one step are g and g², so a weight moves by lr g / (|g| + eps), and decays by lr times 0.01."""
    rows = dataclasses.replace(ROWS, train=ROWS.train.select(range(8)))
    before = small_model(layers=1, vocabulary_size=len(ROWS.tokenizer), dropout=0.0)
    label_loss(before, next(batches(rows.train, ROWS.tokenizer, 8))[1])[0].backward()
    phase, more = Phase("one", 1, 1e-3, label_loss), {"warmup_ratio": 0.0, "max_grad_norm": 1e-3}
    model, _ = run(0, phase, rows=rows, model_dropout=0.0, **more)
    norm = torch.cat([p.grad.flatten() for p in before.parameters() if p.grad is not None]).norm()
    weight, after = before.classifier.weight, model.classifier.weight.detach()
    gradient = weight.grad * 1e-3 / (norm + 1e-6)
    expected = weight.detach() * (1 - 1e-3 * 0.01) - 1e-3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-4)


def test_phases_follow_each_other_and_an_empty_one_is_skipped():
    seen, looks = [], []
    first = Phase("first", 1, 1e-3, recording(seen, "first"), evaluates=False)
    others = [Phase(name, epochs, 1e-3, recording(seen, name)) for name, epochs in (("nothing", 0), ("second", 1.5))]
    _, log = run(0, first, *others, after_phase=lambda phase: looks.append(phase.name))
    assert [(phase["name"], phase["steps"]) for phase in log.phases] == [("first", 8), ("second", 12)]
    assert {name for name, _ in seen} == {"first", "second"} and looks == ["first", "second"]
    assert sorted(place for name, places in seen if name == "first" for place in places) == list(range(64))
    assert {item["phase"] for item in log.evaluations} == {"second"}
    assert log.history[-1]["step"] == 20 and log.history[-1]["epoch"] == pytest.approx(2.5)


def test_transfer_texts_are_for_phases_with_a_teacher():
    seen, rows = [], dataclasses.replace(ROWS, transfer=small_rows(10, seed=1).train)
    run(0, Phase("with", 1, 1e-3, recording(seen, "with"), transfer=True), rows=rows)
    run(0, Phase("without", 1, 1e-3, recording(seen, "without")), rows=rows)
    places = {name: sorted(place for one, places in seen if one == name for place in places) for name in dict(seen)}
    assert places == {"with": list(range(74)), "without": list(range(64))}


def test_what_cannot_be_trained_is_said_before_anything_is(monkeypatch):
    seen, refuse = [], Mock(side_effect=MethodRefused("not these"))
    with pytest.raises(MethodRefused, match="not these"):
        run(0, Phase("one", 1, 1e-3, recording(seen, "one")), Phase("two", 1, 1e-3, label_loss, check=refuse))
    monkeypatch.setattr("transformers.TrainingArguments.world_size", property(lambda arguments: 3))
    with pytest.raises(SettingError, match="a batch of 8 rows cannot be divided among 3 processes; set batch_size"):
        run(0, Phase("one", 1, 1e-3, recording(seen, "one")))
    assert not seen


def test_every_phase_warms_up_and_decays_linearly_to_zero(monkeypatch):
    """Of 8 steps a quarter is warm-up: step s has s / 2 of the peak before step 2, and (8 - s) / 6 from there on."""
    rates = []

    def record(history, args, state, control, optimizer=None, **kwargs):
        rates.extend({group["lr"] for group in optimizer.param_groups})  # with decay and without: one rate

    monkeypatch.setattr(training._History, "on_pre_optimizer_step", record)
    run(0, Phase("first", 1, 1e-3, label_loss), Phase("second", 1, 4e-3, label_loss), warmup_ratio=0.25)
    shares = [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([peak * share for peak in (1e-3, 4e-3) for share in shares])


def test_precision_is_what_is_asked_for_and_predictions_are_in_full():
    dtypes = []

    def loss(model, batch):
        dtypes.append(model(**model_inputs(model, batch)).logits.dtype)
        return label_loss(model, batch)

    for asked, precision in ((None, "bfloat16"), ("float32", "float32")):
        model, log = run(0, Phase("labels", 1, 5e-3, loss), precision=asked, training_precision="bfloat16")
        assert log.phases[0]["precision"] == precision and dtypes[-1] == getattr(torch, precision)
        # Autocast is for the loss: what is predicted afterwards is what a reloaded model gives.
        again = small_model(layers=1, vocabulary_size=len(ROWS.tokenizer))
        again.load_state_dict(model.state_dict())
        assert (predict(model, ROWS.train, ROWS.tokenizer) == predict(again, ROWS.train, ROWS.tokenizer)).all()


def test_a_gpu_that_only_emulates_half_precision_trains_in_float32(monkeypatch):
    auto = load_settings("demo", {"training_precision": "auto"})
    assert training.training_precision(auto) in ("float32", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, precision in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, n=native: n)
        assert training.training_precision(auto) == precision


def train_together():
    """Without dropout, with full batches and a loss that is a mean over rows, processes differ in rounding alone."""
    return run(0, Phase("labels", 2, 1e-3, label_loss), model_dropout=0.0, batch_size=16)


def train_as_two(weights):
    """Forked, so that torch is imported once."""
    rank = str(int(os.fork() == 0))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with joined_processes():
        assert from_main_process(rank) == "0" and is_main_process() == (rank == "0")
        model, log = train_together()
        from_main_process(None)  # waits for every process
        if is_main_process():
            print("processes", log.phases[0]["processes"], "steps", log.phases[0]["steps"])
            save_file(model.state_dict(), weights)
            os.wait()


def test_two_processes_train_what_one_does(tmp_path):
    """In the environment that `accelerate launch` gives them, on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import sys; sys.path[:0] = ['tests']; from test_training import train_as_two; train_as_two(sys.argv[1])"
    command = [sys.executable, "-c", code, tmp_path / "weights.safetensors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_PORT": port}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert shown.stdout.count("processes 2 steps 8") == 1
    model, log = train_together()
    assert (log.phases[0]["processes"], log.phases[0]["steps"]) == (1, 8)
    one, two = dict(model.state_dict()), load_file(tmp_path / "weights.safetensors")
    for name in one.keys() - {"bert.encoder.layer.0.attention.self.key.bias"}:  # of which softmax sees nothing
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
