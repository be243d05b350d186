"""The notebooks: how they are built, and that all six run headless, in order and alone, on a very small study."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import PROJECT

from edgemin_utils import steps
from edgemin_utils.run import CHAIN_NOTEBOOKS, STUDY_NOTEBOOKS
from edgemin_utils.study import open_chain

FOLDER = PROJECT / "notebooks"
NAMES = (*CHAIN_NOTEBOOKS, *STUDY_NOTEBOOKS)
PARAMETERS = {"task": "sst2", "profile": "demo", "seed": 0, "output_dir": "", "overrides": {}, "replace": False}
SECTIONS = ["Question", "Set-up", "Method", "By hand", "Run", "Result", "What it means", "Try it", "Take-away"]
REPOSITORY = "https://colab.research.google.com/github/edgemin/edgemin/blob/main/notebooks"
# Every kind of stage, with as little of each as still runs: these models have learnt nothing.
SMALL = {
    "models": ["path", "none+uncut+int8", "minilmv2+scan-heads", "minilmv2+heads-0.2+sensitivity", "minilmv2+qat-int8"],
    **{"train_rows": 160, "dev_rows": 60, "holdout_fraction": 0.2, "vocabulary_size": 400, "max_length": 32},
    **{"teacher_layers": 2, "teacher_hidden_size": 40, "teacher_heads": 5, "teacher_intermediate_size": 48},
    **{"student": "scratch", "student_layers": 1, "student_hidden_size": 40, "student_heads": 5},
    **{"student_intermediate_size": 48, "relation_heads": 5, "teacher_epochs": 1, "recovery_epochs": 0.5},
    **{"distillation_epochs": 0.5, "prediction_epochs": 0.5, "tuning_epochs": 0.5, "importance_rows": 32},
    **{"scan_rows": 12, "scan_criteria": ["gradient"], "random_draws": 1, "calibration_rows": 8},
    **{"latency_lengths": [32], "latency_threads": [1], "latency_processes": 1},
}


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def notebook(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def sections(notebook) -> dict[str, str]:
    """Heading -> the code behind it."""
    found, heading = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in map(str.strip, re.findall(r"^## (.+)$", cell.source, re.MULTILINE)):
                found[heading] = ""
        elif heading:
            found[heading] += python_of(cell) + "\n"
    return found


def python_of(cell) -> str:
    """A code cell's source without IPython's magics."""
    return re.sub(r"^(\s*)%.*$", r"\1pass", cell.source, flags=re.MULTILINE)


def test_is_a_valid_notebook_without_outputs_and_with_prose_before_every_code_cell(notebook) -> None:
    nbformat.validate(notebook)
    assert (notebook.metadata.kernelspec.name, notebook.metadata.kernelspec.language) == ("python3", "python")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(notebook))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) <= 42
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" == "".join({before for before, kind in pairwise(kinds) if kind == "code"})


def test_set_up_is_two_cells_and_the_same_everywhere(notebook) -> None:
    first, second = code_cells(notebook)[:2]
    install = [line for line in first.source.splitlines() if "%pip" in line]
    assert len(install) == 1 and "torch" not in install[0] and '"google.colab" in sys.modules' in first.source
    assert second.metadata.tags == ["parameters"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code_cells(notebook)) == 1
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(second.source).body}
    assert values == PARAMETERS


def test_sections_come_in_order_by_hand_agrees_and_there_is_something_to_try(name: str, notebook) -> None:
    found = sections(notebook)
    assert [heading for heading in found if heading in SECTIONS] == SECTIONS
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(found["By hand"]))) >= 3
    assert name not in CHAIN_NOTEBOOKS or "chain.todo(" in found["Run"]
    assert found["Try it"]


def test_cells_are_short_and_name_no_path_of_one_machine(notebook) -> None:
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 15, cell.source
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert body[-1].end_lineno - body[0].lineno < 10, cell.source
    for cell in notebook.cells:
        assert not re.search(r"(?<![\w/.:*])/(?:home|root|tmp|work|Users|content|mnt|opt|usr)\b", cell.source)


def test_badge_and_links_lead_to_this_and_the_neighbouring_chapters(name: str, notebook) -> None:
    assert f"({REPOSITORY}/{name}.ipynb)" in notebook.cells[0].source
    place = NAMES.index(name)
    expected = [("Previous", before) for before in NAMES[max(0, place - 1) : place]]
    expected += [("Next", after) for after in NAMES[place + 1 : place + 2]]
    for cell in (notebook.cells[0], notebook.cells[-1]):
        assert re.findall(r"(Previous|Next) chapter: \[[^]]+\]\((\w+)\.ipynb\)", cell.source) == expected


def execute(name: str, folder: Path, study: str, **parameters):
    """Executes a notebook as `papermill` does, in a folder without the project around it."""
    given, executed = {"output_dir": study, "overrides": SMALL, **parameters}, folder / f"{name}.ipynb"
    resources = {"metadata": {"path": str(folder)}}
    papermill.execute_notebook(FOLDER / executed.name, executed, given, progress_bar=False, resources=resources)
    return nbformat.read(executed, as_version=4)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-order")
    executed = {name: execute(name, folder, str(folder / "study")) for name in NAMES}
    return open_chain("sst2", "demo", 0, folder / "study", SMALL), executed


def test_they_run_in_order_and_make_every_stage(chain) -> None:
    made, executed = chain
    assert list(executed) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert {name: stage.state.status for name, stage in made.plan.items()} == dict.fromkeys(made.plan, "done")
    assert not [name for name in made.plan if made.read(name).refused]
    assert (made.folder / "costs" / "record.json").is_file()
    for notebook in executed.values():
        outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
        assert not [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text]


def test_their_loops_make_what_the_package_makes(chain, tmp_path) -> None:
    again = open_chain("sst2", "demo", 0, tmp_path, SMALL)
    for kind in ("teacher", "distillation", "pruning", "tuning", "quantization"):
        list(steps.make_kinds(again, kind))
    for name, stage in again.plan.items():
        if stage.kind != "scan":
            first, second = (pd.read_parquet(one.folder / name / "predictions.parquet") for one in (chain[0], again))
            pd.testing.assert_frame_equal(first, second, atol=1e-4)


def test_a_chapter_alone_makes_what_it_needs_first(tmp_path) -> None:
    overrides = {**SMALL, "models": ["minilmv2+heads-0.2+int8"]}
    executed = execute("04_quantization", tmp_path, "study", overrides=overrides)
    text = "\n".join(output.get("text", "") for cell in code_cells(executed) for output in cell.outputs)
    assert re.search(r"made first: teacher,.*made first: \S+\+heads-0\.2", text, re.DOTALL)
    assert str(tmp_path / "study") in text
    made = open_chain("sst2", "demo", 0, tmp_path / "study", overrides)
    assert [stage.state.status for stage in made.plan.values()] == ["done"] * 4
