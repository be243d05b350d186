"""The console command: what it says, what it refuses in one sentence, and how fast."""

import os
import subprocess
import sys
import time

import pytest
from conftest import PROJECT

from edgemin_utils.cli import app, main, read_overrides
from edgemin_utils.errors import SettingError
from edgemin_utils.names import LISTS, METHODS
from edgemin_utils.settings import setting_fields
from edgemin_utils.study import open_chain

COMMANDS = "run train status report predict bundle recommend measure demo settings models".split()


def test_every_command_has_help_with_an_example(capsys) -> None:
    assert [command.callback.__name__ for command in app.registered_commands] == COMMANDS
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"Example: edgemin {command if command != 'models' else 'run'}" in said


def test_settings_and_models_list_everything(capsys) -> None:
    assert main(["settings", "--profile", "laptop"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in setting_fields())
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*METHODS, *LISTS))


def test_every_setting_is_an_option() -> None:
    words = ["--train-rows", "20", "--teacher-layer=-1", "--set", "relation_heads=4"]
    assert read_overrides(words) == {"train_rows": "20", "teacher_layer": "-1", "relation_heads": "4"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train-row", "5"], "did you mean 'train_rows'"),
        (["mnli"], "joined by commas"),
        (["--train-rows"], "has no value"),
        (["--train-rows", "many"], "takes int"),
        (["--set", "train_rows"], "no '='"),
        (["--train-rows", "5", "--set", "train_rows=6"], "given twice"),
        (["--head-prune-ratio", "0.4"], "heads-0.4"),
    ],
)
def test_options_that_are_none_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read_overrides(words)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum"], "rum"),
        (["run", "--tasks", "sst3"], "sst2"),
        (["run", "--models", "minilmv2+heads-7"], "heads-0.2"),
        (["run", "--jobs", "0"], "--jobs"),
        (["run", "--seeds", "one"], "whole numbers"),
        (["run", "--profile", "lap"], "laptop"),
        (["train", "--task-file", "gone.csv", "--text-columns", "text"], "gone.csv"),
        (["report", "--output-dir", "nowhere"], "edgemin run"),
        (["recommend", "--output-dir", "nowhere"], "edgemin run"),
        (["predict", "nowhere", "text"], "nowhere"),
        (["bundle", "nowhere"], "--task"),
        (["measure", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_status_2(arguments, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = "".join(capsys.readouterr())
    progress = 1 if arguments[0] == "measure" else 0
    assert said in output and "Traceback" not in output and len(output.splitlines()) == 1 + progress


def test_status_takes_seconds_and_survives_any_encoding(tmp_path) -> None:
    task_file = tmp_path / "отзывы.csv"
    task_file.write_text("text,label\n" + "".join(f"good {n},yes\nbad {n},no\n" for n in range(30)), encoding="utf-8")
    overrides = {"task_file": str(task_file), "text_columns": "text", "models": "none"}
    chain = open_chain("отзывы", "demo", 0, tmp_path / "study", overrides)
    for stage in chain.todo("teacher"):
        with stage:
            stage.record({})
    started = time.monotonic()
    command = [sys.executable, "-m", "edgemin_utils", "status", "--output-dir", str(tmp_path / "study")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT)
    assert found.returncode == 0, found.stderr
    assert "1 of 2 stages done" in found.stdout
    assert time.monotonic() - started < 20
