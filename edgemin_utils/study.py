"""Which notebook runs when: the chains of a study, what is current on disk, and what has to be executed.

Notebooks 01 to 04 run in order for every chain (task, seed); chains are independent and may run side by side.
`05_analysis` runs once, alone, when they are through, because it times models.
"""

import json
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import psutil
from rich.console import Console

from edgemin_utils.chain import ANALYSIS_NOTEBOOK, CHAIN_NOTEBOOKS
from edgemin_utils.config import load_settings
from edgemin_utils.errors import SettingError, StorageError
from edgemin_utils.execution import (
    CellFailure,
    check_parameters,
    execute_notebook,
    notebooks_folder,
    read_stamp,
    source_digest,
    stop_kernels,
    threads_per_chain,
    write_stamp,
)
from edgemin_utils.progress import REFRESH_SECONDS, Line, StudyProgress
from edgemin_utils.records import Run, find_records, open_run, plain, write_json
from edgemin_utils.tasks import TASKS, custom_task

STUDY_FILE = "study.json"
ANALYSIS = "analysis"
# Room for one chain: the paper profile keeps about ten models of up to 268 MB.
DISK_GIGABYTES = {"demo": 0.2, "laptop": 2.0, "paper": 4.0}
# Memory that one chain's kernel takes at most, about.
MEMORY_GIGABYTES = {"demo": 2.0, "laptop": 4.0, "paper": 8.0}
PATH_SETTINGS = ("data_dir", "task_file", "dev_file")
MODEL_SETTINGS = ("teacher", "student")


@dataclass(frozen=True)
class NotebookResult:
    """What became of one notebook of one chain.

    Attributes:
        chain: "<task>, seed <n>", or "analysis".
        notebook: its name without extension.
        status: "executed", "skipped" (its copy and records on disk are current), "failed", or "not run" (one that
            it needs failed).
        executed: where the executed copy is, or would be.
        seconds: how long it ran.
        failure: where and why it failed.
    """

    chain: str
    notebook: str
    status: str
    executed: Path
    seconds: float = 0.0
    failure: CellFailure | None = None


@dataclass(frozen=True)
class StudyResult:
    """What `run_study` did: the study's folder and one entry a notebook, chain by chain, the analysis last."""

    study: Path
    notebooks: tuple[NotebookResult, ...]

    @property
    def complete(self) -> bool:
        """Whether every notebook is current on disk now."""
        return all(result.status in ("executed", "skipped") for result in self.notebooks)

    @property
    def failures(self) -> tuple[CellFailure, ...]:
        """What stopped each notebook that failed."""
        return tuple(result.failure for result in self.notebooks if result.failure)

    def count(self, status: str) -> int:
        """How many notebooks have this status."""
        return sum(result.status == status for result in self.notebooks)


@dataclass(frozen=True)
class StageStatus:
    """One stage of one chain: "done", "stale" or "missing", why it is not done, and how long it took if it is."""

    task: str
    seed: int
    key: str
    notebook: str
    status: str
    reason: str
    wall_seconds: float | None


# ---- what a study consists of -----------------------------------------------------------------------------------


def plan_study(profile: str = "demo", tasks: Iterable[str] = (), seeds: Iterable[int] = (0,),
               overrides: Mapping[str, Any] | None = None, output_dir: str | os.PathLike | None = None) -> list[Run]:
    """The chains of a study, in the order in which they are started.

    Args:
        profile: demo, laptop or paper.
        tasks: task names; none means the task of `task_file` when that is set, else all three.
        seeds: one chain a task and seed.
        overrides: settings that differ from the profile's; relative paths among them start at the working directory.
        output_dir: the study's folder; empty means `outputs/<profile>` in the project.

    Raises:
        SettingError: an unknown profile, task or setting, or a value that cannot work.
        DataError: the file of a task of one's own cannot be read.
    """
    overrides = absolute_paths(overrides or {})
    settings = load_settings(profile, overrides)
    # From a command line overrides come as text; the notebooks get them in the settings' own types.
    overrides = {name: getattr(settings, name) for name in overrides}
    names = list(dict.fromkeys(tasks))
    if not names:
        names = [custom_task(settings).name] if settings.data_source == "file" else list(TASKS)
    numbers = list(dict.fromkeys(seeds))
    for seed in numbers:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise SettingError(f"seed {seed!r} cannot be used; a seed is a whole number from 0 to {2**32 - 1}")
    if not numbers:
        raise SettingError("a study needs at least one seed")
    return [open_run(task, profile, seed, output_dir, overrides) for task in names for seed in numbers]


def absolute_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` with paths made absolute, since notebooks run in another directory.

    A teacher or student counts as a path when it is a folder here or starts like one; else it is a hub id.
    """
    changed = dict(overrides)
    for name, value in overrides.items():
        if not isinstance(value, str | os.PathLike) or not os.fspath(value) or value in ("none", "None"):
            continue
        path = Path(value).expanduser()
        looks_like_one = os.fspath(value).startswith((".", "~", os.sep)) or path.is_dir()
        if name in PATH_SETTINGS or (name in MODEL_SETTINGS and looks_like_one):
            changed[name] = os.path.abspath(path)
    return changed


def chain_name(run: Run) -> str:
    """How a chain is called on screen: "sst2, seed 0"."""
    return f"{run.task}, seed {run.seed}"


def notebook_parameters(run: Run, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that every notebook takes, for this chain."""
    return {"task": run.task, "profile": run.settings.profile, "seed": run.seed, "output_dir": str(run.study),
            "overrides": plain(overrides)}


def study_status(runs: Iterable[Run]) -> list[StageStatus]:
    """What is done, what is stale and why, for every stage of these chains."""
    rows = []
    for run in runs:
        for key, stage in run.plan.items():
            state = run.state(key)
            seconds = run.read(key).content.get("wall_seconds") if state.status == "done" else None
            rows.append(StageStatus(run.task, run.seed, key, stage.notebook, state.status, state.reason, seconds))
    return rows


# ---- what is current on disk ------------------------------------------------------------------------------------


def chain_stamp(run: Run, notebook: Path) -> dict[str, Any]:
    """What decides the content of a chain's executed notebook: its source and its stages' fingerprints.

    Overrides are in the fingerprints of the stages that they reach, so one that reaches a later notebook leaves
    the earlier ones current.
    """
    stages = {key: run.fingerprint(key) for key, stage in run.plan.items() if stage.notebook == notebook.stem}
    compared = [key for key in stages if run.stage(key).optional]
    return {"source": source_digest(notebook), "profile": run.settings.profile, "task": run.task, "seed": run.seed,
            "stages": stages, "compared": compared}


def is_current(run: Run, notebook: Path) -> bool:
    """Whether executing this notebook of this chain again would change nothing on disk."""
    stamp = chain_stamp(run, notebook)
    return (read_stamp(run.notebooks / notebook.name) == stamp
            and all(run.state(key).status == "done" for key in stamp["stages"]))


def analysis_stamp(runs: Iterable[Run], notebook: Path) -> dict[str, Any]:
    """What decides the content of the executed analysis: its source, what its chains should hold, and every record
    of the study as it is on disk."""
    runs = list(runs)
    wanted = {chain_name(run): {key: run.fingerprint(key) for key in run.plan} for run in runs}
    study = runs[0].study
    found = {record.folder.relative_to(study).as_posix(): [record.content["fingerprint"], record.content["compared"]]
             for record in find_records(study)}
    return {"source": source_digest(notebook), "profile": runs[0].settings.profile, "chains": wanted,
            "records": found}


# ---- running ----------------------------------------------------------------------------------------------------


def run_study(profile: str = "demo", tasks: Iterable[str] = (), seeds: Iterable[int] = (0,),
              overrides: Mapping[str, Any] | None = None, output_dir: str | os.PathLike | None = None,
              jobs: int = 1, console: Console | None = None) -> StudyResult:
    """Executes the notebooks of a study, chain by chain, then the analysis; what is current on disk is skipped.

    A failing notebook ends its own chain only. The analysis runs if at least one chain is complete. Executed copies
    lie in `Run.notebooks` and `<study>/notebooks`, also those that failed.

    Args:
        profile, tasks, seeds, overrides, output_dir: as in `plan_study`.
        jobs: chains that run side by side; they share the processor's cores evenly.
        console: where progress is shown; the terminal by default.

    Raises:
        SettingError, DataError: something that was asked for cannot be; nothing has been started then.
        StorageError: the study's folder cannot be written or has too little room; nothing has been started then.
        KeyboardInterrupt: the study was stopped. Its kernels are stopped too; the same call takes it up again.
    """
    if jobs < 1:
        raise SettingError(f"jobs is {jobs}; at least one chain must run at a time")
    console = console or Console()
    runs = plan_study(profile, tasks, seeds, overrides, output_dir)
    given = {name: getattr(runs[0].settings, name) for name in overrides or {}}
    folder = notebooks_folder()
    jobs = min(jobs, len(runs))
    _check_before_start(runs, folder, given, jobs, console)
    _write_study_file(runs, given, jobs)

    stop = threading.Event()
    lines = [Line(chain_name(run), _wanted_records(run, CHAIN_NOTEBOOKS)) for run in runs]
    measured = {path: stage for run in runs for path, stage in _wanted_records(run, (ANALYSIS_NOTEBOOK,)).items()}
    with StudyProgress([*lines, Line(ANALYSIS, measured)], console) as progress:

        def run_chains() -> list[NotebookResult]:
            with threads_per_chain(jobs):
                chains = joblib.Parallel(n_jobs=jobs, backend="threading")(
                    joblib.delayed(_run_chain)(run, folder, given, progress, stop) for run in runs)
            return [result for chain in chains for result in chain]

        results = _in_background(run_chains, progress, stop)
        broken = {result.chain for result in results if result.status in ("failed", "not run")}
        complete = [run for run in runs if chain_name(run) not in broken]
        if broken:
            progress.say(f"not complete: {'; '.join(sorted(broken))}. The same command takes them up again")
        results.append(_in_background(
            lambda: _run_analysis(complete, runs[0].study, folder, given, progress, stop), progress, stop))
    return StudyResult(runs[0].study, tuple(results))


def _check_before_start(runs: list[Run], folder: Path, given: Mapping[str, Any], jobs: int, console: Console) -> None:
    """Everything that can be refused before a kernel starts. Nothing is checked that a finished study has no use for,
    so that running it again takes seconds."""
    study, profile = runs[0].study, runs[0].settings.profile
    waiting = sum(not all(is_current(run, folder / f"{name}.ipynb") for name in CHAIN_NOTEBOOKS) for run in runs)
    check_storage(study, DISK_GIGABYTES[profile] * waiting)
    if not waiting:
        return
    for name in (*CHAIN_NOTEBOOKS, ANALYSIS_NOTEBOOK):
        check_parameters(folder / f"{name}.ipynb", notebook_parameters(runs[0], given))
    needed, free = MEMORY_GIGABYTES[profile] * min(jobs, waiting), psutil.virtual_memory().available / 1e9
    if free < needed:
        console.print(f"note: {free:.1f} GB of memory are free, and this study may take about {needed:.0f} GB; "
                      "close other programs, or use fewer --jobs", highlight=False)


def check_storage(study: Path, gigabytes: float) -> None:
    """Makes the study's folder and sees that it can be written and has room.

    Raises:
        StorageError: it cannot be written, or has less than `gigabytes` (10^9 bytes) free.
    """
    try:
        study.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=study):
            pass
        free = shutil.disk_usage(study).free / 1e9
    except OSError as error:
        raise StorageError(f"{study} cannot be written ({error.strerror}); choose another --output-dir") from error
    if free < gigabytes:
        raise StorageError(f"{study} has {free:.2g} GB free and this study may take {gigabytes:.2g} GB; free some "
                           "space or choose another --output-dir")


def _run_chain(run: Run, folder: Path, given: Mapping[str, Any], progress: StudyProgress,
               stop: threading.Event) -> list[NotebookResult]:
    """Brings one chain's notebooks up to date, in order, until one fails."""
    results, state = [], "done"
    for name in CHAIN_NOTEBOOKS:
        notebook, executed = folder / f"{name}.ipynb", run.notebooks / f"{name}.ipynb"
        if stop.is_set() or state != "done":
            results.append(NotebookResult(chain_name(run), name, "not run", executed))
        elif is_current(run, notebook):
            results.append(NotebookResult(chain_name(run), name, "skipped", executed))
        else:
            result = _execute(chain_name(run), notebook, executed, notebook_parameters(run, given), progress, stop)
            if result.status == "executed":
                write_stamp(executed, chain_stamp(run, notebook))
            else:
                state = "stopped" if stop.is_set() else "failed"
            results.append(result)
    progress.end(chain_name(run), "stopped" if stop.is_set() else state)
    return results


def _run_analysis(complete: list[Run], study: Path, folder: Path, given: Mapping[str, Any],
                  progress: StudyProgress, stop: threading.Event) -> NotebookResult:
    """Brings the analysis up to date, over the chains that are complete."""
    notebook = folder / f"{ANALYSIS_NOTEBOOK}.ipynb"
    executed = study / "notebooks" / notebook.name
    if not complete:
        progress.say("no chain is complete, so there is nothing to analyse")
        result = NotebookResult(ANALYSIS, notebook.stem, "not run", executed)
    elif read_stamp(executed) == analysis_stamp(complete, notebook):
        result = NotebookResult(ANALYSIS, notebook.stem, "skipped", executed)
    else:
        parameters = notebook_parameters(complete[0], given)
        result = _execute(ANALYSIS, notebook, executed, parameters, progress, stop)
        if result.status == "executed":
            write_stamp(executed, analysis_stamp(complete, notebook))
    progress.end(ANALYSIS, {"failed": "failed", "not run": "stopped"}.get(result.status, "done"))
    return result


def _execute(chain: str, notebook: Path, executed: Path, parameters: Mapping[str, Any], progress: StudyProgress,
             stop: threading.Event) -> NotebookResult:
    progress.begin(chain, notebook.stem)
    started = time.monotonic()
    failure = execute_notebook(notebook, executed, parameters)
    seconds = time.monotonic() - started
    if failure is None:
        return NotebookResult(chain, notebook.stem, "executed", executed, seconds)
    if stop.is_set():
        return NotebookResult(chain, notebook.stem, "not run", executed, seconds)
    progress.say(f"{chain}: {failure}")
    return NotebookResult(chain, notebook.stem, "failed", executed, seconds, failure)


def _in_background(work: Callable[[], Any], progress: StudyProgress, stop: threading.Event) -> Any:
    """Does `work` in a thread while this one, which gets Ctrl-C, keeps the display and can stop the kernels."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while wait([future], timeout=REFRESH_SECONDS).not_done:
                progress.poll()
        except KeyboardInterrupt:
            stop.set()
            while wait([future], timeout=0.2).not_done:
                stop_kernels()
            raise
        return future.result()


def _wanted_records(run: Run, notebooks: Iterable[str]) -> dict[Path, tuple[str, str]]:
    """Record folder -> (stage key, fingerprint) of the stages that these notebooks make."""
    return {run.stage_folder(key): (key, run.fingerprint(key)) for key, stage in run.plan.items()
            if stage.notebook in notebooks}


# ---- what was run last ------------------------------------------------------------------------------------------


def _write_study_file(runs: list[Run], given: Mapping[str, Any], jobs: int) -> None:
    study, profile = runs[0].study, runs[0].settings.profile
    tasks, seeds = list(dict.fromkeys(run.task for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    words = ["edgemin", "run", "--profile", profile, "--tasks", *tasks, "--seeds", *map(str, seeds)]
    for name, value in _relative_paths(given, Path.cwd()).items():
        words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    words += ["--output-dir", os.path.relpath(study), "--jobs", str(jobs)]
    write_json(study / STUDY_FILE, {"command": shlex.join(words), "profile": profile, "tasks": tasks, "seeds": seeds,
                                    "overrides": _relative_paths(given, study), "paths": _paths(given)})


def read_study_file(study: Path) -> dict[str, Any]:
    """What the study's last `edgemin run` was asked for: command, profile, tasks, seeds, overrides; empty if there was
    none or its note cannot be read."""
    try:
        content = json.loads((Path(study) / STUDY_FILE).read_text(encoding="utf-8"))
        overrides = dict(content["overrides"])
        for name in content["paths"]:
            overrides[name] = os.path.normpath(Path(study).absolute() / overrides[name])
        return {name: content[name] for name in ("command", "profile", "tasks", "seeds")} | {"overrides": overrides}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _paths(overrides: Mapping[str, Any]) -> list[str]:
    """The names of the overrides that are paths."""
    return [name for name, value in overrides.items()
            if name in (*PATH_SETTINGS, *MODEL_SETTINGS) and value and os.path.isabs(value)]


def _relative_paths(overrides: Mapping[str, Any], start: Path) -> dict[str, Any]:
    """`overrides` with paths as seen from `start`: a study's note stays true when it moves together with them."""
    return {**overrides, **{name: os.path.relpath(overrides[name], start) for name in _paths(overrides)}}
