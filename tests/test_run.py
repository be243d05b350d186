"""Running a study: what is executed or skipped, what a failure stops, and what is refused before anything starts."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_notebook
from safetensors.torch import load_file, save_file
from small_models import small_model
from transformers import AutoTokenizer

from edgemin_utils import run
from edgemin_utils.errors import DataError, ModelError, SettingError, StageError
from edgemin_utils.rows.tokens import train_tokenizer
from edgemin_utils.run import CHAIN_NOTEBOOKS, STUDY_NOTEBOOKS, notebook_parameters, open_chains, run_study, say_rows
from edgemin_utils.study import find_records, open_chain

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
for stage in chain.todo("{kind}"):
    with stage:
        stage.record({{"threads": os.environ.get("OMP_NUM_THREADS"), "metrics": {{}}}})
"""
MODELS = {"models": "minilmv2+heads-0.2+int8"}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    for name in (*CHAIN_NOTEBOOKS, *STUDY_NOTEBOOKS):
        code = CHAPTER.format(name=name, kind=name[3:])
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", code, PARAMETERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "say_rows", lambda chains: None)
    return tmp_path


def statuses(project: Path, overrides=MODELS, replace=False, **options) -> list[str]:
    chains = open_chains("demo", ["sst2"], [0], overrides, project / "study", replace)
    return list(run_study(chains, **options).values())


def test_a_study_is_executed_once_and_a_changed_setting_only_where_it_is_felt(project) -> None:
    assert statuses(project) == ["executed"] * 6
    made = [record.model for record in find_records(project / "study")]
    assert made == ["minilmv2", "minilmv2+heads-0.2", "minilmv2+heads-0.2+int8", "teacher"]
    assert statuses(project) == ["skipped"] * 6
    cut = {"models": "minilmv2+heads-0.4+int8"}
    assert statuses(project, cut) == ["skipped"] * 2 + ["executed"] * 4
    path = project / "notebooks" / "02_distillation.ipynb"
    path.write_text(path.read_text().replace("import os", "import os  # changed"))
    assert statuses(project, cut) == ["skipped", "executed", *["skipped"] * 4]
    with pytest.raises(StageError, match="--replace"):
        statuses(project, {**cut, "teacher_epochs": 1.0})
    assert statuses(project, {**cut, "teacher_epochs": 1.0}, replace=True) == ["executed"] * 6


def test_chains_side_by_side_share_the_cores_and_fail_alone(project, capsys) -> None:
    (project / "mnli.02_distillation.py").write_text("raise ValueError('broken on purpose')")
    chains = open_chains("demo", ["sst2", "mnli"], [0], MODELS, project / "study")
    found = run_study(chains, jobs=2)
    assert [found["sst2, seed 0", name] for name in CHAIN_NOTEBOOKS] == ["executed"] * 4
    assert [found["mnli, seed 0", name] for name in CHAIN_NOTEBOOKS] == ["executed", "failed", "not run", "not run"]
    assert found["study", "05_analysis"] == "executed"
    assert "ValueError: broken on purpose" in capsys.readouterr().out
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


def test_chains_run_on_a_dask_cluster(project) -> None:
    assert statuses(project, cluster="local") == ["executed"] * 6
    with pytest.raises(SettingError, match="no Dask scheduler"):
        statuses(project, {"models": "none"}, cluster="tcp://127.0.0.1:9")


def test_notebooks_get_relative_paths_made_absolute_and_values_in_their_types(project) -> None:
    (project / "mine.csv").write_text("text,label\n" + "".join(f"good {n},yes\nbad {n},no\n" for n in range(40)))
    given = {"task_file": "mine.csv", "text_columns": "text", "train_rows": "50", "train_fraction": "0.1"}
    (chain,) = open_chains("laptop", overrides=given)
    parameters = notebook_parameters(chain)
    assert parameters["overrides"]["task_file"] == str(project / "mine.csv")
    assert parameters["overrides"]["train_rows"] == 50
    assert open_chain(**parameters).settings == chain.settings


def test_notebooks_without_a_parameter_or_missing_are_refused(project) -> None:
    notebook = project / "notebooks" / "01_teacher.ipynb"
    notebook.write_text(notebook.read_text().replace("overrides = {}", "override = {}"))
    with pytest.raises(SettingError, match="no parameter 'overrides'; did you mean 'override'"):
        statuses(project)
    notebook.write_text("{}")
    with pytest.raises(SettingError, match="is missing or is not a notebook"):
        statuses(project)


def rows_of(folder: Path, teacher: Path, dev_labels: str = "yes no", **overrides) -> None:
    """What `edgemin run` says of a file of one's own with dev rows of these labels, before anything starts."""
    rows = "".join(f"good film {number},yes\nbad film {number},no\n" for number in range(9))
    (folder / "mine.csv").write_text(f"text,label\n{rows}")
    (folder / "dev.csv").write_text("text,label\n" + "".join(f"a film,{label}\n" for label in dev_labels.split()))
    files = {"task_file": "mine.csv", "dev_file": "dev.csv", "text_columns": "text"}
    say_rows(open_chains(overrides={**files, "teacher": str(teacher), **overrides}, output_dir=folder / "study"))


def test_a_teacher_s_tokenizer_is_looked_at_before_anything_starts(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, path, tokenizer = tmp_path / "teacher", tmp_path / "other", train_tokenizer(["good bad film"], 60)
    small_model(vocabulary_size=len(tokenizer)).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher, truncation_side="left")
    tokenizer.save_pretrained(path)
    shutil.copytree(teacher, path, dirs_exist_ok=True, ignore=lambda _, names: {n for n in names if "token" in n})
    rows_of(tmp_path, path, max_length=500, student=str(teacher))
    said = capsys.readouterr().out
    assert "rows trained on" in said and "truncation_side left" in said and "positions for 64 tokens" in said
    assert said.count("positions for") == 1  # and not again for the student
    tokenizer.add_tokens(["<user>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(ModelError, match="without a row in the embedding.*<user>"):
        rows_of(tmp_path, path)
    train_tokenizer(["other words"], 60).save_pretrained(path)
    with pytest.raises(ModelError, match="another vocabulary than the teacher"):
        rows_of(tmp_path, teacher, student=str(path))
    told = {'{"problem_type": "regression"}': "one label a row", '{"vocab_size": "60"}': "vocab_size is '60'"}
    for config, said in {**told, '{"model_type": "gpt2"}': "of family 'gpt2'", "[": "config.json that can"}.items():
        (path / "config.json").write_text(config)
        with pytest.raises(ModelError, match=said):
            rows_of(tmp_path, path)
    with pytest.raises(DataError, match="maybe"):
        rows_of(tmp_path, teacher, "yes no maybe")
    (tmp_path / "more.csv").write_text("text\na third film\ngood film 1\n")
    rows_of(tmp_path, teacher, transfer_file="more.csv")
    assert "transfer: 1 of 2 texts without labels" in capsys.readouterr().out
    rows_of(tmp_path, teacher, transfer_rows=5)
    assert "transfer rows will be refused" in capsys.readouterr().out
    weights = teacher / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] * math.nan}, weights)
    with pytest.raises(ModelError, match="NaN or infinity, as in classifier.bias"):
        rows_of(tmp_path, teacher)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ModelError, match="truncated or damaged"):
        rows_of(tmp_path, teacher)


def test_a_foreign_kernel_is_named_by_its_folder(project, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/elsewhere/bin/python", "-m", "ipykernel_launcher"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    with pytest.raises(SettingError, match=f"{folder}.*/elsewhere/bin/python"):
        statuses(project)
