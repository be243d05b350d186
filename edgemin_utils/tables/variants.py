"""Which records belong to a study's tables, what each model is called there, and in which order the rows stand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgemin_utils.chain import COMPRESSED_TEACHER, COST, TEACHER
from edgemin_utils.objectives import UNDISTILLED
from edgemin_utils.records import Record, find_records
from edgemin_utils.tasks import TASKS

STUDENT_NAMES = {"none": "Student without distillation", "none-pretrained": "Undistilled from checkpoint"}
OBJECTIVE_NAMES = {
    "none": "None",
    "none-pretrained": "None, from the checkpoint",
    "logits": "Soft targets",
    "distilbert": "DistilBERT",
    "pkd": "PKD-Skip",
    "pkd-last": "PKD-Last",
    "tinybert": "TinyBERT",
    "minilm": "MiniLM",
    "minilmv2": "MiniLMv2",
    "mlkd": "MLKD-BERT",
    "shd": "SHD",
}
SCHEME_NAMES = {"dynamic-int8": "INT8", "dynamic-int8-embeddings": "INT8 with embeddings"}


@dataclass(frozen=True, eq=False)
class Chain:
    """The current records of one (task, seed): `models` by key, `scans` by variant, and the measurement if there is
    one."""

    task: str
    seed: int
    models: Mapping[str, Record]
    measurement: Record | None = None
    scans: Mapping[str, Record] | None = None
    refused: Mapping[str, Record] = field(default_factory=dict)

    def measured_rows(self, name: str) -> list[Mapping]:
        """Rows of the measurement's list `name` (latency, speed_ups, memory) that time the models on disk.

        A row of a model that was made anew since it was timed is left out.
        """
        if self.measurement is None:
            return []
        timed = self.measurement.content["identity"].get("upstream", {})
        return [
            row
            for row in self.measurement.results.get(name) or []
            if row["key"] in self.models and timed.get(row["key"]) == self.models[row["key"]].content["fingerprint"]
        ]


@dataclass(frozen=True, eq=False)
class StudyRecords:
    """All that tables and figures are drawn from, as it was read."""

    study: Path
    chains: tuple[Chain, ...]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have a chain, each once."""
        return tuple(dict.fromkeys(chain.task for chain in self.chains))

    def of_task(self, task: str) -> list[Chain]:
        """The chains of that task."""
        return [chain for chain in self.chains if chain.task == task]

    @property
    def records(self) -> list[Record]:
        """Every model's record and every measurement."""
        found = []
        for chain in self.chains:
            found += [*chain.models.values(), *([chain.measurement] if chain.measurement else [])]
        return found


def read_study(study: Path) -> StudyRecords:
    """The records of a study, chain by chain, without those made from models that are no longer there.

    `notes` names what was left out and what is missing, one sentence each.
    """
    study = Path(study)
    by_chain: dict[tuple[str, int], dict[str, Record]] = {}
    for record in find_records(study):
        by_chain.setdefault((record.task, record.seed), {})[record.key] = record
    chains, seeds_of = list[Chain](), dict[tuple[str, str], list[int]]()
    for (task, seed), records in sorted(by_chain.items(), key=lambda item: (task_rank(item[0][0]), item[0])):
        current, outdated = _split_outdated(records)
        models = {key: record for key, record in current.items() if "metrics" in record.results}
        scans = {record.content["variant"]: record for record in current.values() if "curves" in record.results}
        refused = {key: record for key, record in current.items() if record.refused}
        chain = Chain(task, seed, models, current.get(COST), scans, refused)
        chains.append(chain)
        left_out = [f"{key} is left out, it was made from an earlier model; run the study again" for key in outdated]
        for note in (*left_out, *_missing(chain)):
            seeds_of.setdefault((task, note), []).append(seed)
    notes = [
        f"{task}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {note}"
        for (task, note), seeds in seeds_of.items()
    ]
    return StudyRecords(study, tuple(chains), tuple(notes))


def task_rank(task: str) -> int:
    """A task's place in tables: the known tasks in their own order, then tasks made from files."""
    known = list(TASKS)
    return known.index(task) if task in known else len(known)


def task_label(task: str, split: str) -> str:
    """ "mnli" and "validation_matched" as "mnli matched"."""
    short = split.removeprefix("validation").removeprefix("dev").strip("_- ")
    return f"{task} {short}".strip()


def _split_outdated(records: Mapping[str, Record]) -> tuple[dict[str, Record], list[str]]:
    """Current records, and the keys of those whose upstream on disk is another than the one they were made from.

    A measurement counts as current: its rows are held against the models one by one.
    """
    current, outdated = dict(records), []
    changed = True
    while changed:
        changed = False
        for key, record in list(current.items()):
            upstream = record.content["identity"].get("upstream", {})
            wrong = [
                name
                for name, fingerprint in upstream.items()
                if name in outdated or (name in records and records[name].content["fingerprint"] != fingerprint)
            ]
            if wrong and key != COST:
                del current[key]
                outdated.append(key)
                changed = True
    return current, sorted(outdated)


def _missing(chain: Chain) -> list[str]:
    """One sentence for each thing that leaves blanks in the tables."""
    notes = []
    if TEACHER not in chain.models:
        notes.append("no teacher, so nothing is compared with it")
    if chain.measurement is None:
        notes.append("latency and memory are not measured")
    else:
        untimed = set(chain.models) - {row["key"] for row in chain.measured_rows("latency")}
        if untimed:
            notes.append(f"not timed in the last measurement: {', '.join(sorted(untimed))}")
    return notes


def source_key(record: Record) -> str | None:
    """Key of the model that this one came from; for a student the teacher, whose task it takes over."""
    return record.content["source"] or None


def main_student(chains: Iterable[Chain]) -> str | None:
    """The student that the study is about: the one whose heads were scanned, else the first distilled one; of those
    that are not there for comparison, where there are any."""
    chains = list(chains)
    scanned = [scan.content for chain in chains for scan in (chain.scans or {}).values()]
    distilled = [
        record.content
        for chain in chains
        for record in chain.models.values()
        if record.content["distilled"] and record.content["student"] != COMPRESSED_TEACHER
    ]
    ranked = [
        sorted({content["student"] for content in found if content["compared"] is compared})
        for compared in (False, True)
        for found in (scanned, distilled)
    ]
    return next((students[0] for students in ranked if students), None)


def describe_data(chains: Iterable[Chain]) -> Mapping | None:
    """The `data` entry of the first record that has one."""
    return next(
        (record.results["data"] for chain in chains for record in chain.models.values() if record.results.get("data")),
        None,
    )


def is_synthetic(chains: Iterable[Chain]) -> bool:
    """Whether the chains' rows are synthetic, as their source says."""
    source = str((describe_data(chains) or {}).get("source", ""))
    return "synthetic" in source or source == "embedded"


def model_names(chains: Iterable[Chain]) -> dict[str, str]:
    """Key -> name of every model, in the tables' row order.

    A cut, scheme or objective is spelled out only where it is not the study's own, or where it has several of its own.
    """
    chains = list(chains)
    main = main_student(chains)
    contents = {key: record.content for chain in chains for key, record in chain.models.items()}
    own = [content for content in contents.values() if not content["compared"]]
    students = {content["student"] for content in own if content["distilled"]}
    cuts = {what_of(content, "prune") for content in own if content["pruned"]}
    names = {}
    for key in sorted(contents, key=lambda key: _order(contents[key], main, key)):
        names[key] = _name(contents[key], students, cuts)
    return names


def is_main(content: Mapping, main: str | None) -> bool:
    """Whether a model lies on the paper's path: teacher, student, pruned, pruned and quantized."""
    on_way = content["pruned"] or not content["quantized"]
    return not content["compared"] and (not content["student"] or (content["student"] == main and on_way))


def what_of(content: Mapping, step: str) -> str:
    """What the last step of that name did, e.g. the cut of "prune"; "" where the model took no such step."""
    return next((text.split(":", 1)[1] for text in reversed(content["steps"]) if text.split(":", 1)[0] == step), "")


def steps_since_student(content: Mapping) -> list[str]:
    """The steps after a student came out of its distillation, or of training without, or those that compress the
    teacher itself, e.g. ["prune:...", ...]."""
    return list(content["steps"]) if content["student"] in UNDISTILLED else list(content["steps"])[1:]


def kinds_since_student(content: Mapping) -> list[str]:
    """`steps_since_student` without what each did, e.g. ["prune", "quantize"]."""
    return list(_kinds(steps_since_student(content)))


def orders_of_steps(contents: Sequence[Mapping]) -> list[str]:
    """The steps that led to each model, e.g. "distill, prune, quantize". Where several took steps of the same kinds,
    what sets them apart is spelled out, e.g. "teacher, prune (vocabulary), quantize"."""
    by_order: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for content in contents:
        by_order.setdefault(_kinds(content["steps"]), set()).add(tuple(content["steps"]))
    names = []
    for content in contents:
        alike = by_order[_kinds(content["steps"])]
        differs = [len(set(steps)) > 1 for steps in zip(*alike, strict=True)]
        parts = [text.split(":", 1) for text in content["steps"]]
        names.append(
            ", ".join(
                f"{part[0]} ({part[1]})" if apart else part[0] for part, apart in zip(parts, differs, strict=True)
            )
        )
    return names


def _kinds(steps: Iterable[str]) -> tuple[str, ...]:
    return tuple(text.split(":", 1)[0] for text in steps)


def _name(content: Mapping, students: set[str], cuts: set[str]) -> str:
    """Base name and the steps since, e.g. "Distilled + pruned + INT8", or "Teacher + pruned (...)" of the teacher's own
    compressed form."""
    student = content["student"]
    if not student:
        return "Teacher"
    steps = steps_since_student(content)
    if student in UNDISTILLED:
        name = ("Undistilled" if student == "none" else STUDENT_NAMES[student]) if steps else STUDENT_NAMES[student]
    elif student == COMPRESSED_TEACHER:
        name = "Teacher"
    else:
        name = f"Distilled ({objective_name(student)})" if not steps or students != {student} else "Distilled"
    return " + ".join([name, *(_step_name(step, cuts) for step in steps)])


def _step_name(step: str, cuts: set[str]) -> str:
    kind, what = step.split(":", 1)
    return {
        "distill": "distilled",
        "prune": "pruned" if cuts == {what} else f"pruned ({what})",
        "quantize-aware": f"{what.upper()}-aware",
        "fine-tune": "fine-tuned",
        "quantize": SCHEME_NAMES.get(what, what),
    }[kind]


def objective_name(student: str) -> str:
    """A student's objective as tables spell it, with what else its name says: "MiniLMv2, layer 3"."""
    objective = max((name for name in OBJECTIVE_NAMES if student.startswith(name)), key=len, default=student)
    rest = student.removeprefix(objective).strip("-").replace("-", " ")
    return ", ".join(part for part in (OBJECTIVE_NAMES.get(objective, objective), rest) if part)


def _order(content: Mapping, main: str | None, key: str) -> tuple:
    student = content["student"]
    if is_main(content, main) and (content["pruned"] or not student):
        rank = (2 + content["quantized"]) if student else 0
    elif not content["pruned"] and not content["quantized"]:
        rank = 1
    else:
        rank = 4
    known = UNDISTILLED.index(student) if student in UNDISTILLED else len(UNDISTILLED)
    if rank == 4:
        return rank, content["compared"], not content["distilled"], content["pruned"], content["quantized"], key
    return rank, student == main, known, content["quantized"], key
