"""Running a study: what is executed or skipped, what a failure stops, and what is refused before anything starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_notebook

from edgemin_utils import run
from edgemin_utils.errors import DataError, SettingError, StageError
from edgemin_utils.run import CHAIN_NOTEBOOKS, STUDY_NOTEBOOKS, check_parameters, open_chains, run_study
from edgemin_utils.study import find_chains, find_records

PARAMETERS = 'task = "sst2"\nprofile = "demo"\nseed = 0\noutput_dir = ""\noverrides = {}\nreplace = False'
# Real stages of the chapter's kind with nothing computed. A file `<task>.<notebook>.py` beside the study is executed
# first, so that a test can make a notebook fail, hang or die.
CHAPTER = """
import os
from pathlib import Path
from edgemin_utils.study import open_chain

chain = open_chain(task, profile, seed, output_dir, overrides, replace)
fault = Path(output_dir).parent / f"{{task}}.{name}.py"
if fault.exists():
    exec(fault.read_text())
for kind in {kinds}:
    for stage in chain.todo(kind):
        with stage:
            stage.record({{"threads": os.environ.get("OMP_NUM_THREADS"), "metrics": {{}}}})
"""
KINDS = {"01_teacher": ["teacher"], "02_distillation": ["distillation"], "03_pruning": ["pruning"]}
MODELS = {"models": "minilmv2+heads-0.2+int8"}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    for name in (*CHAIN_NOTEBOOKS, *STUDY_NOTEBOOKS):
        kinds = KINDS.get(name, ["quantization"] if name == "04_quantization" else [])
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", CHAPTER.format(name=name, kinds=kinds), PARAMETERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "say_rows", lambda chains: None)
    return tmp_path


def statuses(project: Path, tasks=("sst2",), overrides=MODELS, **options) -> list[str]:
    chains = open_chains("demo", tasks, [0], overrides, project / "study")
    return [result.status for result in run_study(chains, overrides, **options)]


def test_a_study_is_executed_once_and_a_changed_setting_only_where_it_is_felt(project) -> None:
    assert statuses(project) == ["executed"] * 6
    made = [record.model for record in find_records(project / "study")]
    assert made == ["minilmv2", "minilmv2+heads-0.2", "minilmv2+heads-0.2+int8", "teacher"]
    assert statuses(project) == ["skipped"] * 6
    cut = {"models": "minilmv2+heads-0.4+int8"}
    assert statuses(project, overrides=cut) == ["skipped"] * 2 + ["executed"] * 4
    path = project / "notebooks" / "02_distillation.ipynb"
    path.write_text(path.read_text().replace("import os", "import os  # changed"))
    assert statuses(project, overrides=cut) == ["skipped", "executed", *["skipped"] * 4]


def test_chains_side_by_side_share_the_cores_and_fail_alone(project, capsys) -> None:
    (project / "mnli.02_distillation.py").write_text("raise ValueError('broken on purpose')")
    chains = open_chains("demo", ["sst2", "mnli"], [0], MODELS, project / "study")
    results = run_study(chains, MODELS, jobs=2)
    found = {(result.chain, result.notebook): result for result in results}
    assert [found["sst2, seed 0", name].status for name in CHAIN_NOTEBOOKS] == ["executed"] * 4
    failed = ["executed", "failed", "not run", "not run"]
    assert [found["mnli, seed 0", name].status for name in CHAIN_NOTEBOOKS] == failed
    assert "ValueError: broken on purpose" in found["mnli, seed 0", "02_distillation"].failure
    assert found["study", "05_analysis"].status == "executed"
    assert "broken on purpose" in capsys.readouterr().out
    threads = {record.results["threads"] for record in find_records(project / "study")}
    assert threads == {str(max(1, (os.cpu_count() or 2) // 2))}


def test_a_dead_kernel_is_one_sentence_and_the_same_call_goes_on(project) -> None:
    fault = project / "sst2.03_pruning.py"
    fault.write_text("import os; os._exit(1)")
    assert statuses(project) == ["executed", "executed", "failed", "not run", "not run", "not run"]
    fault.unlink()
    assert statuses(project) == ["skipped", "skipped", *["executed"] * 4]


def test_a_stopped_study_leaves_no_kernel_and_goes_on(project) -> None:
    (project / "sst2.02_distillation.py").write_text("import time; Path(output_dir, 'hangs').touch(); time.sleep(99)")
    code = f"from test_run import *; run.say_rows = lambda chains: None; statuses(Path({str(project)!r}))"
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])}
    started = subprocess.Popen([sys.executable, "-c", code], cwd=project, env=found, stderr=subprocess.PIPE)
    deadline = time.time() + 90
    while not (project / "study" / "hangs").exists() and time.time() < deadline:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in started.communicate(timeout=60)[1]
    (project / "sst2.02_distillation.py").unlink()
    assert statuses(project) == ["skipped", *["executed"] * 5]


def test_nothing_is_replaced_before_it_is_asked_for(project) -> None:
    statuses(project)
    changed = {**MODELS, "teacher_epochs": 1.0}
    with pytest.raises(StageError, match="--replace"):
        statuses(project, overrides=changed)
    chains = open_chains("demo", ["sst2"], [0], changed, project / "study", replace=True)
    assert [result.status for result in run_study(chains, changed)] == ["executed"] * 6


def test_chains_run_on_a_dask_cluster(project) -> None:
    assert statuses(project, cluster="local") == ["executed"] * 6
    with pytest.raises(SettingError, match="no Dask scheduler"):
        statuses(project, overrides={"models": "none"}, cluster="tcp://127.0.0.1:9")


def test_notebooks_get_relative_paths_made_absolute_and_values_in_their_types(project) -> None:
    (project / "mine.csv").write_text("text,label\n" + "".join(f"good {n},yes\nbad {n},no\n" for n in range(40)))
    given = {"task_file": "mine.csv", "text_columns": "text", "models": "none", "train_rows": "50"}
    assert statuses(project, tasks=(), overrides=given) == ["executed"] * 6
    (chain,) = find_chains(project / "study")
    assert chain.settings.task_file == str(project / "mine.csv") and chain.settings.train_rows == 50


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"tasks": ["sst3"]}, SettingError, "sst2"),
        ({"profile": "dem"}, SettingError, "demo"),
        ({"seeds": [-1]}, SettingError, "whole number"),
        ({"overrides": {"models": "minilmv2+heads-2"}}, SettingError, "heads-0.2"),
        ({"overrides": {"task_file": "gone.csv", "text_columns": "a"}}, DataError, "gone.csv"),
    ],
)
def test_what_cannot_be_is_refused_at_once(project, arguments, error, said) -> None:
    with pytest.raises(error, match=said):
        open_chains(**arguments)


def test_unknown_parameters_and_missing_notebooks_are_refused(project) -> None:
    notebook = project / "notebooks" / "01_teacher.ipynb"
    with pytest.raises(SettingError, match="did you mean 'overrides'"):
        check_parameters(notebook, {"override": {}})
    notebook.write_text("{}")
    with pytest.raises(SettingError, match="is missing or is not a notebook"):
        statuses(project)


def test_a_foreign_kernel_is_named_by_its_folder(project, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/elsewhere/bin/python", "-m", "ipykernel_launcher"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    with pytest.raises(SettingError, match=f"{folder}.*/elsewhere/bin/python"):
        statuses(project)
