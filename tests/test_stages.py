"""A whole chain on few rows, in this process: what the stages leave, and that they leave the same again."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_chain import TINY, tiny_run

from edgemin_utils import quantization, stages
from edgemin_utils.chain import COST, TEACHER, main_path, plan_chain, sensitivity_key
from edgemin_utils.config import load_settings
from edgemin_utils.encoders import describe_model
from edgemin_utils.errors import ModelError, StageError
from edgemin_utils.records import open_run
from edgemin_utils.training import predict


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    run = tiny_run(tmp_path_factory.mktemp("study"), "mnli")
    return run, {key: stages.run_stage(run, key) for key in run.plan}


def test_every_stage_of_every_plan_has_its_function():
    for overrides in ({}, {"recipe": "paper,proposal,honest,edge", "compared_schemes": "all"}):
        plan = plan_chain(load_settings("demo", overrides))
        assert all((stage.kind, stage.keeps_model) in stages._MAKERS for stage in plan.values())


def test_every_stage_leaves_model_predictions_and_the_entries_that_analysis_reads(chain):
    run, records = chain
    for key, stage in run.plan.items():
        results = records[key].results
        if not stage.keeps_model:
            continue
        assert {"data", "metrics", "confusion", "size", "operations", "model", "seconds_by_part"} <= results.keys()
        for split in ("dev_matched", "dev_mismatched"):
            frame = stages.read_predictions(run.stage_folder(key), split)
            accuracy = (frame["label"] == frame["prediction"]).mean()
            metrics = results["metrics"][split]
            assert metrics["accuracy"] == pytest.approx(accuracy) and metrics["rows"] == len(frame) == 60
            assert metrics["accuracy_low"] < accuracy < metrics["accuracy_high"]
            assert np.sum(results["confusion"][split]) == 60
            assert np.trace(results["confusion"][split]) / 60 == pytest.approx(accuracy)
            logits = frame[["logit_0", "logit_1", "logit_2"]].to_numpy()
            assert (logits.argmax(1) == frame["prediction"]).all()
        assert sum(results["size"]["parts"].values()) == results["size"]["stored_weights"]
        assert results["size"]["model_bytes"] >= sum(results["size"]["bytes_per_part"].values())
        assert ("training" in results) == (stage.kind != "quantization")


def test_reloaded_models_give_the_stored_predictions(chain):
    run, records = chain
    for key in main_path(run.settings):
        tokenizer, model = stages.load_stage_model(run, key)
        rows = stages.tokenized_task(run, tokenizer, [model])
        logits = predict(model, rows.dev["dev_matched"], tokenizer, 1)
        stored = stages.read_predictions(run.stage_folder(key), "dev_matched")
        np.testing.assert_array_equal(logits.argmax(1), stored["prediction"])
        assert describe_model(model) == records[key].results["model"]


def test_the_cut_is_real_and_smaller_in_every_count(chain):
    run, records = chain
    _, student, pruned, quantized = (records[key].results for key in main_path(run.settings))
    assert pruned["model"]["heads"] == [3] and pruned["model"]["intermediate_sizes"] == [36]
    # One head of size 6 and 12 neurons in hidden size 24.
    assert (
        pruned["parameters_removed"]
        == 4 * 6 * 24 + 3 * 6 + 12 * (2 * 24 + 1)
        == student["size"]["stored_weights"] - pruned["size"]["stored_weights"]
    )
    assert quantized["size"]["stored_weights"] == pruned["size"]["stored_weights"]
    assert quantized["size"]["framework_parameters"] < pruned["size"]["framework_parameters"]
    assert quantized["size"]["model_bytes"] < pruned["size"]["model_bytes"] < student["size"]["model_bytes"]
    for length in ("1x32", "1x128"):
        macs = [results["operations"][length]["closed_formula_macs"] for results in (student, pruned, quantized)]
        assert macs[0] > macs[1] == macs[2]  # quantization removes no operation
    assert set(pruned["metrics_after_cut"]) == set(pruned["metrics_before"]) == {"dev_matched", "dev_mismatched"}


def test_distillation_keeps_relations_and_losses_to_look_at(chain):
    run, records = chain
    results = records["distillation/minilmv2"].results
    assert [phase["name"] for phase in results["training"]["phases"]] == ["relations", "soft targets"]
    assert {"query-query", "key-key", "value-value"} <= results["training"]["history"][0].keys()
    relations = results["relations"]
    assert set(relations["models"]) == {"teacher", "student before", "student after"}
    size = len(relations["tokens"])
    assert np.shape(relations["models"]["teacher"]["key-key"]) == (size, size)
    assert relations["models"]["student before"] != relations["models"]["student after"]
    assert "relations" not in records["distillation/none"].results


def test_scan_holds_importance_and_curves(chain):
    run, records = chain
    results = records["pruning/minilmv2+head-scan"].results
    criteria = {"gradient", "gradient-l2", "taylor", "magnitude"}
    assert set(results["importance"]) == criteria
    assert np.shape(results["importance"]["gradient"]) == (1, 4)
    assert set(results["curves"]) == {*criteria, "random-1"}
    assert [point["removed"] for point in results["curves"]["gradient"]] == [0, 1, 2, 3]
    assert results["split"] == "hold-out" and results["rows"] == 24 and results["total"] == 4
    neurons = records["pruning/minilmv2+neuron-scan"].results
    assert neurons["total"] == 48 and neurons["importance"] == {}
    assert len(neurons["curves"]["taylor"]) == 21 and neurons["curves"]["taylor"][-1]["removed"] == 47
    layers = records["pruning/minilmv2+layer-scan"].results
    # The only layer stays in all of them.
    assert set(layers["curves"]) == {*criteria, "leave-one-out", "top", "random-1"}
    assert layers["total"] == 1 and [point["removed"] for point in layers["curves"]["top"]] == [0]


def test_costs_cover_every_model_and_stand_beside_the_teacher(chain):
    run, records = chain
    results = records[COST].results
    kept = {key for key, stage in run.plan.items() if stage.keeps_model}
    assert {row["key"] for row in results["latency"]} == {row["key"] for row in results["memory"]} == kept
    assert {row["input"] for row in results["latency"]} == {"1x8", "dev rows"}
    teacher = [row for row in results["speed_ups"] if row["key"] == row["baseline_key"] == TEACHER]
    assert all(row["ratio"] == 1 for row in teacher)
    for row in results["latency"]:
        assert row["median_ms"] > 0 and row["runs"] == 30 and row["protocol"] == "quick"
    # Equal shapes are timed once and say so.
    assert results["timed_as"]["distillation/none"] == "distillation/minilmv2"
    raw = np.load(run.stage_folder(COST) / "latency.npz")
    row = next(row for row in results["latency"] if row["key"] == TEACHER and row["input"] == "1x8")
    assert np.median(raw[f"1x8, 1 threads | {TEACHER}"]) / 1e6 == pytest.approx(row["median_ms"])
    for row in results["memory"]:
        assert row["peak_bytes"] > row["baseline_bytes"] > 0


def test_the_same_seed_gives_the_same_predictions_and_another_seed_others(tmp_path, chain):
    run, _ = chain
    key = "distillation/minilmv2"
    frames = []
    for seed in (0, 1):
        again = tiny_run(tmp_path, "mnli", seed)
        for needed in (TEACHER, key):
            stages.run_stage(again, needed)
        frames.append(stages.read_predictions(again.stage_folder(key), "dev_matched"))
    first = stages.read_predictions(run.stage_folder(key), "dev_matched")
    assert frames[0].equals(first) and not frames[1].equals(first)


def test_kill_in_the_middle_and_the_same_command_again_gives_an_undisturbed_studys_predictions(tmp_path, chain):
    """SIGKILL while the student trains; then the same stages again."""
    run, _ = chain
    code = (
        "import sys, json; from edgemin_utils import stages; from edgemin_utils.records import open_run\n"
        "run = open_run('mnli', 'demo', 0, sys.argv[1], json.loads(sys.argv[2]))\n"
        "stages.fine_tune_teacher(run); print('teacher', flush=True)\n"
        "stages.train_student(run, 'distillation/minilmv2'); print('student', flush=True)\n"
    )
    import json

    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(TINY)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout.readline() == "teacher\n"
    partial = tiny_run(tmp_path, "mnli").stage_folder("distillation/minilmv2").parent
    while not list(partial.glob(".minilmv2.partial-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = tiny_run(tmp_path, "mnli")
    assert killed.state(TEACHER).status == "done" and killed.state("distillation/minilmv2").status == "missing"
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for key in (TEACHER, "distillation/minilmv2"):
        resumed, undisturbed = (stages.read_predictions(one.stage_folder(key), "dev_matched") for one in (killed, run))
        assert resumed.equals(undisturbed)


def test_quantized_model_agrees_with_its_source_where_it_says(chain):
    run, records = chain
    key = main_path(run.settings)[-1]
    source = run.stage(key).upstream[0]
    old, new = (stages.read_predictions(run.stage_folder(name), "dev_matched")["prediction"] for name in (source, key))
    assert records[key].results["agreement"]["dev_matched"] == pytest.approx((old == new).mean())
    assert isinstance(quantization.load_model(run.stage_folder(key)), torch.nn.Module)


def test_behind_a_quantize_aware_step_models_are_judged_with_both_kinds_of_numbers(tmp_path, chain):
    """The proposal's recipe on the chain's own student; what is saved is a float model."""
    run = open_run("mnli", "demo", 0, chain[0].study, {**TINY, "recipe": "proposal", "quantize_aware_format": "int4"})
    made = {key: stages.run_stage(run, key) for key in run.plan if "int4-aware" in key}
    assert [record.content["steps"][-1].split(":")[0] for record in made.values()] == [
        "quantize-aware",
        "prune",
        "fine-tune",
        "quantize",
    ]
    for record in list(made.values())[:3]:
        results = record.results
        assert results["fake_quantization"] == "int4" and set(results["metrics_fake_quantized"]) == set(
            results["metrics"]
        )
        model = quantization.load_model(record.folder)
        assert all(type(layer) is torch.nn.Linear for layer in quantization.linear_layers(model).values())
    assert "fake_quantization" not in list(made.values())[3].results


def test_a_refused_scheme_is_recorded_and_the_others_still_stand(monkeypatch, chain):
    def refuse(*_arguments):
        raise RuntimeError("no kernel for it")

    monkeypatch.setattr(type(quantization.SCHEMES["onnx-float32"]), "quantize", refuse)
    run = open_run("mnli", "demo", 0, chain[0].study, {**TINY, "compared_schemes": "onnx-float32,weight-int4"})
    records = [stages.run_stage(run, key) for key, stage in run.plan.items() if stage.optional and stage.quantized]
    assert "no kernel for it" in records[0].refused and records[1].results["scheme"] == "weight-int4"
    assert records[1].results["method"]["arithmetic"].startswith("FP32")


def test_sensitivity_covers_every_linear_layer_in_both_formats(chain):
    run, records = chain
    results = records[sensitivity_key(run.settings)].results
    model = stages.load_stage_model(run, main_path(run.settings)[2])[1]
    assert len(results["layers"]) == 2 * len(quantization.linear_layers(model)) and results["rows"] == 24
    assert results["split"] == "hold-out"


def test_a_stage_before_its_teacher_names_the_notebook(tmp_path):
    with pytest.raises(StageError, match="01_teacher"):
        stages.train_student(tiny_run(tmp_path), "distillation/none")


def test_relation_heads_that_do_not_divide_are_refused_before_the_teacher_passes_over_the_rows(tmp_path, chain):
    run, _ = chain
    wrong = open_run("mnli", "demo", 0, run.study, {**TINY, "relation_heads": 7})
    with pytest.raises(ModelError, match="relation_heads = 7 does not divide the teacher's hidden size 24"):
        stages.train_student(wrong, "distillation/minilmv2")


def test_compared_objectives_leave_what_their_table_needs_and_refusals_leave_their_sentence(chain):
    run, _ = chain
    compared = "minilmv2-layer-0,minilmv2-by-assistant,pkd,logits-transfer-20"
    more = tiny_run(run.study, "mnli", compared_objectives=compared, assistant_from_layers=[0, 1])
    found = {key.split("/")[1]: stages.run_stage(more, key) for key in more.plan if key.startswith("distillation/")}
    assert found["pkd"].results == {"refused": found["pkd"].refused} and "two layers or more" in found["pkd"].refused
    assert found["minilmv2"].results["teacher_layer"] == 1 and found["minilmv2-layer-0"].results["teacher_layer"] == 0
    by_assistant = found["minilmv2-by-assistant"].results
    assert by_assistant["learnt_from"] == "distillation/minilmv2-assistant"
    assert found["minilmv2-assistant"].results["model"]["layers"] == 2 and by_assistant["model"]["layers"] == 1
    transfer = found["logits-transfer-20"].results
    assert transfer["transfer_rows"] == transfer["data"]["transfer_rows"] > 0 == by_assistant["transfer_rows"]
    assert transfer["source"] == "Hinton et al. 2015" and transfer["demands"] == "the same labels"
    assert sum(phase["seconds"] for phase in transfer["training"]["phases"]) > 0


def test_students_are_made_as_named(tmp_path, chain):
    run, _ = chain
    tokenizer, teacher = stages.load_stage_model(run, TEACHER)

    def student(**overrides):
        return stages.make_student(tiny_run(run.study, "mnli", **overrides).settings, 0, teacher, tokenizer)

    assert describe_model(student())["layers"] == 1
    torch.testing.assert_close(student().classifier.weight, teacher.classifier.weight)
    scratch = student(student="scratch", student_layers=3, student_hidden_size=12, student_heads=2)
    assert describe_model(scratch)["heads"] == [2, 2, 2] and describe_model(scratch)["hidden_size"] == 12
    # A folder: here the teacher's own, so the vocabularies agree.
    assert describe_model(student(student=str(run.stage_folder(TEACHER))))["layers"] == 2
    with pytest.raises(ModelError, match="scratch teacher has no pretrained layers"):
        student(student="pretrained-layers")


def test_student_with_another_vocabulary_is_refused(tmp_path, chain):
    run, _ = chain
    other = tiny_run(tmp_path, "sst2")
    stages.fine_tune_teacher(other)
    tokenizer, teacher = stages.load_stage_model(run, TEACHER)
    with pytest.raises(ModelError, match="another vocabulary"):
        stages.make_student(
            tiny_run(run.study, "mnli", student=str(other.stage_folder(TEACHER))).settings, 0, teacher, tokenizer
        )


def test_rows_longer_than_the_model_are_cut_and_counted(tmp_path):
    run = tiny_run(tmp_path, max_length=8)
    data = stages.fine_tune_teacher(run).results["data"]
    assert data["truncated_rows"]["train"] > 0
    assert max(data["token_lengths"]) == 8
