"""The runner: what is executed, what is skipped, and what happens when something goes wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from conftest import write_notebook
from rich.console import Console

from edgemin_utils import cluster, execution, study
from edgemin_utils.chain import CHAIN_NOTEBOOKS, pruning_key
from edgemin_utils.config import load_settings
from edgemin_utils.errors import DataError, SettingError, StorageError
from edgemin_utils.execution import check_parameters, execute_notebook, source_digest, threads_per_chain
from edgemin_utils.paths import absolute_paths
from edgemin_utils.progress import Line, StudyProgress, duration, estimate_seconds_left
from edgemin_utils.study import plan_study, run_study, study_status
from edgemin_utils.study_file import read_study_file

EXECUTED_FIRST = ("executed",) * 9


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_project):
    """A finished study of two chains, run side by side, with what was printed meanwhile."""
    project = small_project(tmp_path_factory.mktemp("project"))
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(execution.joblib, "cpu_count", lambda: 6)
        result = run_study(tasks=["sst2", "mnli"], output_dir=project / "study", jobs=2, console=Console(file=output))
    return SimpleNamespace(project=project, result=result, output=output.getvalue())


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of the finished study's project to change; the working directory."""
    copy = tmp_path / "project"
    shutil.copytree(finished.project, copy)
    monkeypatch.chdir(copy)
    return copy


def run_quietly(project, tasks=("sst2", "mnli"), **arguments):
    output = io.StringIO()
    result = run_study(tasks=tasks, output_dir=project / "study", console=Console(file=output, width=200), **arguments)
    return result, output.getvalue()


def statuses(result, chain):
    return [item.status for item in result.notebooks if item.chain == chain]


# ---- a study that goes well -------------------------------------------------------------------------------------


def test_every_notebook_is_executed_and_kept_with_its_records(finished):
    result = finished.result
    assert tuple(item.status for item in result.notebooks) == EXECUTED_FIRST
    assert result.complete and not result.failures
    assert result.notebooks[-1].chain == "analysis"
    for item in result.notebooks:
        assert "edgemin" in nbformat.read(item.executed, as_version=4).metadata
    folder = finished.project / "study" / "mnli" / "seed-0"
    assert sorted(path.name for path in (folder / "notebooks").iterdir()) == [f"{n}.ipynb" for n in CHAIN_NOTEBOOKS]
    assert (folder / "teacher" / "fine-tuned" / "record.json").is_file()


def test_chains_side_by_side_share_the_cores(finished):
    def threads(key):
        record = finished.project / "study" / "mnli" / "seed-0" / key / "record.json"
        return json.loads(record.read_text())["results"]["threads"]

    assert threads("teacher/fine-tuned") == "3"  # 6 cores, 2 jobs
    analysis = [path for path in (finished.project / "study").glob("*/seed-0/measurement/cost/record.json")]
    assert len(analysis) == 1  # this small analysis measures the first complete chain, with nothing set
    assert json.loads(analysis[0].read_text())["results"]["threads"] is None


def test_notebooks_run_in_their_own_folder(finished):
    record = finished.project / "study" / "sst2" / "seed-0" / "teacher" / "fine-tuned" / "record.json"
    assert json.loads(record.read_text())["results"]["directory"] == str(finished.project / "notebooks")


def test_events_are_plain_lines_without_a_terminal(finished):
    lines = finished.output.splitlines()
    assert "sst2, seed 0: 01_teacher started" in lines
    assert any(line.startswith("mnli, seed 0: done after") for line in lines)
    assert any("teacher/fine-tuned done in" in line and "; left: about " in line for line in lines)
    assert "\x1b" not in finished.output


def test_parameters_reach_the_notebook(finished):
    copy = nbformat.read(finished.project / "study/mnli/seed-0/notebooks/01_teacher.ipynb", as_version=4)
    assert copy.metadata.papermill.parameters["task"] == "mnli"
    assert copy.metadata.papermill.parameters["output_dir"] == str(finished.project / "study")


# ---- the second time --------------------------------------------------------------------------------------------


def test_second_run_executes_nothing_and_imports_nothing_heavy(project):
    code = (
        "import sys; from edgemin_utils.study import run_study\n"
        "result = run_study(tasks=['sst2', 'mnli'], output_dir='study')\n"
        "heavy = {'torch', 'transformers', 'papermill', 'matplotlib'} & set(sys.modules)\n"
        "print({item.status for item in result.notebooks}, heavy)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.splitlines()[-1] == "{'skipped'} set()"


def test_a_changed_setting_reaches_its_notebooks_only(project):
    result, _ = run_quietly(project, tasks=["sst2"], overrides={"recovery_epochs": "3"})
    assert statuses(result, "sst2, seed 0") == ["skipped", "skipped", "executed", "executed"]
    assert statuses(result, "analysis") == ["executed"]
    record = project / "study/sst2/seed-0" / pruning_key(load_settings(), "minilmv2") / "record.json"
    assert json.loads(record.read_text())["identity"]["settings"]["recovery_epochs"] == 3


def test_a_changed_measurement_setting_runs_the_analysis_only(project):
    result, _ = run_quietly(project, overrides={"bootstrap_samples": 10})
    assert statuses(result, "sst2, seed 0") == ["skipped"] * 4
    assert statuses(result, "analysis") == ["executed"]


def test_an_edited_notebook_is_executed_again_but_its_outputs_do_not_count(project):
    notebook = project / "notebooks" / "02_distillation.ipynb"
    before = source_digest(notebook)
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    content.cells[1].execution_count = 7
    nbformat.write(content, notebook)
    assert source_digest(notebook) == before
    content.cells[1].source += "\n# one more line"
    nbformat.write(content, notebook)
    result, _ = run_quietly(project, tasks=["sst2"])
    assert statuses(result, "sst2, seed 0") == ["skipped", "executed", "skipped", "skipped"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text('{"cells": [')])
def test_a_missing_or_damaged_copy_is_made_anew(project, damage):
    damage(project / "study/sst2/seed-0/notebooks/04_quantization.ipynb")
    run, notebooks = plan_study(tasks=["sst2"], output_dir=project / "study")[0], project / "notebooks"
    assert [study.is_current(run, notebooks / f"{name}.ipynb") for name in CHAIN_NOTEBOOKS] == [True, True, True, False]


def test_a_lost_record_is_made_anew(project):
    shutil.rmtree(project / "study/sst2/seed-0/distillation/minilmv2")
    run = plan_study(tasks=["sst2"], output_dir=project / "study")[0]
    assert not study.is_current(run, project / "notebooks" / "02_distillation.ipynb")
    assert study.is_current(run, project / "notebooks" / "01_teacher.ipynb")


def test_chains_run_on_a_cluster(project, monkeypatch):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
    for task in ("sst2", "mnli"):
        shutil.rmtree(project / "study" / task / "seed-0" / "quantization")
    (project / "mnli.04_quantization.py").write_text("raise ValueError('not today')")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    result, output = run_quietly(project, jobs=2, cluster="local")
    assert statuses(result, "sst2, seed 0") == ["skipped"] * 3 + ["executed"]
    assert statuses(result, "mnli, seed 0") == ["skipped"] * 3 + ["failed"]
    assert statuses(result, "analysis") == ["executed"]
    # The failure and the stage's end reach the display; so does the share of the cores the kernel on the worker.
    assert "ValueError: not today" in output and "mnli, seed 0: failed" in output
    assert "sst2, seed 0: quantization/minilmv2+dynamic-int8 done in" in output
    (record,) = (project / "study/sst2/seed-0/quantization").glob("minilmv2+dynamic-int8/record.json")
    assert json.loads(record.read_text())["results"]["threads"] == "2"
    assert read_study_file(project / "study")["command"].endswith("--jobs 2 --cluster local")
    assert not list((project / "study").glob(".shared-*"))


def test_a_cluster_that_cannot_be_used_is_refused_before_anything_starts(project, monkeypatch):
    monkeypatch.setattr(cluster, "_SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(SettingError, match=r"no Dask scheduler with workers answers at tcp://127.0.0.1:1 .*worker"):
        run_quietly(project, cluster="tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingError, match="needs Dask, which is not installed; run pip install"):
        run_quietly(project, cluster="local")


def test_a_worker_that_sees_other_folders_or_lacks_the_package_is_named():
    def client(**answers):
        return SimpleNamespace(run=lambda function, paths, on_error: answers)

    cluster.check_workers(client(one=[], two=[]), ["/data"])
    with pytest.raises(StorageError, match=r"worker two does not see /data/glue \(1 of 2 lack something\).*share"):
        cluster.check_workers(client(one=[], two=["/data/glue"]), ["/data/glue"])
    with pytest.raises(StorageError, match="worker one does not see edgemin_utils .No module named"):
        cluster.check_workers(client(one=ModuleNotFoundError("No module named 'edgemin_utils'")), [])


# ---- faults -----------------------------------------------------------------------------------------------------


def test_a_failing_cell_ends_its_chain_only_and_the_next_run_resumes(project):
    shutil.rmtree(project / "study/sst2/seed-0/distillation")
    shutil.rmtree(project / "study/mnli/seed-0/quantization")
    fault = project / "sst2.02_distillation.py"
    fault.write_text("raise ValueError('relation heads\\ndo not divide')")
    result, output = run_quietly(project)
    assert statuses(result, "sst2, seed 0") == ["skipped", "failed", "not run", "not run"]
    assert statuses(result, "mnli, seed 0") == ["skipped"] * 3 + ["executed"]
    assert statuses(result, "analysis") == ["executed"] and not result.complete
    (failure,) = result.failures
    assert failure.notebook == "02_distillation.ipynb" and failure.cell == "cell In [3]: import os"
    assert failure.error == "ValueError: relation heads\ndo not divide" and "exec(fault" in failure.traceback
    assert "sst2, seed 0: 02_distillation.ipynb failed in cell In [3]" in output
    assert "not complete: sst2, seed 0" in output
    assert "relation heads" in failure.executed.read_text() and execution.read_stamp(failure.executed) is None

    fault.unlink()
    result, _ = run_quietly(project)
    assert statuses(result, "sst2, seed 0") == ["skipped", "executed", "skipped", "skipped"]
    assert statuses(result, "mnli, seed 0") == ["skipped"] * 4
    assert statuses(result, "analysis") == ["executed"] and result.complete


def test_a_dead_kernel_and_an_error_that_says_all(tmp_path, small_project, monkeypatch):
    project = small_project(tmp_path)
    monkeypatch.chdir(project)
    (project / "sst2.01_teacher.py").write_text("os.kill(os.getpid(), 9)")
    (project / "mnli.01_teacher.py").write_text("from edgemin_utils import errors; raise errors.ModelError('no model')")
    result, output = run_quietly(project)
    killed, refused = result.failures
    assert "the kernel died" in killed.error
    assert refused.error == "ModelError: no model" and refused.traceback == ""
    assert statuses(result, "analysis") == ["not run"] and "no chain is complete" in output
    assert not result.complete


def test_unknown_parameter_is_refused_with_the_nearest(tmp_path, small_project, monkeypatch):
    project = small_project(tmp_path)
    monkeypatch.chdir(project)
    write_notebook(
        project / "notebooks" / "03_pruning.ipynb",
        "pass",
        "task = ''\nprofile = ''\nseeds = 0\noutput_dir = ''\noverrides = {}",
    )
    with pytest.raises(SettingError, match=r"03_pruning.ipynb has no parameter 'seed'; did you mean 'seeds'"):
        run_quietly(project)
    assert not list(project.glob("study/*/seed-0")), "nothing may be started"
    untagged = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("task = 1")])
    nbformat.write(untagged, project / "untagged.ipynb")
    with pytest.raises(SettingError, match="no cell tagged 'parameters'"):
        check_parameters(project / "untagged.ipynb", {"task": "sst2"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["sst"]}, "unknown task 'sst'; did you mean 'sst2'"),
        ({"profile": "lap-top"}, "unknown profile 'lap-top'; did you mean 'laptop'"),
        ({"overrides": {"relation_head": 3}}, "unknown setting 'relation_head'; did you mean 'relation_heads'"),
        ({"seeds": [-1]}, "seed -1 cannot be used"),
        ({"seeds": []}, "at least one seed"),
        ({"jobs": 0}, "jobs is 0"),
    ],
)
def test_unknown_names_are_refused_before_anything_starts(tmp_path, small_project, monkeypatch, arguments, message):
    project = small_project(tmp_path)
    monkeypatch.chdir(project)
    with pytest.raises(SettingError, match=message):
        run_study(output_dir=project / "study", **arguments)
    assert not (project / "study").exists()


def test_data_that_is_not_there_is_refused_before_anything_starts(tmp_path, small_project, monkeypatch):
    project = small_project(tmp_path)
    monkeypatch.chdir(project)
    with pytest.raises(DataError, match="reviews.csv"):
        run_study(overrides={"task_file": "reviews.csv", "text_columns": "text"}, output_dir=project / "study")
    assert not (project / "study").exists()


def test_without_notebooks_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution.edgemin_utils, "__file__", str(tmp_path / "site-packages/edgemin_utils/__init__.py"))
    with pytest.raises(SettingError, match="clone the project"):
        execution.notebooks_folder()
    with pytest.raises(SettingError, match="is not there; the study needs all five"):
        source_digest(tmp_path / "05_analysis.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(SettingError, match="is not a notebook"):
        source_digest(tmp_path / "broken.ipynb")


def test_a_folder_that_cannot_be_written_or_is_too_full(tmp_path, small_project, monkeypatch):
    project = small_project(tmp_path)
    monkeypatch.chdir(project)
    (project / "study").write_text("a file stands in the way")
    with pytest.raises(StorageError, match="choose another --output-dir"):
        run_quietly(project)
    (project / "study").unlink()
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**7))
    with pytest.raises(StorageError, match="0.01 GB free and this study may take 0.4 GB"):
        run_quietly(project)
    assert not list(project.glob("study/*/seed-0"))


def test_little_memory_is_said_but_refuses_nothing(project, monkeypatch):
    (project / "study/sst2/seed-0/notebooks/04_quantization.ipynb").unlink()
    monkeypatch.setattr(study, "available_memory_bytes", lambda: 5 * 10**8)
    result, output = run_quietly(project, tasks=["sst2"])
    assert "0.5 GB of memory are free" in output and result.complete


# ---- stopped from outside ---------------------------------------------------------------------------------------


def start_hanging_study(project: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A study whose kernel hangs in 02_distillation, and that kernel's process."""
    (project / "sst2.02_distillation.py").write_text("import time; (run.study / 'hangs').touch(); time.sleep(600)")
    command = [sys.executable, "-m", "edgemin_utils", "run", "--tasks", "sst2", "--output-dir", "study"]
    # A test run in the background may have Ctrl-C switched off, which a child would inherit.
    runner = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=project,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    waiting_until = time.monotonic() + 60
    while not (project / "study" / "hangs").exists():
        assert time.monotonic() < waiting_until and runner.poll() is None, runner.communicate()
        time.sleep(0.1)
    kernels = [
        process
        for process in psutil.Process(runner.pid).children(recursive=True)
        if "ipykernel_launcher" in process.cmdline()
    ]
    assert len(kernels) == 1
    return runner, kernels


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_study_leaves_no_kernel_and_resumes(project, number):
    shutil.rmtree(project / "study/sst2/seed-0/distillation")
    runner, kernels = start_hanging_study(project)
    runner.send_signal(number)
    _, message = runner.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert runner.returncode == 130
        assert "the same command takes the study up" in message and "Traceback" not in message
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert not alive, "a kernel outlived its study"
    (project / "sst2.02_distillation.py").unlink()
    result, _ = run_quietly(project, tasks=["sst2"])
    assert statuses(result, "sst2, seed 0") == ["skipped", "executed", "skipped", "skipped"]


# ---- smaller pieces ---------------------------------------------------------------------------------------------


def test_status_says_what_is_stale_and_why(project):
    runs = plan_study(tasks=["sst2", "qqp"], overrides={"recovery_epochs": 9}, output_dir=project / "study")
    rows = {(row.task, row.key): row for row in study_status(runs)}
    assert rows["sst2", "teacher/fine-tuned"].status == "done"
    assert rows["sst2", "teacher/fine-tuned"].wall_seconds >= 0
    stale = rows["sst2", pruning_key(load_settings(), "minilmv2")]
    assert stale.status == "stale" and f"recovery_epochs was {load_settings().recovery_epochs}, now 9.0" in stale.reason
    assert rows["qqp", "teacher/fine-tuned"].status == "missing"
    assert rows["qqp", "measurement/cost"].notebook == "05_analysis"


def test_the_last_command_is_noted_and_stays_true_elsewhere(project, tmp_path, monkeypatch):
    rows = project / "data" / "reviews.csv"
    rows.parent.mkdir()
    rows.write_text("text,label\n" + "".join(f"row {number},{number % 2}\n" for number in range(40)))
    overrides = {"task_file": "data/reviews.csv", "text_columns": ["text"], "teacher_epochs": 2}
    result, _ = run_quietly(project, tasks=(), overrides=overrides)
    assert result.notebooks[0].chain == "reviews, seed 0" and result.complete
    note = (project / "study" / "study.json").read_text()
    assert str(tmp_path) not in note, "a note must not name folders of the machine"
    monkeypatch.chdir("/")
    last = read_study_file(project / "study")
    assert last["overrides"] == {"task_file": str(rows), "text_columns": ["text"], "teacher_epochs": 2.0}
    assert last["tasks"] == ["reviews"] and "--set task_file=data/reviews.csv" in last["command"]
    (project / "study" / "study.json").write_text("{}")
    assert read_study_file(project / "study") == {}


def test_paths_become_absolute_and_hub_ids_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    given = {
        "data_dir": "glue",
        "teacher": "mine",
        "student": "prajjwal1/bert-tiny",
        "task_file": None,
        "dev_file": "none",
        "batch_size": 8,
    }
    assert absolute_paths(given) == {**given, "data_dir": str(tmp_path / "glue"), "teacher": str(tmp_path / "mine")}
    assert absolute_paths({"teacher": "./typo"}) == {"teacher": str(tmp_path / "typo")}
    recipes = "+".join(["distill"] * 60)  # longer than a file name may be
    assert absolute_paths({"recipe": recipes}) == {"recipe": recipes}


def test_threads_are_divided_and_given_back(monkeypatch):
    monkeypatch.setattr(execution.joblib, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with threads_per_chain(3) as threads:
        assert threads == 2 and os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "2"
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ, "models are timed with the default"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads_per_chain(2):
        assert os.environ["OMP_NUM_THREADS"] == "2", "the user's limit counts as the number of cores"
    with threads_per_chain(1):
        assert os.environ["OMP_NUM_THREADS"] == "4"
    with threads_per_chain(9) as threads:
        assert threads == 1
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_kernels_use_this_interpreter(tmp_path):
    write_notebook(tmp_path / "which.ipynb", "import sys; print(sys.executable)")
    assert execute_notebook(tmp_path / "which.ipynb", tmp_path / "out" / "which.ipynb", {"seed": 3}) is None
    assert sys.executable in (tmp_path / "out" / "which.ipynb").read_text()


def test_estimate_goes_by_the_same_stage_then_its_kind_then_the_mean():
    finished = {"teacher/fine-tuned": [60.0, 80.0], "pruning/a": [10.0], "pruning/b": [30.0]}
    assert estimate_seconds_left(["teacher/fine-tuned"], finished) == 70
    assert estimate_seconds_left(["pruning/c"], finished) == 20
    assert estimate_seconds_left(["quantization/a"], finished) == 45  # (60 + 80 + 10 + 30) / 4
    assert estimate_seconds_left(["teacher/fine-tuned", "pruning/a"], finished, running_for=25) == 55
    assert estimate_seconds_left(["pruning/a", "pruning/b"], finished, running_for=500) == 30
    assert estimate_seconds_left(["pruning/a"], {}) is None
    assert estimate_seconds_left([], {}) == 0


def test_progress_sees_records_as_they_appear(tmp_path):
    wanted = {tmp_path / "teacher": ("teacher/fine-tuned", "aa"), tmp_path / "pruned": ("pruning/a", "bb")}
    progress = StudyProgress([Line("chain", wanted)], Console(file=io.StringIO(), width=200))
    line = progress.lines["chain"]
    progress.begin("chain", "01_teacher")
    assert progress.left(line) == "estimating"
    for folder, fingerprint in (("teacher", "aa"), ("pruned", "of other settings")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "record.json").write_text(json.dumps({"fingerprint": fingerprint, "wall_seconds": 90}))
    progress.poll()
    assert line.stages_left == ["pruning/a"]
    assert progress.left(line) in ("about 1 min 30 s", "about 1 min 29 s")
    progress.end("chain", "failed")
    assert progress.left(line) == "" and "chain: failed" in progress.console.file.getvalue()


def test_progress_draws_one_line_a_chain_on_a_terminal(tmp_path):
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    lines = [Line("sst2, seed 0", {}), Line("mnli, seed 0", {tmp_path: ("teacher/fine-tuned", "aa")})]
    with StudyProgress(lines, screen) as progress:
        progress.begin("mnli, seed 0", "01_teacher")
        progress.poll()
    shown = screen.file.getvalue()
    assert "sst2, seed 0" in shown and "01_teacher" in shown and "0/1" in shown and "estimating" in shown
    assert "started" not in shown, "events are for logs"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
