"""The notebooks: how they are built, and that all five run headless, in order, on a very small study."""

import ast
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import PROJECT

from edgemin_utils.chain import NOTEBOOKS
from edgemin_utils.records import open_run

FOLDER = PROJECT / "notebooks"
NAMES = tuple(dict.fromkeys(NOTEBOOKS.values()))
PARAMETERS = ["task", "profile", "seed", "output_dir", "overrides"]
LONGEST_CELL = 15
SECTIONS = ["Question", "Set-up", "Method", "Run", "Result", "What it means", "Take-away"]
REPOSITORY = "https://colab.research.google.com/github/edgemin/edgemin/blob/main/notebooks"
# Every stage of a chain, with as little of each as still runs: these models have learnt nothing.
SMALL = {
    "train_rows": 120,
    "dev_rows": 60,
    "vocabulary_size": 300,
    "teacher_layers": 2,
    "teacher_hidden_size": 24,
    "teacher_heads": 4,
    "teacher_intermediate_size": 48,
    "teacher_epochs": 1,
    "student": "scratch",
    "student_layers": 1,
    "student_hidden_size": 24,
    "student_heads": 4,
    "student_intermediate_size": 48,
    "relation_heads": 4,
    "distillation_epochs": 0.5,
    "prediction_epochs": 1,
    "head_prune_ratio": 0.25,
    "recovery_epochs": 0.5,
    "importance_rows": 32,
    "scan_rows": 12,
    "random_draws": 1,
    "factorial": False,
    "compared_cuts": ["gradient-neurons-0.25-vocabulary-seen-3-rounds-2"],
    "latency_lengths": [32],
    "latency_threads": [1],
    "latency_protocol": "quick",
    "memory_runs": 1,
    "bootstrap_samples": 100,
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def without_magics(source):
    return re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)


# ---- how they are built ----------------------------------------------------------------------------------------


def test_there_are_these_five():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


def test_is_a_valid_notebook_without_outputs(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None
    identifiers = [cell.id for cell in notebook.cells]
    assert len(set(identifiers)) == len(identifiers)


def test_parameters_are_the_same_five_everywhere(notebook):
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0].source).body}
    assert list(values) == PARAMETERS
    assert values == {"task": "sst2", "profile": "demo", "seed": 0, "output_dir": "", "overrides": {}}


def test_first_code_cell_installs_on_colab_alone(notebook):
    first = code_cells(notebook)[0].source
    reference = nbformat.read(FOLDER / f"{NAMES[0]}.ipynb", as_version=4)
    assert first == code_cells(reference)[0].source
    guarded = ast.parse(without_magics(first)).body
    assert isinstance(guarded[0], ast.Import) and isinstance(guarded[1], ast.If) and len(guarded) == 2
    assert "torch" not in [line for line in first.splitlines() if "%pip" in line][0]


def test_prose_stands_before_every_code_cell(notebook):
    before = None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert before is not None and before.cell_type == "markdown" and len(before.source) > 20, cell.source
        before = cell


def test_code_cells_are_short_and_define_nothing(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
        nodes = list(ast.walk(ast.parse(without_magics(cell.source))))
        assert not any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda) for node in nodes
        ), cell.source


def test_no_path_of_one_machine_is_written_down(notebook):
    for cell in notebook.cells:
        assert not re.search(r"(?<![\w/.:*])/(?:home|root|tmp|work|Users|content|mnt|opt|usr)\b", cell.source)
        assert not re.search(r"\b[A-Z]:\\", cell.source)


def test_badge_and_links_lead_to_this_and_the_neighbouring_chapters(name, notebook):
    assert f"({REPOSITORY}/{name}.ipynb)" in notebook.cells[0].source
    place = NAMES.index(name)
    linked = re.findall(r"\]\((\w+\.ipynb)\)", text(notebook))
    assert all((FOLDER / target).is_file() for target in linked)
    for neighbour in (*NAMES[max(0, place - 1) : place], *NAMES[place + 1 : place + 2]):
        assert f"{neighbour}.ipynb" in linked


def test_neighbouring_chapters_are_linked_at_the_start_and_at_the_end(name, notebook):
    place = NAMES.index(name)
    for cell in (notebook.cells[0], notebook.cells[-1]):
        linked = re.findall(r"(Previous|Next) chapter: \[[^]]+\]\((\w+)\.ipynb\)", cell.source)
        assert linked == [("Previous", before) for before in NAMES[max(0, place - 1) : place]] + [
            ("Next", after) for after in NAMES[place + 1 : place + 2]
        ]


def test_every_chapter_begins_with_the_same_look_at_the_machine(notebook):
    reference = nbformat.read(FOLDER / f"{NAMES[0]}.ipynb", as_version=4)
    # On Colab, parameters, then the machine, before anything else is imported.
    assert code_cells(notebook)[2].source == code_cells(reference)[2].source
    assert "describe_environment" in code_cells(notebook)[2].source


def test_chapters_have_the_same_sections_in_the_same_order(notebook):
    assert re.findall(r"^## (.+)$", text(notebook), flags=re.MULTILINE) == SECTIONS
    method = text(notebook).split("## Method")[1].split("## Run")[0]
    assert "$$" in method and re.search(r"\b(19|20)\d\d\b", method)  # a formula and its source


# ---- that they run ---------------------------------------------------------------------------------------------


def execute(name: str, executed: Path, study: Path) -> nbformat.NotebookNode:
    """The notebook under bare papermill, with nothing but its parameters given."""
    parameters = {"output_dir": str(study), "seed": 3, "overrides": SMALL}
    return papermill.execute_notebook(
        FOLDER / f"{name}.ipynb",
        executed / f"{name}.ipynb",
        parameters,
        cwd=FOLDER,
        kernel_name="python3",
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study made by all five notebooks in order: its chain, and the executed notebooks by name."""
    folder = tmp_path_factory.mktemp("notebooks")
    executed = folder / "executed"
    executed.mkdir()
    notebooks = {name: execute(name, executed, folder / "study") for name in NAMES}
    return open_run("sst2", "demo", 3, folder / "study", SMALL), notebooks


def test_every_stage_of_the_chain_has_its_record(finished):
    run, _ = finished
    assert {key: run.state(key).status for key in run.plan} == dict.fromkeys(run.plan, "done")
    for key, stage in run.plan.items():
        assert stage.keeps_model == (run.stage_folder(key) / "predictions-dev.csv").is_file()


def test_every_latency_stands_beside_the_least_it_could_be(finished):
    results = finished[0].read("measurement/cost").results
    assert results["peaks"]["1"]["fp32_macs_per_second"] > 0
    for row in results["latency"]:
        assert 0 < row["bound_ms"] < row["median_ms"] and row["of_bound"] == row["median_ms"] / row["bound_ms"]


def test_the_analysis_shows_the_papers_numbers(finished):
    shown = "\n".join(
        output.data.get("text/html", "")
        for cell in code_cells(finished[1]["05_analysis"])
        for output in cell.outputs
        if "data" in output
    )
    for text in ("66.96M", "11.94M", "32,178,818", "65.09 MB", "C15", "reproduced only under the paper"):
        assert text in shown


def test_executed_notebooks_hold_no_errors_and_no_noise(finished):
    for name, notebook in finished[1].items():
        for cell in code_cells(notebook):
            for output in cell.outputs:
                assert output.output_type != "error"
                written = output.get("text", "") if output.output_type == "stream" else ""
                assert "Warning" not in written and len(written.splitlines()) <= 40, f"{name}: {written}"


def test_every_figure_and_sentence_of_the_chapters_is_drawn(finished):
    def outputs(name, kind):
        return [
            output.data[kind]
            for cell in code_cells(finished[1][name])
            for output in cell.outputs
            if kind in output.get("data", {})
        ]

    figures = {"01_teacher": 4, "02_distillation": 4, "03_pruning": 6, "04_quantization": 3}
    assert {name: len(outputs(name, "image/png")) for name in figures} == figures
    assert all(outputs(name, "text/markdown") for name in figures)
    assert "1 of 4 heads are gone: 25.0 %" in "\n".join(outputs("03_pruning", "text/markdown"))
    assert "12 of 48 neurons, " in "\n".join(outputs("03_pruning", "text/html"))
    assert "`model.parameters()` lists" in "\n".join(outputs("04_quantization", "text/markdown"))


@pytest.mark.parametrize(
    "name, first",
    [("02_distillation", "01_teacher"), ("03_pruning", "02_distillation"), ("04_quantization", "03_pruning")],
)
def test_a_chapter_before_its_time_names_the_one_to_run_first(tmp_path, name, first):
    with pytest.raises(papermill.PapermillExecutionError) as failure:
        execute(name, tmp_path, tmp_path / "study")
    assert failure.value.ename == "StageError"
    assert f"Run notebooks/{first}.ipynb first, with the same settings" in failure.value.evalue
