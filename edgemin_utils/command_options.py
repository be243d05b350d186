"""The options of every command of `edgemin`, how they are read, and what is said to a word that is none of them."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from edgemin_utils import __version__
from edgemin_utils.config import PROFILES, load_settings, nearest, setting_fields
from edgemin_utils.errors import SettingError
from edgemin_utils.tasks import TASKS

COMMANDS = {
    "run": "execute the notebooks of a study; what is current on disk is not run again",
    "train": "train a study's teachers and students without notebooks, as one process or, under `accelerate launch`, "
    "as several; `run` finds them and goes on from there",
    "status": "what is done, what is stale and why; without settings, against those of the last run",
    "report": "tables, figures and the HTML report again, from the records on disk",
    "recommend": "the best measured models under a budget of size, latency and accuracy, and the commands that build "
    "their bundles",
    "publish": "a finished study without its weights into outputs/reference, and its numbers into the README's marked "
    "place",
    "measure": "the full sheet of a model: parameters, bytes, operations, latency, memory, energy",
    "bundle": "a folder that classifies text on a CPU without torch, from any trained or pruned model",
    "predict": "what a bundle answers to texts, as lines of label and probabilities",
    "demo": "a bundle in the browser: serves its page on this machine and prints the address",
    "settings": "every setting: its value in a profile, its unit and its meaning",
}
"""Name of a command -> what it gives."""
SETTING_OPTIONS = ("data_dir", "task_file", "text_columns", "label_column", "dev_file", "teacher", "student")
"""Options of `run`, `train` and `status` that are settings of their own right, by the same name."""


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


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line without its program's name; `command` is the command's name.

    Raises:
        SettingError: an unknown command or option, or a value that an option does not take.
        SystemExit: help or the version was asked for and has been printed.
    """
    parser, commands = build_parser()
    if not arguments:
        parser.print_help()
        raise SystemExit(2)
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise SettingError(f"unknown command {arguments[0]!r}; {nearest(arguments[0], commands)}")
    options, unknown = parser.parse_known_args(list(arguments))
    commands.get(arguments[0], parser).refuse_unknown(unknown)
    if options.command is None:
        parser.error("a command is missing")
    return options


def read_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Setting -> value out of the options of `run`, `train` and `status`, `--set` included.

    Raises:
        SettingError: an assignment without "=", or a setting given twice.
    """
    overrides = {name: getattr(options, name) for name in SETTING_OPTIONS if getattr(options, name) is not None}
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


def build_parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and that of each command by name."""
    parser = _Parser(
        prog="edgemin",
        allow_abbrev=False,
        description="Distillation, head pruning and INT8 quantization "
        "of transformer text classifiers, as one study that can be run again.",
    )
    parser.add_argument("--version", action="version", version=f"edgemin {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", dest="command", parser_class=_Parser)
    known = {}
    for name, text in COMMANDS.items():
        known[name] = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
    for name in ("run", "train", "status"):
        _add_study_options(known[name], last_run=name == "status")
    known["run"].add_argument(
        "--jobs",
        type=_at_least_one,
        default=1,
        metavar="N",
        help="chains that run side by side; they share the processor's cores (default: 1)",
    )
    known["run"].add_argument(
        "--cluster",
        default="",
        metavar="ADDRESS",
        help="Dask scheduler whose workers run the "
        "chains, or local for --jobs workers on this machine (default: threads of this process)",
    )
    for name in ("report", "recommend", "publish", "settings"):
        known[name].add_argument(
            "--profile", default="demo", metavar="P", help=f"one of {', '.join(PROFILES)} (default: demo)"
        )
    _add_output_option(known["report"])
    _add_output_option(known["publish"])
    _add_recommend_options(known["recommend"])
    _add_measure_options(known["measure"])
    _add_bundle_options(known["bundle"])
    _add_predict_options(known["predict"])
    _add_demo_options(known["demo"])
    return parser, known


# ---- each command's own -----------------------------------------------------------------------------------------


def _add_study_options(parser: _Parser, last_run: bool) -> None:
    def default(value: str) -> str:
        return f"(default: that of the study's last run, else {value})" if last_run else f"(default: {value})"

    add = parser.add_argument
    add("--profile", metavar="P", help=f"where settings start: {', '.join(PROFILES)} {default('demo')}")
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"any of {', '.join(TASKS)}; not needed with --task-file " + default("all three"),
    )
    add("--seeds", nargs="+", type=_seed, metavar="SEED", help=f"one chain a task and seed {default('0')}")
    add(
        "--data-dir",
        metavar="DIR",
        help="folder with one sub-folder a task: GLUE's TSV files, CSV/TSV/JSONL/parquet "
        "with named columns, or datasets.save_to_disk (default: the profile's source, see `edgemin settings`)",
    )
    add(
        "--task-file",
        metavar="FILE",
        help="CSV, TSV, JSONL or parquet file that makes a task of your own, named after the file (default: none)",
    )
    add("--text-columns", nargs="+", metavar="COLUMN", help="its one or two text columns (default: none)")
    add("--label-column", metavar="COLUMN", help="its label column (default: label)")
    add("--dev-file", metavar="FILE", help="its dev rows (default: none; a share of the rows is held out by seed)")
    for role in ("teacher", "student"):
        values = "; ".join(f"{profile}: {getattr(load_settings(profile), role)}" for profile in PROFILES)
        add(f"--{role}", metavar="ID-or-DIR", help=f"{setting_fields()[role].metadata['meaning']} (default: {values})")
    add(
        "--set",
        action="append",
        default=[],
        metavar="name=value",
        dest="assignments",
        help="any other setting; may "
        "be given again and again; lists are comma-separated; `edgemin settings` lists them (default: the profile's)",
    )
    _add_output_option(parser)


def _add_recommend_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("--max-mb", type=_number, metavar="X", help="largest file of the saved model, MB of 10^6 bytes (default: any)")
    add("--max-ms", type=_number, metavar="Y", help="longest median latency of one row, one thread, ms (default: any)")
    add("--min-accuracy", type=_number, metavar="Z", help="lowest accuracy on the task's dev rows, %% (default: any)")
    add("--task", metavar="TASK", help="a task of the study (default: each of them)")
    add(
        "--length",
        type=_length,
        default=128,
        metavar="L",
        help="whose latency counts: tokens of the fixed input, or "
        "dev for real dev rows at their own lengths (default: 128)",
    )
    add("--count", type=_at_least_one, default=3, metavar="N", help="models shown a task (default: 3)")
    add("--json", action="store_true", help="print JSON instead of text (default: text)")
    _add_output_option(parser)


def _add_bundle_options(parser: _Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="the folder of a study's stage (trained, pruned or quantize-aware), another "
        "model's folder or a hub id (default: none)",
    )
    add(
        "--output",
        metavar="DIR",
        required=True,
        help="folder to write; a bundle that is there is replaced (default: none)",
    )
    add(
        "--max-drop",
        type=_points,
        default=1.0,
        metavar="POINTS",
        help="a bundle that loses more percentage points of accuracy on a dev split is refused (default: 1.0)",
    )
    add(
        "--matrix-bits",
        type=int,
        choices=(8, 4),
        default=8,
        help="bits of the linear layers' weights; 4 make a "
        "smaller file and a slower model, much slower in a browser (default: 8)",
    )
    add(
        "--embedding-bits",
        type=int,
        choices=(8, 4),
        default=8,
        help="bits of the word embedding; 4 make a smaller file of the same speed (default: 8)",
    )
    add(
        "--quick",
        action="store_true",
        help="few runs for its latency: a look, marked as such (default: at least 100 runs and 10 s)",
    )
    add(
        "--task",
        metavar="TASK",
        help=f"task whose dev rows it is judged on, of {', '.join(TASKS)} (default: the "
        "stage's own; sst2 for another model)",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="folder of real rows, as for `run` (default: the stage's own; the embedded "
        "synthetic corpora for another model)",
    )
    add("--task-file", metavar="FILE", help="file of a task of your own, as for `run` (default: none)")
    add("--text-columns", nargs="+", metavar="COLUMN", help="its one or two text columns (default: none)")
    add("--label-column", metavar="COLUMN", help="its label column (default: label)")
    add("--dev-file", metavar="FILE", help="its dev rows (default: none; a share of the rows)")
    add(
        "--max-length",
        type=_at_least_one,
        metavar="N",
        help="tokens that texts are cut at (default: the stage's own; 128 for another model)",
    )


def _add_predict_options(parser: _Parser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `edgemin bundle` wrote (default: none)")
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="+",
        help="texts to classify; where a row has two texts, first and second in turns (default: none)",
    )
    parser.add_argument(
        "--threads", type=_seed, default=1, metavar="N", help="processor threads, 0 for all cores (default: 1)"
    )


def _add_measure_options(parser: _Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a model's folder (plain, pruned, quantized), a hub id or an .onnx file (default: none)",
    )
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="OTHER",
        help="models that take turns with it; speed-ups are over the first (default: none)",
    )
    add("--quick", action="store_true", help="few runs: a look, marked as such (default: at least 100 runs and 10 s)")
    add(
        "--threads",
        nargs="+",
        type=_seed,
        default=[1, 0],
        metavar="N",
        help="thread counts, 0 for all cores (default: 1 0)",
    )
    add(
        "--lengths",
        nargs="+",
        type=_at_least_one,
        default=[32, 128],
        metavar="L",
        help="tokens of the fixed inputs (default: 32 128)",
    )
    add(
        "--batches",
        nargs="+",
        type=_at_least_one,
        default=[1, 2, 4, 8, 16, 32, 64],
        metavar="B",
        help="batch sizes of the throughput scan (default: 1 2 4 8 16 32 64)",
    )
    add(
        "--texts",
        metavar="FILE",
        help="rows to time at their own lengths, one a line, a tab between two texts (default: dev rows of --task)",
    )
    add(
        "--task",
        default="sst2",
        metavar="TASK",
        help=f"task whose dev rows are timed, of {', '.join(TASKS)} (default: sst2)",
    )
    add("--data-dir", metavar="DIR", help="folder of real rows, as for `run` (default: the embedded synthetic corpora)")
    add("--rows", type=_at_least_one, default=100, metavar="N", help="rows timed (default: 100)")
    add("--no-compile", action="store_true", help="leave torch.compile out (default: it is timed where it works)")
    add("--no-memory", action="store_true", help="leave peak memory out (default: it is measured)")
    add("--json", metavar="FILE", help="also write the sheet as JSON (default: none)")


def _add_demo_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder (default: the newest under outputs/demo)")
    add("--port", type=_seed, default=8000, metavar="N", help="port of the address, 0 for any free one (default: 8000)")
    add(
        "--float32",
        metavar="MODEL",
        help="the float model that the page compares with, an .onnx file or a folder "
        "(default: the study's stage that the bundle was made from, where that is still there)",
    )


def _add_output_option(parser: _Parser) -> None:
    parser.add_argument(
        "--output-dir", metavar="DIR", help="the study's folder (default: outputs/<profile> in the project's folder)"
    )


# ---- values ------------------------------------------------------------------------------------------------------


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
