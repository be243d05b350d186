"""The pin file, the package's ranges, conda's environment and the Makefile agree with each other and with the code."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
LINES = [line for line in (PROJECT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
CONFIGURATION = tomllib.loads((PROJECT / "pyproject.toml").read_text())
METADATA = CONFIGURATION["project"]
RANGES = [Requirement(text) for text in METADATA["dependencies"]]
OPTIONAL = METADATA["optional-dependencies"]


def test_the_package_keeps_ranges_that_the_pins_satisfy():
    # One exact public version each.
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    others = sum((own for name, own in OPTIONAL.items() if name != "peers"), CONFIGURATION["build-system"]["requires"])
    for requirement in (*RANGES, *map(Requirement, others)):
        assert "==" not in str(requirement.specifier), requirement
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement
    (torch,) = (requirement for requirement in RANGES if requirement.name == "torch")
    assert torch.specifier.contains("2.5.0"), "Colab's torch must stay"


def test_what_is_pinned_is_installed_and_what_it_needs_is_pinned_too():
    assert {name: importlib.metadata.version(name).split("+")[0] for name in PINS} == PINS
    for name in PINS:
        for needed in map(Requirement, importlib.metadata.requires(name) or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                key = canonicalize_name(needed.name)
                # torch needs CUDA packages on Linux only when it is the build that uses them.
                of_gpu = name == "torch" and key.startswith(("nvidia", "cuda", "triton"))
                assert key in PINS or of_gpu, f"{name} needs {needed}, which is not pinned"


def test_every_import_of_the_package_and_the_notebooks_is_a_dependency():
    sources = [path.read_text() for path in (PROJECT / "edgemin_utils").rglob("*.py")]
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        sources += map(TransformerManager().transform_cell, cells)  # %pip is not Python
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    distributions = importlib.metadata.packages_distributions()
    optional = map(Requirement, OPTIONAL["cluster"] + OPTIONAL["peers"])
    declared = {canonicalize_name(one.name) for one in (*RANGES, *optional)}
    known = sys.stdlib_module_names | {"edgemin_utils", "google"}  # google.colab: Colab's own
    for module in {name.split(".")[0] for name in imported} - known:
        names = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert names & declared, f"{module} is imported, and pyproject.toml does not ask for it"


def test_the_top_level_holds_what_it_must_and_what_packaging_needs():
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True).stdout
    expected = """notebooks edgemin_utils outputs tests environment.yml README.md .ci .gitignore .pre-commit-config.yaml
        CONTRIBUTING.md LICENSE Makefile pyproject.toml requirements.txt""".split()
    assert {name.split("/")[0] for name in listed.splitlines()} <= set(expected)


def test_hooks_are_valid_and_use_only_the_pinned_environment():
    configuration = PROJECT / ".pre-commit-config.yaml"
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", configuration], check=True)
    (local,) = yaml.safe_load(configuration.read_text())["repos"]
    for hook in local["hooks"]:
        module = hook["entry"].removeprefix(".venv/bin/python -m ").split()[0]
        assert hook["language"] == "system" and module in PINS, hook


def test_conda_gets_the_same_versions():
    python, *others = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    assert SpecifierSet(METADATA["requires-python"]).contains(python.removeprefix("python="))
    # Every package comes from the pin file itself; a version written anywhere else could drift.
    assert others == ["pip", {"pip": ["-r requirements.txt", "-e ."]}]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # A make that runs these tests must not hand its own flags, targets and arguments down.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=kept)


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and the two files that decide whether the environment is current."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text((PROJECT / name).read_text())
    return tmp_path


def test_too_old_a_python_is_refused_with_the_way_out(clone):
    old = clone / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.1" || exit 1\n')
    old.chmod(0o755)
    shown = make(clone, "study", f"PYTHON={old}")
    assert shown.returncode != 0 and not (clone / ".venv").exists()
    assert "needs Python 3.11 or newer" in shown.stderr and "Python 3.9.1" in shown.stderr
    assert "make PYTHON=python3.12 study" in shown.stderr
    assert "needs Python 3.11 or newer" in make(clone, "study", "PYTHON=no-such-python").stderr


def test_the_environment_is_made_once_and_again_when_pins_change(clone):
    assert "pip install" in make(clone, "--dry-run", "study").stdout
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    commands = {"study": "edgemin run", "test": "-m pytest", "lab": "-m jupyterlab", "report": "edgemin report"}
    for target, command in {**commands, "demo": "edgemin demo", "docs": "-m pdoc", "lint": "-m mypy"}.items():
        shown = make(clone, "--dry-run", target)
        assert command in shown.stdout and "pip install" not in shown.stdout, (target, shown.stderr)
    later = (clone / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(clone / "requirements.txt", (later, later))
    assert "pip install" in make(clone, "--dry-run", "study").stdout


def test_make_alone_lists_every_target(clone):
    targets = re.search(r"^\.PHONY:(.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert {*targets} <= {*re.findall(r"^(\S+) ", make(clone).stdout, re.MULTILINE)}
