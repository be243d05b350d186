"""`python -m edgemin_utils.paper`: derives, measures and prints the paper's numbers; `make paper-numbers` runs it."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from edgemin_utils.config import project_folder
from edgemin_utils.errors import EdgeMINError, SettingError
from edgemin_utils.measurement.latency import PROTOCOLS
from edgemin_utils.paper.architectures import build_models
from edgemin_utils.paper.results import (
    accuracy_record,
    claims_table,
    count_record,
    honest_table,
    interaction_sentence,
    publish,
    read_record,
    reference_folder,
    repeatability_table,
    results_folder,
    write_record,
    write_results,
)
from edgemin_utils.paper.timing import measure_paper
from edgemin_utils.progress import duration
from edgemin_utils.tables import Table, readable

# How the columns of the claims share a terminal's width.
_RATIOS = {"number": 2, "claim": 6, "counted": 8, "ours": 10, "paper": 8, "honest": 8, "verdict": 5, "function": 8}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status: 0 all well, 2 something asked for cannot be (an EdgeMINError
    is printed as one line, as the SettingError of a number of runs under 1)."""
    options = _parser().parse_args(arguments)
    folder = Path(options.output_dir).expanduser() if options.output_dir else results_folder()
    try:
        if options.repeat < 1:
            raise SettingError(f"--repeat is {options.repeat}; latency is measured at least once")
        if options.publish:
            publish(folder, reference_folder(), project_folder() / "README.md")
            print(f"reference results: {reference_folder()}; claims written into README.md")
        else:
            _run(folder, options)
    except EdgeMINError as error:
        print(f"paper numbers: {error}", file=sys.stderr)
        return 2
    return 0


def _run(folder: Path, options: argparse.Namespace) -> None:
    console, started = Console(), time.monotonic()
    console = console if console.is_terminal else Console(width=160)
    say = _sayer(started)
    say("building the paper's models")
    models = build_models()
    say("parameters, files, operations")
    record = count_record(models)
    studies = [Path(place) for place in options.studies] if options.studies else _studies_at_hand()
    record |= accuracy_record(studies)
    if options.keep_timing:
        former = read_record(folder)
        record |= {"environment": former["environment"], "timing": former["timing"]}
    elif not options.counts_only:
        record["timing"] = measure_paper(
            models, PROTOCOLS["quick" if options.quick else "full"], say, repeats=options.repeat
        )
    write_record(record, folder)
    write_results(record, folder)
    shown, timing = [claims_table(record), honest_table(record)], record["timing"]
    shown += [repeatability_table(record)] if timing and timing["repeated"] else []
    for table in shown:
        console.print(_rich(table))
        more = [interaction_sentence(record)] if timing and table.name == "claims" else []
        for note in (*table.notes, *more):
            console.print(f"- {note}", highlight=False, markup=False)
    console.print(f"record, tables and figures: {folder} ({duration(time.monotonic() - started)})", highlight=False)


def _studies_at_hand() -> list[Path]:
    """The reference study on real rows: of the paper's own models if there is one, else the laptop's."""
    reference = project_folder() / "outputs" / "reference"
    return [reference / name for name in ("paper", "laptop") if (reference / name).is_dir()][:1]


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, show_lines=table.name in ("claims", "honest"), expand=True)
    frame = readable(table.frame)
    for name, title in zip(table.frame.columns, frame.columns, strict=True):
        shown.add_column(title, overflow="fold", ratio=_RATIOS.get(name, 4))
    for row in frame.to_numpy().tolist():
        shown.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    return shown


def _sayer(started: float) -> Callable[[str], None]:
    return lambda text: print(f"[{time.monotonic() - started:4.0f} s] {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgemin_utils.paper",
        description="The paper's numbers, derived, measured and held against its claims.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few runs: a look, marked as such (default: the full protocol)"
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="measure latency N times and set every ratio of the runs side by side (default: once)",
    )
    parser.add_argument("--counts-only", action="store_true", help="only what needs no clock (default: measure too)")
    parser.add_argument(
        "--keep-timing",
        action="store_true",
        help="take what was measured from the record that is "
        "there, and only count and read studies anew (default: measure too)",
    )
    parser.add_argument(
        "--studies", nargs="+", metavar="DIR", help="studies whose accuracy is read (default: the reference study)"
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="where record, tables and figures go (default: outputs/paper-numbers in the project's folder)",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="copy the finished folder to outputs/reference and write the claims into the README's marked place",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
