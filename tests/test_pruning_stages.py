"""The stage `pruning/...` for cuts of every kind, on few rows, in this process."""

import numpy as np
import pytest
import torch

from edgemin_utils import stages
from edgemin_utils.bundle.sources import open_source
from edgemin_utils.chain import TEACHER, distillation_key
from edgemin_utils.cost import measure_chain, representatives
from edgemin_utils.errors import DataError
from edgemin_utils.evaluation import load_stage_model, read_predictions, tokenized_task
from edgemin_utils.measurement.parameters import framework_parameters
from edgemin_utils.records import open_run
from edgemin_utils.recovery import answer_loss, load_teacher
from edgemin_utils.teacher_signals import CachedSignals, signal_source
from edgemin_utils.tokenization import train_tokenizer
from edgemin_utils.training import batch_maker, predict

CUTS = (
    "gradient-l2-heads-0.5",
    "taylor-neurons-0.5-multiple-16-rounds-2",
    "magnitude-layers-least-1",
    "layers-top-1",
    "vocabulary",
    "random-heads-0.25-vocabulary-seen-3-global-draw-2-without-distillation",
    "layers-0-1",
)
TINY = {
    "train_rows": 96,
    "dev_rows": 48,
    "teacher_layers": 2,
    "teacher_hidden_size": 24,
    "teacher_heads": 4,
    "teacher_intermediate_size": 48,
    "student": "teacher-layers",
    "student_from_layers": [0, 1],
    "objective": "logits",
    "compared_objectives": [],
    "teacher_epochs": 1,
    "distillation_epochs": 0.5,
    "prediction_epochs": 0.5,
    "recovery_epochs": 0.5,
    "vocabulary_size": 900,
    "random_draws": 1,
    "importance_rows": 24,
    "scan_rows": 24,
    "holdout_fraction": 0.2,
    "latency_lengths": [8],
    "latency_threads": [1],
    "factorial": False,
    "compared_cuts": list(CUTS),
    "evaluation_batch_size": 32,
}
STUDENT = distillation_key("logits")


# Words of the teacher's vocabulary that no row has, and so frequent that other words come after them.
ABSENT = [" ".join(f"qx{first}{second}" for second in "abcdef") for first in "abcdef"] * 100


def tiny_run(folder, **overrides):
    return open_run("sst2", "demo", 0, folder, {**TINY, **overrides})


@pytest.fixture(scope="module", autouse=True)
def a_vocabulary_larger_than_the_rows_need():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "edgemin_utils.stages.train_tokenizer", lambda texts, size: train_tokenizer([*texts, *ABSENT], size)
        )
        yield


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    run = tiny_run(tmp_path_factory.mktemp("study"))
    keys = (TEACHER, STUDENT, *(f"pruning/logits+{cut}" for cut in CUTS))
    return run, {key: stages.run_stage(run, key) for key in keys}


def test_every_cut_removes_what_the_formula_says_and_records_the_metrics_on_the_way(chain):
    run, records = chain
    before = records[STUDENT].results
    for cut in CUTS[:-1]:
        results = records[f"pruning/logits+{cut}"].results
        gone = before["size"]["stored_weights"] - results["size"]["stored_weights"]
        assert results["parameters_removed"] == gone > 0, cut
        assert results["metrics_before"] == before["metrics"]
        assert results["metrics_after_cut"] == results["rounds"][-1]["metrics_after_cut"]
        assert results["metrics"] == results["rounds"][-1]["metrics_after_recovery"]
        assert results["rounds"][-1]["parameters_removed"] == gone
        model = load_stage_model(run, f"pruning/logits+{cut}")[1]
        assert framework_parameters(model) == results["size"]["framework_parameters"]


def test_each_kind_of_cut_leaves_its_shapes(chain):
    _, records = chain
    shapes = {cut: records[f"pruning/logits+{cut}"].results for cut in CUTS[:-1]}
    assert shapes[CUTS[0]]["model"]["heads"] == [2, 2] and list(map(len, shapes[CUTS[0]]["removed_heads"])) == [2, 2]
    # 24 of 48 are to stay, which is rounded up to 32; after the first round 36, which is rounded up to all.
    assert [step["model"]["intermediate_sizes"] for step in shapes[CUTS[1]]["rounds"]] == [[48, 48], [32, 32]]
    assert shapes[CUTS[1]]["removed_neurons"] == [16, 16] and shapes[CUTS[1]]["removed_heads"] == [[], []]
    assert shapes[CUTS[2]]["model"]["layers"] == 1 and len(shapes[CUTS[2]]["removed_layers"]) == 1
    assert shapes[CUTS[2]]["layer_importance"] and shapes[CUTS[2]]["importance"] == []
    assert shapes[CUTS[3]]["removed_layers"] == [1] and shapes[CUTS[3]]["criterion"] == ""
    assert sum(map(len, shapes[CUTS[5]]["removed_heads"])) == 2 and shapes[CUTS[5]]["scope"] == "global"


def test_iterative_cuts_recover_in_every_round(chain):
    _, records = chain
    results = records[f"pruning/logits+{CUTS[1]}"].results
    assert [phase["name"] for phase in results["training"]["phases"]] == ["recovery 1", "recovery 2"]
    assert [phase["epochs"] for phase in results["training"]["phases"]] == [0.25, 0.25]
    steps = [point["step"] for point in results["training"]["history"]]
    assert steps == sorted(steps) and len(results["rounds"]) == 2


def test_without_distillation_recovery_learns_from_labels_alone(chain):
    run, records = chain
    labels, soft = (records[f"pruning/logits+{cut}"].results["training"]["history"][0] for cut in (CUTS[5], CUTS[0]))
    assert "soft targets" in soft and "soft targets" not in labels
    assert run.stage(f"pruning/logits+{CUTS[5]}").teacher == ""


def test_a_cut_that_does_not_fit_is_a_result(chain):
    assert "at least one must stay" in chain[1]["pruning/logits+layers-0-1"].refused


def test_after_a_vocabulary_cut_the_model_reads_through_its_own_tokenizer(chain):
    run, records = chain
    key = "pruning/logits+vocabulary"
    (whole, teacher), (smaller, model) = (load_stage_model(run, name) for name in (TEACHER, key))
    results = records[key].results
    tokens = results["vocabulary"]
    assert tokens["tokens_before"] == len(whole) > tokens["tokens_after"] == len(smaller) == model.config.vocab_size
    assert len(whole) - len(smaller) == 36  # the absent words, and nothing else
    assert results["parameters_removed"] == (len(whole) - len(smaller)) * 24
    assert results["model"]["vocabulary_size"] == len(smaller)
    rows = tokenized_task(run, smaller, [model])
    np.testing.assert_array_equal(
        predict(model, rows.dev["dev"], smaller).argmax(1), read_predictions(run.stage_folder(key), "dev")["prediction"]
    )
    # Every train row is read as before, so the cut alone changes nothing on them; dev rows may have lost tokens.
    for mine, theirs in zip(rows.train, tokenized_task(run, whole, [teacher]).train, strict=True):
        assert smaller.convert_ids_to_tokens(mine["input_ids"]) == whole.convert_ids_to_tokens(theirs["input_ids"])
    assert tokens["rows_in_other_tokens"]["dev"] == sum(
        smaller.convert_ids_to_tokens(mine["input_ids"]) != whole.convert_ids_to_tokens(theirs["input_ids"])
        for mine, theirs in zip(rows.dev["dev"], tokenized_task(run, whole, [teacher]).dev["dev"], strict=True)
    )


def test_soft_targets_after_a_vocabulary_cut_are_those_of_the_teachers_own_tokens(chain, monkeypatch):
    """The loss sees the logits that the teacher gives the same rows through its own tokenizer."""
    run, _ = chain
    key = "pruning/logits+vocabulary"
    tokenizer, model = load_stage_model(run, key)
    teacher = load_teacher(run, key)
    all_rows = tokenized_task(run, tokenizer, [model])
    rows = all_rows.train
    expected = predict(teacher[1], tokenized_task(run, teacher[0], [teacher[1]], all_rows.data).train, teacher[0])
    seen = {}
    monkeypatch.setattr(
        "edgemin_utils.distillation.soft_targets.soft_target_divergence",
        lambda soft, logits, temperature: seen.setdefault("soft", soft).sum() * 0,
    )
    places = [7, 3, 11]
    batch = batch_maker(rows, tokenizer)(places) | {"position": torch.tensor(places)}
    answer_loss(run, run.settings_of(key), teacher, [model, teacher[1]], all_rows.data)(model, batch)
    np.testing.assert_allclose(seen["soft"].numpy(), expected[places], atol=1e-6)
    wrong = predict(teacher[1], rows, tokenizer)  # the student's ids mean other tokens to the teacher
    assert np.abs(wrong - expected).max() > 1e-4


def test_signals_computed_batch_by_batch_are_the_cached_ones_also_for_other_ids(chain):
    run, _ = chain
    (whole, teacher), (smaller, model) = (load_stage_model(run, key) for key in (TEACHER, "pruning/logits+vocabulary"))
    theirs, mine = (tokenized_task(run, own, [teacher, model]).train for own in (whole, smaller))
    cached, fresh = (signal_source(teacher, theirs, whole, ("query.1", "logits"), 32, size) for size in (1, 0))
    assert isinstance(cached, CachedSignals) and not isinstance(fresh, CachedSignals)
    places = [5, 0, 9]
    batch = batch_maker(mine, smaller)(places) | {"position": torch.tensor(places)}
    real = batch["attention_mask"].bool()
    for name in ("query.1", "logits"):
        one, other = (source(batch)[name] for source in (cached, fresh))
        if name != "logits":
            one, other = one[real], other[real]
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_later_stages_work_on_a_cut_vocabulary_and_every_model_is_timed_on_its_own_tokens(tmp_path, monkeypatch):
    """Relations after a cut vocabulary, quantization of the result, and the costs of all."""
    run = tiny_run(
        tmp_path,
        compared_cuts=[],
        objective="none",
        head_prune_ratio=0,
        prune_vocabulary=True,
        relation_heads=6,
        student_from_layers=[0],
        recipe=["prune", "distill:minilmv2"],
    )
    made = {key: stages.run_stage(run, key) for key, stage in run.plan.items() if stage.keeps_model}
    distilled = made["distillation/none+vocabulary+minilmv2"].results
    assert [phase["name"] for phase in distilled["training"]["phases"]] == ["relations", "soft targets"]
    shapes = [np.shape(matrices["query-query"]) for matrices in distilled["relations"]["models"].values()]
    assert len(shapes) == 3 and len(set(shapes)) == 1
    small = distilled["model"]["vocabulary_size"]
    assert made["quantization/none+vocabulary+dynamic-int8"].results["model"]["vocabulary_size"] == small
    timed = {}
    monkeypatch.setattr(
        "edgemin_utils.cost.predictor",
        lambda model: lambda batch: timed.setdefault(model.config.vocab_size, []).append(batch["input_ids"]),
    )
    monkeypatch.setattr("edgemin_utils.cost.peak_memory", lambda *arguments, **named: {})
    costs = measure_chain(run).results
    assert costs["timed_as"]["distillation/none"] != costs["timed_as"]["pruning/none+vocabulary"]
    whole = max(timed)
    for size, inputs in timed.items():
        assert max(int(batch.max()) for batch in inputs) < size
    # The tokens of the first dev row, in both numberings.
    texts = {
        size: load_stage_model(run, key)[0] for size, key in ((whole, TEACHER), (small, "pruning/none+vocabulary"))
    }
    row = tokenized_task(run, texts[whole], [load_stage_model(run, TEACHER)[1]]).data.dev["dev"][0]["sentence"]
    for size, tokenizer in texts.items():
        ids = tokenizer(row, truncation=True, max_length=48)["input_ids"]
        assert any(batch.tolist() == [ids] for batch in timed[size])


def test_the_teacher_itself_is_cut_recovers_with_its_own_soft_targets_and_is_quantized(chain):
    """A recipe without a student: cut, recovery, quantization, what lies on disk, and what a bundle is made from."""
    made, records = chain
    cut = "gradient-neurons-0.5-multiple-16-vocabulary-most-300"
    run = tiny_run(
        made.study,
        recipe=f"teacher+prune:{cut}+quantize:dynamic-int8-embeddings,teacher+quantize:dynamic-int8",
        compared_cuts=[],
    )
    keys = [key for key, stage in run.plan.items() if stage.student == "teacher"]
    pruned, small, whole = (stages.run_stage(run, key) for key in keys)
    teacher, results = records[TEACHER].results, pruned.results
    assert run.state(TEACHER).status == "done" and results["metrics_before"] == teacher["metrics"]
    assert "soft targets" in results["training"]["history"][0]
    assert results["model"]["intermediate_sizes"] == [32, 32] and results["model"]["vocabulary_size"] == 300
    gone = teacher["size"]["stored_weights"] - results["size"]["stored_weights"]
    # Of each of two layers 16 neurons with their biases; of the vocabulary all but 300 rows.
    assert (
        results["parameters_removed"]
        == gone
        == 2 * 16 * (2 * 24 + 1) + (teacher["model"]["vocabulary_size"] - 300) * 24
    )
    assert pruned.content["student"] == "teacher" and pruned.content["distilled"] is False
    # The weights on disk are another model's than the teacher's, and each reloads to the answers that it gave.
    for record in (pruned, small, whole):
        tokenizer, model = load_stage_model(run, record.key)
        rows = tokenized_task(run, tokenizer, [model])
        np.testing.assert_array_equal(
            predict(model, rows.dev["dev"], tokenizer, 1).argmax(1),
            read_predictions(record.folder, "dev")["prediction"],
        )
    assert small.results["size_before"] == results["size"] and whole.results["size_before"] == teacher["size"]
    assert small.results["size"]["model_bytes"] < whole.results["size"]["model_bytes"]
    # The cut one is timed by itself.
    assert representatives({one.key: one for one in (records[TEACHER], pruned, small)}) == {
        key: key for key in (TEACHER, pruned.key, small.key)
    }
    source = open_source(str(pruned.folder))
    assert source.provenance["steps"] == ["teacher", f"prune:{cut}"] and len(source.tokenizer) == 300


def test_rows_that_are_not_in_use_lend_their_tokens(chain, monkeypatch):
    made, _ = chain
    monkeypatch.setattr("edgemin_utils.pruning_stages.unused_texts", lambda settings, task, seed: ["qxaa qxfd", "qxaa"])
    run = tiny_run(made.study, compared_cuts=["vocabulary", "vocabulary-all-rows"])
    few, many = (
        stages.run_stage(run, f"pruning/logits+{cut}").results["vocabulary"]["tokens_after"]
        for cut in ("vocabulary", "vocabulary-all-rows")
    )
    assert many == few + 2


def test_a_text_of_ones_own_decides_which_tokens_stay(tmp_path, chain):
    made, _ = chain
    words = tmp_path / "words.txt"
    words.write_text("the film\n", encoding="utf-8")
    run = tiny_run(made.study, vocabulary_text=str(words))
    key = "pruning/logits+vocabulary"
    assert run.state(key).status == "stale" and run.state(STUDENT).status == "done"
    moved = tmp_path / "elsewhere.txt"
    moved.write_bytes(words.read_bytes())
    assert tiny_run(made.study, vocabulary_text=str(moved)).fingerprint(key) == run.fingerprint(key)
    results = stages.run_stage(run, key).results
    assert results["vocabulary"]["rows_in_other_tokens"]["dev"] == 48
    # Relations compare token by token, which such a student cannot.
    other = tiny_run(
        made.study,
        vocabulary_text=str(words),
        compared_cuts=[],
        objective="minilmv2",
        relation_heads=6,
        recipe=["prune:vocabulary", "distill"],
    )
    for name in ("distillation/none", "pruning/none+vocabulary"):
        stages.run_stage(other, name)
    refused = stages.run_stage(other, "distillation/none+vocabulary+minilmv2").refused
    assert "compares teacher and student token by token" in refused and "of 96 train rows" in refused
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        stages.run_stage(tiny_run(made.study, vocabulary_text=str(tmp_path / "none.txt")), key)
