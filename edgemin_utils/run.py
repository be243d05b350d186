"""Runs a study: its notebooks by papermill, chapters 1 to 4 chain by chain (side by side in threads or on Dask), then 5
and 6 alone, since they time models. An executed copy carries a stamp of what decided it; a current one stays."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import joblib
import psutil

import edgemin_utils
from edgemin_utils.errors import DataError, MethodRefused, ModelError, SettingError, StorageError
from edgemin_utils.rows.splits import load_task_data
from edgemin_utils.rows.tasks import TASKS, own_task_name
from edgemin_utils.rows.tokens import check_fit, check_vocabulary, load_tokenizer, read_config
from edgemin_utils.settings import MADE_HERE, absolute_paths, changed_settings, load_settings, nearest, project_folder
from edgemin_utils.study import Chain, Stage, open_chain, plain, require_writable, say_once, write_json

CHAIN_NOTEBOOKS = ("01_teacher", "02_distillation", "03_pruning", "04_quantization")
STUDY_NOTEBOOKS = ("05_analysis", "06_paper")
GIGABYTES = {"demo": 0.3, "laptop": 2, "paper": 5}  # 10^9 bytes of disk that one chain takes at most, about
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# (chain as text, or "study"; notebook) -> executed, skipped, failed, or not run (stopped, or one that it needs failed)
Statuses = dict[tuple[str, str], str]
BROKEN = {"failed", "not run"}


def open_chains(
    profile: str = "demo",
    tasks: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike | None = None,
    replace: bool = False,
) -> list[Chain]:
    """The chains of a study; no tasks means that of `task_file`, else GLUE's three. Raises SettingError, DataError."""
    settings = load_settings(profile, given := absolute_paths(overrides or {}))
    own = [own_task_name(settings.task_file or "")] if settings.data_source == "file" else list(TASKS)
    pairs = [(name, seed) for name in dict.fromkeys([*tasks] or own) for seed in dict.fromkeys(seeds)]
    return [open_chain(name, profile, seed, output_dir, given, replace) for name, seed in pairs]


def run_study(chains: list[Chain], jobs: int = 1, cluster: str = "") -> Statuses:
    """Executes notebooks into `<chain>/notebooks` and `<study>/notebooks`, unless current; a failing one ends its chain
    only. `cluster` is a Dask scheduler's address, or "local". Raises EdgeMINError before the start."""
    folder, stop, jobs = project_folder() / "notebooks", Event(), max(1, min(jobs, len(chains)))
    if not (folder / "01_teacher.ipynb").is_file():
        folder = Path(edgemin_utils.__file__).parent.parent / "notebooks"
    each, last = ([folder / f"{name}.ipynb" for name in names] for names in (CHAIN_NOTEBOOKS, STUDY_NOTEBOOKS))
    _check_before_start(chains, [*each, *last])
    stages = [stage for chain in chains for stage in chain.plan.values()]

    def work() -> Statuses:
        with _threads_of_each(jobs):
            found = {of: it for own in _run_chains(chains, each, stop, jobs, cluster) for of, it in own.items()}
        broken = {of for (of, _), status in found.items() if status in BROKEN}
        return found | _run_in_turn([chain for chain in chains if str(chain) not in broken], "study", last, stop)

    with ThreadPoolExecutor(1) as pool:  # this thread gets Ctrl-C, says what is finished, and can stop the kernels
        future, told = pool.submit(work), {stage.folder for stage in stages if stage.state.status == "done"}
        try:
            while wait([future], timeout=1).not_done:
                _say_finished(stages, told)
        except KeyboardInterrupt:
            stop.set()
            while wait([future], timeout=0.2).not_done:
                with contextlib.suppress(psutil.Error):  # a process that ended meanwhile
                    for process in psutil.Process().children(recursive=True):
                        process.kill()
            raise
        return future.result()


def notebook_parameters(chain: Chain) -> dict[str, Any]:
    """What a notebook's `parameters` cell is given, so that it opens this chain."""
    place = {"task": chain.task, "seed": chain.seed, "output_dir": str(chain.study), "replace": chain.replace}
    return {**place, "profile": chain.settings.profile, "overrides": plain(changed_settings(chain.settings))}


def say_rows(chains: Iterable[Chain]) -> None:
    """Prints where rows come from and what is odd; raises DataError or ModelError where rows or models do not fit."""
    for chain in {chain.task: chain for chain in chains}.values():
        settings = chain.settings
        given = [name for name in (settings.teacher, settings.student) if name not in MADE_HERE]
        configs = {name: read_config(name) for name in given if os.path.isabs(name)}
        if whole := [name for name, config in configs.items() if (config.get("edgemin") or {}).get("scheme")]:
            raise ModelError(f"{whole[0]} holds integers, which are not trained; give the float model it came from")
        for name in filter(None, {stage.settings.vocabulary_text for stage in chain.plan.values()}):
            if not Path(name).expanduser().is_file():
                raise DataError(f"vocabulary_text {name} is no file")
        data = load_task_data(settings, chain.task, chain.seed)
        notes, tokenizers = [data.source, *data.notes], [load_tokenizer(name) for name in given]  # imports torch
        taught = [stage.settings for stage in chain.plan.values() if stage.kind == "distillation" and stage.teacher]
        wanted = {(one.transfer_rows, one.transfer_file): one for one in taught}
        for own in (one for asked, one in wanted.items() if any(asked)):
            try:
                notes += load_task_data(own, chain.task, chain.seed, transfer=True).notes
            except MethodRefused as error:
                notes.append(f"transfer rows will be refused, and the rest of the study stands: {error}")
        for name, tokenizer in zip(given, tokenizers, strict=True):
            notes += check_fit(tokenizer, configs[name], settings.max_length, data.texts)[2] if name in configs else []
            check_vocabulary(tokenizer, tokenizers[0], name)
        for note in notes:
            say_once(f"{chain.task}: {note}")


def _say_finished(stages: list[Stage], told: set[Path]) -> None:
    """Prints a line for each stage that has appeared on disk since, with how many its chain has."""
    for stage in stages:
        if stage.folder not in told and (stage.folder / "record.json").is_file() and stage.state.status == "done":
            told.add(stage.folder)
            plan = stage.chain.plan
            count = f"({sum(other.folder in told for other in plan.values())} of {len(plan)})"
            print(f"{stage.chain}: {stage.name}, {stage.chain.read(stage.name).outcome} {count}", flush=True)


def _check_before_start(chains: list[Chain], paths: list[Path]) -> None:
    """Everything that can be refused before a kernel starts; a finished study is looked at in seconds."""
    for stage in (stage for chain in chains for stage in chain.plan.values()):
        stage.require()
    for path in paths:
        _source_digest(path)
    needy = [chain for chain in chains if not all(_is_current([chain], path) for path in paths[:4])]
    if not needy:
        return
    say_rows(needy)
    study, needed = chains[0].study, GIGABYTES[chains[0].settings.profile] * len(needy)
    require_writable(study)
    if (free := shutil.disk_usage(study).free / 1e9) < needed:
        raise StorageError(f"{study} has {free:.2g} GB free; it may take {needed:.2g}; choose another --output-dir")
    _check_kernel()
    import papermill  # which itself only warns of a parameter that a notebook does not have

    for path in paths:
        for name in notebook_parameters(chains[0]).keys() - (known := papermill.inspect_notebook(path)).keys():
            raise SettingError(f"{path.name} has no parameter {name!r}; {nearest(name, known)}")
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


def _run_chains(chains: list[Chain], paths: list[Path], stop: Event, jobs: int, cluster: str) -> list[Statuses]:
    if not cluster:
        parallel = joblib.Parallel(n_jobs=jobs, backend="threading")
        return parallel(joblib.delayed(_run_in_turn)([chain], str(chain), paths, stop) for chain in chains)
    try:
        import distributed
    except ImportError:
        raise SettingError("--cluster needs Dask: pip install 'distributed>=2024.8', or leave --cluster out") from None
    with contextlib.ExitStack() as stack:
        local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
        address = stack.enter_context(distributed.LocalCluster(**local)) if cluster == "local" else cluster
        try:
            client = stack.enter_context(distributed.Client(address, timeout=5, set_as_default=False))
            client.wait_for_workers(1, timeout=30)
        except (OSError, ValueError) as error:
            way = "start them with `dask scheduler` and `dask worker ADDRESS --nthreads 1`"
            raise SettingError(f"no Dask scheduler with workers answers at {cluster} ({error}); {way}") from error
        for needed in (str(chains[0].study), str(paths[0].parent)):
            if unseen := [worker for worker, seen in client.run(os.path.isdir, needed).items() if not seen]:
                raise StorageError(f"workers {', '.join(unseen)} do not see {needed}")
        with joblib.parallel_config(backend="dask", client=client):
            parallel = joblib.Parallel(batch_size=1, pre_dispatch="all")
            return parallel(joblib.delayed(_run_in_turn)([chain], str(chain), paths) for chain in chains)


def _run_in_turn(chains: list[Chain], of: str, notebooks: list[Path], stop: Event | None = None) -> Statuses:
    """Brings the notebooks of one chain, or of the study's whole chains, up to date, in order, until one fails."""
    statuses: Statuses = {}
    for notebook in notebooks:
        broken = not chains or (stop and stop.is_set()) or not BROKEN.isdisjoint(statuses.values())
        statuses[of, notebook.stem] = "not run" if broken else _run_notebook(chains, of, notebook, stop)
    return statuses


def _run_notebook(chains: list[Chain], of: str, notebook: Path, stop: Event | None) -> str:
    """Executes a notebook, unless it is current, and gives its status; raises nothing, so that other chains go on."""
    import papermill

    if _is_current(chains, notebook):
        return "skipped"
    print(f"{of}: {notebook.stem} started", flush=True)
    executed = _copy_of(chains, notebook)
    executed.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would say is in the failure
    started, failure = time.monotonic(), ""
    try:
        # papermill's `cwd` would move the whole process
        place_of_kernel, quiet = {"metadata": {"path": str(notebook.parent)}}, ["--IPKernelApp.log_level=50"]
        options = {"resources": place_of_kernel, "extra_arguments": quiet, "kernel_name": "python3"}
        papermill.execute_notebook(notebook, executed, notebook_parameters(chains[0]), progress_bar=False, **options)
    except papermill.PapermillExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()[-14:]
        more = [] if error.ename in dir(edgemin_utils.errors) else ["  | " + line for line in trace]
        failure = "\n".join([f"In [{error.exec_count}]: {error.ename}: {error.evalue}", *more])
    except Exception as error:
        died = "the kernel died: too little memory is the usual cause (try fewer --jobs), or it was stopped"
        failure = died if type(error).__name__ == "DeadKernelError" else f"{type(error).__name__}: {error}"
    if failure and stop and stop.is_set():
        return "not run"
    said = f"failed: {failure}\n  executed so far: {executed}" if failure else f"{time.monotonic() - started:.0f} s"
    print(f"{of}: {notebook.stem} {said}", flush=True)
    if not failure:
        content = json.loads(executed.read_text(encoding="utf-8"))
        content["metadata"]["edgemin"] = _stamp(chains, notebook)
        write_json(executed, content)
    return "failed" if failure else "executed"


def _copy_of(chains: list[Chain], notebook: Path) -> Path:
    return (chains[0].study if notebook.stem in STUDY_NOTEBOOKS else chains[0].folder) / "notebooks" / notebook.name


def _stages_of(chain: Chain, notebook: Path) -> list[Stage]:
    return [stage for stage in chain.plan.values() if stage.chapter == int(notebook.name[:2])]


def _is_current(chains: list[Chain], notebook: Path) -> bool:
    """Whether executing this notebook of these chains again would change nothing on disk."""
    try:
        content = json.loads(_copy_of(chains, notebook).read_text(encoding="utf-8"))
        stamped = content["metadata"]["edgemin"] == _stamp(chains, notebook)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return stamped and all(stage.state.status == "done" for chain in chains for stage in _stages_of(chain, notebook))


def _stamp(chains: list[Chain], notebook: Path) -> dict[str, Any]:
    """What decides the content of an executed copy: the notebook's source, and the stages that it makes or shows."""
    shown = [_stages_of(chain, notebook) or chain.plan.values() for chain in chains]
    stages = {f"{stage.chain}: {stage.name}": stage.fingerprint for some in shown for stage in some}
    return {"source": _source_digest(notebook), "stages": stages}


def _source_digest(notebook: Path) -> str:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        content = [(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingError(f"{notebook} is missing or is not a notebook; restore it, or use `edgemin train`") from None
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _threads_of_each(jobs: int) -> contextlib.AbstractContextManager:
    """Divides the cores among `jobs` chains' kernels; their waiting threads sleep, as spinning ones slow what works."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(given) if given.isdigit() and int(given) else joblib.cpu_count()
    limits = dict.fromkeys(_THREADS, str(max(1, cores // jobs))) if jobs > 1 else {}
    return patch.dict(os.environ, {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **limits})
