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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from edgemin_utils import __version__
from edgemin_utils.config import PROFILES, load_settings, nearest, project_folder, setting_fields, study_folder
from edgemin_utils.errors import EdgeMINError, ModelError, SettingError, StageError, StorageError
from edgemin_utils.progress import duration
from edgemin_utils.records import write_json
from edgemin_utils.study import ANALYSIS, StageStatus, plan_study, read_study_file, run_study, study_status
from edgemin_utils.tasks import TASKS

REPORT = Path("report") / "report.html"
STATUS_COLORS = {"done": "green", "stale": "yellow", "missing": "red"}
# Options that are settings of their own right: option -> setting.
SETTING_OPTIONS = {"data_dir": "data_dir", "task_file": "task_file", "text_columns": "text_columns",
                   "label_column": "label_column", "dev_file": "dev_file", "teacher": "teacher", "student": "student"}


class _Parser(argparse.ArgumentParser):
    """argparse, but an unknown option or command is refused with the nearest known one, as one line."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(f"{message} (see {self.prog} --help)")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        options = [word for word in words if word.startswith("-")]
        if options:
            name = options[0].split("=")[0]
            raise SettingError(f"unknown option {name!r}; {nearest(name, self._option_string_actions)}")
        if words:
            self.error(f"unexpected {words[0]!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    try:
        options = _read_arguments(sys.argv[1:] if arguments is None else list(arguments))
        status = options.command(options)
        sys.stdout.flush()
        return status
    except EdgeMINError as error:
        print(f"edgemin: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nedgemin: stopped; finished stages are kept, and the same command takes the study up where it is",
              file=sys.stderr)
        return 130


def build_parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and that of each command by name."""
    parser = _Parser(prog="edgemin", allow_abbrev=False, description="Distillation, head pruning and INT8 quantization "
                     "of transformer text classifiers, as one study that can be run again.")
    parser.add_argument("--version", action="version", version=f"edgemin {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", parser_class=_Parser)
    known = {}
    for name, function, text in (
        ("run", _run, "execute the notebooks of a study; what is current on disk is not run again"),
        ("status", _status, "what is done, what is stale and why; without settings, against those of the last run"),
        ("report", _report, "tables, figures and the HTML report again, from the records on disk"),
        ("recommend", _recommend, "the best measured models under a budget of size, latency and accuracy, and the "
         "commands that build their bundles"),
        ("publish", _publish, "a finished study without its weights into outputs/reference, and its numbers into the "
         "README's marked place"),
        ("measure", _measure, "the full sheet of a model: parameters, bytes, operations, latency, memory, energy"),
        ("bundle", _bundle, "a folder that classifies text on a CPU without torch, from any trained or pruned model"),
        ("predict", _predict, "what a bundle answers to texts, as lines of label and probabilities"),
        ("demo", _demo, "a bundle in the browser: serves its page on this machine and prints the address"),
        ("settings", _settings, "every setting: its value in a profile, its unit and its meaning"),
    ):
        known[name] = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                                          allow_abbrev=False)
        known[name].set_defaults(command=function)
    for name in ("run", "status"):
        _add_study_options(known[name], last_run=name == "status")
    known["run"].add_argument("--jobs", type=_at_least_one, default=1, metavar="N", help="chains that run side by "
                              "side; they share the processor's cores (default: 1)")
    for name in ("report", "recommend", "publish", "settings"):
        known[name].add_argument("--profile", default="demo", metavar="P",
                                 help=f"one of {', '.join(PROFILES)} (default: demo)")
    _add_output_option(known["report"])
    _add_output_option(known["publish"])
    _add_recommend_options(known["recommend"])
    _add_measure_options(known["measure"])
    _add_bundle_options(known["bundle"])
    _add_predict_options(known["predict"])
    _add_demo_options(known["demo"])
    return parser, known


def _add_study_options(parser: _Parser, last_run: bool) -> None:
    def default(value: str) -> str:
        return f"(default: that of the study's last run, else {value})" if last_run else f"(default: {value})"

    add = parser.add_argument
    add("--profile", metavar="P", help=f"where settings start: {', '.join(PROFILES)} {default('demo')}")
    add("--tasks", nargs="+", metavar="TASK", help=f"any of {', '.join(TASKS)}; not needed with --task-file "
        + default("all three"))
    add("--seeds", nargs="+", type=_seed, metavar="SEED", help=f"one chain a task and seed {default('0')}")
    add("--data-dir", metavar="DIR", help="folder with one sub-folder a task: GLUE's TSV files, CSV/TSV/JSONL/parquet "
        "with named columns, or datasets.save_to_disk (default: the profile's source, see `edgemin settings`)")
    add("--task-file", metavar="FILE", help="CSV, TSV, JSONL or parquet file that makes a task of your own, named "
        "after the file (default: none)")
    add("--text-columns", nargs="+", metavar="COLUMN", help="its one or two text columns (default: none)")
    add("--label-column", metavar="COLUMN", help="its label column (default: label)")
    add("--dev-file", metavar="FILE", help="its dev rows (default: none; a share of the rows is held out by seed)")
    for role in ("teacher", "student"):
        values = "; ".join(f"{profile}: {getattr(load_settings(profile), role)}" for profile in PROFILES)
        add(f"--{role}", metavar="ID-or-DIR", help=f"{setting_fields()[role].metadata['meaning']} (default: {values})")
    add("--set", action="append", default=[], metavar="name=value", dest="assignments", help="any other setting; may "
        "be given again and again; lists are comma-separated; `edgemin settings` lists them (default: the profile's)")
    _add_output_option(parser)


def _add_recommend_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("--max-mb", type=_number, metavar="X", help="largest file of the saved model, MB of 10^6 bytes (default: any)")
    add("--max-ms", type=_number, metavar="Y", help="longest median latency of one row, one thread, ms (default: any)")
    add("--min-accuracy", type=_number, metavar="Z", help="lowest accuracy on the task's dev rows, %% (default: any)")
    add("--task", metavar="TASK", help="a task of the study (default: each of them)")
    add("--length", type=_length, default=128, metavar="L", help="whose latency counts: tokens of the fixed input, or "
        "dev for real dev rows at their own lengths (default: 128)")
    add("--count", type=_at_least_one, default=3, metavar="N", help="models shown a task (default: 3)")
    add("--json", action="store_true", help="print JSON instead of text (default: text)")
    _add_output_option(parser)


def _add_bundle_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="the folder of a study's stage (trained, pruned or quantize-aware), another "
        "model's folder or a hub id (default: none)")
    add("--output", metavar="DIR", required=True, help="folder to write; a bundle that is there is replaced (default: "
        "none)")
    add("--max-drop", type=_points, default=1.0, metavar="POINTS", help="a bundle that loses more percentage points of "
        "accuracy on a dev split is refused (default: 1.0)")
    add("--quick", action="store_true", help="few runs for its latency: a look, marked as such (default: at least 100 "
        "runs and 10 s)")
    add("--task", metavar="TASK", help=f"task whose dev rows it is judged on, of {', '.join(TASKS)} (default: the "
        "stage's own; sst2 for another model)")
    add("--data-dir", metavar="DIR", help="folder of real rows, as for `run` (default: the stage's own; the embedded "
        "synthetic corpora for another model)")
    add("--task-file", metavar="FILE", help="file of a task of your own, as for `run` (default: none)")
    add("--text-columns", nargs="+", metavar="COLUMN", help="its one or two text columns (default: none)")
    add("--label-column", metavar="COLUMN", help="its label column (default: label)")
    add("--dev-file", metavar="FILE", help="its dev rows (default: none; a share of the rows)")
    add("--max-length", type=_at_least_one, metavar="N", help="tokens that texts are cut at (default: the stage's own; "
        "128 for another model)")


def _add_predict_options(parser: _Parser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `edgemin bundle` wrote (default: none)")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="texts to classify; where a row has two texts, first "
                        "and second in turns (default: none)")
    parser.add_argument("--threads", type=_seed, default=1, metavar="N", help="processor threads, 0 for all cores "
                        "(default: 1)")


def _add_measure_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model's folder (plain, pruned, quantized), a hub id or an .onnx file "
        "(default: none)")
    add("--against", nargs="+", default=[], metavar="OTHER", help="models that take turns with it; speed-ups are over "
        "the first (default: none)")
    add("--quick", action="store_true", help="few runs: a look, marked as such (default: at least 100 runs and 10 s)")
    add("--threads", nargs="+", type=_seed, default=[1, 0], metavar="N", help="thread counts, 0 for all cores "
        "(default: 1 0)")
    add("--lengths", nargs="+", type=_at_least_one, default=[32, 128], metavar="L", help="tokens of the fixed inputs "
        "(default: 32 128)")
    add("--batches", nargs="+", type=_at_least_one, default=[1, 2, 4, 8, 16, 32, 64], metavar="B", help="batch sizes "
        "of the throughput scan (default: 1 2 4 8 16 32 64)")
    add("--texts", metavar="FILE", help="rows to time at their own lengths, one a line, a tab between two texts "
        "(default: dev rows of --task)")
    add("--task", default="sst2", metavar="TASK", help=f"task whose dev rows are timed, of {', '.join(TASKS)} "
        "(default: sst2)")
    add("--data-dir", metavar="DIR", help="folder of real rows, as for `run` (default: the embedded synthetic corpora)")
    add("--rows", type=_at_least_one, default=100, metavar="N", help="rows timed (default: 100)")
    add("--no-compile", action="store_true", help="leave torch.compile out (default: it is timed where it works)")
    add("--no-memory", action="store_true", help="leave peak memory out (default: it is measured)")
    add("--json", metavar="FILE", help="also write the sheet as JSON (default: none)")


def _add_demo_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder (default: the newest under outputs/demo)")
    add("--port", type=_seed, default=8000, metavar="N", help="port of the address, 0 for any free one "
        "(default: 8000)")
    add("--float32", metavar="MODEL", help="the float model that the page compares with, an .onnx file or a folder "
        "(default: the study's stage that the bundle was made from, where that is still there)")


def _add_output_option(parser: _Parser) -> None:
    parser.add_argument("--output-dir", metavar="DIR", help="the study's folder (default: outputs/<profile> in the "
                        "project's folder)")


def _read_arguments(arguments: list[str]) -> argparse.Namespace:
    parser, commands = build_parser()
    if not arguments:
        parser.print_help()
        raise SystemExit(2)
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise SettingError(f"unknown command {arguments[0]!r}; {nearest(arguments[0], commands)}")
    options, unknown = parser.parse_known_args(arguments)
    commands.get(arguments[0], parser).refuse_unknown(unknown)
    if not hasattr(options, "command"):
        parser.error("a command is missing")
    return options


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _length(text: str) -> int | None:
    return None if text == "dev" else _at_least_one(text)


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points from 0 to 100")
    return value


def read_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Setting -> value out of the options of `run` and `status`, `--set` included.

    Raises:
        SettingError: an assignment without "=", or a setting given twice.
    """
    overrides = {setting: getattr(options, option) for option, setting in SETTING_OPTIONS.items()
                 if getattr(options, option) is not None}
    for assignment in options.assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise SettingError(f"--set {assignment} has no '='; write --set name=value")
        if name == "profile":
            raise SettingError("the profile is chosen with --profile, not with --set")
        if name in overrides:
            raise SettingError(f"setting {name!r} is given twice; give it once")
        overrides[name] = value
    return overrides


# ---- the commands -----------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    # A stopped container or a time limit ends a study as Ctrl-C does: no kernel is left behind.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, started = Console(), time.monotonic()
    try:
        result = run_study(options.profile or "demo", options.tasks or (), options.seeds or (0,),
                           read_overrides(options), options.output_dir, options.jobs, console)
        analysis = next(item for item in result.notebooks if item.chain == ANALYSIS)
        if analysis.status == "executed" or (analysis.status == "skipped" and not (result.study / REPORT).is_file()):
            _write_report(result.study)
    finally:
        signal.signal(signal.SIGTERM, former)
    if analysis.status in ("executed", "skipped"):
        _print_main_table(result.study)
        print(f"report: {result.study / REPORT}")
    counts = ", ".join(f"{result.count(status)} {status}" for status in ("skipped", "failed", "not run")
                       if result.count(status))
    print(f"{result.count('executed')} notebooks executed{', ' + counts if counts else ''} "
          f"in {duration(time.monotonic() - started)}")
    for failure in result.failures:
        print(f"edgemin: {failure.notebook} failed in {failure.cell}: {failure.error.splitlines()[0]} "
              f"({failure.executed})", file=sys.stderr)
    return 0 if result.complete else 1


def _status(options: argparse.Namespace) -> int:
    study = study_folder(options.output_dir, options.profile or "demo")
    last = read_study_file(study)
    overrides = read_overrides(options)
    profile = options.profile or last.get("profile", "demo")
    if last and last["profile"] == profile and not overrides:
        overrides = last["overrides"]
    runs = plan_study(profile, options.tasks or last.get("tasks", ()), options.seeds or last.get("seeds", (0,)),
                      overrides, study)
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
        table.add_row(row.task, str(row.seed), row.key, f"[{STATUS_COLORS[row.status]}]{row.status}[/]", took,
                      row.reason.replace("[", r"\["))
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
    from edgemin_utils.reference import publish_study, write_readme

    profile = _known_profile(options.profile)
    study = study_folder(options.output_dir, profile)
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
    texts, source = read_texts(options.texts, options.task, options.data_dir, options.rows)
    models = open_models([options.model, *options.against])
    sheet = measure_models(models, SheetOptions(
        "quick" if options.quick else "full", tuple(options.threads), tuple(options.lengths), texts, source,
        tuple(options.batches), not options.no_compile, not options.no_memory),
        lambda text: print(f"measuring: {text}", file=sys.stderr))
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

    given = {name: getattr(options, name) for name in
             ("data_dir", "task_file", "text_columns", "label_column", "dev_file", "max_length")}
    source = open_source(options.model, options.task, {name: value for name, value in given.items() if value})
    content = make_bundle(source, options.output, options.max_drop, PROTOCOLS["quick" if options.quick else "full"])
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
    if len(options.texts) % len(columns):
        raise SettingError(f"a row of this bundle has {len(columns)} texts ({', '.join(columns)}), and "
                           f"{len(options.texts)} were given; give them in turns")
    rows = list(zip(*(options.texts[place::len(columns)] for place in range(len(columns))), strict=True))
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
