"""The study's report: tables, figures, and one page of executed notebooks that needs no network."""

import base64
import html
import io
import re
from pathlib import Path

import nbformat
from matplotlib.mathtext import math_to_image
from nbconvert.exporters import HTMLExporter
from nbformat.notebooknode import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from edgemin_utils.figures.study import accuracies, accuracy_over, write_figures
from edgemin_utils.results.table import Frames, read_frames, show
from edgemin_utils.results.tables import READING, headline, verdicts, write_tables

CHAPTERS = ("05_analysis", "06_paper")
# Tags of cells that the page leaves out; what stands on its first screen is not shown twice.
_LEFT_OUT = {"parameters", "injected-parameters", "set-up", "by-hand", "first-screen"}
_CODE_OR_FORMULA = re.compile(r"```.*?```|`[^`\n]+`|(?<![\\$])\$\$?(?P<latex>[^$]+?)\$\$?(?!\d)", re.DOTALL)
_BADGE = re.compile(r"^\[!\[.*\)$\n*", re.M)
_LINK = re.compile(r"\[([^\]]+)\]\((\w+)\.ipynb(?:#[^)]*)?\)")


def write_report(study: Path | str) -> Path:
    """Tables, figures and the page into the study's folder `report`; returns the page. Raises as `read_frames`."""
    frames, folder, notebooks = read_frames(study), Path(study) / "report", Path(study) / "notebooks"
    draw(frames, folder)
    chapters = {path.stem: path for name in CHAPTERS if (path := notebooks / f"{name}.ipynb").is_file()}
    bodies = {name: _cells(nbformat.read(path, as_version=4), set(chapters)) for name, path in chapters.items()}
    titles = {name: re.search(r"^# (.*)", "\n".join(cell.source for cell in bodies[name]), re.M) for name in bodies}
    contents = " | ".join(f"[{title[1] if title else name}](#{name})" for name, title in titles.items())
    drawn = [each._repr_png_()[0] for each in (accuracies(frames), accuracy_over(frames)) if not each.is_note]
    start = '<img style="width:49%;margin:0" alt="figure" src="data:image/png;base64,'
    images = "".join(f'{start}{base64.b64encode(one).decode()}">' for one in drawn)
    first = [
        f"# EdgeMIN study: {html.escape(frames.study.resolve().name)}",
        "\n".join(f"- {sentence}" for sentence in verdicts(frames)),
        show(headline(frames)).to_html(),
        f"{READING}.\n\nContents: {contents}",
        f'<div style="display:flex;align-items:start;gap:1%">{images}</div>',
    ]
    cells = [new_markdown_cell(text) for text in first]
    for name, body in bodies.items():
        cells += [new_markdown_cell(f'<a id="{name}"></a>'), *body]
    template = (Path(__file__).parent / "report.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(exclude_anchor_links=True, embed_images=True, raw_template=template)
    notebook = new_notebook(cells=cells, metadata={"title": f"EdgeMIN study {frames.study.name}"})
    page = folder / "report.html"
    page.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8", newline="\n")
    return page


def draw(frames: Frames, folder: Path) -> None:
    """Every table and figure into `folder`."""
    write_tables(frames, folder / "tables")
    write_figures(frames, folder / "figures")


def _cells(notebook: NotebookNode, included: set[str]) -> list[NotebookNode]:
    kept = [cell for cell in notebook.cells if not _LEFT_OUT & {*cell.metadata.get("tags", [])}]
    for cell in (each for each in kept if each.cell_type == "markdown"):
        source = _BADGE.sub("", cell.source)
        source = _LINK.sub(lambda link: f"[{link[1]}](#{link[2]})" if link[2] in included else link[1], source)
        cell.source = formulas_as_pictures(source)
    return kept


def formulas_as_pictures(markdown: str) -> str:
    """Markdown with every `$...$` outside code drawn as a picture; what mathtext does not know stays as its source."""
    return _CODE_OR_FORMULA.sub(lambda found: _picture(found["latex"]) if found["latex"] else found[0], markdown)


def _picture(formula: str) -> str:
    latex, buffer = " ".join(formula.split()), io.BytesIO()
    try:
        math_to_image(f"${latex}$", buffer, format="svg")
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(latex)}" src="data:image/svg+xml;base64,{source}" style="display:inline">'
