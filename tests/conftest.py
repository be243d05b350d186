"""What the tests share: the checkout's package also in kernels, no windows, and notebooks small enough to run often."""

import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parent.parent
# Kernels and other processes that tests start import the package of this checkout, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PARAMETERS = 'task = "sst2"\nprofile = "demo"\nseed = 0\noutput_dir = ""\noverrides = {}'
# Real records of every stage of the notebook's kind, with next to nothing computed. A file `<task>.<kind>.py` beside
# the study is executed first, so that a test can make a notebook fail, hang or die.
STAGES = """
import os
from pathlib import Path
from edgemin_utils.records import open_run

run = open_run(task, profile, seed, output_dir, overrides)
notebook = "{notebook}"
fault = run.study.parent / f"{{run.task}}.{{notebook}}.py"
if fault.exists():
    exec(fault.read_text())
threads = os.environ.get("OMP_NUM_THREADS")
for key, stage in run.plan.items():
    if stage.notebook == notebook:
        record = run.run_stage(key, lambda folder: {{"threads": threads, "directory": os.getcwd()}})
"""


# Files that take longest are begun first, so that no worker is left alone with one of them at the end.
LONGEST_FIRST = ("test_demo_teachers.py", "test_notebooks.py", "test_stages.py", "test_study.py", "test_paper_sizes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; `--dist loadfile` hands out files whole, so that tests share their fixtures."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def write_notebook(path: Path, code: str, parameters: str = PARAMETERS) -> None:
    """A notebook of two cells: parameters and `code`."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


@pytest.fixture(scope="session")
def small_project() -> Callable[[Path], Path]:
    """A function that fills a folder with a project of five tiny notebooks and gives the folder."""
    from edgemin_utils.chain import NOTEBOOKS

    def make(folder: Path) -> Path:
        for name in NOTEBOOKS.values():
            write_notebook(folder / "notebooks" / f"{name}.ipynb", STAGES.format(notebook=name))
        return folder

    return make
