"""The pin file, the package's ranges, conda's environment and the Makefile agree with each other and with the code."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
PINS = {}
for line in (PROJECT / "requirements.txt").read_text().splitlines():
    if line and not line.startswith("#"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line  # one exact public version
        requirement = Requirement(line)
        PINS[canonicalize_name(requirement.name)] = str(requirement.specifier)
CONFIGURATION = tomllib.loads((PROJECT / "pyproject.toml").read_text())
METADATA = CONFIGURATION["project"]
RANGES = [Requirement(text) for text in METADATA["dependencies"]]
EXTRAS = [Requirement(text) for group in METADATA["optional-dependencies"].values() for text in group]


def test_the_package_keeps_ranges_that_the_pins_satisfy():
    for requirement in (*RANGES, *EXTRAS):
        assert "==" not in str(requirement.specifier), requirement
        pin = PINS[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(pin), requirement
    (torch,) = (requirement for requirement in RANGES if requirement.name == "torch")
    assert torch.specifier.contains("2.4.0"), "Colab's torch must stay"
    for text in CONFIGURATION["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(PINS[requirement.name].removeprefix("=="))


def test_what_is_installed_is_what_is_pinned():
    for name, pin in PINS.items():
        installed = importlib.metadata.version(name).split("+")[0]
        assert SpecifierSet(pin).contains(installed), f"{name} {installed} is installed, {pin} is pinned"


def test_what_the_pinned_packages_need_is_pinned_too():
    for name in PINS:
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                key = canonicalize_name(needed.name)
                # torch needs CUDA packages on Linux only when it is the build that uses them.
                of_gpu = name == "torch" and key.startswith(("nvidia", "cuda", "triton"))
                assert key in PINS or of_gpu, f"{name} needs {needed}, which is not pinned"


def imported_names() -> Iterator[tuple[str, str]]:
    """(file, top-level module) of every import in the package and in the notebooks' code cells."""
    sources = {path: path.read_text() for path in (PROJECT / "edgemin_utils").rglob("*.py")}
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        cells = [
            "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
        ]
        sources[path] = "\n".join(TransformerManager().transform_cell(cell) for cell in cells)  # %pip is not Python
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from ((path.name, name.name.split(".")[0]) for name in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield path.name, node.module.split(".")[0]


def test_every_import_is_a_dependency():
    distributions = importlib.metadata.packages_distributions()
    optional = METADATA["optional-dependencies"]["cluster"]
    declared = {canonicalize_name(requirement.name) for requirement in (*RANGES, *map(Requirement, optional))}
    for file, module in set(imported_names()):
        if module in sys.stdlib_module_names or module in ("edgemin_utils", "google"):  # google.colab is on Colab only
            continue
        names = {canonicalize_name(name) for name in distributions.get(module, ())}
        assert names & declared, f"{file} imports {module}, which pyproject.toml does not ask for"


def test_the_top_level_holds_what_it_must_and_what_packaging_needs():
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True).stdout
    expected = """notebooks edgemin_utils outputs tests environment.yml README.md .ci .gitignore .pre-commit-config.yaml
        CONTRIBUTING.md LICENSE Makefile pyproject.toml requirements.txt""".split()
    assert {name.split("/")[0] for name in listed.splitlines()} <= set(expected)


def test_hooks_are_valid_and_use_only_the_pinned_environment():
    configuration = PROJECT / ".pre-commit-config.yaml"
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", str(configuration)], check=True)
    (local,) = yaml.safe_load(configuration.read_text())["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        module = hook["entry"].removeprefix(".venv/bin/python -m ").split()[0]
        assert hook["language"] == "system" and module in PINS, hook


def test_conda_gets_the_same_versions():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    python, pip = environment["dependencies"][:2]
    assert SpecifierSet(METADATA["requires-python"]).contains(python.removeprefix("python="))
    assert pip == "pip"
    # Every package comes from the pin file itself; a version written anywhere else could drift.
    assert environment["dependencies"][2:] == [{"pip": ["-r requirements.txt", "-e ."]}]


def test_the_console_command_and_the_version_exist():
    module, _, function = METADATA["scripts"]["edgemin"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
    shown = subprocess.run([sys.executable, "-m", "edgemin_utils", "--version"], capture_output=True, text=True)
    from edgemin_utils import __version__

    assert shown.stdout == f"edgemin {__version__}\n"
    assert (PROJECT / METADATA["readme"]).is_file() and (PROJECT / METADATA["license-files"][0]).is_file()


def test_the_runner_and_the_settings_import_nothing_heavy():
    code = "import sys, edgemin_utils.cli\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "pandas", "matplotlib", "papermill"}
    assert not heavy & set(shown.stdout.split())


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
    shown = make(clone)
    targets = re.search(r"^\.PHONY:(.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    for target in targets:
        assert re.search(rf"^{target} ", shown.stdout, re.MULTILINE), target
