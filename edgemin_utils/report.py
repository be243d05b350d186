"""The study's report: tables and figures, and one page made of executed notebooks. It needs no network: pictures and
formulas lie inside it, code and long tables are folded, set-up and work by hand left out."""

import base64
import html
import io
import re
from pathlib import Path

import nbformat
from matplotlib.mathtext import math_to_image
from nbconvert.exporters import HTMLExporter
from nbformat.notebooknode import NotebookNode

from edgemin_utils.figures.study import accuracies, accuracy_over, write_figures
from edgemin_utils.results.shown import show
from edgemin_utils.results.table import Frames, read_frames
from edgemin_utils.results.tables import READING, headline, write_tables

CHAPTERS = ("05_analysis", "06_paper")
# Tags of cells that the page leaves out; what stands on its first screen is not shown twice.
_LEFT_OUT = {"parameters", "injected-parameters", "set-up", "by-hand", "first-screen"}
_FENCED = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_FORMULA = re.compile(r"(?<![\\$])\$\$?(?P<latex>[^$]+?)\$\$?(?!\d)")
_BADGE = re.compile(r"^\[!\[.*\)$\n*", re.M)
_LINK = re.compile(r"\[([^\]]+)\]\((\w+)\.ipynb(?:#[^)]*)?\)")


def write_report(study: Path | str) -> Path:
    """Tables, figures and the page into the study's folder `report`; returns the page. Raises as `read_frames`."""
    frames, folder = read_frames(study), Path(study) / "report"
    write_tables(frames, folder / "tables")
    write_figures(frames, folder / "figures")
    page = folder / "report.html"
    page.write_text(_page(frames, Path(study) / "notebooks"), encoding="utf-8", newline="\n")
    return page


def _page(frames: Frames, notebooks: Path) -> str:
    chapters = {name: notebooks / f"{name}.ipynb" for name in CHAPTERS if (notebooks / f"{name}.ipynb").is_file()}
    bodies = {name: _cells(nbformat.read(path, as_version=4), set(chapters)) for name, path in chapters.items()}
    titles = {name: re.search(r"^# (.*)", "\n".join(cell.source for cell in bodies[name]), re.M) for name in bodies}
    contents = " | ".join(f"[{title[1] if title else name}](#{name})" for name, title in titles.items())
    drawn = [each._repr_png_()[0] for each in (accuracies(frames), accuracy_over(frames)) if not each.is_note]
    look, source = 'style="width:49%;margin:0" alt="figure"', "data:image/png;base64,"
    images = [f'<img {look} src="{source}{base64.b64encode(one).decode()}">' for one in drawn]
    first = [
        _shown("text/markdown", f"# EdgeMIN study: {html.escape(frames.study.resolve().name)}"),
        _shown("text/html", show(headline(frames)).to_html()),
        _shown("text/markdown", f"{READING}.\n\nContents: {contents}"),
        _shown("text/html", f'<div style="display:flex;align-items:start;gap:1%">{"".join(images)}</div>'),
    ]
    for name, cells in bodies.items():
        first += [_shown("text/markdown", f'<a id="{name}"></a>'), *cells]
    template = (Path(__file__).parent / "report.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(exclude_anchor_links=True, embed_images=True, raw_template=template)
    notebook = nbformat.v4.new_notebook(cells=first, metadata={"title": f"EdgeMIN study {frames.study.name}"})
    return exporter.from_notebook_node(notebook)[0]


def _cells(notebook: NotebookNode, included: set[str]) -> list[NotebookNode]:
    kept = list[NotebookNode]()
    for cell in (each for each in notebook.cells if not _LEFT_OUT & {*each.metadata.get("tags", [])}):
        if cell.cell_type == "markdown":
            source = _BADGE.sub("", cell.source)
            source = _LINK.sub(lambda link: f"[{link[1]}](#{link[2]})" if link[2] in included else link[1], source)
            kept.append(_shown("text/markdown", formulas_as_pictures(source)))
        else:
            outputs = [each for each in cell.get("outputs", []) if each.get("name") != "stderr"]
            cell.outputs = [each for each in outputs if "widget-view" not in str(list(each.get("data", {})))]
            for data in (each.data for each in cell.outputs if "text/html" in each.get("data", {})):
                if "long" in cell.metadata.get("tags", []):
                    data["text/html"] = f"<details><summary>table</summary>{data['text/html']}</details>"
            kept += [cell] if cell.outputs else []
    return kept


def _shown(kind: str, content: str) -> NotebookNode:
    if kind == "text/markdown":
        return nbformat.v4.new_markdown_cell(content)
    return nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", {kind: content})])


def formulas_as_pictures(markdown: str) -> str:
    """Markdown with every `$...$` outside code drawn as a picture; what mathtext does not know stays as its source."""
    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("`") else _FORMULA.sub(_picture, part) for part in parts)


def _picture(found: re.Match[str]) -> str:
    latex, buffer = " ".join(found["latex"].split()), io.BytesIO()
    try:
        math_to_image(f"${latex}$", buffer, format="svg")
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(latex)}" src="data:image/svg+xml;base64,{source}" style="display:inline">'
