"""The house: its budgets, which room may import which, who knows the families, and that the tools find nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

PACKAGE = PROJECT / "edgemin_utils"
# A file imports only what stands above it.
ORDER = """errors settings names statistics environment corpus rows encoders checkpoints training distillation
    pruning quantization measurement study steps results figures paper bundle browser run report cli __main__""".split()
CORE = {"distillation", "pruning", "quantization", "training", "encoders", "measurement", "checkpoints", "rows"}
FAMILIES = re.compile(r"""["'](bert|roberta|electra)["']""")  # "distilbert" is an objective, too


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = {item.name for node in nodes if isinstance(node, ast.Import) for item in node.names}
    whole = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    modules |= {f"{node.module}.{item.name}" for node in whole for item in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("edgemin_utils.")} & set(ORDER)


def test_budgets() -> None:
    assert lines(files(PACKAGE)) <= 10_000
    assert lines(files(PROJECT / "tests")) <= 7_500
    readme = PROJECT / "README.md"
    assert lines([readme]) <= 200 and readme.stat().st_size <= 16_000
    reference = [path for path in (PROJECT / "outputs" / "reference").rglob("*") if path.is_file()]
    assert len(reference) <= 60 and sum(path.stat().st_size for path in reference) <= 8_000_000


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in files(PACKAGE)} - {"__init__"} <= set(ORDER)
    assert list(PACKAGE.rglob("__init__.py")) == [PACKAGE / "__init__.py"]
    banned = {"utils", "helpers", "common", "misc"}
    assert not [path.name for path in files(PACKAGE) if banned & set(path.stem.split("_"))]


@pytest.mark.parametrize("path", files(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room, imported = room_of(path), imported_rooms(path)
    if room != "__init__":
        assert not imported & {*ORDER[ORDER.index(room) + 1 :]}
    assert room not in CORE or not imported & {"study", "steps"}


def test_encoders_alone_know_the_families() -> None:
    knowing = {room_of(path) for path in files(PACKAGE) if FAMILIES.search(path.read_text(encoding="utf-8"))}
    # settings lists what a user may choose, paper the published checkpoints; rows know whose positions begin later.
    assert knowing <= {"encoders", "settings", "paper", "rows"}


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_checker_finds_nothing(command: str) -> None:
    checked = subprocess.run([sys.executable, "-m", *command.split()], cwd=PROJECT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
