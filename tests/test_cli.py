"""The console command: what it says, what it refuses in one sentence, and how fast."""

import os
import subprocess
import sys

import pytest
from conftest import PROJECT

from edgemin_utils import __version__
from edgemin_utils.cli import app, main, read_overrides
from edgemin_utils.names import LISTS, METHODS
from edgemin_utils.settings import setting_fields
from edgemin_utils.study import open_chain

COMMANDS = "run train status report predict bundle recommend measure demo settings models".split()


def test_every_command_has_help_with_an_example(capsys) -> None:
    assert '\nedgemin = "edgemin_utils.cli:main"\n' in (PROJECT / "pyproject.toml").read_text()
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"edgemin {__version__}\n"
    assert [command.callback.__name__ for command in app.registered_commands] == COMMANDS
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"Example: edgemin {command if command != 'models' else 'run'}" in said


def test_settings_and_models_list_everything(capsys) -> None:
    for command, names in ("settings", setting_fields()), ("models", {**METHODS, **LISTS}):
        assert main([command]) == 0
        listed = capsys.readouterr().out
        assert all(name in listed for name in names)


def test_every_setting_is_an_option() -> None:
    words = ["--train-rows", "20", "--teacher-layer=-1", "--set", "relation_heads=4"]
    assert read_overrides(words) == {"train_rows": "20", "teacher_layer": "-1", "relation_heads": "4"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum"], "rum"),
        (["run", "--models", "minilmv2+heads-7"], "heads-0.2"),
        (["run", "--jobs", "0"], "--jobs"),
        (["run", "--train-row", "5"], "did you mean 'train_rows'"),
        (["run", "mnli"], "joined by commas"),
        (["run", "--train-rows"], "has no value"),
        (["run", "--set", "train_rows"], "no '='"),
        (["bundle", "nowhere", "--task", "sst2", "--max-drop", "nan"], "--max-drop"),
        (["run", "--train-rows", "5", "--set", "train_rows=6"], "given twice"),
        (["run", "--seeds", "one"], "whole numbers"),
        (["run", "--profile", "lap"], "laptop"),
        (["train", "--task-file", "gone.csv", "--text-columns", "text"], "gone.csv"),
        (["status"], "edgemin run"),
        (["status", "--output-dir", "."], "holds no study"),
        (["predict", "nowhere", "text"], "nowhere"),
        (["predict", "nowhere", "text", " "], "text 2 of 2 is empty"),
        (["train", "--teacher", "./nowhere"], "config.json"),
        (["bundle", "nowhere"], "neither a folder nor in the cache"),
        (["measure", "./nowhere"], "nowhere"),
        (["measure", "./nowhere", "--threads", "999"], "--threads is 999"),
        (["run", "--latency-threads", "x"], "takes a list of int"),
        (["train", "--output-dir", "/proc/none"], "/proc/none cannot be written"),
        (["measure", ".", "--out", "/proc/none/sheet.json"], "/proc/none cannot be written"),
        (["bundle", "./nowhere", "--task", "sst2"], "nor a folder"),
        (["train", "--models", "minilmv2+vocabulary", "--vocabulary-text", "gone.txt"], "gone.txt is no file"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_status_2(arguments, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in (output := "".join(capsys.readouterr())) and len(output.splitlines()) == 1


def test_status_imports_nothing_heavy_and_survives_any_encoding(tmp_path) -> None:
    task_file, study = tmp_path / "отзывы.csv", str(tmp_path / "study")
    task_file.write_text("text,label\n" + "".join(f"good {n},yes\nbad {n},no\n" for n in range(30)), encoding="utf-8")
    overrides = {"task_file": str(task_file), "text_columns": "text", "models": "none"}
    for stage in open_chain("отзывы", "demo", 0, study, overrides).todo("teacher"):
        with stage:
            stage.record({})
    code = f"import sys, edgemin_utils.cli as cli; cli.main(['status', '--output-dir', {study!r}]); print(*sys.modules)"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=PROJECT)
    assert "1 of 2 stages done" in found.stdout, found.stderr
    assert not {"torch", "transformers", "datasets", "pandas", "matplotlib", "papermill"} & {*found.stdout.split()}
