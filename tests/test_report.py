import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from example_study import COST, DISTILLED, MODELS, NONE, TEACHER, write_chain
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets.config import Config

from edgemin_utils import analysis, figures, report, tables
from edgemin_utils.errors import StageError
from edgemin_utils.page import formula_svg, formulas_as_pictures, notebook_page, with_palette
from edgemin_utils.records import open_run, write_json

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "05_analysis.ipynb"


@pytest.fixture
def study(tmp_path):
    return write_chain(write_chain(tmp_path), "mnli", splits=("dev_matched", "dev_mismatched"))


def executed_notebook(path: Path) -> Path:
    """A small executed notebook with a picture, a formula, a badge, a widget and a warning."""
    output = nbformat.v4.new_output
    code = nbformat.v4.new_code_cell(
        "figure",
        id="code",
        execution_count=1,
        outputs=[
            output(
                "display_data",
                {"image/png": "iVBORw0KGgo=", "text/plain": "picture"},
                metadata={"image/png": {"alt": "what is drawn"}},
            ),
            output(
                "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "bar"}
            ),
            output("stream", name="stderr", text="a warning about /some/folder"),
            output("stream", name="stdout", text="printed result"),
            output("display_data", {"text/markdown": "kept $p < 0.05$"}),
        ],
    )
    prose = nbformat.v4.new_markdown_cell(
        "# Title\n[![Badge](https://example.org/badge.svg)](https://example.org)\n\n$$s = \\frac{a}{b}$$\n", id="prose"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[prose, code], metadata={"widgets": {"state": {}}}), path)
    return path


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_report_has_tables_and_figures_and_the_same_bytes_twice(study):
    executed_notebook(report.executed_analysis(study))
    path = report.write_report(study)
    first = all_bytes(study / "report")
    assert path == study / "report" / "report.html" and path.is_file()
    assert {
        "tables/main_results.csv",
        "tables/cost.md",
        "tables/latency.tex",
        "tables/recommended.csv",
        "figures/pareto_sst2.png",
        "figures/accuracy_over_latency.svg",
        "figures/pipeline_sst2.png",
        "figures/cost_by_stage_mnli.png",
        "report.html",
    } <= first.keys()
    assert report.write_report(study) == path
    assert all_bytes(study / "report") == first


def test_what_was_not_measured_is_left_out_of_the_report(tmp_path):
    keys = (TEACHER, NONE, DISTILLED)
    study = write_chain(tmp_path, leave_out=(COST, *(key for key in MODELS if key not in keys)))
    stale = [study / "report" / name for name in ("figures/factorial_effects.png", "tables/latency.csv")]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of an earlier report")
    report.write_report(study)
    stems = {Path(name).with_suffix("").as_posix() for name in all_bytes(study / "report")}
    assert not stems & {
        "figures/accuracy_over_latency",
        "figures/factorial_effects",
        "tables/latency",
        "tables/factorial_effects",
    }
    assert {
        "figures/accuracy_by_stage",
        "figures/pipeline_sst2",
        "figures/pareto_sst2",
        "figures/cost_by_stage_sst2",
        "tables/main_results",
        "tables/cost",
    } <= stems
    assert "(no rows)" not in "".join(path.read_text() for path in (study / "report" / "tables").glob("*.md"))


def test_report_without_an_executed_analysis_is_the_folder(study):
    assert report.write_report(study) == study / "report"
    assert not (study / "report" / "report.html").exists()
    with pytest.raises(StageError, match="05_analysis"):
        report.html_report(study)


def test_report_of_hardly_any_records(tmp_path):
    path = tmp_path / "sst2" / "seed-0" / TEACHER
    path.mkdir(parents=True)
    content = {
        "record_version": 2,
        "stage": "teacher",
        "variant": "fine-tuned",
        "task": "sst2",
        "seed": 0,
        "fingerprint": "x",
        "identity": {},
        "results": {},
    }
    (path / "record.json").write_text(json.dumps(content))
    report.write_report(tmp_path)
    assert (tmp_path / "report" / "tables" / "main_results.csv").is_file()


def test_page_loads_nothing_from_the_network(tmp_path):
    page = notebook_page(executed_notebook(tmp_path / "05_analysis.ipynb"), "A title & more")
    assert not re.findall(r"<script[^>]*src=", page) and "@import url" not in page
    assert not re.findall(r'(?:src|data)="(?!data:)', page)
    assert not re.findall(r"<link[^>]+href=", page)
    for name in ("require.min.js", "MathJax", "cdnjs", "unpkg", "jsdelivr"):
        assert name.lower() not in page.lower()
    assert "<title>A title &amp; more</title>" in page
    assert "data:image/png;base64,iVBORw0KGgo=" in page and "printed result" in page
    assert "a warning about" not in page and "model_id" not in page
    formulas = re.findall(r'<img alt="([^"]*)" src="data:image/svg', page)
    assert formulas == [r"s = \frac{a}{b}", "p &lt; 0.05"]
    assert 'alt="what is drawn"' in page
    assert "Badge" in page and "badge.svg" not in page


def test_pictures_of_the_page_look_the_same_in_fewer_bytes(study):
    drawn = io.BytesIO()
    figures.accuracy_by_stage(tables.summarize(study)).savefig(drawn, format="png", dpi=150)
    smaller = with_palette(drawn.getvalue())
    assert len(smaller) < 0.7 * len(drawn.getvalue())
    before, after = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int) for png in (drawn.getvalue(), smaller)
    )
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 0.5 and np.abs(before - after).max() < 32  # of 255
    assert with_palette(b"no picture") == b"no picture"


def test_broken_notebook_is_named(tmp_path):
    path = tmp_path / "05_analysis.ipynb"
    path.write_text("{half")
    with pytest.raises(StageError, match="05_analysis.ipynb is no executed notebook"):
        notebook_page(path, "x")


def test_formulas_outside_code_become_pictures():
    text = formulas_as_pictures("costs 5\\$ and `$x$`, but $x_1$ and\n```\n$y$\n```\n$$\\frac{1}{2}$$")
    assert "`$x$`" in text and "```\n$y$\n```" in text and "costs 5\\$" in text
    assert re.findall(r'alt="([^"]*)"', text) == ["x_1", r"\frac{1}{2}"]


def test_unknown_formula_stays_as_source():
    assert formulas_as_pictures(r"$\unknowncommand{x}$") == r"<code>\unknowncommand{x}</code>"


def test_formula_is_the_same_each_time_and_reaches_under_the_line():
    picture, depth = formula_svg(r"\frac{a}{b}")
    assert picture == formula_svg(r"\frac{a}{b}")[0] and picture.lstrip().startswith(b"<?xml")
    assert depth > formula_svg("x")[1]


def test_every_formula_of_the_notebook_can_be_drawn():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    drawn = [formulas_as_pictures(cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]
    assert sum(text.count("data:image/svg+xml") for text in drawn) > 10
    assert not any("<code>" in text for text in drawn)


def test_notebook_is_committed_clean():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown"


def test_every_cell_of_the_notebook_runs_on_records(study, monkeypatch):
    """All cells in order on hand-made records; only the measurement, which needs models, is left out."""
    measured = []
    monkeypatch.setattr(
        analysis, "measure_chains", lambda run: measured.append(run) or report.tables.chains_table(run.study)
    )
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            result = shell.run_cell(cell.source, silent=True)
            result.raise_error()
            if "parameters" in cell.metadata.get("tags", []):
                shell.user_ns["output_dir"] = str(study)
    assert measured[0].study == study
    assert (study / "report" / "tables" / "main_results.tex").is_file()


def test_all_chains_of_a_study_are_measured(study):
    write_chain(study, "sst2", 3)
    run = open_run("mnli", output_dir=study)
    measured = []
    frame = analysis.measure_chains(run, measured.append)
    assert [(chain.task, chain.seed) for chain in measured] == [("mnli", 0), ("sst2", 0), ("sst2", 3)]
    assert set(frame["state"]) == {"measured"}


def test_a_chain_that_cannot_be_measured_does_not_stop_the_others(study):
    def measure(run):
        if run.task == "mnli":
            raise StageError("mnli, seed 0: stage teacher/fine-tuned is missing")

    frame = analysis.measure_chains(open_run("sst2", output_dir=study), measure).set_index("task")
    assert frame.loc["sst2", "state"] == "measured"
    assert "stage teacher/fine-tuned is missing" in frame.loc["mnli", "state"]


def test_a_chain_whose_own_file_is_gone_does_not_stop_the_others(study):
    asked = {"task_file": "/gone/reviews.csv", "data_source": "file", "text_columns": ["text"]}
    (study / "reviews" / "seed-0").mkdir(parents=True)
    write_json(study / "reviews" / "seed-0" / "chain.json", {"profile": "demo", "overrides": asked})
    frame = analysis.measure_chains(open_run("sst2", output_dir=study), lambda run: None).set_index("task")
    assert frame.loc["sst2", "state"] == "measured" and "/gone/reviews.csv" in frame.loc["reviews", "state"]


def test_a_chain_whose_settings_leave_measuring_out_is_not_measured(study):
    write_json(study / "mnli" / "seed-0" / "chain.json", {"profile": "demo", "overrides": {"latency_protocol": "none"}})
    measured = []
    frame = analysis.measure_chains(open_run("sst2", output_dir=study), measured.append).set_index("task")
    assert [chain.task for chain in measured] == ["sst2"]
    assert frame.loc["mnli", "state"] == "not measured: latency_protocol=none"
    alone = open_run("mnli", output_dir=study / "other", overrides={"latency_protocol": "none"})
    assert len(analysis.measure_chains(alone, measured.append)) == 1 == len(measured)


def test_nothing_to_measure_is_an_error(tmp_path):
    def measure(run):
        raise StageError(f"{run.task} is missing")

    with pytest.raises(StageError, match="qqp is missing"):
        analysis.measure_chains(open_run("qqp", output_dir=tmp_path), measure)


def test_figures_follow_the_records(study):
    names = set(report.study_figures(study))
    assert names == {
        "pipeline_sst2",
        "pipeline_mnli",
        "cost_by_stage_sst2",
        "cost_by_stage_mnli",
        "pareto_sst2",
        "pareto_mnli",
        "accuracy_by_stage",
        "accuracy_over_latency",
        "factorial_effects",
        "comparison_objectives",
    }
