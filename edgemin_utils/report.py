"""The study's report: tables, figures and one HTML file that stands alone, all drawn again from records on disk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgemin_utils import figures, tables
from edgemin_utils.chain import ANALYSIS_NOTEBOOK
from edgemin_utils.tables import StudyRecords, read_study

REPORT_FILE = "report.html"


def report_folder(study: Path) -> Path:
    """Where a study's tables, figures and report lie."""
    return Path(study) / "report"


def executed_analysis(study: Path) -> Path:
    """Where the runner keeps the executed analysis notebook."""
    return Path(study) / "notebooks" / f"{ANALYSIS_NOTEBOOK}.ipynb"


def write_report(study: Path) -> Path:
    """Tables and figures of a study into its folder `report`, and the executed analysis notebook as HTML.

    Running it again on the same records and notebook writes the same bytes.

    Returns:
        the HTML file; the folder where the analysis has not been executed yet.
    """
    folder = report_folder(study)
    records = read_study(study)
    tables.write_tables(records, folder / "tables")
    write_figures(records, folder / "figures")
    if executed_analysis(study).is_file():
        return html_report(study)
    return folder


def write_figures(study: Path | StudyRecords, folder: Path) -> list[Path]:
    """Every figure of the report as svg and png into `folder`; returns the paths.

    A figure that would only say why there is nothing to draw is left out, and what an earlier report wrote under its
    name is removed.
    """
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in study_figures(study).items():
        figure = draw()
        if figure.is_note:
            for kind in ("svg", "png"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
        else:
            written += figures.save_figure(figure, folder, name)
    return written


def study_figures(study: Path | StudyRecords) -> dict[str, Callable[[], figures.StudyFigure]]:
    """Name -> function that draws it, of every figure of the report; one whose numbers the records lack draws a
    note."""
    records = study if isinstance(study, StudyRecords) else read_study(study)
    frame = tables.own_models(tables.summarize(records))
    effects, choices = tables.factorial_effects(records), tables.candidates(records)
    drawings: dict[str, Callable[[], figures.StudyFigure]] = {
        "accuracy_over_latency": lambda: figures.accuracy_over_latency(frame),
        "accuracy_by_stage": lambda: figures.accuracy_by_stage(frame),
        "factorial_effects": lambda: figures.factorial_effects_figure(effects),
    }
    for task in records.tasks:
        rows, of_task = frame[frame["task"] == task], choices[choices["task"] == task]
        drawings[f"pipeline_{task}"] = partial(figures.pipeline_picture, rows)
        drawings[f"cost_by_stage_{task}"] = partial(figures.cost_by_stage, rows)
        drawings[f"pareto_{task}"] = partial(figures.pareto_picture, of_task)
    for table in tables.comparison_tables(records):
        drawings[f"comparison_{table.name}"] = partial(figures.method_comparison, table.frame)
    return drawings


def html_report(study: Path, notebook: Path | None = None) -> Path:
    """The executed analysis notebook as one HTML file that needs no network.

    Args:
        notebook: an executed notebook; without it the one that the runner left.

    Raises:
        StageError: the analysis has not been executed yet.
    """
    from edgemin_utils.page import notebook_page  # nbconvert: only when a page is written

    path = report_folder(study) / REPORT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = notebook_page(notebook or executed_analysis(study), title="EdgeMIN study")
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
    return path
