"""Which measured model to take under a budget of size, latency and accuracy, from a study's records alone."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from edgemin_utils.config import nearest
from edgemin_utils.errors import SettingError, StageError
from edgemin_utils.records import plain
from edgemin_utils.tables.contents import latency_note, noise_note, table_notes
from edgemin_utils.tables.layout import as_text, notes_as_text
from edgemin_utils.tables.recommended import as_shown, best_first, candidates, on_front, split_notes
from edgemin_utils.tables.summary import latencies
from edgemin_utils.tables.variants import StudyRecords, read_study

BUNDLES = "bundles"
_UNITS = {"megabytes": "MB", "milliseconds": "ms", "accuracy": "% accuracy"}


@dataclass(frozen=True)
class Budget:
    """Limits, each of which may be left out: size of the saved file in MB (10^6 bytes), median latency in ms, dev
    accuracy in %.

    Raises:
        SettingError: a limit is not over 0, or an accuracy is no percentage: over 100, or 1 and less, as shares are.
    """

    megabytes: float | None = None
    milliseconds: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if not 0 < limit < math.inf:
                raise SettingError(f"a limit of {limit:g} {_UNITS[name]} cannot be met; give a number over 0")
        if self.accuracy is not None and not 1 < self.accuracy <= 100:
            raise SettingError(f"accuracy is asked for in percent, as in 85, not {self.accuracy:g}")

    @property
    def limits(self) -> dict[str, float]:
        """Quantity -> limit, of those that were given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Miss:
    """A limit that a model does not keep: by how much in the quantity's own unit (infinite where it was not measured),
    and as a share of the limit."""

    quantity: str
    limit: float
    by: float

    @property
    def share(self) -> float:
        """How much is missed, as a share of the limit."""
        return self.by / self.limit


@dataclass(frozen=True)
class Choice:
    """What a budget leaves of a task's candidates.

    Attributes:
        front: those that keep every limit and are on their Pareto front, best accuracy first.
        fitting: how many keep every limit, front or not.
        nearest: the row that comes nearest, where none fits; None where some fit or none can be placed.
        misses: what that row misses.
    """

    front: pd.DataFrame
    fitting: int
    nearest: Mapping[str, Any] | None = None
    misses: tuple[Miss, ...] = ()


def missed_limits(row: Mapping[str, Any], budget: Budget) -> tuple[Miss, ...]:
    """The limits of a budget that a model does not keep; what was not measured does not keep its limit."""
    found = []
    for name, limit in budget.limits.items():
        over = limit - row[name] if name == "accuracy" else row[name] - limit
        if math.isnan(over):
            found.append(Miss(name, limit, math.inf))
        elif over > 0:
            found.append(Miss(name, limit, float(over)))
    return tuple(found)


def distance(misses: tuple[Miss, ...]) -> float:
    """How far a model lies outside a budget: the Euclidean norm of what it misses, each as a share of its limit."""
    return math.hypot(*(miss.share for miss in misses))


def choose(rows: pd.DataFrame, budget: Budget) -> Choice:
    """The best candidates of one task under a budget, and where nothing fits, what comes nearest.

    Args:
        rows: `tables.candidates` of one task.
    """
    misses = [missed_limits(row, budget) for row in rows.to_dict("records")]
    fitting = rows[[not missed for missed in misses]]
    if len(fitting):
        return Choice(best_first(fitting[on_front(fitting)]), len(fitting))
    by_distance = best_first(rows.assign(misses=misses, distance=[distance(missed) for missed in misses]))
    placed = by_distance[by_distance["distance"] < math.inf].sort_values("distance", kind="stable")
    if placed.empty:
        return Choice(fitting, 0)
    row = placed.iloc[0].to_dict()
    return Choice(fitting, 0, row, row.pop("misses"))


def bundle_command(study: Path, row: Mapping[str, Any]) -> str:
    """The command that builds a candidate's bundle, see `tables.recommended.bundle_stage`; with 4 bits where the
    candidate's scheme has them."""
    folder, bits = Path(row["bundle_from"]), _four_bit_options(row["key"])
    return shlex.join(
        [
            "edgemin",
            "bundle",
            str(study / folder),
            "--output",
            f"{BUNDLES}/{folder.parts[0]}-{folder.parts[-1]}{'-int4' if bits else ''}",
            *bits,
        ]
    )


def _four_bit_options(key: str) -> list[str]:
    """Of a stage's key: the options of `edgemin bundle` that store what its scheme stores in 4 bits."""
    scheme = key.rsplit("+", 1)[-1]
    if "int4" not in scheme:
        return []
    return ["--matrix-bits", "4", *(["--embedding-bits", "4"] if scheme.endswith("-embeddings") else [])]


@dataclass(frozen=True)
class Recommendation:
    """A task's candidates and the choice among them."""

    task: str
    rows: pd.DataFrame
    choice: Choice

    @property
    def untimed(self) -> list[str]:
        """Names of the models without a latency."""
        return list(self.rows.loc[self.rows["milliseconds"].isna(), "model"])


@dataclass(frozen=True)
class Advice:
    """What a study's records recommend under a budget: the records of the tasks that were asked for, the input whose
    one-thread latency counts, and the choice for each task."""

    records: StudyRecords
    input_name: str
    budget: Budget
    tasks: tuple[Recommendation, ...]

    @property
    def fits(self) -> bool:
        """Whether for any task a model keeps the budget."""
        return any(found.choice.fitting for found in self.tasks)


def recommend(study: Path, budget: Budget, task: str | None = None, length: int | None = 128) -> Advice:
    """The choice for each task of a study, or for one of them.

    Args:
        length: tokens of the fixed input whose one-thread latency counts; None for real dev rows at their own lengths.

    Raises:
        StageError: the study holds no model's record.
        SettingError: it has no such task, or was timed, but not at that length.
    """
    records = read_study(study)
    tasks = [name for name in records.tasks if any(chain.models for chain in records.of_task(name))]
    if not tasks:
        raise StageError(
            f"{study} holds no model's record; `edgemin run` makes them, or name another study with --output-dir"
        )
    if task is not None and task not in tasks:
        raise SettingError(f"{study} holds no task {task!r}; {nearest(task, tasks)}")
    wanted = [task] if task else tasks
    records = StudyRecords(
        records.study,
        tuple(chain for chain in records.chains if chain.task in wanted),
        tuple(note for note in records.notes if note.split(",")[0] in wanted),
    )
    input_name = "dev rows" if length is None else f"1x{length}"
    timed = list(dict.fromkeys(latencies(records).query("threads == 1")["input"]))
    if timed and input_name not in timed:
        raise SettingError(
            f"no model of {study} was timed at {input_name}, only at {', '.join(timed)}; choose one of "
            "them with --length, or measure another with --set latency_lengths"
        )
    frame = candidates(records, input_name)
    by_task = {name: frame[frame["task"] == name].reset_index(drop=True) for name in wanted}
    return Advice(
        records,
        input_name,
        budget,
        tuple(Recommendation(name, rows, choose(rows, budget)) for name, rows in by_task.items()),
    )


# ---- as text and as data -----------------------------------------------------------------------------------------


def advice_text(advice: Advice, count: int) -> str:
    """For a terminal: the best `count` models a task under the budget, the commands that build their bundles, and what
    a reader must know beside them."""
    shown = {found.task: _shown(found.choice, count) for found in advice.tasks}
    return "\n\n".join(
        [
            *(_task_text(advice, found, shown[found.task]) for found in advice.tasks),
            notes_as_text(_notes(advice, pd.concat(shown.values()))),
        ]
    )


def advice_data(advice: Advice, count: int) -> dict[str, Any]:
    """As plain JSON data: sizes in MB, latency in ms, accuracy in %, null for what was not measured.

    Each task has `recommended` (best accuracy first) and, where nothing fits, `nearest` with `distance` and `misses`
    (quantity, limit, by, share of the limit).
    """
    return plain(
        {
            "study": advice.records.study,
            "input": advice.input_name,
            "threads": 1,
            "budget": dataclasses.asdict(advice.budget),
            "tasks": [_task_data(advice, found, count) for found in advice.tasks],
        }
    )


def _shown(choice: Choice, count: int) -> pd.DataFrame:
    """The rows that a text shows: the front's first ones, or the nearest where nothing fits."""
    return choice.front.head(count) if choice.nearest is None else pd.DataFrame([choice.nearest])


def _task_text(advice: Advice, found: Recommendation, shown: pd.DataFrame) -> str:
    choice, kind = found.choice, " (synthetic data)" if found.rows["synthetic"].any() else ""
    title = f"{found.task}{kind}, {_budget_text(advice)}"
    if choice.fitting:
        more = "" if len(shown) == len(choice.front) else f", the first {len(shown)} of them here (--count)"
        verdict = (
            f"{choice.fitting} of {len(found.rows)} models fit; {len(choice.front)} on the Pareto front of "
            f"accuracy, file and latency{more}"
        )
    elif choice.nearest is not None:
        verdict = f"Nothing fits. Nearest, at distance {distance(choice.misses):.2f}: {_miss_text(choice)}"
    else:
        return (
            f"{title}\n\nNothing fits: no model has been timed at {advice.input_name}; run "
            "notebooks/05_analysis.ipynb, or leave the latency limit out"
        )
    commands: dict[str, list[str]] = {}
    for row in shown.to_dict("records"):
        commands.setdefault(bundle_command(advice.records.study, row), []).append(row["model"])
    lines = [f"# {', '.join(models)}\n{command}" for command, models in commands.items()]
    table = as_text(as_shown(shown).drop(columns="task"))
    return "\n\n".join([title, notes_as_text([verdict]), table, "\n".join(lines)])


def _task_data(advice: Advice, found: Recommendation, count: int) -> dict[str, Any]:
    names = (
        "model",
        "key",
        "kind",
        "seeds",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "kept",
        "megabytes",
        "milliseconds",
        "folder",
    )

    def model_data(row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{name: None if pd.isna(row[name]) else row[name] for name in names},
            "noisy": row["milliseconds_noisy"] is True,
            "bundle_command": bundle_command(advice.records.study, row),
        }

    choice = found.choice
    missed = (
        None
        if choice.nearest is None
        else {
            **model_data(choice.nearest),
            "distance": distance(choice.misses),
            "misses": [{**dataclasses.asdict(miss), "share": miss.share} for miss in choice.misses],
        }
    )
    return {
        "task": found.task,
        "split": found.rows["split"].iloc[0],
        "synthetic": bool(found.rows["synthetic"].any()),
        "models": len(found.rows),
        "fitting": choice.fitting,
        "on_front": len(choice.front),
        "recommended": [model_data(row) for row in choice.front.head(count).to_dict("records")],
        "nearest": missed,
        "not_timed": found.untimed,
    }


def _budget_text(advice: Advice) -> str:
    words = {
        "megabytes": "at most {:g} MB",
        "milliseconds": f"at most {{:g}} ms ({advice.input_name}, one thread)",
        "accuracy": "at least {:g} % accuracy",
    }
    limits = [words[name].format(limit) for name, limit in advice.budget.limits.items()]
    return ", ".join(limits) or "without a limit"


def _miss_text(choice: Choice) -> str:
    """What the nearest model misses and by how much, e.g. "2.91 MB (5.8 %) over 50 MB"."""
    parts = []
    for miss in choice.misses:
        unit, way = ("points", "under") if miss.quantity == "accuracy" else (_UNITS[miss.quantity], "over")
        parts.append(f"{miss.by:.3g} {unit} ({100 * miss.share:.1f} %) {way} {miss.limit:g} {_UNITS[miss.quantity]}")
    return ", ".join(parts)


def _notes(advice: Advice, shown: pd.DataFrame) -> tuple[str, ...]:
    notes = [
        "A bundle quantizes float weights by itself, so a quantized model's command names the float stage; what "
        "the bundle weighs, takes and gets right is measured when it is made."
    ]
    empty = [
        folder
        for folder in dict.fromkeys(shown.get("bundle_from", ()))
        if not (advice.records.study / folder / "config.json").is_file()
    ]
    if empty:
        notes.append(f"Records without a model, so run the study before the command: {', '.join(empty)}.")
    if len(shown) and shown["seeds"].max() > 1:
        notes.append("Numbers are means over seeds; a command takes the first seed that has the model.")
    notes.append(
        "Brackets hold 95 % intervals. The models are judged by the dev rows that pick them, so the best of "
        "many looks a little better than it is."
    )
    for found in advice.tasks:
        if 0 < len(found.untimed) < len(found.rows):
            left_out = ", so the latency limit leaves them out" if advice.budget.milliseconds is not None else ""
            notes.append(f"{found.task}: latency not measured{left_out}: {', '.join(found.untimed)}.")
    noisy = noise_note(advice.records) if len(shown) and shown["milliseconds_noisy"].eq(True).any() else ()
    return (
        *notes,
        *split_notes(pd.concat([found.rows for found in advice.tasks])),
        latency_note(advice.records),
        *noisy,
        *table_notes(advice.records),
    )
