"""The console command `edgemin`. Exit status: 0 all well, 1 a notebook failed or nothing fits a budget, 2 what was
asked for cannot be, 130 stopped from the keyboard."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import edgemin_utils
from edgemin_utils.environment import available_cores, joined_processes, launched_processes
from edgemin_utils.errors import DataError, EdgeMINError, ModelError, SettingError, StageError
from edgemin_utils.names import EXAMPLES, LISTS, METHODS
from edgemin_utils.rows.tokens import load_tokenizer, read_config
from edgemin_utils.run import BROKEN, open_chains, run_study, say_rows
from edgemin_utils.settings import PROFILES, load_settings, read_value, setting_fields, study_folder
from edgemin_utils.study import Chain, find_chains, find_records, require_writable, say_once, study_status

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # which are left to `read_overrides`
_MORE = (
    "Every setting is an option too (see `edgemin settings`), as in --models path,tinybert --train-rows 2000 "
    "--data-dir glue --teacher FOLDER; rows of one's own: --task-file my.csv --text-columns text --label-column stars."
)
Base = Annotated[str, typer.Option(help=f"Defaults to begin with: {', '.join(PROFILES)}.")]
Tasks = Annotated[str, typer.Option(help="Tasks, as in sst2,mnli. Empty: all three, or that of --task-file.")]
Seed = Annotated[str, typer.Option(help="Seeds, as in 0,1,2: a chain of models for each. Empty: 0.")]
Out = Annotated[str, typer.Option(help="The study's folder. Empty: outputs/PROFILE in the project.")]
Anew = Annotated[bool, typer.Option("--replace", help="Make anew what other rows, teacher or code made stale.")]
More = typer.Context


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    for stream in (sys.stdout, sys.stderr):  # an answer or a name may hold what a terminal's encoding lacks
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")
    try:
        status = app(args=None if arguments is None else list(arguments), prog_name="edgemin", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except EdgeMINError as error:
        print(f"edgemin: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of a pipe (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        print("\nedgemin: stopped; finished stages are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:  # of a usage that typer, or the click beneath it, refuses
        if not hasattr(error, "format_message"):
            raise
        said = error.format_message()
        print(said if "NoArgs" in type(error).__name__ else f"edgemin: {said} (see edgemin --help)")
    return 2


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """Setting -> value out of --train-rows 2000, --train-rows=2000, --set train_rows=2000; raises SettingError."""
    overrides, left = dict[str, str](), list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("--"):
            raise SettingError(f"unexpected {name!r}; several values are joined by commas, as in --tasks sst2,mnli")
        if not equals and not left:
            raise SettingError(f"option {name} has no value")
        value = value if equals else left.pop(0)
        if name == "--set":
            name, equals, value = value.partition("=")
            if not equals:
                raise SettingError(f"--set {name} has no '='; write --set name=value")
        name = name.strip().removeprefix("--").replace("-", "_")
        if name in overrides or name == "profile":
            raise SettingError(f"{name} is given twice, or has an option of its own; give it once")
        read_value(name, value)
        overrides[name] = value
    return overrides


@app.callback(invoke_without_command=True)
def _edgemin(version: Annotated[bool, typer.Option("--version", help="The version alone.")] = False) -> None:
    """Distillation, pruning and INT8 quantization of transformer text classifiers, as one reproducible study."""
    if version:
        print(f"edgemin {edgemin_utils.__version__}")
        raise typer.Exit


@app.command(context_settings=_SETTINGS, epilog=_MORE)
def run(
    more: More,
    profile: Base = "demo",
    tasks: Tasks = "",
    seeds: Seed = "",
    output_dir: Out = "",
    replace: Anew = False,
    jobs: Annotated[int, typer.Option(min=1, help="Chains side by side; they share the cores.")] = 1,
    cluster: Annotated[str, typer.Option(help="Dask scheduler's address, or local for --jobs workers here.")] = "",
) -> int:
    """Execute the notebooks of a study; what is current on disk is not run again.

    Example: edgemin run --tasks sst2 --models path,tinybert --seeds 0,1,2 --jobs 2"""
    if launched_processes() > 1:
        raise SettingError("`run` is for one process; launch `edgemin train`, which several can share, then `run`")
    started, chains = time.monotonic(), _chains(more, profile, tasks, seeds, output_dir, replace)
    print(f"study: {chains[0].study}")
    # A stopped container or a time limit ends a study as Ctrl-C does: no kernel is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = list(run_study(chains, jobs, cluster).values())
    if find_records(chains[0].study):
        _show_results(chains[0].study, draw="executed" in found)
    said = ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(["executed", *found]))
    print(f"notebooks: {said}, in {time.monotonic() - started:.0f} s")
    return int(not BROKEN.isdisjoint(found))


@app.command(context_settings=_SETTINGS, epilog=_MORE)
def train(
    more: More, profile: Base = "demo", tasks: Tasks = "", seeds: Seed = "", output_dir: Out = "", replace: Anew = False
) -> None:
    """Train teachers and students without notebooks, as one process or several; `run` goes on from there.

    Example: edgemin train --task-file reviews.csv --text-columns text --label-column stars --output-dir mine

    With several GPUs: accelerate launch --num_processes 2 -m edgemin_utils train --profile paper"""
    chains = _chains(more, profile, tasks, seeds, output_dir, replace)
    for stage in (stage for chain in chains for stage in chain.plan.values()):
        stage.require()
    if os.environ.get("RANK", "0") == "0":  # the first of the processes that a launcher started
        require_writable(chains[0].study)
        say_rows(chains)  # what it refuses is refused before torch is imported
    with joined_processes():
        from edgemin_utils.steps import make_kinds

        for chain in chains:
            say_once(f"{chain}: {chain.folder}")
            for record in make_kinds(chain, "teacher", "distillation"):
                say_once(f"{chain}: {record.model}, {record.outcome}")
        say_once("`edgemin run` with the same options makes the rest: cuts, quantized models, measurements, figures")


@app.command(context_settings=_SETTINGS, epilog=_MORE)
def status(more: More, profile: Base = "demo", tasks: Tasks = "", seeds: Seed = "", output_dir: Out = "") -> None:
    """What is done, what is stale and why; without settings, against those of the last run.

    Example: edgemin status --tasks sst2 --relation-heads 4"""
    study = _existing_study(profile, output_dir)
    if not (known := find_chains(study)):
        raise StageError(f"{study} holds no study; `edgemin run` makes one, or name another one with --output-dir")
    asked = [chain for chain in known if not tasks or chain.task in tasks.split(",")]
    if more.args or seeds or not asked:
        asked = _chains(more, profile, tasks, seeds, output_dir)
    rows = study_status(asked)
    _print_table(list(rows[0]), [list(row.values()) for row in rows])
    print(f"{study}: {sum(row['status'] == 'done' for row in rows)} of {len(rows)} stages done")


@app.command()
def report(
    profile: Base = "demo",
    output_dir: Out = "",
    publish: Annotated[str, typer.Option(help="Also publish results, without weights, in this folder.")] = "",
) -> None:
    """Draw tables, figures and the HTML report again, from what is on disk.

    Example: edgemin report --output-dir outputs/laptop --publish outputs/reference"""
    study = _existing_study(profile, output_dir)
    _show_results(study, draw=True)
    if publish:
        from edgemin_utils.report import draw
        from edgemin_utils.results.table import publish as publish_study

        print(f"published: {publish_study(study, publish, draw)}")


@app.command()
def predict(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    texts: Annotated[list[str], typer.Argument(help="Texts; of a pair both, in turns.")],
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 1,
) -> None:
    """What a bundle answers to texts: a line each, with label and probabilities.

    Example: edgemin predict sentiment "the acting is worse than the book" --threads 2"""
    for number in (number for number, text in enumerate(texts, 1) if not text.strip()):
        raise DataError(f"text {number} of {len(texts)} is empty; give each text in quotation marks")
    from edgemin_utils.bundle.classify import ClassifyError, predict_texts

    try:
        print(predict_texts(Path(bundle).expanduser(), texts, threads), end="")
    except ClassifyError as error:
        raise ModelError(str(error)) from error


@app.command(context_settings=_SETTINGS, epilog=_MORE)
def bundle(
    more: More,
    model: Annotated[str, typer.Argument(help="A model's folder: of a study, or any checkpoint of one's own.")],
    output: Annotated[str, typer.Option(help="The bundle's folder.")] = "bundle",
    scheme: Annotated[str, typer.Option(help="edge-int8, edge-int8-int4 (smaller) or edge-int4 (smallest).")] = "",
    task: Annotated[str, typer.Option(help="The task that a plain checkpoint answers.")] = "",
    max_drop: Annotated[float, typer.Option(help="Points of accuracy that it may lose on the dev rows.")] = 1.0,
) -> None:
    """One folder that classifies text on a CPU without torch: graph, tokenizer, program, checksums.

    Example: edgemin bundle outputs/demo/sst2/seed-0/minilmv2 --output sentiment"""
    from edgemin_utils.bundle.checks import DEFAULT_SCHEME, check_source, check_target

    if not max_drop >= 0:
        raise SettingError(f"--max-drop is {max_drop}; give points from 0 on")
    check_source(model, task or None, overrides := read_overrides(more.args))
    check_target(Path(output).expanduser(), scheme or DEFAULT_SCHEME)
    from edgemin_utils.bundle.making import describe_in_words, make_bundle, open_source  # imports torch

    source = open_source(model, task or None, overrides)
    print(describe_in_words(make_bundle(source, output, scheme, max_drop)))
    print(f"bundle: {output}")


@app.command()
def recommend(
    profile: Base = "demo",
    output_dir: Out = "",
    task: Annotated[str, typer.Option(help="The task; empty: each.")] = "",
    max_mb: Annotated[float | None, typer.Option(help="Largest file, in 10^6 bytes.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="Longest median time, one thread.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Lowest accuracy, in %.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of the input that is timed: 32 or 128.")] = 128,
) -> int:
    """The best measured models under a budget, and the commands that build their bundles.

    Example: edgemin recommend --task sst2 --max-mb 10 --max-ms 5"""
    from edgemin_utils.results.tables import recommend_models  # imports pandas

    study = _existing_study(profile, output_dir)
    text, fits = recommend_models(study, task or None, max_mb, max_ms, min_accuracy, length)
    print(text)
    return 0 if fits else 1


@app.command()
def measure(
    models: Annotated[list[str], typer.Argument(help="Folders of models or bundles.")],
    against: Annotated[str, typer.Option(help="The baseline. Empty: the first model.")] = "",
    peers: Annotated[bool, typer.Option("--peers", help="Also the baseline in INT8 elsewhere and bfloat16.")] = False,
    lengths: Annotated[str, typer.Option(help="Tokens of the inputs.")] = "32,128",
    threads: Annotated[str, typer.Option(help="Thread counts; 0: all cores.")] = "1",
    quick: Annotated[bool, typer.Option("--quick", help="30 runs instead of 100 and 10 s.")] = False,
    out: Annotated[str, typer.Option(help="Also write the sheet as JSON into this file.")] = "",
) -> None:
    """The full sheet of models, side by side: parameters, bytes, operations, latency, memory, energy.

    Example: edgemin measure bundle --against outputs/demo/sst2/seed-0/teacher --peers --quick"""
    asked = (_numbers("--lengths", lengths, 1), _numbers("--threads", threads), "quick" if quick else "full")
    if max(asked[1]) > (cores := available_cores()):
        raise SettingError(f"--threads is {threads}; this machine lets {cores} be used")
    if out:
        require_writable(Path(out).absolute().parent)
    models = [*filter(None, [against]), *models]
    for name, path in ((name, Path(name).expanduser()) for name in models):
        if (path / "config.json").is_file():
            read_config(path)
        elif not path.exists():
            load_tokenizer(name)  # refuses what the hub does not have either
    from edgemin_utils.measurement.costs import measure_models, sheet_text  # imports torch

    sheet = measure_models(models, *asked, say=lambda text: print(text, file=sys.stderr), peers=peers)
    print(sheet_text(sheet))
    if out:
        Path(out).write_text(json.dumps(sheet, indent=1) + "\n", encoding="utf-8")


@app.command()
def demo(
    bundle: Annotated[str, typer.Argument(help="A bundle; empty: one is made of the demo study.")] = "",
    port: Annotated[int, typer.Option(min=0, help="0: any free one.")] = 8000,
    float32: Annotated[str, typer.Option(help="The model it was made of, to compare with.")] = "",
) -> None:
    """A bundle in the browser: serves its page on this machine and prints the address (needs npm once).

    Example: edgemin demo sentiment --port 8080"""
    from edgemin_utils.browser.demo import serve_demo

    serve_demo(bundle or None, port, float32 or None)


@app.command()
def settings(profile: Base = "demo") -> None:
    """Every setting: its value in a profile, its unit and its meaning.

    Example: edgemin settings --profile laptop"""
    values, rows = load_settings(profile), []
    for name, item in setting_fields().items():
        value, choices = getattr(values, name), ", ".join(item.metadata["choices"])
        text = ",".join(map(str, value)) if isinstance(value, list) else "none" if value is None else value
        meaning = item.metadata["meaning"] + (f" ({choices})" if choices else "")
        rows.append((name, text, item.metadata["unit"], meaning))
    _print_table(["setting", f"value in {profile}", "unit", "meaning"], rows)


@app.command()
def models() -> None:
    """The language of model names, and every step with its settings.

    Example: edgemin run --models teacher,minilmv2,relation_heads=4,minilmv2+heads-0.4+onnx-int8"""
    print("A model's name says how it was made: steps joined by +, each with ,setting=value where it differs from the")
    print("profile. It begins with teacher or an objective; cuts and tuning follow; a scheme stands last.\n")
    rows = [
        *((EXAMPLES.get(name, name), one.kind, one.meaning, one.demands, one.own) for name, one in METHODS.items()),
        ("assistant-OBJECTIVE", "distillation", "a teacher assistant, of a size between teacher and student"),
        ("OBJECTIVE-by-assistant", "distillation", "a student that learns from it"),
    ]
    _print_table(["step", "kind", "what it does", "demands", "its own settings"], rows)
    _print_table(["list", "models that it stands for"], list(LISTS.items()))


def _chains(more: More, profile: str, tasks: str, seeds: str, output_dir: str, replace: bool = False) -> list[Chain]:
    names, numbers = [item.strip() for item in tasks.split(",") if item.strip()], _numbers("--seeds", seeds or "0")
    return open_chains(profile, names, numbers, read_overrides(more.args), output_dir, replace)


def _numbers(option: str, text: str, least: int = 0) -> list[int]:
    numbers = [int(item) if item.strip().isdecimal() else -1 for item in text.split(",")]
    if min(numbers) < least:
        raise SettingError(f"{option} is {text!r}; give whole numbers from {least} on, joined by commas, as in 1,2")
    return numbers


def _existing_study(profile: str, output_dir: str) -> Path:
    study = study_folder(output_dir, load_settings(profile).profile)
    if not study.is_dir():
        raise StageError(f"{study} is not there; `edgemin run` makes it, or name another one with --output-dir")
    return study


def _show_results(study: Path, draw: bool) -> None:
    from edgemin_utils.results.tables import terminal_table  # imports pandas

    page = study / "report" / "report.html"
    if draw or not page.is_file():
        from edgemin_utils.report import write_report  # imports matplotlib

        write_report(study)
    print(f"{terminal_table(study)}\nreport: {page}")


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(*(Column(title, overflow="fold") for title in titles), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(" ".join(cell) if isinstance(cell, list | tuple) else str(cell)) for cell in row))
    # Without a terminal (a pipe, a log) rich would fold tables to 80 columns.
    Console(width=None if Console().is_terminal else 160).print(table)
