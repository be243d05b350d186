"""The console command `edgemin`: run a study, say how far it is, draw its tables and figures again, list settings.

Exit status: 0 all well, 1 a notebook failed or nothing fits a budget, 2 something that was asked for cannot be, 130
stopped from the keyboard.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edgemin_utils.command_options import read_arguments, read_overrides
from edgemin_utils.config import load_settings, project_folder, setting_fields, study_folder
from edgemin_utils.errors import EdgeMINError, ModelError, SettingError, StageError, StorageError
from edgemin_utils.paths import refuse_unshared
from edgemin_utils.processes import is_main_process, joined_processes, launched_processes
from edgemin_utils.progress import duration
from edgemin_utils.records import write_json
from edgemin_utils.study import ANALYSIS, StageStatus, chain_name, plan_study, run_study, study_status
from edgemin_utils.study_file import read_study_file

REPORT = Path("report") / "report.html"
STATUS_COLORS = {"done": "green", "stale": "yellow", "missing": "red"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    try:
        options = read_arguments(sys.argv[1:] if arguments is None else arguments)
        status = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except EdgeMINError as error:
        print(f"edgemin: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(
            "\nedgemin: stopped; finished stages are kept, and the same command takes the study up where it is",
            file=sys.stderr,
        )
        return 130


def _run(options: argparse.Namespace) -> int:
    if launched_processes() > 1:
        raise SettingError(
            f"`run` is for one process, and {launched_processes()} were launched; launch `train`, which "
            "several can share, then `run` without a launcher"
        )
    # A stopped container or a time limit ends a study as Ctrl-C does: no kernel is left behind.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, started = Console(), time.monotonic()
    try:
        result = run_study(
            options.profile or "demo",
            options.tasks or (),
            options.seeds or (0,),
            read_overrides(options),
            options.output_dir,
            options.jobs,
            console,
            options.cluster,
        )
        analysis = next(item for item in result.notebooks if item.chain == ANALYSIS)
        if analysis.status == "executed" or (analysis.status == "skipped" and not (result.study / REPORT).is_file()):
            _write_report(result.study)
    finally:
        signal.signal(signal.SIGTERM, former)
    if analysis.status in ("executed", "skipped"):
        _print_main_table(result.study)
        print(f"report: {result.study / REPORT}")
    counts = ", ".join(
        f"{result.count(status)} {status}" for status in ("skipped", "failed", "not run") if result.count(status)
    )
    print(
        f"{result.count('executed')} notebooks executed{', ' + counts if counts else ''} "
        f"in {duration(time.monotonic() - started)}"
    )
    for failure in result.failures:
        print(
            f"edgemin: {failure.notebook} failed in {failure.cell}: {failure.error.splitlines()[0]} "
            f"({failure.executed})",
            file=sys.stderr,
        )
    return 0 if result.complete else 1


def _train(options: argparse.Namespace) -> int:
    runs = plan_study(
        options.profile or "demo",
        options.tasks or (),
        options.seeds or (0,),
        read_overrides(options),
        options.output_dir,
    )
    with joined_processes():
        # From here on torch is needed, and only here.
        from edgemin_utils.stages import train_teacher_and_students

        refuse_unshared(runs[0].study, runs[0].settings)
        for run in runs:
            for record in train_teacher_and_students(run):
                if is_main_process():
                    print(f"{chain_name(run)}: {record.key} done in {duration(record.content['wall_seconds'])}")
    return 0


def _status(options: argparse.Namespace) -> int:
    study = study_folder(options.output_dir, options.profile or "demo")
    last = read_study_file(study)
    overrides = read_overrides(options)
    profile = options.profile or last.get("profile", "demo")
    if last and last["profile"] == profile and not overrides:
        overrides = last["overrides"]
    runs = plan_study(
        profile, options.tasks or last.get("tasks", ()), options.seeds or last.get("seeds", (0,)), overrides, study
    )
    rows = study_status(runs)
    _console().print(_status_table(rows))
    done = sum(row.status == "done" for row in rows)
    print(f"{study}: {done} of {len(rows)} stages done")
    if last.get("command"):
        print(f"last run: {last['command']}")
    return 0


def _status_table(rows: Sequence[StageStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("task", "seed", "stage", "state", "took", "why"):
        table.add_column(title, overflow="fold")
    for row in rows:
        took = "" if row.wall_seconds is None else duration(row.wall_seconds)
        table.add_row(
            row.task,
            str(row.seed),
            row.key,
            f"[{STATUS_COLORS[row.status]}]{row.status}[/]",
            took,
            row.reason.replace("[", r"\["),
        )
    return table


def _report(options: argparse.Namespace) -> int:
    study = _existing_study(options)
    path = _write_report(study)
    _print_main_table(study)
    print(f"report: {path}")
    return 0


def _recommend(options: argparse.Namespace) -> int:
    from edgemin_utils.recommendation import Budget, advice_data, advice_text, recommend  # imports pandas

    budget = Budget(options.max_mb, options.max_ms, options.min_accuracy)
    advice = recommend(_existing_study(options), budget, options.task, options.length)
    if options.json:
        print(json.dumps(advice_data(advice, options.count), indent=1, allow_nan=False))
    else:
        print(advice_text(advice, options.count))
    return 0 if advice.fits else 1


def _publish(options: argparse.Namespace) -> int:
    from edgemin_utils.reference import publish_study, require_marked_place, results_place, write_readme

    profile = _known_profile(options.profile)
    study = study_folder(options.output_dir, profile)
    require_marked_place(project_folder() / "README.md", results_place(study))
    destination = publish_study(study, project_folder() / "outputs" / "reference" / study.name)
    print(f"reference results: {destination}")
    print(f"numbers written into {write_readme(project_folder() / 'README.md', destination)}")
    return 0


def _measure(options: argparse.Namespace) -> int:
    from edgemin_utils.measurement.models import open_models  # imports torch
    from edgemin_utils.measurement.sheet import SheetOptions, measure_models
    from edgemin_utils.measurement.texts import read_texts
    from edgemin_utils.tables.measurement_sheet import sheet_text

    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise StorageError(f"{options.json} cannot be written: its folder is not there")
    if options.json and Path(options.json).is_dir():
        raise StorageError(f"{options.json} cannot be written: it is a folder; name a file")
    texts, source = read_texts(options.texts, options.task, options.data_dir, options.rows)
    models = open_models([options.model, *options.against])
    sheet = measure_models(
        models,
        SheetOptions(
            "quick" if options.quick else "full",
            tuple(options.threads),
            tuple(options.lengths),
            texts,
            source,
            tuple(options.batches),
            not options.no_compile,
            not options.no_memory,
        ),
        lambda text: print(f"measuring: {text}", file=sys.stderr),
    )
    print(sheet_text(sheet))
    if options.json:
        write_json(Path(options.json), sheet)
        print(f"sheet: {options.json}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from edgemin_utils.browser.demo import serve_demo

    serve_demo(options.bundle, options.port, options.float32)
    return 0


def _bundle(options: argparse.Namespace) -> int:
    from edgemin_utils.bundle.making import describe_in_words, make_bundle  # imports torch
    from edgemin_utils.bundle.sources import open_source
    from edgemin_utils.measurement.latency import PROTOCOLS

    given = {
        name: getattr(options, name)
        for name in ("data_dir", "task_file", "text_columns", "label_column", "dev_file", "max_length")
    }
    source = open_source(options.model, options.task, {name: value for name, value in given.items() if value})
    content = make_bundle(
        source,
        options.output,
        options.max_drop,
        PROTOCOLS["quick" if options.quick else "full"],
        options.matrix_bits,
        options.embedding_bits,
    )
    print(describe_in_words(content))
    print(f"bundle: {options.output}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from edgemin_utils.bundle.classify import Bundle, ClassifyError, answer_lines, header_line

    try:
        bundle = Bundle(Path(options.bundle).expanduser(), options.threads)
    except ClassifyError as error:
        raise ModelError(str(error)) from error
    columns = bundle.text_columns
    for text in options.texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # the shell's bytes, which Python keeps as surrogates
            raise SettingError(f"{text.encode(errors='surrogateescape')!r} is not UTF-8; give texts in UTF-8") from None
    if len(options.texts) % len(columns):
        raise SettingError(
            f"a row of this bundle has {len(columns)} texts ({', '.join(columns)}), and "
            f"{len(options.texts)} were given; give them in turns"
        )
    rows = list(zip(*(options.texts[place :: len(columns)] for place in range(len(columns))), strict=True))
    print(header_line(bundle.labels) + answer_lines(bundle, rows), end="")
    return 0


def _settings(options: argparse.Namespace) -> int:
    settings = load_settings(options.profile)
    table = Table(box=None, pad_edge=False)
    for title in ("setting", f"value in {options.profile}", "unit", "meaning"):
        table.add_column(title, overflow="fold")
    for name, item in setting_fields().items():
        value = getattr(settings, name)
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value).replace("None", "none")
        table.add_row(name, text, item.metadata["unit"].replace("[", r"\["), item.metadata["meaning"])
    _console().print(table)
    return 0


def _console() -> Console:
    # Without a terminal (a pipe, a log) rich would fold tables to 80 columns.
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _existing_study(options: argparse.Namespace) -> Path:
    study = study_folder(options.output_dir, _known_profile(options.profile))
    if not study.is_dir():
        raise StageError(f"{study} is not there; `edgemin run` makes it, or name another one with --output-dir")
    return study


def _known_profile(profile: str) -> str:
    return load_settings(profile).profile


def _write_report(study: Path) -> Path:
    from edgemin_utils.report import write_report  # imports matplotlib: only when something is drawn

    return write_report(study)


def _print_main_table(study: Path) -> None:
    from edgemin_utils.tables import as_text, main_table  # imports pandas

    print(as_text(main_table(study)))


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "train": _train,
    "status": _status,
    "report": _report,
    "recommend": _recommend,
    "publish": _publish,
    "measure": _measure,
    "bundle": _bundle,
    "predict": _predict,
    "demo": _demo,
    "settings": _settings,
}
