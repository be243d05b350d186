"""Executes one notebook with papermill, keeps the executed copy, and knows later what it was executed from.

The executed copy carries a stamp in its metadata: a digest of the notebook's source and whatever else decided its
content. It is written last, so a copy with a stamp is one that ran to its end.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import psutil

import edgemin_utils
from edgemin_utils import errors
from edgemin_utils.config import nearest, project_folder
from edgemin_utils.errors import SettingError

STAMP = "edgemin"
KERNEL = "python3"
# A kernel's own log (that it talks over local TCP, that it was interrupted) would run through the progress display.
QUIET_KERNEL = ["--IPKernelApp.log_level=50"]
FIRST_NOTEBOOK = "01_teacher.ipynb"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TRACEBACK_LINES = 14


@dataclass(frozen=True)
class CellFailure:
    """Where a notebook failed.

    Attributes:
        notebook: the notebook's file name.
        cell: the cell, by its execution number in the executed copy, with its first line.
        error: the error's kind and message.
        traceback: the end of the traceback; empty for errors that say all themselves.
        executed: the executed copy, up to the failure.
    """

    notebook: str
    cell: str
    error: str
    traceback: str
    executed: Path

    def __str__(self) -> str:
        text = f"{self.notebook} failed in {self.cell}\n{textwrap.indent(self.error, '  ')}\n"
        if self.traceback:
            text += textwrap.indent(self.traceback, "  | ") + "\n"
        return text + f"  executed so far: {self.executed}"


def notebooks_folder() -> Path:
    """The folder of the five notebooks: the project's that we stand in, else the one beside the package.

    Raises:
        SettingError: neither is there, as when the package was installed without its project.
    """
    beside_package = Path(edgemin_utils.__file__).parent.parent
    for project in (project_folder(), beside_package):
        if (project / "notebooks" / FIRST_NOTEBOOK).is_file():
            return project / "notebooks"
    raise SettingError(
        f"no notebooks/{FIRST_NOTEBOOK} in {Path.cwd()} or its parents. The notebooks are not part of "
        "the installed package: clone the project and run the command inside it"
    )


def source_digest(notebook: Path) -> str:
    """16 hexadecimal digits over a notebook's cells: kind, tags and source, not outputs or execution numbers.

    Raises:
        SettingError: the notebook is missing or is not a notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        content = [(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells]
    except FileNotFoundError:
        raise SettingError(f"{notebook} is not there; the study needs all five notebooks") from None
    except (ValueError, KeyError, TypeError):
        raise SettingError(f"{notebook} is not a notebook (damaged JSON?); fetch it again") from None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_parameters(notebook: Path, names: Mapping[str, Any]) -> None:
    """Refuses parameters that the notebook's `parameters` cell does not have (papermill itself only warns).

    Raises:
        SettingError: an unknown parameter, with the nearest known one.
    """
    import papermill

    known = papermill.inspect_notebook(notebook)
    if not known:
        raise SettingError(f"{notebook} has no cell tagged 'parameters'; the runner cannot tell it what to run")
    for name in names:
        if name not in known:
            raise SettingError(f"{notebook.name} has no parameter {name!r}; {nearest(name, known)}")


def read_stamp(executed: Path) -> dict[str, Any] | None:
    """The stamp of an executed copy, or None when there is no copy or it did not run to its end."""
    try:
        return json.loads(executed.read_text(encoding="utf-8"))["metadata"].get(STAMP)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_stamp(executed: Path, stamp: Mapping[str, Any]) -> None:
    """Writes a stamp into an executed copy, whole or not at all."""
    content = json.loads(executed.read_text(encoding="utf-8"))
    content["metadata"][STAMP] = dict(stamp)
    temporary = executed.with_name(f".{executed.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(executed)


def execute_notebook(notebook: Path, executed: Path, parameters: Mapping[str, Any]) -> CellFailure | None:
    """Executes a notebook in a kernel of its own, in the notebook's folder; the copy is written as it goes.

    Returns:
        None, or where and why it failed. No error of the notebook or its kernel is raised, so that other chains go
        on.
    """
    import papermill

    executed.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would say is in the failure that we return
    try:
        # papermill's own `cwd` changes the directory of the whole process, which chains side by side share.
        papermill.execute_notebook(
            notebook,
            executed,
            dict(parameters),
            kernel_name=KERNEL,
            progress_bar=False,
            resources={"metadata": {"path": str(notebook.parent)}},
            extra_arguments=QUIET_KERNEL,
        )
    except papermill.PapermillExecutionError as error:
        return _cell_failure(notebook, executed, error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "DeadKernelError":
            reason = "the kernel died: too little memory is the usual cause (try fewer --jobs), or it was stopped"
        return CellFailure(notebook.name, "its kernel", reason, "", executed)
    return None


def _cell_failure(notebook: Path, executed: Path, error: Any) -> CellFailure:
    lines = [line for line in error.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    cell = f"cell In [{error.exec_count}]" + (f": {lines[0].strip()}" if lines else "")
    kind = getattr(errors, error.ename, None)
    says_all = isinstance(kind, type) and issubclass(kind, errors.EdgeMINError)
    reason = f"{error.ename}: {error.evalue}"
    traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).rstrip().removesuffix(reason).rstrip()
    end = "" if says_all else "\n".join(traceback.splitlines()[-TRACEBACK_LINES:])
    return CellFailure(notebook.name, cell, reason, end, executed)


@contextlib.contextmanager
def threads_per_chain(jobs: int) -> Iterator[int]:
    """Divides the processor's cores among `jobs` chains for as long as the context lasts; gives the threads of each.

    Kernels take the limits over from this process's environment when they start. With one job their number of threads
    is left alone. A limit that the user has set counts as the number of cores.

    Threads that wait are told to sleep (`OMP_WAIT_POLICY=PASSIVE`, unless it is set): spinning ones make training
    crawl as soon as anything else uses a core. Not so for the analysis notebook, which times models.
    """
    names = THREAD_VARIABLES if jobs > 1 else ()
    before = {name: os.environ.get(name) for name in (*names, "OMP_WAIT_POLICY")}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(given) if given.isdigit() and int(given) else joblib.cpu_count()
    threads = max(1, cores // jobs)
    os.environ.update({name: str(threads) for name in names})
    try:
        yield threads
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def stop_kernels() -> int:
    """Ends every kernel that this process started, with what the kernels started; gives how many processes."""
    stopped = 0
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if "ipykernel_launcher" not in process.cmdline():
                    continue
                for member in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.Error):
                        member.kill()
                        stopped += 1
    return stopped
