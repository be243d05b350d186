"""Reference results: a finished study without its weights, small enough to live in the repository.

What is kept has the study's own layout, so that `edgemin report --output-dir outputs/reference/<name>` draws the same
tables and figures again. The README's numbers are written from it into marked places.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from edgemin_utils import tables
from edgemin_utils.atomic_folders import partial_folder, replace_folder, storage_errors
from edgemin_utils.config import project_folder
from edgemin_utils.errors import EdgeMINError, StageError
from edgemin_utils.paths import MODEL_SETTINGS, PATH_SETTINGS
from edgemin_utils.progress import duration
from edgemin_utils.records import CHAIN_FILE, RECORD_FILE, Record, find_records, open_chain, read_chain_file
from edgemin_utils.report import REPORT_FILE, executed_analysis, html_report, report_folder, write_report
from edgemin_utils.tables.contents import MAIN_TABLE

# Of a record's folder; predictions are kept too, without their logits.
KEPT_FILES = (RECORD_FILE, "latency.npz")
PREDICTION_COLUMNS = ["row", "label", "prediction"]
KEPT_REPORT = ("tables", "figures")
# What stands in published commands and notebooks for a path of one's own, and which settings have an option each.
OWN_PATHS = {name: name.upper() for name in PATH_SETTINGS} | {name: f"{name.upper()}_DIR" for name in MODEL_SETTINGS}
_OPTIONS = ("data_dir", "task_file", "dev_file", "teacher", "student")
# A given path says where rows come from.
_SAID_BY = {"folder": "data_dir", "file": "task_file"}


def publish_study(study: Path, destination: Path, pages: bool = True) -> Path:
    """Copies a study's records, predictions (no logits), tables and figures to `destination`, anew.

    Where notebooks were executed, those of one chain go along with `pages`, and the analysis as the HTML report that is
    made of it; folders of one's own are not named in them. The destination's README.md says which commands made the
    study, on which machine, and how long each stage took. The destination changes once everything is written.

    Raises:
        StageError: the study holds no record or a damaged chain.json, or one of the two folders lies in the other.
    """
    study, destination = Path(study), Path(destination)
    refuse_overlap(study, destination)
    records = find_records(study)
    if not records:
        raise StageError(f"{study} holds no records; run the study first")
    write_report(study)
    with storage_errors(destination), partial_folder(destination) as partial:
        copy = partial / destination.name  # the report is titled by its study's folder
        _copy_study(study, records, copy, pages)
        replace_folder(copy, destination)
    return destination


def refuse_overlap(source: Path, destination: Path) -> None:
    """Raises StageError where one folder is the other or lies in it: publishing replaces the destination."""
    first, second = Path(source).resolve(), Path(destination).resolve()
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise StageError(
            f"{source} cannot be published to {destination}: what is there is replaced, and one lies in the other; "
            "name the folder of the run with --output-dir"
        )


def _copy_study(study: Path, records: Sequence[Record], destination: Path, pages: bool) -> None:
    """What is published of a study, in an empty folder."""
    for record in records:
        _copy_record(record, destination / record.folder.relative_to(study))
    for name in KEPT_REPORT:
        shutil.copytree(report_folder(study) / name, destination / "report" / name)
    if pages:
        _copy_pages(study, destination)
    kept = "Records, predictions without logits, tables and figures"
    if any((record.folder / "latency.npz").is_file() for record in records):
        kept += ", raw latencies"
    if (destination / "report" / REPORT_FILE).is_file():
        kept += ", the report as one page, executed notebooks of one chain"
    (destination / "README.md").write_text(_describe(study, records, kept), encoding="utf-8")


def _copy_pages(study: Path, destination: Path) -> None:
    """The executed notebooks of one chain, and the report made of the analysis, where there are any."""
    chapters, last = _notebooks_of_one_chain(study), executed_analysis(study)
    page = report_folder(study) / REPORT_FILE
    for notebook in chapters:
        copy, links = destination / notebook.relative_to(study), {last.name: os.path.relpath(page, notebook.parent)}
        _copy_notebook(notebook, copy, study, destination, links if last.is_file() else {})
    if last.is_file():
        links = {chapter.name: os.path.relpath(chapter, page.parent) for chapter in chapters}
        with tempfile.TemporaryDirectory() as folder:
            _copy_notebook(last, Path(folder) / last.name, study, destination, links)
            html_report(destination, Path(folder) / last.name)


def _notebooks_of_one_chain(study: Path) -> list[Path]:
    """The executed notebooks of the first chain that has them, in order."""
    of_chains = sorted({path.parent for path in study.glob("*/seed-*/notebooks/*.ipynb")})
    return sorted(of_chains[0].glob("*.ipynb")) if of_chains else []


def _copy_notebook(notebook: Path, copy: Path, study: Path, destination: Path, links: Mapping[str, str]) -> None:
    """Copies an executed notebook, with words in place of folders of one's own; `links`: where a link to another
    chapter, by its file's name, leads from here."""
    text = notebook.read_text(encoding="utf-8")
    for name, target in links.items():
        text = text.replace(f"]({name})", f"]({target})")
    for folder, words in sorted(_own_folders(study, destination).items(), key=lambda item: -len(item[0])):
        text = text.replace(json.dumps(folder)[1:-1], words)
    content = json.loads(text)
    content["metadata"].pop("papermill", None)  # it names the folder that the notebook was taken from
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text, encoding="utf-8")


def _own_folders(study: Path, destination: Path) -> dict[str, str]:
    """Absolute folder -> what stands for it in what is published."""
    found = {str(Path(study).absolute()): f"outputs/{destination.name}", str(project_folder()): "."}
    for path in Path(study).glob(f"*/seed-*/{CHAIN_FILE}"):
        overrides = read_chain_file(path.parent)["overrides"]
        found |= {
            str(overrides[name]): words
            for name, words in OWN_PATHS.items()
            if Path(str(overrides.get(name, ""))).is_absolute()
        }
    return found


def chain_commands(folders: Sequence[Path]) -> list[str]:
    """The commands that make chains, one for all seeds of a task that were last run with the same settings; folders
    of one's own stand there as DATA_DIR and so on."""
    seeds = dict[tuple[str, ...], list[str]]()
    for folder in folders:
        asked = read_chain_file(folder)
        alike = asked["profile"], folder.parent.name, *_setting_words(asked["overrides"])
        seeds.setdefault(alike, []).append(folder.name.removeprefix("seed-"))
    return [
        shlex.join(["edgemin", "run", "--profile", profile, "--tasks", task, "--seeds", *numbers, *words])
        for (profile, task, *words), numbers in seeds.items()
    ]


def _setting_words(overrides: Mapping[str, Any]) -> list[str]:
    """What differs from a profile, as words of the command line."""
    words = []
    for name, value in overrides.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if name in OWN_PATHS and Path(text).is_absolute():
            text = OWN_PATHS[name]
        if name in _OPTIONS:
            words += [f"--{name.replace('_', '-')}", text]
        elif name != "data_source" or _SAID_BY.get(text) not in overrides:
            words += ["--set", f"{name}={text}"]
    return words


def _copy_record(record: Record, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in KEPT_FILES:
        if (record.folder / name).is_file():
            shutil.copyfile(record.folder / name, folder / name)
    for path in sorted(record.folder.glob("predictions-*.csv")):
        pd.read_csv(path, usecols=PREDICTION_COLUMNS).to_csv(folder / path.name, index=False)


def _describe(study: Path, records: Sequence[Record], kept: str) -> str:
    """README.md of a published study; `kept` says what was copied."""
    chains = sorted(Path(study).glob(f"*/seed-*/{CHAIN_FILE}"))
    commands = chain_commands([path.parent for path in chains])
    rows = pd.DataFrame(
        [
            {
                "task": record.task,
                "seed": record.seed,
                "stage": record.key,
                "took": duration(record.content["wall_seconds"]),
                "finished": record.content["finished"],
            }
            for record in records
        ]
    )
    total = duration(sum(record.content["wall_seconds"] for record in records))
    return (
        "\n\n".join(
            [
                f"# Reference results: {study.name}",
                "Made by",
                "\n".join(f"    {command}" for command in commands),
                *_machines(records),
                _revisions(records),
                *_checkpoint_names(chains),
                *_not_run(chains),
                f"{kept}; no weights. "
                f"`edgemin report --output-dir outputs/reference/{study.name}` draws the tables and figures again.",
                f"All stages together took {total} by the clock, whatever else the machines did.",
                rows.to_markdown(index=False),
            ]
        )
        + "\n"
    )


def _not_run(chains: Sequence[Path]) -> list[str]:
    """What the commands of chains (by their `chain.json`) make that is not on disk, as one sentence; none if all is."""
    parts = []
    for path in chains:
        try:
            run = open_chain(path.parent)
        except EdgeMINError:  # such as a file of one's own that is gone; the error names it, so it is not told here
            parts.append(f"{path.parent.parent.name}, {path.parent.name}: not known, its settings cannot be used here")
            continue
        if run is None:
            continue
        lacking = [key for key in run.plan if not (run.stage_folder(key) / RECORD_FILE).is_file()]
        if lacking:
            counted = Counter(run.stage(key).kind for key in lacking)
            stages = ", ".join(f"{kind} ({number})" for kind, number in counted.items())
            parts.append(f"{run.task}, seed-{run.seed}: {stages}")
    return [f"Stages of the commands that were not run: {'; '.join(parts)}."] if parts else []


def _checkpoint_names(chains: Sequence[Path]) -> list[str]:
    """What TEACHER_DIR and the like were: the folders' own names, which say which checkpoint it is."""
    names = dict[str, None]()
    for path in chains:
        overrides = read_chain_file(path.parent)["overrides"]
        for name in MODEL_SETTINGS:
            if Path(str(overrides.get(name, ""))).is_absolute():
                names[f"{OWN_PATHS[name]} was a folder with the checkpoint `{Path(overrides[name]).name}`."] = None
    return [" ".join(names)] if names else []


def _machines(records: Sequence[Record]) -> list[str]:
    """A paragraph a machine: what it is, which versions it had, and which chains it made."""
    chains = dict[str, dict[str, None]]()
    for record in records:
        environment = record.content["environment"]
        flags = ", ".join(name for name, there in environment["processor_flags"].items() if there)
        versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
        machine = (
            f"{environment['processor']} with {environment['available_cores']} cores ({flags}), "
            f"{environment['memory_bytes'] / 1e9:.0f} GB, {environment['operating_system']}, Python "
            f"{environment['python']}; {versions}."
        )
        chains.setdefault(machine, {})[f"{record.task} seed {record.seed}"] = None
    return [f"{', '.join(made)}: on {machine}" for machine, made in chains.items()]


def _revisions(records: Sequence[Record]) -> str:
    """The project's revisions that records were made with, as one sentence."""
    found = dict.fromkeys(str(record.content["environment"].get("git_revision") or "none") for record in records)
    short = ", ".join(revision[:7] + ("+dirty" if revision.endswith("+dirty") else "") for revision in found)
    return f"Revision{'s' if len(found) > 1 else ''} of the project: {short}."


def write_readme(readme: Path, reference: Path) -> Path:
    """Writes the reference study's main table and findings into the README's place `<!-- <name> results -->`.

    Raises:
        StageError: the README has no such place.
    """
    text = fill_marked_place(readme.read_text(encoding="utf-8"), results_place(reference), results_section(reference))
    readme.write_text(text, encoding="utf-8")
    return readme


def results_place(study: Path) -> str:
    """Name of the README's place for a study's results."""
    return f"{study.name} results"


def results_section(study: Path) -> str:
    """The study at a glance, the main table, what the comparisons of methods say and, where there is a choice, the
    models for a budget, as Markdown for the README. Notes that stand under one of the tables are not repeated."""
    records = tables.read_study(study)
    said, parts = set[str](), list[str]()
    sentences = tables.method_findings(records)
    for table in (tables.overview_table(records), tables.main_table(records), tables.budget_table(records)):
        if len(table.frame):
            own = tuple(note for note in table.notes if note not in said)
            parts.append(tables.as_markdown(dataclasses.replace(table, notes=own)).rstrip())
            said.update(own)
        if table.name == MAIN_TABLE and sentences:
            parts += ["## Methods side by side", "\n".join(f"- {sentence}" for sentence in sentences)]
    return "\n\n".join(parts) + "\n"


def fill_marked_place(text: str, name: str, content: str) -> str:
    """`text` with `content` between the lines `<!-- name -->` and `<!-- end of name -->`, its headings one level under
    the heading that the place stands below.

    Raises:
        StageError: the text has no such place.
    """
    place = _marked_place(text, name)
    above = _HEADING.findall(text[: place.start()])
    filled = _headings_from(len(above[-1]) + 1 if above else 1, content.rstrip())
    return f"{text[: place.start(1)]}{place[1]}{filled}\n{place[2]}{text[place.end(2) :]}"


def require_marked_place(readme: Path, name: str) -> None:
    """Raises StageError if there is no such file, or it has no place of that name, see `fill_marked_place`."""
    if not readme.is_file():
        raise StageError(f"there is no {readme} to write numbers into; results are published from a checkout")
    _marked_place(readme.read_text(encoding="utf-8"), name)


_HEADING = re.compile(r"^#+(?= )", re.MULTILINE)


def _marked_place(text: str, name: str) -> re.Match[str]:
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    found = place.search(text)
    if found is None:
        raise StageError(f"there is no place marked <!-- {name} --> ... <!-- end of {name} -->")
    return found


def _headings_from(level: int, content: str) -> str:
    """Markdown with its headings moved so that the highest is of that level."""
    levels = [len(marks) for marks in _HEADING.findall(content)]
    return _HEADING.sub(lambda marks: "#" * (len(marks[0]) + level - min(levels)), content)
