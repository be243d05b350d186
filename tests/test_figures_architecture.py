"""The README's picture of the data flow: it is the one that the code draws, and it names what is there."""

import re

from conftest import PROJECT

from edgemin_utils.figures import architecture
from edgemin_utils.figures.style import save_figure


def test_the_published_picture_is_the_one_that_the_code_draws(tmp_path):
    svg, _ = save_figure(architecture.data_flow(), tmp_path, architecture.NAME)
    published = PROJECT / "outputs" / "reference" / "architecture" / svg.name
    assert published.read_text() == svg.read_text(), "draw it again with `make docs`"
    assert f"outputs/reference/architecture/{architecture.NAME}.png" in (PROJECT / "README.md").read_text()


def test_it_names_files_that_are_there():
    shown = "\n".join(text.get_text() for text in architecture.data_flow().axes[0].texts)
    names = {*re.findall(r"\w+\.py\b", shown), *re.findall(r"^(\w+)/", shown, re.MULTILINE)} - {"outputs"}
    assert {"tasks.py", "records.py", "distillation", "measurement"} <= names
    assert [name for name in names if not (PROJECT / "edgemin_utils" / name).exists()] == []
    for notebook in re.findall(r"\b0\d_\w+", shown):
        assert (PROJECT / "notebooks" / f"{notebook}.ipynb").is_file()
