"""Several processes that train together: two of them, by gloo on CPUs, give what one gives."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from edgemin_utils.config import load_settings
from edgemin_utils.errors import SettingError, StorageError
from edgemin_utils.paths import mark_in, missing_paths, paths_of_settings, refuse_missing
from edgemin_utils.records import open_run
from edgemin_utils.stages import train_teacher_and_students

# Without dropout, and with rows that fill every batch, two processes have nothing to differ in but rounding. The
# soft-target loss is a mean over rows, as gradients are over processes.
SETTINGS = {
    "holdout_fraction": 0,
    "dropout": 0,
    "batch_size": 16,
    "teacher_batch_size": 32,
    "teacher_epochs": 2,
    "distillation_epochs": 0,
    "prediction_epochs": 1,
    "objective": "logits",
    "compared_objectives": "",
    "teacher_layers": 1,
    "teacher_hidden_size": 16,
    "teacher_heads": 2,
    "teacher_intermediate_size": 16,
    "student_layers": 1,
    "student_hidden_size": 8,
    "student_heads": 2,
    "student_intermediate_size": 8,
}
STAGES = ("teacher/fine-tuned", "distillation/logits")


@pytest.fixture
def settings(tmp_path):
    """`SETTINGS`, and rows of one's own, which are read faster than the embedded corpus is made in every process."""
    for split, count in (("train", 64), ("dev", 20)):
        rows = [f"{'very ' * (row % 5)}{'good' if row % 2 else 'bad'} {split} {row}\t{row % 2}" for row in range(count)]
        path = tmp_path / "rows" / "SST-2" / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["sentence\tlabel", *rows, ""]))
    return {**SETTINGS, "data_dir": str(tmp_path / "rows")}


def test_two_processes_train_what_one_does_and_one_of_them_writes_it(tmp_path, settings):
    alone = open_run("sst2", "demo", 0, tmp_path / "alone", settings)
    assert [record.key for record in train_teacher_and_students(alone)] == list(STAGES)
    # torch's own launcher, as `accelerate launch` starts it on GPUs; without any, the processes compute on the CPU.
    command = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "edgemin_utils",
        "train",
        "--tasks",
        "sst2",
        "--output-dir",
        str(tmp_path / "together"),
    ]
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    shown = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert shown.returncode == 0, shown.stderr[-3000:]
    together = open_run("sst2", "demo", 0, tmp_path / "together", settings)
    for key in STAGES:
        assert together.state(key).status == "done", "`edgemin run` would train it again"
        assert shown.stdout.count(f"sst2, seed 0: {key} done in") == 1
        one, two = (load_file(run.stage_folder(key) / "model.safetensors") for run in (alone, together))
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
        one, two = (pd.read_csv(run.stage_folder(key) / "predictions-dev.csv") for run in (alone, together))
        pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)
        phases = [
            json.loads((run.stage_folder(key) / "record.json").read_text())["results"]["training"]["phases"]
            for run in (alone, together)
        ]
        assert [[phase["processes"] for phase in of_run] for of_run in phases] == [[1], [2]]
        assert phases[0][0]["steps"] == phases[1][0]["steps"] == 4
    left = sorted(path.name for path in (tmp_path / "together/sst2/seed-0").rglob("*") if path.name.startswith("."))
    assert not left and not list((tmp_path / "together").glob(".shared-*"))


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.world_size", property(lambda arguments: 3))
    run = open_run("sst2", "demo", 0, tmp_path, settings)
    with pytest.raises(SettingError, match="a batch of 32 rows cannot be divided among 3 processes; set batch_size"):
        next(train_teacher_and_students(run))


def test_only_what_needs_no_cut_is_trained_together(tmp_path, monkeypatch):
    settings = {"compared_objectives": "none,minilmv2-by-assistant", "recipe": "prune+distill+quantize"}
    run = open_run("sst2", "demo", 0, tmp_path, settings)
    monkeypatch.setattr("edgemin_utils.stages.run_stage", lambda run, key: key)
    keys = list(train_teacher_and_students(run))
    assert keys[0] == "teacher/fine-tuned" and {"distillation/none", "distillation/minilmv2-by-assistant"} < set(keys)
    left = {key for key, stage in run.plan.items() if stage.kind == "distillation"} - set(keys)
    assert left and all(run.plan[key].source.startswith("pruning/") for key in left)


def test_every_path_of_the_settings_has_to_be_seen(tmp_path):
    (tmp_path / "rows").mkdir()
    settings = load_settings(
        "demo",
        {"data_dir": str(tmp_path / "rows"), "teacher": str(tmp_path / "weights"), "student": "an/id-of-the-hub"},
    )
    assert paths_of_settings(settings) == [str(tmp_path / "rows"), str(tmp_path / "weights")]
    assert missing_paths(paths_of_settings(settings)) == [str(tmp_path / "weights")]
    with mark_in(tmp_path / "study") as mark:
        assert missing_paths([mark]) == []
    assert missing_paths([mark]) == [mark]
    refuse_missing({"process 0 on a": [], "process 1 on b": []})
    with pytest.raises(StorageError, match=rf"process 1 on b does not see {tmp_path}/study .*storage"):
        refuse_missing({"process 0 on a": [], "process 1 on b": [mark]})
