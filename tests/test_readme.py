"""The README and CONTRIBUTING say what is there: modules, files, make targets and links."""

import re

import pytest
from conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def listed_modules() -> list[str]:
    """Names in the first column of the table of files: `edgemin_utils/x.py`, and `y.py` or `z/` behind it."""
    table = README.split("| file | what it holds |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `edgemin_utils/")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    return [name.removeprefix("edgemin_utils/").rstrip("/") for name in names]


def test_every_module_of_the_package_is_listed_once():
    package = PROJECT / "edgemin_utils"
    present = [
        path.name
        for path in package.iterdir()
        if not path.name.startswith("__") and (path.suffix == ".py" or (path / "__init__.py").is_file())
    ]
    assert sorted(listed_modules()) == sorted(present)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_linked_and_named_files_exist(text):
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)", text)
    named = re.findall(r"`((?:edgemin_utils|notebooks|tests|outputs/reference)/[\w./-]*)`", text)
    # Of the README's examples of ten lines.
    invented = {"edgemin_utils/distillation/first_layer.py", "edgemin_utils/quantization/bfloat16.py"}
    assert [name for name in {*linked, *named} - invented if not (PROJECT / name).exists()] == []


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_within_a_page_lead_to_a_heading(text):
    slugs = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    assert [anchor for anchor in re.findall(r"\]\((?:README\.md)?#([\w-]+)\)", text) if anchor not in slugs] == []


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_named_make_targets_exist(text):
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert named and set(named) <= set(targets)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_commands_run_without_an_activated_environment(text):
    assert re.findall(r"^    (?:edgemin|accelerate|dask|papermill|pip|python|pytest) .*", text, re.MULTILINE) == []
