"""Runs a study: its notebooks by papermill, chapters 1 to 4 chain by chain (side by side in threads or on Dask), then 5
and 6 alone, since they time models. An executed copy carries a stamp of what decided it; a current one stays.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import psutil

import edgemin_utils
from edgemin_utils.environment import available_memory_bytes
from edgemin_utils.errors import MethodRefused, SettingError, StorageError
from edgemin_utils.rows.tasks import TASKS, own_task_name
from edgemin_utils.settings import absolute_paths, load_settings, nearest, project_folder
from edgemin_utils.study import Chain, open_chain, plain, write_json

CHAIN_NOTEBOOKS = ("01_teacher", "02_distillation", "03_pruning", "04_quantization")
STUDY_NOTEBOOKS = ("05_analysis", "06_paper")
# Disk and memory that one chain takes at most, about, in 10^9 bytes.
GIGABYTES = {"demo": (0.3, 2), "laptop": (2, 4), "paper": (5, 8)}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_BROKEN = ("failed", "not run")


@dataclass(frozen=True)
class NotebookResult:
    """What became of one notebook: `status` is executed, skipped, failed, or not run (one that it needs failed)."""

    chain: str
    notebook: str
    status: str
    failure: str = ""


def open_chains(
    profile: str = "demo",
    tasks: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike | None = None,
    replace: bool = False,
) -> list[Chain]:
    """The chains of a study in the order in which they are started; no tasks means that of `task_file`, else GLUE's
    three. Raises SettingError for what is unknown or cannot work, DataError where the task's file cannot be read."""
    given = absolute_paths(overrides or {})
    settings = load_settings(profile, given)
    # From a command line overrides come as text; the notebooks get them in the settings' own types.
    given = {name: getattr(settings, name) for name in given}
    own = [own_task_name(settings.task_file or "")] if settings.data_source == "file" else list(TASKS)
    pairs = [(name, seed) for name in dict.fromkeys([*tasks] or own) for seed in dict.fromkeys(seeds)]
    return [open_chain(name, profile, seed, output_dir, given, replace) for name, seed in pairs]


def chain_label(chain: Chain) -> str:
    """How a chain is called on screen: "sst2, seed 0"."""
    return f"{chain.task}, seed {chain.seed}"


def run_study(
    chains: list[Chain], overrides: Mapping[str, Any], jobs: int = 1, cluster: str = ""
) -> list[NotebookResult]:
    """Executes the notebooks of a study into `<chain>/notebooks` and `<study>/notebooks`; what is current on disk is
    skipped. A failing one ends its own chain only; the analysis runs if a chain is complete. `overrides` are the
    settings that were given for all chains, `jobs` chains side by side, which share the cores, and `cluster` a Dask
    scheduler's address, or "local" for workers here. Raises SettingError, StageError or StorageError, with nothing
    started, where something cannot be done; KeyboardInterrupt when stopped, and the same call goes on from there."""
    folder, stop = notebooks_folder(), threading.Event()
    calls = [(chain, folder, _parameters(chain, overrides), stop) for chain in chains]
    jobs = max(1, min(jobs, len(chains)))
    _check_before_start(chains, folder, jobs)
    stages = [stage for chain in chains for stage in chain.plan.values()]

    def work() -> list[NotebookResult]:
        with _threads_of_each(jobs):
            found = [result for results in _run_chains(calls, jobs, cluster) for result in results]
        broken = {result.chain for result in found if result.status in _BROKEN}
        whole = [chain for chain in chains if chain_label(chain) not in broken]
        given, place = _parameters((whole or chains)[0], overrides), chains[0].study
        # Analysis and paper, over the chains that are complete.
        return found + [_run_notebook(whole, folder / f"{name}.ipynb", place, given, stop) for name in STUDY_NOTEBOOKS]

    with ThreadPoolExecutor(1) as pool:  # this thread gets Ctrl-C, says what is finished, and can stop the kernels
        future, told = pool.submit(work), {stage.folder for stage in stages if stage.state.status == "done"}
        try:
            while wait([future], timeout=1).not_done:
                _say_finished(stages, told)
        except KeyboardInterrupt:
            stop.set()
            while wait([future], timeout=0.2).not_done:
                _stop_kernels()
            raise
        return future.result()


def notebooks_folder() -> Path:
    """The notebooks of the project that we stand in, else those beside the package; raises SettingError for neither."""
    for project in (project_folder(), Path(edgemin_utils.__file__).parent.parent):
        if (project / "notebooks" / "01_teacher.ipynb").is_file():
            return project / "notebooks"
    way = "clone the project (an installed package has none) and run the command inside it, or use `edgemin train`"
    raise SettingError(f"no notebooks/01_teacher.ipynb in {Path.cwd()} or its parents; {way}")


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> None:
    """Raises SettingError for what the notebook's `parameters` cell does not have (papermill itself only warns)."""
    import papermill

    known = papermill.inspect_notebook(notebook)
    for name in (name for name in given if name not in known):
        raise SettingError(f"{notebook.name} has no parameter {name!r}; {nearest(name, known)}")


def is_current(chains: list[Chain], notebook: Path, place: Path) -> bool:
    """Whether executing this notebook of these chains again, into a copy in `place`, would change nothing on disk."""
    made = [stage.state.status == "done" for chain in chains for stage in _stages_of(chain, notebook)]
    return _read_stamp(place / "notebooks" / notebook.name) == _stamp(chains, notebook) and all(made)


def say_rows(chains: Iterable[Chain]) -> None:
    """Prints where each task's rows come from and what is odd about them; raises DataError where they are no use."""
    from edgemin_utils.rows.splits import load_task_data  # imports pandas and datasets

    for chain in {chain.task: chain for chain in chains}.values():
        data = load_task_data(chain.settings, chain.task, chain.seed)
        print("\n  ".join([f"{chain.task}: {data.source}", *data.notes]), flush=True)


def _stages_of(chain: Chain, notebook: Path) -> list[Any]:
    chapter = int(notebook.name[:2])
    return [stage for stage in chain.plan.values() if stage.chapter == chapter]


def _say_finished(stages: list[Any], told: set[Path]) -> None:
    """Prints a line for each stage that has appeared on disk since, with how many its chain has."""
    for stage in (stage for stage in stages if stage.folder not in told):
        if (stage.folder / "record.json").is_file() and stage.state.status == "done":
            told.add(stage.folder)
            record, plan = stage.chain.read(stage.name), stage.chain.plan
            count = sum(other.folder in told for other in plan.values())
            said = f"refused: {record.refused}" if record.refused else f"{record.seconds:.0f} s"
            print(f"{chain_label(stage.chain)}: {stage.name}, {said} ({count} of {len(plan)})", flush=True)


def _check_before_start(chains: list[Chain], folder: Path, jobs: int) -> None:
    """Everything that can be refused before a kernel starts; a finished study is looked at in seconds."""
    for chain in chains:
        for stage in chain.plan.values():
            stage.require()
    paths = [folder / f"{name}.ipynb" for name in (*CHAIN_NOTEBOOKS, *STUDY_NOTEBOOKS)]
    for path in paths:
        _source_digest(path)
    needy = [chain for chain in chains if not all(is_current([chain], path, chain.folder) for path in paths[:4])]
    if not needy:
        return
    study, (disk, memory) = chains[0].study, GIGABYTES[chains[0].settings.profile]
    way = "free some space or choose another --output-dir"
    try:
        study.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=study):
            free, needed = shutil.disk_usage(study).free / 1e9, disk * len(needy)
    except OSError as error:
        raise StorageError(f"{study} cannot be written ({error.strerror}); {way}") from error
    if free < needed:
        raise StorageError(f"{study} has {free:.2g} GB free and this study may take {needed:.2g} GB; {way}")
    if (free := available_memory_bytes() / 1e9) < memory * min(jobs, len(needy)):
        print(f"note: {free:.1f} GB of memory are free; if that is too little, use fewer --jobs")
    _check_kernel()
    for path in paths:
        check_parameters(path, _parameters(chains[0], {}))
    say_rows(needy)
    if any(stage.step.method.startswith("int8") and stage.state.status != "done" for stage in needy[0].plan.values()):
        from edgemin_utils.quantization.torch_schemes import require_kernels  # imports torch

        try:
            require_kernels()
        except MethodRefused as error:
            print(f"note: int8 will be refused, and the rest of the study stands: {error}")


def _check_kernel() -> None:
    """Refuses a `python3` kernel of another Python, which would run the notebooks without this package."""
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    program = shutil.which(spec.argv[0]) or spec.argv[0]
    folders = {os.path.realpath(os.path.dirname(path)) for path in (program, sys.executable)}
    if spec.argv[0] not in ("python", "python3", sys.executable) and len(folders) > 1:
        way = f"run {sys.executable} -m ipykernel install --sys-prefix, or remove that folder"
        raise SettingError(f"the Jupyter kernel python3 is {spec.resource_dir}, which starts {program}; {way}")


def _parameters(chain: Chain, overrides: Mapping[str, Any]) -> dict[str, Any]:
    place = {"task": chain.task, "profile": chain.settings.profile, "seed": chain.seed}
    given = plain({name: getattr(chain.settings, name) for name in overrides})  # read, with absolute paths
    return {**place, "output_dir": str(chain.study), "overrides": given, "replace": chain.replace}


def _run_chains(calls: list[tuple[Any, ...]], jobs: int, cluster: str) -> list[list[NotebookResult]]:
    if not cluster:
        parallel = joblib.Parallel(n_jobs=jobs, backend="threading")
        return parallel(joblib.delayed(_run_chain)(*call) for call in calls)
    try:
        import distributed
    except ImportError:
        raise SettingError("--cluster needs Dask: pip install 'distributed>=2024.8', or leave --cluster out") from None
    with contextlib.ExitStack() as stack:
        local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
        address = stack.enter_context(distributed.LocalCluster(**local)) if cluster == "local" else cluster
        try:
            client = stack.enter_context(distributed.Client(address, timeout=30, set_as_default=False))
            client.wait_for_workers(1, timeout=30)
        except (OSError, ValueError) as error:
            way = "start them with `dask scheduler` and `dask worker ADDRESS --nthreads 1`"
            raise SettingError(f"no Dask scheduler with workers answers at {cluster} ({error}); {way}") from error
        needed = [str(calls[0][0].study), str(calls[0][1])]
        if unseen := [worker for worker, seen in client.run(_sees, needed).items() if not seen]:
            raise StorageError(f"workers {', '.join(unseen)} do not see {' and '.join(needed)}")
        with joblib.parallel_config(backend="dask", client=client):
            parallel = joblib.Parallel(batch_size=1, pre_dispatch="all")
            return parallel(joblib.delayed(_run_chain)(*call[:3], None) for call in calls)


def _sees(paths: list[str]) -> bool:
    return all(Path(path).is_dir() for path in paths)


def _run_chain(
    chain: Chain, folder: Path, parameters: Mapping[str, Any], stop: threading.Event | None
) -> list[NotebookResult]:
    """Brings one chain's notebooks up to date, in order, until one fails."""
    results = list[NotebookResult]()
    for name in CHAIN_NOTEBOOKS:
        broken = any(result.status in _BROKEN for result in results)
        found = _run_notebook([] if broken else [chain], folder / f"{name}.ipynb", chain.folder, parameters, stop)
        results.append(replace(found, chain=chain_label(chain)))
    return results


def _run_notebook(
    chains: list[Chain], notebook: Path, place: Path, parameters: Mapping[str, Any], stop: threading.Event | None
) -> NotebookResult:
    """Executes a notebook in a kernel of its own, unless it is current or the study was stopped, into a copy in `place`
    that is stamped when it ran to its end. No error is raised, so that other chains go on."""
    import papermill

    label = chain_label(chains[0]) if chains and place == chains[0].folder else "study"
    if not chains or (stop and stop.is_set()):
        return NotebookResult(label, notebook.stem, "not run")
    if is_current(chains, notebook, place):
        return NotebookResult(label, notebook.stem, "skipped")
    print(f"{label}: {notebook.stem} started", flush=True)
    executed = place / "notebooks" / notebook.name
    executed.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would say is in the failure
    started, failure = time.monotonic(), ""
    try:
        # papermill's `cwd` would move the whole process
        place_of_kernel, quiet = {"metadata": {"path": str(notebook.parent)}}, ["--IPKernelApp.log_level=50"]
        options = {"resources": place_of_kernel, "extra_arguments": quiet, "kernel_name": "python3"}
        papermill.execute_notebook(notebook, executed, dict(parameters), progress_bar=False, **options)
    except papermill.PapermillExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()[-14:]
        more = [] if error.ename in dir(edgemin_utils.errors) else ["  | " + line for line in trace]
        failure = "\n".join([f"In [{error.exec_count}]: {error.ename}: {error.evalue}", *more])
    except Exception as error:
        died = "the kernel died: too little memory is the usual cause (try fewer --jobs), or it was stopped"
        failure = died if type(error).__name__ == "DeadKernelError" else f"{type(error).__name__}: {error}"
    if failure and stop and stop.is_set():
        return NotebookResult(label, notebook.stem, "not run")
    said = f"failed: {failure}\n  executed so far: {executed}" if failure else f"{time.monotonic() - started:.0f} s"
    print(f"{label}: {notebook.stem} {said}", flush=True)
    if not failure:
        content = json.loads(executed.read_text(encoding="utf-8"))
        content["metadata"]["edgemin"] = _stamp(chains, notebook)
        write_json(executed, content)
    return NotebookResult(label, notebook.stem, "failed" if failure else "executed", failure)


def _stamp(chains: list[Chain], notebook: Path) -> dict[str, Any]:
    """What decides the content of an executed copy: the notebook's source, and the stages that it makes or shows."""
    shown = [_stages_of(chain, notebook) or chain.plan.values() for chain in chains]
    stages = {f"{chain_label(stage.chain)}: {stage.name}": stage.fingerprint for some in shown for stage in some}
    return {"source": _source_digest(notebook), "stages": stages}


def _source_digest(notebook: Path) -> str:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        content = [(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(f"{notebook} is missing or is not a notebook; the study needs all six") from None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read_stamp(executed: Path) -> dict[str, Any] | None:
    try:
        return json.loads(executed.read_text(encoding="utf-8"))["metadata"].get("edgemin")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def _threads_of_each(jobs: int) -> Iterator[None]:
    """Divides the cores among `jobs` chains; kernels take the limits over when they start. Threads that wait are told
    to sleep: spinning ones make training crawl as soon as anything else uses a core."""
    before, given = dict(os.environ), os.environ.get("OMP_NUM_THREADS", "")
    cores = int(given) if given.isdigit() and int(given) else joblib.cpu_count()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(dict.fromkeys(_THREADS, str(max(1, cores // jobs))) if jobs > 1 else {})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _stop_kernels() -> None:
    """Ends every kernel that this process started, with what the kernels started."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
