"""The one table of a study: a row for each model, seed and dev split; beside it all predictions and all raw times, read
from a study's records, or from a published folder, which is small enough to live in a repository."""

import functools
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from edgemin_utils.errors import StageError
from edgemin_utils.study import COSTS, Record, find_records

RESULTS, PREDICTIONS, TIMES = "results.csv", "predictions.parquet", "times.parquet"
COLUMNS = """task seed model kind split refused rows correct accuracy f1 matthews parameters parameters_listed
    parameters_paper bytes macs_32 macs_128 ms_32 ms_128 ms_rows ms_32_all ms_128_all ms_rows_all memory_bytes seconds
    noisy timed_as profile synthetic""".split()
INPUTS = {"1x32": "32", "1x128": "128", "dev rows": "rows"}
MOST_BYTES, MOST_FILES, MOST_RUNS = 8_000_000, 60, 100
_TEXTS = "task model kind split refused timed_as profile".split()
_README = f"""# {{study}}: published results\n\nMade by\n\n{{commands}}\n
`{RESULTS}` is the one table, `{PREDICTIONS}` holds dev predictions, `{TIMES}` raw latencies (at most
{MOST_RUNS} a process). Tables and figures are drawn from the three; notebook 05 opens on this folder.
\n## Machines\n\n{{machines}}\n\n## Seconds by the clock, all seeds\n\n{{seconds}}\n"""


@dataclass(frozen=True, eq=False)
class Frames:
    """A study's folder and its frames: results (`read_results`), predictions (task, seed, split, row, label, model,
    prediction) and times (task, seed, model as timed, input, threads, process, run, nanoseconds)."""

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
    def medians(self) -> dict[tuple[str, int, str, str, int], np.ndarray]:
        """(task, seed, timed model, input, threads) -> median milliseconds (processes,); threads 0: all cores."""
        places = ["task", "seed", "model", "input", "threads"]
        medians = self.times.groupby([*places, "process"], observed=True)["nanoseconds"].median() / 1e6
        found = {place: each.to_numpy() for place, each in medians.groupby(level=places, observed=True)}
        return found | {(*place[:4], 0): each for place, each in found.items() if place[4] > 1}


def read_frames(study: Path | str) -> Frames:
    """All three frames of a study's folder or of a published one; raises as `read_results`."""
    predictions = _read_parts(study, PREDICTIONS, "task seed split row label model prediction".split())
    times = _read_parts(study, TIMES, "task seed model input threads process run nanoseconds".split())
    return Frames(read_results(study), predictions, times, Path(study))


def read_results(study: Path | str) -> pd.DataFrame:
    """The table, with the columns `COLUMNS`: accuracy and f1 are fractions; parameters counts all weights,
    parameters_listed what the framework lists, parameters_paper what the paper would have reported; bytes is the saved
    model without its tokenizer; macs are of one row of 32 or 128 tokens; ms are one thread's medians over fresh
    processes (`_all`: all cores; `_rows`: dev rows); memory_bytes is the peak of a fresh process. A refused model has
    one row, with the reason in `refused`. Raises StageError where there are neither records nor `results.csv`."""
    if (path := Path(study) / RESULTS).is_file():
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_TEXTS, str))
    else:
        frame = pd.DataFrame([row for records in _chains(study) for row in _rows_of_chain(records)])
    if frame.empty:
        raise StageError(f"{study} holds no model's record; `edgemin run` makes them, or name another folder")
    texts = frame.reindex(columns=_TEXTS).astype(object)
    return frame.reindex(columns=COLUMNS).assign(**texts.where(texts.notna(), ""))


def _rows_of_chain(records: Sequence[Record]) -> list[dict[str, Any]]:
    costs: dict[str, Any] = next((record.results for record in records if record.kind == COSTS), {})
    models = [record for record in records if record.kind not in (COSTS, "scan")]
    split = next((next(iter(record.results["metrics"])) for record in models if not record.refused), "")
    return [row for record in models for row in _rows(record, costs, split)]


def _chains(study: Path | str) -> list[list[Record]]:
    """Of each chain: teacher, student without distillation, then each student and what was made of it."""

    def order(record: Record) -> tuple[Any, ...]:
        parts = str(record.model).split("+")
        return (record.task, record.seed, parts[0] != "teacher", parts[0] != "none", parts)

    found = dict[tuple[str, int], list[Record]]()
    for record in sorted(find_records(Path(study)), key=order):
        found.setdefault((record.task, record.seed), []).append(record)
    return list(found.values())


def _rows(record: Record, costs: dict[str, Any], main_split: str) -> list[dict[str, Any]]:
    row = {name: getattr(record, name) for name in "task seed model kind profile seconds refused".split()}
    if record.refused:
        return [row | {"split": main_split, "rows": 0, "noisy": False, "synthetic": False}]
    results, size = record.results, record.results.get("size") or {}
    row |= {"parameters": size.get("stored_weights"), "parameters_listed": size.get("framework_parameters")}
    row |= {"parameters_paper": size.get("paper_parameters"), "bytes": size.get("file_bytes")}
    row |= {f"macs_{INPUTS[name]}": each["macs"] for name, each in (results.get("operations") or {}).items()}
    row |= _costs_of(record.model, costs)
    row["synthetic"] = str((results.get("data") or {}).get("source", "")).startswith("synthetic")
    return [
        row
        | {"split": split, "rows": numbers["rows"], "correct": round(numbers["accuracy"] * numbers["rows"])}
        | {"accuracy": numbers["accuracy"], "f1": numbers["f1"], "matthews": numbers["matthews_correlation"]}
        for split, numbers in results["metrics"].items()
    ]


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


def publish(study: Path | str, destination: Path | str) -> Path:
    """Writes a study's published folder: table, predictions, raw times, the report's tables and figures, executed
    notebooks of one chain, and a README with commands, revisions, machines and times. Raises StageError where there is
    no report yet, one folder lies in the other, code was not committed, or the folder would be too large."""
    study, destination = Path(study).resolve(), Path(destination).resolve()
    if study.is_relative_to(destination) or destination.is_relative_to(study):
        raise StageError(f"{study} cannot be published to {destination}, one lies in the other; name another folder")
    frames, records = read_frames(study), find_records(study)
    revisions = {str(record.environment.get("git_revision")) for record in records}
    if bad := [revision for revision in revisions if revision == "None" or "dirty" in revision]:
        raise StageError(f"records of {study} are of revision {', '.join(bad)}; commit, make them again, then publish")
    if not (study / "report" / "tables").is_dir():
        raise StageError(f"{study} has no tables and figures yet; run `edgemin report` first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".publish-") as place:
        copy = Path(place) / destination.name
        for name in ("tables", "figures"):
            shutil.copytree(study / "report" / name, copy / name, ignore=shutil.ignore_patterns("*.svg"))
        frames.results.to_csv(copy / RESULTS, index=False, float_format="%.8g", lineterminator="\n")
        order = ["task", "split", "model", "seed", "row"]
        _write_parquet(frames.predictions.sort_values(order, kind="stable"), copy / PREDICTIONS)
        _write_parquet(frames.times[frames.times["run"] < MOST_RUNS], copy / TIMES)
        _copy_notebooks(study, copy)
        (copy / "README.md").write_text(_describe(study, records), encoding="utf-8")
        files = [path for path in copy.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if len(files) > MOST_FILES or size > MOST_BYTES:
            raise StageError(f"{len(files)} files of {size:,} bytes: a published folder has at most {MOST_FILES}, 8 MB")
        if destination.exists():
            destination.rename(Path(place) / "old")
        copy.rename(destination)
    return destination


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    numbers = {name: "DELTA_BINARY_PACKED" for name in ("row", "run") if name in frame}
    texts = [name for name in frame if name not in numbers and name != "nanoseconds"]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, path, compression="zstd", use_dictionary=texts, column_encoding=numbers)


def _copy_notebooks(study: Path, copy: Path) -> None:
    """Executed notebooks of the study and of its first chain, and the paper's numbers, without folders of one's own."""
    asked = [str(it) for _, settings in _asked(study) for it in settings.values()]
    own = [path for path in (str(study), str(Path.cwd()), str(Path.home()), *asked) if len(Path(path).parts) > 1]
    own = sorted(filter(os.path.isabs, own), key=len, reverse=True)
    chains = sorted({path.parent for path in study.glob("*/seed-*/notebooks/*.ipynb")})[:1]
    for path in (path for place in [*chains, study / "notebooks"] for path in sorted(place.glob("*.ipynb"))):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["metadata"].pop("papermill", None)  # names the folder that the notebook was taken from
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for found in own:
            text = text.replace(found, Path(found).name)
        (copy / "notebooks").mkdir(exist_ok=True)
        (copy / "notebooks" / path.name).write_text(text, encoding="utf-8")
    if (study / "paper.json").is_file():
        shutil.copy(study / "paper.json", copy)


def _asked(study: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Each chain's folder with its profile and overrides."""
    found = {path.parent: json.loads(path.read_text("utf-8")) for path in sorted(study.glob("*/seed-*/chain.json"))}
    return [(folder, {"profile": asked["profile"], **asked["overrides"]}) for folder, asked in found.items()]


def _describe(study: Path, records: Sequence[Record]) -> str:
    commands, machines = dict[tuple[str, ...], list[str]](), dict[str, dict[str, None]]()
    for folder, asked in _asked(study):
        texts = {name: ",".join(map(str, it)) if isinstance(it, list) else str(it) for name, it in asked.items()}
        texts = {name: Path(text).name if Path(text).is_absolute() else text for name, text in texts.items()}
        words = [word for name, text in list(texts.items())[1:] for word in ("--set", f"{name}={text}")]
        first = ("edgemin", "run", "--profile", texts["profile"], "--tasks", folder.parent.name)
        commands.setdefault((*first, *words, "--seeds"), []).append(folder.name.removeprefix("seed-"))
    for record in records:
        own = record.environment
        packages = ", ".join(f"{name} {version}" for name, version in own["packages"].items() if version)
        flags = ", ".join(name for name, there in own["processor_flags"].items() if there) or "no flags of note"
        machine = f"revision {own['git_revision'][:10]}, {own['processor']} ({flags}), {own['available_cores']} cores, "
        machine += f"{own['memory_bytes'] / 1e9:.0f} GB, {own['operating_system']}, Python {own['python']}; {packages}"
        machines.setdefault(machine, {})[f"{record.task} seed {record.seed}"] = None
    spent = pd.DataFrame([{"task": each.task, "kind": each.kind, "seconds": each.seconds} for each in records])
    return _README.format(
        study=study.name,
        commands="\n".join(f"    {shlex.join([*words, *seeds])}" for words, seeds in commands.items()),
        machines="\n".join(f"- {', '.join(places)}: {machine}" for machine, places in machines.items()),
        seconds=spent.pivot_table("seconds", "kind", "task", "sum", sort=False).round(0).to_markdown(),
    )
