"""The one table of a study, and beside it all predictions and raw times: read from records or a published folder."""

import functools
import hashlib
import itertools
import json
import shlex
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from pandas.io.formats.style import Styler

from edgemin_utils.errors import StageError
from edgemin_utils.study import COSTS, Record, find_records, new_folder

RESULTS, PREDICTIONS, TIMES = "results.csv", "predictions.parquet", "times.parquet"
# Numbers from f1 to seconds are averaged over seeds by `comparisons.summary`; what a table shows is in tables.toml.
COLUMNS = """task seed model kind split refused rows correct accuracy f1 matthews holdout parameters parameters_listed
    parameters_paper bytes macs_32 macs_128 ms_32 ms_128 ms_rows ms_32_all ms_128_all ms_rows_all memory_bytes seconds
    noisy timed_as profile synthetic""".split()
INPUTS = {"1x32": "32", "1x128": "128", "dev rows": "rows"}
MOST_RUNS = 3000  # of a process are published
LAYOUT = tomllib.loads((Path(__file__).parent / "tables.toml").read_text(encoding="utf-8"))
_TEXTS = "task model kind split refused timed_as profile".split()
_SIZES = {"parameters": "stored_weights", "parameters_listed": "framework_parameters"}
_SIZES |= {"parameters_paper": "paper_parameters", "bytes": "file_bytes"}


@dataclass(frozen=True, eq=False)
class Frames:
    """A study's folder and its frames, as `read_results` and `read_frames` give them; times are of models as timed."""

    results: pd.DataFrame
    predictions: pd.DataFrame
    times: pd.DataFrame
    study: Path

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return self.results["task"].unique().tolist()

    def models(self, task: str) -> list[str]:
        """Names of a task's models, in the study's order."""
        return self.results.query("task == @task")["model"].unique().tolist()

    def splits(self, task: str) -> list[str]:
        """Dev splits of a task, the one that counts first."""
        return self.results.query("task == @task and rows > 0")["split"].unique().tolist() or [""]

    def label(self, task: str, split: str = "") -> str:
        """What a task and split are called in tables and captions; synthetic rows are named as such."""
        splits, rows = self.splits(task), self.results["task"] == task
        text = f"{task} {split or splits[0]}" if len(splits) > 1 else task
        return f"{text} (synthetic)" if self.results.loc[rows, "synthetic"].any() else text

    @functools.cached_property
    def _right(self) -> dict[tuple[str, str, str], dict[int, np.ndarray]]:
        """(task, split, model) -> seed -> bool (rows,)."""
        found, rows = dict[Any, dict[int, np.ndarray]](), self.predictions.sort_values("row", kind="stable")
        for (*place, seed), own in rows.groupby(["task", "split", "model", "seed"], observed=True):
            found.setdefault(tuple(place), {})[int(seed)] = (own["label"] == own["prediction"]).to_numpy()
        return found

    def right_rows(self, task: str, split: str, *models: str) -> list[np.ndarray]:
        """Of each model bool (seeds, rows), right or not, over the seeds that have all of them; perhaps empty."""
        of = [self._right.get((task, split, model), {}) for model in models]
        seeds = [seed for seed in of[0] if all(seed in each for each in of)]
        if not seeds or len({len(each[seed]) for each in of for seed in seeds}) > 1:
            return []
        return [np.stack([each[seed] for seed in seeds]) for each in of]

    @functools.cached_property
    def medians(self) -> dict[tuple[str, int, str], np.ndarray]:
        """(task, seed, timed model) -> median milliseconds at 1x128, one thread (processes,)."""
        times, place = self.times.query("input == '1x128' and threads == 1"), ["task", "seed", "model"]
        medians = times.groupby([*place, "process"], observed=True)["nanoseconds"].median() / 1e6
        return {each: own.to_numpy() for each, own in medians.groupby(level=place, observed=True)}


def read_frames(study: Path | str) -> Frames:
    """All three frames of a study's folder or of a published one; raises as `read_results`."""
    predictions = _read_parts(study, PREDICTIONS, "task seed split row label model prediction".split())
    times = _read_parts(study, TIMES, "task seed model input threads process run nanoseconds".split())
    return Frames(read_results(study), predictions, times, Path(study))


def read_results(study: Path | str) -> pd.DataFrame:
    """The table, with the columns `COLUMNS`: parameters counts all weights, _listed what the framework lists, _paper
    what the paper would; bytes are without the tokenizer; macs of one row; ms medians over fresh processes, one thread
    (_all: all cores; _rows: dev rows). A refused model has one row. Raises StageError where there are no results."""
    if (path := Path(study) / RESULTS).is_file():
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_TEXTS, str))
    else:
        frame = pd.DataFrame([row for records in _chains(study) for row in _rows_of_chain(records)])
        frame = frame if frame.empty else frame.assign(correct=(frame["accuracy"] * frame["rows"]).round())
    if frame.empty:
        raise StageError(f"{study} holds no model's record; `edgemin run` makes them, or name another folder")
    texts = frame.reindex(columns=_TEXTS).astype(object)
    return frame.reindex(columns=COLUMNS).assign(**texts.where(texts.notna(), ""))


def _chains(study: Path | str) -> list[list[Record]]:
    """Of each chain: teacher, student without distillation, then each student and what was made of it."""
    first = {"teacher": "", "none": " "}  # sort before all other names
    chains = itertools.groupby(find_records(Path(study)), key=lambda record: (record.task, record.seed))
    return [sorted(own, key=lambda it: [first.get(step, step) for step in it.model.split("+")]) for _, own in chains]


def _rows_of_chain(records: Sequence[Record]) -> list[dict[str, Any]]:
    costs: dict[str, Any] = next((record.results for record in records if record.kind == COSTS), {})
    models = [record for record in records if record.kind not in (COSTS, "scan")]
    split = next((next(iter(record.results["metrics"])) for record in models if not record.refused), "")
    found, nothing = list[dict[str, Any]](), {split: {"rows": 0}}
    for record in models:
        results, size = record.results, record.results.get("size") or {}
        row = {name: getattr(record, name) for name in "task seed model kind profile seconds refused".split()}
        row |= {name: size.get(of) for name, of in _SIZES.items()}
        row |= {f"macs_{INPUTS[name]}": each["macs"] for name, each in (results.get("operations") or {}).items()}
        row["synthetic"] = str((results.get("data") or {}).get("source", "")).startswith("synthetic")
        row |= _costs_of(record.model, costs)
        row["holdout"] = ((results.get("training") or {}).get("evaluations") or [{}])[-1].get("accuracy", np.nan)
        for split, numbers in (nothing if record.refused else results["metrics"]).items():
            found.append(row | {"split": split, **numbers, "matthews": numbers.get("matthews_correlation")})
    return found


def _costs_of(model: str, costs: dict[str, Any]) -> dict[str, Any]:
    latency = pd.DataFrame([row for row in costs.get("latency", ()) if row["model"] == model])
    memory = [row["peak_bytes"] for row in costs.get("memory", ()) if row["model"] == model]
    found: dict[str, Any] = {"memory_bytes": float(np.median(memory)) if memory else None, "noisy": False}
    if len(latency):
        found |= {"noisy": bool(latency["noisy"].any()), "timed_as": latency["timed_as"].iloc[0]}
        medians = latency[latency["input"].isin(INPUTS)].groupby(["input", "threads"])["median_ms"].median()
        found |= {f"ms_{INPUTS[name]}{'' if threads == 1 else '_all'}": ms for (name, threads), ms in medians.items()}
    return found


def _read_parts(study: Path | str, file: str, columns: list[str]) -> pd.DataFrame:
    """A published parquet file, or those of all records joined; texts as categories, for there are millions of rows."""
    if (path := Path(study) / file).is_file():
        frame = pd.read_parquet(path)
    else:
        parts = list[pd.DataFrame]()
        for record in (each for chain in _chains(study) for each in chain if (each.folder / file).is_file()):
            own = {"task": record.task, "seed": record.seed} | ({} if record.kind == COSTS else {"model": record.model})
            parts.append(pd.read_parquet(record.folder / file).assign(**own))
        frame = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
    kinds = dict.fromkeys("task model split input".split(), "category") | {"label": "uint8", "prediction": "uint8"}
    kinds |= {"seed": "int32", "row": "int32", "threads": "int16", "process": "int16", "run": "int32"}
    return frame.astype({name: kind for name, kind in kinds.items() if name in frame})


def publish(study: Path | str, destination: Path | str, draw: Callable[[Frames, Path], None]) -> Path:
    """Writes a study's published folder: frames, what `draw` makes of them, one chain's notebooks and a README. What
    the folder holds of others stays. Raises StageError where it is no publication, or lies in the study or around it,
    or code was not committed."""
    study, destination = Path(study).resolve(), Path(destination).resolve()
    if study.is_relative_to(destination) or destination.is_relative_to(study):
        raise StageError(f"{study} cannot be published to {destination}, one lies in the other; name another folder")
    frames, records = read_frames(study), find_records(study)
    revisions = {str(record.environment.get("git_revision")) for record in records}
    if bad := [revision for revision in revisions if revision == "None" or "dirty" in revision]:
        raise StageError(f"records of {study} are of revision {', '.join(bad)}; commit, make them again, then publish")
    there = all((destination / name).is_file() for name in (RESULTS, PREDICTIONS, TIMES, "README.md"))
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir()) and not there):
        raise StageError(f"{destination} holds something that is no publication; name another folder")
    with new_folder(destination) as copy:
        text = _describe(study, records)
        if there:
            shutil.copytree(destination, copy, dirs_exist_ok=True)
            frames, before = _with_others(frames, read_frames(destination)), (copy / "README.md").read_text("utf-8")
            if before.partition("## Made by")[2].partition("## ")[0] not in text:  # rows that stay are of its commands
                with (copy / "README-before.md").open("a", encoding="utf-8") as file:
                    file.write(before)
        frames.results.to_csv(copy / RESULTS, index=False, float_format="%.8g", lineterminator="\n")
        _write_parquet(frames.predictions.sort_values("task split model seed row".split()), copy / PREDICTIONS)
        _write_parquet(frames.times[frames.times["run"] < MOST_RUNS], copy / TIMES)
        draw(read_frames(copy), copy)
        for drawing in copy.rglob("*.svg"):  # each is there as a png too
            drawing.unlink()
        _copy_notebooks(study, copy)
        for path in study.glob("paper.json"):
            shutil.copy(path, copy)
        (copy / "README.md").write_text(text, encoding="utf-8")
    return destination


def _with_others(newer: Frames, older: Frames) -> Frames:
    """The newer frames, behind what the older ones hold of other tasks and seeds, and of other models of the same
    teacher, known by its answers to the dev rows."""
    chains, joined = set(zip(newer.results["task"], newer.results["seed"], strict=True)), dict[str, Any]()
    teachers = [it.predictions.query("model == 'teacher'").sort_values(["split", "row"]) for it in (newer, older)]
    groups = (rows.groupby(["task", "seed"], observed=True)["prediction"] for rows in teachers)
    ours, theirs = (answers.agg(bytes).to_dict() for answers in groups)
    same = {chain for chain in chains if ours.get(chain) == theirs.get(chain, "")}
    for name in ("results", "predictions", "times"):
        rows, more = getattr(older, name), getattr(newer, name)
        made, places = (list(zip(each["task"], each["seed"], each["model"], strict=True)) for each in (more, rows))
        new = set(made)
        kept = [place[:2] not in chains or (place[:2] in same and place not in new) for place in places]
        joined[name] = pd.concat([rows[kept], more], ignore_index=True)
    return replace(newer, **joined)


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    numbers = {name: "DELTA_BINARY_PACKED" for name in ("row", "run") if name in frame}
    texts = [name for name in frame if name not in numbers and name != "nanoseconds"]
    frame.to_parquet(path, index=False, compression="zstd", use_dictionary=texts, column_encoding=numbers)


def _copy_notebooks(study: Path, copy: Path) -> None:
    """Executed notebooks of the study and of its first chain, without names of folders of one's own."""
    asked = [json.loads(path.read_text(encoding="utf-8"))["overrides"] for path in study.glob("*/seed-*/chain.json")]
    named = [Path(str(value)) for overrides in asked for value in overrides.values()]
    own = [path for path in (study, Path.cwd(), Path.home(), *named) if path.is_absolute() and len(path.parts) > 1]
    (copy / "notebooks").mkdir(exist_ok=True)
    for folder in [*sorted(study.glob("*/seed-*/notebooks"))[:1], study / "notebooks"]:
        for path in folder.glob("*.ipynb"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if "edgemin" not in content["metadata"]:  # it failed
                continue
            content["metadata"].pop("papermill", None)  # names the folder that the notebook was taken from
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            for path_of_own in sorted(own, key=lambda each: len(str(each)), reverse=True):
                text = text.replace(str(path_of_own), path_of_own.name)
            (copy / "notebooks" / path.name).write_text(text, encoding="utf-8")


def _describe(study: Path, records: Sequence[Record]) -> str:
    commands, machines = dict[str, list[str]](), dict[str, list[str]]()
    for path in sorted(study.glob("*/seed-*/chain.json")):
        asked, task, seed = json.loads(path.read_text(encoding="utf-8")), path.parts[-3], path.parts[-2]
        words = ["edgemin", "run", "--profile", asked["profile"], "--tasks", task]
        for name, value in asked["overrides"].items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += ["--set", f"{name}={Path(text).name if Path(text).is_absolute() else text}"]
        commands.setdefault(shlex.join(words), []).append(seed.removeprefix("seed-"))
    for record in records:
        own = {name: value for name, value in record.environment.items() if name not in ("torch_threads", "gpu")}
        machines.setdefault(json.dumps(own), []).append(f"{record.task} seed {record.seed}")
    about = {"study": study.name, "runs": MOST_RUNS, "commands": commands}
    about |= {"machines": [(json.loads(own), places) for own, places in machines.items()]}
    seconds = pd.DataFrame(map(vars, records)).pivot_table("seconds", "kind", "task", "sum", sort=False).round(0)
    text = (Path(__file__).parent / "published.md").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template.render(**about, seconds=seconds.to_markdown())


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` as text cells: units in headers, intervals in brackets, blanks for what is missing, no empty columns."""
    shown = dict[str, list[str]]()
    for name in map(str, frame):
        if name.endswith(("_low", "_high")) or frame[name].isna().all() or (frame[name] == "").all():
            continue
        header, form, factor = LAYOUT["columns"].get(name, (name.replace("_", " ").capitalize(), ",.2f", 1.0))
        columns = [name, *(end for end in (f"{name}_low", f"{name}_high") if end in frame)]
        shown[header] = [_cell(row, form, factor) for row in frame[columns].itertuples(index=False)]
    return pd.DataFrame(shown, dtype=object)


def as_text(frame: pd.DataFrame) -> str:
    """A readable table for a terminal."""
    return readable(frame).to_markdown(index=False, disable_numparse=True, tablefmt="simple")


def _cell(values: tuple[Any, ...], form: str, factor: float) -> str:
    if isinstance(values[0], str):
        return values[0]
    form = ",.0f" if isinstance(values[0], int | np.integer) and factor == 1 else form
    texts = [format(factor * value, form) for value in values if not pd.isna(value)]
    texts = [text if text.strip("+-0.,") else text.lstrip("+-") for text in texts]  # a zero has no sign
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else "".join(texts[:1])


def show(frame: pd.DataFrame) -> Styler:
    """A table for a notebook."""
    cells = readable(frame)
    # Styles are tied to cells by this name: two tables on one page must not share it, the same table must keep it.
    name = hashlib.sha256(cells.to_csv().encode()).hexdigest()[:10]
    look = "text-align: {}; white-space: nowrap"
    looks = {header: [{"selector": "", "props": look.format(_side(cells[header]))}] for header in cells}
    return cells.style.hide(axis="index").format(escape="html").set_uuid(name).set_table_styles(looks)


def _side(texts: pd.Series) -> str:
    return "right" if all(text[:1] in "+-0123456789" for text in texts) else "left"


def write_table(frame: pd.DataFrame, folder: Path, name: str, title: str) -> list[Path]:
    """One table as csv (all digits), md and tex (package booktabs); returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    cells, paths = readable(frame), [folder / f"{name}.{kind}" for kind in ("csv", "md", "tex")]
    frame.to_csv(paths[0], index=False, float_format="%.6g", lineterminator="\n")
    sides, piped = [_side(cells[header]) for header in cells], cells.map(lambda cell: cell.replace("|", r"\|"))
    text = piped.to_markdown(index=False, disable_numparse=True, colalign=sides)
    paths[1].write_text(f"## {title}\n\n{text}\n", encoding="utf-8")
    style = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    layout = "".join(side[0] for side in sides)
    style.to_latex(paths[2], caption=title, column_format=layout, hrules=True, encoding="utf-8")
    return paths
