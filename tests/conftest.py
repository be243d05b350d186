"""What the tests share: the checkout's package also in kernels, no windows, and notebooks small enough to run often."""

import os
from pathlib import Path

import nbformat
import pytest

from edgemin_utils.settings import FAMILIES

PROJECT = Path(__file__).resolve().parent.parent
# Kernels and other processes that tests start import the package of this checkout, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Files that take longest are begun first, so that no worker is left alone with one of them at the end.
LONGEST_FIRST = ("test_notebooks.py", "test_run.py", "test_architecture.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; `--dist loadfile` hands out files whole, so that tests share their fixtures."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    """Each family of encoders in turn."""
    return request.param


def write_notebook(path: Path, code: str, parameters: str) -> None:
    """A notebook of two cells: parameters and `code`."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
