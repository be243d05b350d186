"""An executed notebook as one HTML page that stands alone: pictures and formulas inside, nothing fetched."""

import base64
import html
import io
import re
from pathlib import Path

import matplotlib
import nbformat
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from nbconvert.exporters import HTMLExporter
from PIL import Image

from edgemin_utils.errors import StageError

# nbconvert's own page loads RequireJS, MathJax, Mermaid and the widget manager from the network; none is needed here.
_TEMPLATE = "".join(
    ["{%- extends 'index.html.j2' -%}"]
    + [
        f"{{% block {name} %}}{{% endblock {name} %}}"
        for name in ("html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs", "jupyter_widgets")
    ]
)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_FORMULA = re.compile(r"(?<!\\)\$\$(?P<display>.+?)\$\$|(?<![\\$])\$(?P<inline>[^$\n]+?)(?<!\\)\$(?!\d)", re.DOTALL)
_REMOTE_PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\(https?://[^)\s]+\)")
_FENCED = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def notebook_page(path: Path, title: str) -> str:
    """The page's HTML. Live progress bars and warnings are left out, and so are pictures from the network; code and
    results stay.

    Raises:
        StageError: the notebook is not there or cannot be read.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise StageError(
            f"{path} is no executed notebook ({error}); execute the analysis first: run "
            "`edgemin run`, or notebooks/05_analysis.ipynb"
        ) from None
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas_as_pictures(_REMOTE_PICTURE.sub(lambda found: found["text"], cell.source))
        elif cell.cell_type == "code":
            cell.outputs = [
                _self_contained(output)
                for output in cell.outputs
                if _WIDGET not in output.get("data", {}) and output.get("name") != "stderr"
            ]
    exporter = HTMLExporter(exclude_anchor_links=True, embed_images=True)
    exporter.raw_template = _TEMPLATE
    return exporter.from_notebook_node(notebook)[0]


def with_palette(png: bytes) -> bytes:
    """A drawn picture with the 256 colours that it needs most: the same to the eye, in fewer bytes. Where it would take
    more, or what is given is no picture, the bytes as they are."""
    smaller = io.BytesIO()
    try:
        with Image.open(io.BytesIO(png)) as picture:
            drawn = picture.convert("RGBA")
    except OSError:
        return png
    flat = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    # Maximum coverage keeps rare colours; the usual median cut may give up a thin line's.
    flat.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return min(smaller.getvalue(), png, key=len)


def formulas_as_pictures(markdown: str) -> str:
    """Markdown with every `$...$` and `$$...$$` outside code drawn as an embedded picture.

    A formula that matplotlib's mathtext does not know stays as its LaTeX source, in code type.
    """
    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("`") else _FORMULA.sub(_picture, part) for part in parts)


def formula_svg(latex: str, size: float = 11.0) -> tuple[bytes, float]:
    """A formula as svg and how far it reaches under the line, in points.

    Args:
        latex: without dollar signs, in matplotlib's mathtext.

    Raises:
        ValueError: mathtext does not know a command in it.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "edgemin", "mathtext.fontset": "cm"})
        font = FontProperties(size=size)
        width, height, depth, _, _ = MathTextParser("path").parse(f"${latex}$", dpi=72, prop=font)
        width, height = width + 2, height + 2
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_alpha(0)
        figure.text(1 / width, (depth + 1) / height, f"${latex}$", fontproperties=font)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue(), depth + 1


def _picture(match: re.Match) -> str:
    display = match["display"] is not None
    latex = " ".join((match["display"] if display else match["inline"]).split())
    try:
        picture, depth = formula_svg(latex, 15.0 if display else 11.0)
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    source = "data:image/svg+xml;base64," + base64.b64encode(picture).decode()
    image = f'<img alt="{html.escape(latex)}" src="{source}" style="display:inline;vertical-align:-{depth:.2f}pt"/>'
    return f'\n\n<p style="text-align:center">{image}</p>\n\n' if display else image


def _self_contained(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output whose formulas are drawn, and whose picture carries its description, which nbconvert leaves out."""
    data = output.get("data", {})
    if "text/markdown" in data:
        data["text/markdown"] = formulas_as_pictures(data["text/markdown"])
    if "image/png" in data:
        drawn = base64.b64decode(data["image/png"])
        data["image/png"] = base64.b64encode(with_palette(drawn)).decode("ascii")
    picture = output.get("metadata", {}).get("image/png", {})
    if "image/png" in data and picture.get("alt"):
        width = f' width="{picture["width"]}"' if "width" in picture else ""
        data["text/html"] = (
            f'<img alt="{html.escape(picture["alt"])}"{width} src="data:image/png;base64,{data.pop("image/png")}"/>'
        )
    if "text/latex" in data and "text/html" not in data:
        data["text/html"] = formulas_as_pictures(data.pop("text/latex"))
    return output
