"""Which notebook runs when: the chains of a study, what is current on disk, and what has to be executed.

Notebooks 01 to 04 run in order for every chain (task, seed); chains are independent and may run side by side.
`05_analysis` runs once, alone, when they are through, because it times models.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from rich.console import Console

from edgemin_utils.atomic_folders import check_storage
from edgemin_utils.chain import ANALYSIS_NOTEBOOK, CHAIN_NOTEBOOKS
from edgemin_utils.cluster import LOCAL, check_workers, open_cluster, run_on_workers, shared_event
from edgemin_utils.config import load_settings
from edgemin_utils.errors import SettingError
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
from edgemin_utils.measurement.environment import available_memory_bytes
from edgemin_utils.paths import absolute_paths, mark_in, paths_of_settings
from edgemin_utils.progress import REFRESH_SECONDS, Line, StudyProgress, Unwatched
from edgemin_utils.records import Run, find_records, open_run, plain
from edgemin_utils.study_file import write_study_file
from edgemin_utils.tasks import TASKS, custom_task

ANALYSIS = "analysis"
# Room for one chain: the paper profile keeps about ten models of up to 268 MB.
DISK_GIGABYTES = {"demo": 0.2, "laptop": 2.0, "paper": 4.0}
# Memory that one chain's kernel takes at most, about.
MEMORY_GIGABYTES = {"demo": 2.0, "laptop": 4.0, "paper": 8.0}


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


def plan_study(
    profile: str = "demo",
    tasks: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike | None = None,
) -> list[Run]:
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


def chain_name(run: Run) -> str:
    """How a chain is called on screen: "sst2, seed 0"."""
    return f"{run.task}, seed {run.seed}"


def notebook_parameters(run: Run, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that every notebook takes, for this chain."""
    return {
        "task": run.task,
        "profile": run.settings.profile,
        "seed": run.seed,
        "output_dir": str(run.study),
        "overrides": plain(overrides),
    }


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
    return {
        "source": source_digest(notebook),
        "profile": run.settings.profile,
        "task": run.task,
        "seed": run.seed,
        "stages": stages,
        "compared": compared,
    }


def is_current(run: Run, notebook: Path) -> bool:
    """Whether executing this notebook of this chain again would change nothing on disk."""
    stamp = chain_stamp(run, notebook)
    return read_stamp(run.notebooks / notebook.name) == stamp and all(
        run.state(key).status == "done" for key in stamp["stages"]
    )


def analysis_stamp(runs: Iterable[Run], notebook: Path) -> dict[str, Any]:
    """What decides the content of the executed analysis: its source, what its chains should hold, and every record
    of the study as it is on disk."""
    runs = list(runs)
    wanted = {chain_name(run): {key: run.fingerprint(key) for key in run.plan} for run in runs}
    study = runs[0].study
    found = {
        record.folder.relative_to(study).as_posix(): [record.content["fingerprint"], record.content["compared"]]
        for record in find_records(study)
    }
    return {"source": source_digest(notebook), "profile": runs[0].settings.profile, "chains": wanted, "records": found}


# ---- running ----------------------------------------------------------------------------------------------------


def run_study(
    profile: str = "demo",
    tasks: Iterable[str] = (),
    seeds: Iterable[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike | None = None,
    jobs: int = 1,
    console: Console | None = None,
    cluster: str = "",
    analysis: bool = True,
) -> StudyResult:
    """Executes the notebooks of a study, chain by chain, then the analysis; what is current on disk is skipped.

    A failing notebook ends its own chain only. The analysis runs if at least one chain is complete. Executed copies
    lie in `Run.notebooks` and `<study>/notebooks`, also those that failed.

    Args:
        profile, tasks, seeds, overrides, output_dir: as in `plan_study`.
        jobs: chains that run side by side; they share the processor's cores evenly.
        console: where progress is shown; the terminal by default.
        cluster: address of a Dask scheduler whose workers run the chains, one a thread, or "local" for `jobs` workers
            on this machine; empty runs them in threads of this process. The analysis always runs here.
        analysis: whether it runs behind the chains; a study whose chains are run in several calls needs it once.

    Raises:
        SettingError, DataError: something that was asked for cannot be; nothing has been started then.
        StorageError: the study's folder cannot be written or has too little room, or a worker does not see it or a
            folder that the settings name; nothing has been started then.
        KeyboardInterrupt: the study was stopped. Its kernels are stopped too; the same call takes it up again.
    """
    if jobs < 1:
        raise SettingError(f"jobs is {jobs}; at least one chain must run at a time")
    console = console or Console()
    runs = plan_study(profile, tasks, seeds, overrides, output_dir)
    given = {name: getattr(runs[0].settings, name) for name in overrides or {}}
    folder = notebooks_folder()
    jobs = min(jobs, len(runs))
    _check_before_start(runs, folder, given, jobs if cluster in ("", LOCAL) else 0, console)
    with (
        _runner_on_cluster(runs, folder, given, jobs, cluster)
        if cluster
        else contextlib.nullcontext(_runner_here(runs, folder, given, jobs)) as runner
    ):
        write_study_file(runs, given, jobs, cluster)
        return _run_study(runs, folder, given, console, runner, analysis)


def _run_study(
    runs: list[Run], folder: Path, given: Mapping[str, Any], console: Console, runner: "_Runner", analysis: bool
) -> StudyResult:
    lines = [Line(chain_name(run), _wanted_records(run, CHAIN_NOTEBOOKS)) for run in runs]
    if analysis:
        measured = {path: stage for run in runs for path, stage in _wanted_records(run, (ANALYSIS_NOTEBOOK,)).items()}
        lines.append(Line(ANALYSIS, measured))
    with StudyProgress(lines, console) as progress:
        chains = _in_background(lambda: runner.run(progress), progress, runner)
        results = [result for chain in chains for result in chain]
        broken = {result.chain for result in results if result.status in ("failed", "not run")}
        complete = [run for run in runs if chain_name(run) not in broken]
        if broken:
            progress.say(f"not complete: {'; '.join(sorted(broken))}. The same command takes them up again")
        if analysis:
            results.append(
                _in_background(
                    lambda: _run_analysis(complete, runs[0].study, folder, given, progress, runner.stop),
                    progress,
                    runner,
                )
            )
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
    needed, free = MEMORY_GIGABYTES[profile] * min(jobs, waiting), available_memory_bytes() / 1e9
    if free < needed:
        console.print(
            f"note: {free:.1f} GB of memory are free, and this study may take about {needed:.0f} GB; "
            "close other programs, or use fewer --jobs",
            highlight=False,
        )


@dataclass(frozen=True)
class _Runner:
    """How a study's chains are run.

    Attributes:
        run: runs them, given the display, and returns each chain's results in the study's order.
        stop: an event; once it is set no further notebook starts.
        stop_kernels: ends the kernels that run.
    """

    run: Callable[[StudyProgress], list[list[NotebookResult]]]
    stop: Any
    stop_kernels: Callable[[], Any]


def _runner_here(runs: list[Run], folder: Path, given: Mapping[str, Any], jobs: int) -> _Runner:
    """Runs chains in threads of this process, `jobs` at a time."""
    stop = threading.Event()

    def run_chains(progress: StudyProgress) -> list[list[NotebookResult]]:
        with threads_per_chain(jobs):
            return joblib.Parallel(n_jobs=jobs, backend="threading")(
                joblib.delayed(_run_chain)(run, folder, given, progress, stop) for run in runs
            )

    return _Runner(run_chains, stop, stop_kernels)


@contextlib.contextmanager
def _runner_on_cluster(
    runs: list[Run], folder: Path, given: Mapping[str, Any], jobs: int, cluster: str
) -> Iterator[_Runner]:
    """Runs chains on the workers of a cluster, for as long as the context lasts."""
    with open_cluster(cluster, jobs) as client:
        with mark_in(runs[0].study) as mark:
            check_workers(client, [mark, str(folder), *paths_of_settings(runs[0].settings)])
        stop = shared_event(client)

        def run_chains(progress: StudyProgress) -> list[list[NotebookResult]]:
            calls = [(number, run, folder, given, stop) for number, run in enumerate(runs)]
            chains = {}
            for number, results in run_on_workers(client, _run_chain_on_worker, calls):
                for result in results:
                    if result.failure:
                        progress.say(f"{result.chain}: {result.failure}")
                progress.end(chain_name(runs[number]), _end_of(results, stop))
                chains[number] = results
            return [chains[number] for number in range(len(runs))]

        yield _Runner(run_chains, stop, lambda: client.run(stop_kernels))


def _run_chain_on_worker(
    number: int, run: Run, folder: Path, given: Mapping[str, Any], stop: Any
) -> tuple[int, list[NotebookResult]]:
    """The chain's number and results. The display, which cannot follow it here, sees its records on disk."""
    return number, _run_chain(run, folder, given, Unwatched(), stop)


def _end_of(results: Iterable[NotebookResult], stop: Any) -> str:
    """How a chain with these results ended: done, failed or stopped."""
    if stop.is_set():
        return "stopped"
    return "done" if all(result.status in ("executed", "skipped") for result in results) else "failed"


def _run_chain(
    run: Run, folder: Path, given: Mapping[str, Any], progress: StudyProgress | Unwatched, stop: Any
) -> list[NotebookResult]:
    """Brings one chain's notebooks up to date, in order, until one fails."""
    results: list[NotebookResult] = []
    for name in CHAIN_NOTEBOOKS:
        notebook, executed = folder / f"{name}.ipynb", run.notebooks / f"{name}.ipynb"
        if _end_of(results, stop) != "done":
            results.append(NotebookResult(chain_name(run), name, "not run", executed))
        elif is_current(run, notebook):
            results.append(NotebookResult(chain_name(run), name, "skipped", executed))
        else:
            result = _execute(chain_name(run), notebook, executed, notebook_parameters(run, given), progress, stop)
            if result.status == "executed":
                write_stamp(executed, chain_stamp(run, notebook))
            results.append(result)
    progress.end(chain_name(run), _end_of(results, stop))
    return results


def _run_analysis(
    complete: list[Run], study: Path, folder: Path, given: Mapping[str, Any], progress: StudyProgress, stop: Any
) -> NotebookResult:
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


def _execute(
    chain: str,
    notebook: Path,
    executed: Path,
    parameters: Mapping[str, Any],
    progress: StudyProgress | Unwatched,
    stop: Any,
) -> NotebookResult:
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


def _in_background(work: Callable[[], Any], progress: StudyProgress, runner: _Runner) -> Any:
    """Does `work` in a thread while this one, which gets Ctrl-C, keeps the display and can stop the kernels."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while wait([future], timeout=REFRESH_SECONDS).not_done:
                progress.poll()
        except KeyboardInterrupt:
            runner.stop.set()
            while wait([future], timeout=0.2).not_done:
                runner.stop_kernels()
            raise
        return future.result()


def _wanted_records(run: Run, notebooks: Iterable[str]) -> dict[Path, tuple[str, str]]:
    """Record folder -> (stage key, fingerprint) of the stages that these notebooks make."""
    return {
        run.stage_folder(key): (key, run.fingerprint(key))
        for key, stage in run.plan.items()
        if stage.notebook in notebooks
    }
