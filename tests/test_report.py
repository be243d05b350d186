"""The report: one page that needs no network, with the six rows first."""

import re

import nbformat
import pytest
from example_study import write_study

from edgemin_utils.report import formulas_as_pictures, write_report


def notebook(title, link):
    new, code, output = nbformat.v4, nbformat.v4.new_code_cell, nbformat.v4.new_output
    text = f"# {title}\n\nAs $T^2$ says; see [the other]({link}.ipynb#part), [one](04_quantization.ipynb)"
    tagged, widget = {"metadata": {"tags": ["parameters"]}}, {"application/vnd.jupyter.widget-view+json": {}}
    cells = [new.new_markdown_cell(text), code("secret_setup = 1", **tagged, outputs=[output("stream", text="s")])]
    cells += [code("import nothing_shown"), code("shown = 42", outputs=[output("stream", text="forty-two\n")])]
    cells += [code("warned = 1", outputs=[output("stream", name="stderr", text="a warning\n")])]
    return new.new_notebook(cells=[*cells, code("bar = 1", outputs=[output("display_data", widget)])])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("report") / "tiny", seeds=(0,))
    (folder / "notebooks").mkdir()
    nbformat.write(notebook("The analysis", "06_paper"), folder / "notebooks" / "05_analysis.ipynb")
    nbformat.write(notebook("The paper", "05_analysis"), folder / "notebooks" / "06_paper.ipynb")
    return folder


@pytest.fixture(scope="module")
def page(study):
    page = write_report(study).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']https?:""", page)
    return page[page.index("<body") :]


def test_the_first_screen_is_title_verdicts_rows_contents_and_two_figures(page):
    parts = ["EdgeMIN study: tiny", "Distillation</strong> (points against none)", "student, not distilled"]
    parts += ["The analysis</a>", "The paper</a>", "image/png", 'id="05_analysis"', 'id="06_paper"']
    places = [page.index(part) for part in parts]
    assert places == sorted(places) and page.count("data:image/png") == 2


def test_code_is_folded_and_set_up_warnings_and_bars_are_left_out(page):
    assert page.count("<summary>code</summary>") == 2  # a cell of each chapter shows something
    assert "forty-two" in page and "42" in page
    assert not [gone for gone in ("secret_setup", "nothing_shown", "a warning", "widget-view") if gone in page]


def test_nothing_is_fetched_and_links_lead_within_the_page(page):
    assert "cdn" not in page and page.count('href="#06_paper"') == 2 and ".ipynb" not in page


def test_formulas_become_pictures_and_code_stays():
    text = formulas_as_pictures("cost of $x^2$, `$HOME`, $\\nonsense{x}$ and 5 $ a day")
    assert 'alt="x^2"' in text and "data:image/svg+xml" in text
    assert "`$HOME`" in text and "<code>\\nonsense{x}</code>" in text and "5 $ a day" in text


def test_tables_and_figures_lie_beside_the_page(study, page):
    suffixes = {path.suffix for name in ("tables", "figures") for path in (study / "report" / name).iterdir()}
    assert suffixes == {".csv", ".md", ".tex", ".svg", ".png"}
