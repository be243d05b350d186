"""The console command: its options, its refusals, its exit status."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemin_utils import cli, study
from edgemin_utils.chain import plan_chain
from edgemin_utils.command_options import COMMANDS, build_parser, read_arguments, read_overrides
from edgemin_utils.config import load_settings, setting_fields
from edgemin_utils.errors import SettingError
from edgemin_utils.execution import CellFailure
from edgemin_utils.study import NotebookResult, StudyResult
from edgemin_utils.study_file import write_study_file

STAGES = len(plan_chain(load_settings()))


def read(*arguments):
    return read_overrides(read_arguments(["run", *arguments]))


@pytest.fixture
def asked(monkeypatch):
    """What `run` hands to the runner, which is kept from running; the study it gives back went well."""
    calls = []

    def run_study(profile, tasks, seeds, overrides, output_dir, jobs, console, cluster):
        calls.append(
            {
                "profile": profile,
                "tasks": tasks,
                "seeds": seeds,
                "overrides": overrides,
                "output_dir": output_dir,
                "jobs": jobs,
                "cluster": cluster,
            }
        )
        return StudyResult(Path("study"), (NotebookResult("analysis", "05_analysis", "executed", Path("05.ipynb")),))

    monkeypatch.setattr(cli, "run_study", run_study)
    monkeypatch.setattr(cli, "_write_report", lambda folder: folder / cli.REPORT)
    monkeypatch.setattr(cli, "_print_main_table", lambda folder: print(f"main table of {folder}"))
    return calls


# ---- options ----------------------------------------------------------------------------------------------------


def test_every_command_does_something():
    assert cli._COMMANDS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_with_its_default(command):
    _, commands = build_parser()
    for action in commands[command]._actions:
        if action.dest != "help":
            assert "(default: " in action.help, action.option_strings


def test_the_options_are_those_of_the_readme():
    _, commands = build_parser()
    options = {name for name in commands["run"]._option_string_actions if name.startswith("--")} - {"--help"}
    assert options == {
        "--profile",
        "--tasks",
        "--seeds",
        "--data-dir",
        "--task-file",
        "--text-columns",
        "--label-column",
        "--dev-file",
        "--teacher",
        "--student",
        "--set",
        "--output-dir",
        "--jobs",
        "--cluster",
    }
    assert set(commands["train"]._option_string_actions) == set(commands["run"]._option_string_actions) - {
        "--jobs",
        "--cluster",
    }


def test_help_of_an_option_names_what_the_settings_say(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "demo: scratch; laptop: nreimers/MiniLM-L6-H384-uncased" in text
    assert "any of sst2, mnli, qqp" in text


def test_options_become_overrides():
    assert read() == {}
    assert read(
        "--data-dir",
        "glue",
        "--teacher",
        "a/b",
        "--student",
        "scratch",
        "--set",
        "teacher_epochs=2",
        "--set",
        "relation-pairs=query-key,value-value",
    ) == {
        "data_dir": "glue",
        "teacher": "a/b",
        "student": "scratch",
        "teacher_epochs": "2",
        "relation_pairs": "query-key,value-value",
    }
    assert read("--task-file", "r.csv", "--text-columns", "a", "b", "--label-column", "y", "--dev-file", "d.csv") == {
        "task_file": "r.csv",
        "text_columns": ["a", "b"],
        "label_column": "y",
        "dev_file": "d.csv",
    }
    assert read("--set", "hub=a=b") == {"hub": "a=b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "teacher_epochs"], "has no '='"),
        (["--set", "batch_size=1", "--set", "batch_size=2"], "'batch_size' is given twice"),
        (["--teacher", "a", "--set", "teacher=b"], "'teacher' is given twice"),
        (["--set", "profile=paper"], "--profile"),
    ],
)
def test_assignments_that_cannot_be_read(arguments, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        read(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rn"], "unknown command 'rn'; did you mean 'run'?"),
        (["run", "--task", "sst2"], "unknown option '--task'; did you mean '--tasks'?"),
        (["run", "--seed=1"], "unknown option '--seed'; did you mean '--seeds'?"),
        (["report", "demo"], "unexpected 'demo'"),
        (["run", "--tasks", "sst"], "unknown task 'sst'; did you mean 'sst2'?"),
        (["run", "--profile", "labtop"], "unknown profile 'labtop'; did you mean 'laptop'?"),
        (["run", "--set", "batchsize=4"], "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        (["run", "--set", "batch_size=four"], "setting 'batch_size' takes int, not 'four'"),
        (["run", "--jobs", "0"], "argument --jobs: '0' is not a whole number of at least 1"),
        (["run", "--seeds", "-1"], "argument --seeds"),
        (["run", "--data-dir"], "argument --data-dir: expected one argument"),
        (["settings", "--profile", "dmo"], "unknown profile 'dmo'; did you mean 'demo'?"),
        (["report", "--output-dir", "nowhere"], "is not there; `edgemin run` makes it"),
    ],
)
def test_refusals_are_one_line_with_the_way_out(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.startswith("edgemin: ") and shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---- run --------------------------------------------------------------------------------------------------------


def test_run_hands_on_what_was_asked_and_ends_with_table_and_report(asked, capsys):
    assert (
        cli.main(
            [
                "run",
                "--profile",
                "laptop",
                "--tasks",
                "sst2",
                "qqp",
                "--seeds",
                "0",
                "1",
                "--jobs",
                "2",
                "--cluster",
                "local",
                "--output-dir",
                "there",
                "--set",
                "dropout=0.2",
            ]
        )
        == 0
    )
    assert asked == [
        {
            "profile": "laptop",
            "tasks": ["sst2", "qqp"],
            "seeds": [0, 1],
            "jobs": 2,
            "overrides": {"dropout": "0.2"},
            "output_dir": "there",
            "cluster": "local",
        }
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "main table of study"
    assert lines[1] == f"report: {Path('study/report/report.html')}"
    assert lines[2].startswith("1 notebooks executed in ")


def test_run_without_options_is_the_demo(asked):
    assert cli.main(["run"]) == 0
    assert asked == [
        {"profile": "demo", "tasks": (), "seeds": (0,), "overrides": {}, "output_dir": None, "jobs": 1, "cluster": ""}
    ]


def test_run_is_not_for_launched_processes(asked, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["run"]) == 2 and not asked
    assert "`run` is for one process, and 2 were launched; launch `train`" in capsys.readouterr().err


def test_a_failed_notebook_is_named_and_the_exit_status_is_1(asked, capsys, monkeypatch):
    failure = CellFailure("02_distillation.ipynb", "cell In [4]: train()", "ValueError: no\nmore", "", Path("02.ipynb"))
    result = StudyResult(
        Path("study"),
        (
            NotebookResult("sst2, seed 0", "02_distillation", "failed", Path("02.ipynb"), 3.0, failure),
            NotebookResult("sst2, seed 0", "03_pruning", "not run", Path("03.ipynb")),
            NotebookResult("analysis", "05_analysis", "not run", Path("05.ipynb")),
        ),
    )
    monkeypatch.setattr(cli, "run_study", lambda *arguments: result)
    assert cli.main(["run"]) == 1
    shown = capsys.readouterr()
    assert shown.err == ("edgemin: 02_distillation.ipynb failed in cell In [4]: train(): ValueError: no (02.ipynb)\n")
    assert "main table" not in shown.out and "0 notebooks executed, 1 failed, 2 not run" in shown.out


def test_ctrl_c_says_that_the_same_command_resumes(asked, capsys, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_study", stopped)
    assert cli.main(["run"]) == 130
    assert "the same command takes the study up" in capsys.readouterr().err


def test_the_report_is_written_only_when_it_could_have_changed(asked, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(cli, "_write_report", lambda folder: written.append(folder))
    (tmp_path / "report").mkdir()
    skipped = StudyResult(tmp_path, (NotebookResult("analysis", "05_analysis", "skipped", Path("05.ipynb")),))
    monkeypatch.setattr(cli, "run_study", lambda *arguments: skipped)
    assert cli.main(["run"]) == 0 and written == [tmp_path]
    (tmp_path / cli.REPORT).write_text("<html>")
    assert cli.main(["run"]) == 0 and written == [tmp_path]


# ---- status, report, settings -----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, small_project, monkeypatch, request):
    """A project whose teacher stage of SST-2 is done under teacher_epochs=2, as its last run asked for."""
    project = small_project(tmp_path)
    monkeypatch.chdir(project)
    runs = study.plan_study(tasks=["sst2"], overrides={"teacher_epochs": 2})
    runs[0].run_stage("teacher/fine-tuned", lambda folder: {})
    write_study_file(runs, {"teacher_epochs": 2.0}, 1)
    return project


def test_status_compares_with_the_last_run(project, capsys):
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"sst2 +0 +teacher/fine-tuned +done", text)
    assert re.search(r"sst2 +0 +distillation/minilmv2 +missing +not run yet", text)
    assert "mnli" not in text and f"1 of {STAGES} stages done" in text
    assert "last run: edgemin run --profile demo --tasks sst2 --seeds 0 --set teacher_epochs=2.0" in text


def test_status_under_other_settings_says_what_is_stale_and_why(project, capsys):
    assert cli.main(["status", "--set", "teacher_epochs=3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"sst2 +0 +teacher/fine-tuned +stale +teacher_epochs was 2.*, now 3", text)


def test_a_reader_that_stops_reading_is_no_fault(project):
    for arguments in ("settings", "status", "run --help"):
        command = f"{shlex.quote(sys.executable)} -m edgemin_utils {arguments} | true"
        shown = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert shown.stderr == "", arguments


def test_status_of_a_study_that_was_never_run(project, capsys):
    shutil.rmtree(project / "outputs")
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert f"0 of {3 * STAGES} stages done" in text and "last run" not in text
    assert not (project / "outputs").exists()


def test_report_draws_again_and_names_the_path(project, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(cli, "_write_report", lambda folder: drawn.append(folder) or folder / cli.REPORT)
    monkeypatch.setattr(cli, "_print_main_table", lambda folder: None)
    assert cli.main(["report"]) == 0
    assert drawn == [project / "outputs" / "demo"]
    assert capsys.readouterr().out == f"report: {project / 'outputs' / 'demo' / cli.REPORT}\n"


@pytest.mark.parametrize(("profile", "teacher"), [("demo", "scratch"), ("paper", "distilbert-base-uncased")])
def test_settings_lists_every_setting_with_its_value(profile, teacher, capsys):
    assert cli.main(["settings", "--profile", profile]) == 0
    text = capsys.readouterr().out
    for name in setting_fields():
        assert re.search(rf"^{name} ", text, re.MULTILINE), name
    assert re.search(rf"^teacher +{teacher} ", text, re.MULTILINE)
