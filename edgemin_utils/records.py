"""What a stage leaves on disk and how the next one finds it.

Each stage owns `<study>/<task>/seed-<n>/<stage>/<variant>/` with `record.json`, the model and the predictions for
every dev row. The folder is written under a temporary name and renamed when whole, so that a killed run leaves
nothing half-made. A record carries a fingerprint of the settings that matter, of the data and of the stages before
it; a stage whose fingerprint is on disk already is not run again.
"""

import contextlib
import datetime
import functools
import hashlib
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemin_utils.atomic_folders import partial_folder, replace_folder, storage_errors
from edgemin_utils.chain import Stage, plan_chain
from edgemin_utils.config import Settings, changed_from_profile, load_settings, study_folder
from edgemin_utils.content_hash import file_hash
from edgemin_utils.errors import EdgeMINError, MemoryShortage, MethodRefused, StageError
from edgemin_utils.processes import from_main_process, is_main_process, wait_for_every_process

RECORD_VERSION = 2
RECORD_FILE = "record.json"
# Beside a chain's stages: the settings that it was last run with, folders of one's own included.
CHAIN_FILE = "chain.json"
# Raise a stage's number when its method changes, so that records made the old way count as stale.
METHOD_VERSIONS = {"teacher": 2, "distillation": 2, "pruning": 3, "tuning": 3, "quantization": 3, "measurement": 4}


@dataclass(frozen=True)
class Record:
    """One stage's record: `folder` and the content of its record.json."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The stage's key, as in "distillation/minilmv2"."""
        return f"{self.content['stage']}/{self.content['variant']}"

    @property
    def task(self) -> str:
        """Name of the task whose chain the stage belongs to."""
        return self.content["task"]

    @property
    def seed(self) -> int:
        """Seed of that chain."""
        return self.content["seed"]

    @property
    def results(self) -> Mapping[str, Any]:
        """What the stage computed: metrics, sizes, loss history, as the stage's docstring lists it."""
        return self.content["results"]

    @property
    def refused(self) -> str:
        """Why the method does not fit here, so that there is no model; "" where there is one."""
        return self.results.get("refused", "")


@dataclass(frozen=True)
class StageState:
    """`status` is "done", "stale" or "missing"; `reason` says why a stage is not done."""

    status: str
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """One chain of a study: its settings, task, seed and the study's folder."""

    settings: Settings
    task: str
    seed: int
    study: Path

    @property
    def folder(self) -> Path:
        """Where the chain's stages lie."""
        return self.study / self.task / f"seed-{self.seed}"

    @property
    def notebooks(self) -> Path:
        """Where the runner keeps this chain's executed notebooks."""
        return self.folder / "notebooks"

    @functools.cached_property
    def plan(self) -> dict[str, Stage]:
        """Key -> stage, of every stage of the chain, in the order in which they run."""
        return plan_chain(self.settings)

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """What changes when, and only when, the task's rows do."""
        from edgemin_utils.data import data_fingerprint  # data builds on the settings, as records do

        return data_fingerprint(self.settings, self.task)

    def stage(self, key: str) -> Stage:
        """The stage of that key.

        Raises:
            StageError: under these settings the chain has no such stage.
        """
        if key not in self.plan:
            raise StageError(f"no stage {key!r} under these settings; this chain has: {', '.join(self.plan)}")
        return self.plan[key]

    def settings_of(self, key: str) -> Settings:
        """The settings under which that stage computes: the chain's, with the stage's own changes."""
        return self.stage(key).apply(self.settings)

    def stage_folder(self, key: str) -> Path:
        """Where that stage's record, model and predictions lie."""
        return self.folder / key

    def fingerprint(self, key: str) -> str:
        """16 hexadecimal digits that change when the stage's result could."""
        return _digest(self._identity(key))

    def _identity(self, key: str) -> dict[str, Any]:
        stage = self.stage(key)
        settings = stage.settings(self.settings)
        for name in ("teacher", "student", "assistant", "vocabulary_text"):
            if settings.get(name):
                settings[name] = content_identity(settings[name])
        if settings.get("transfer_file"):
            from edgemin_utils.sources import file_identity

            settings["transfer_file"] = file_identity(settings["transfer_file"])
        return {
            "record_version": RECORD_VERSION,
            "method": METHOD_VERSIONS[stage.kind],
            "key": key,
            "task": self.task,
            "seed": self.seed,
            "settings": settings,
            "data": self.data_fingerprint,
            "upstream": {name: self.fingerprint(name) for name in stage.upstream},
        }

    def state(self, key: str) -> StageState:
        """Whether the stage's record on disk is the one that the settings ask for, and if not, why."""
        try:
            record = read_record(self.stage_folder(key))
        except StageError as error:
            missing = not self.stage_folder(key).exists()
            return StageState("missing", "not run yet") if missing else StageState("stale", str(error))
        if record.content["fingerprint"] == self.fingerprint(key):
            return StageState("done")
        return StageState("stale", _difference(record.content["identity"], self._identity(key)))

    def read(self, key: str) -> Record:
        """The record of a finished stage.

        Raises:
            StageError: the stage has not been run under these settings; names the notebook that makes it.
        """
        state = self.state(key)
        if state.status != "done":
            raise StageError(
                f"{self.task}, seed {self.seed}: stage {key} is {state.status} ({state.reason}). "
                f"Run notebooks/{self.stage(key).notebook}.ipynb first, with the same settings"
            )
        return read_record(self.stage_folder(key))

    def run_stage(self, key: str, compute: Callable[[Path], Mapping[str, Any]]) -> Record:
        """The record of a stage, computed only if its fingerprint is not on disk.

        `compute` gets an empty folder, writes the model and predictions into it and returns the results as plain
        data. The folder becomes the stage's own only when everything is written.

        Raises:
            StageError: a stage that this one needs is not there.
            StorageError: the disk is full or the folder cannot be written; what was finished before is kept.
        MemoryShortage: the stage needs more memory than is free, on the machine or the GPU.
        """
        from edgemin_utils.measurement.environment import describe_environment

        stage = self.stage(key)
        if is_main_process():
            self._say_settings()
        if from_main_process(self.state(key).status == "done"):
            return self._as_planned(stage, read_record(self.stage_folder(key)))
        for needed in stage.upstream:
            self.read(needed)
        final = self.stage_folder(key)
        if not is_main_process():
            with tempfile.TemporaryDirectory() as scratch:
                self._compute(stage, compute, Path(scratch))
            wait_for_every_process()
            return read_record(final)
        with storage_errors(final), partial_folder(final) as partial:
            started = time.perf_counter()
            results = self._compute(stage, compute, partial)
            content = {
                "record_version": RECORD_VERSION,
                "stage": stage.kind,
                "variant": stage.variant,
                "task": self.task,
                "seed": self.seed,
                "profile": self.settings.profile,
                "fingerprint": self.fingerprint(key),
                "identity": self._identity(key),
                "student": stage.student,
                "source": stage.source,
                "steps": stage.steps,
                "distilled": stage.distilled,
                "pruned": stage.pruned,
                "quantized": stage.quantized,
                "compared": stage.optional,
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "wall_seconds": time.perf_counter() - started,
                "environment": describe_environment(),
                "results": results,
            }
            write_json(partial / RECORD_FILE, content)
            replace_folder(partial, final)
        wait_for_every_process()
        return read_record(final)

    def _say_settings(self) -> None:
        """Writes the chain's settings beside its stages. Where it was run with others before, the models that only
        those had stay on disk, and from now on are there for comparison: a study's own are those of its last run."""
        path = self.folder / CHAIN_FILE
        asked = plain({"profile": self.settings.profile, "overrides": changed_from_profile(self.settings)})
        with contextlib.suppress(FileNotFoundError, ValueError):
            if json.loads(path.read_text(encoding="utf-8")) == asked:
                return
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for record in find_chain_records(self.folder):
                if record.key not in self.plan and not record.content.get("compared"):
                    write_json(record.folder / RECORD_FILE, {**record.content, "compared": True})
            write_json(path, asked)

    def _as_planned(self, stage: Stage, record: Record) -> Record:
        """The record, which also says whether the stage is there for comparison and how its steps are called: both may
        change without its content."""
        said = {"compared": stage.optional, "steps": list(stage.steps)}
        if any(record.content.get(name) != value for name, value in said.items()):
            if record.refused and not stage.optional:
                raise MethodRefused(record.refused)
            write_json(record.folder / RECORD_FILE, {**record.content, **said})
        return read_record(record.folder)

    def _compute(self, stage: Stage, compute: Callable[[Path], Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """The stage's results; for one that is only there to be compared, also that its method does not fit here."""
        try:
            for key in (stage.source, stage.teacher):
                if key and (reason := self.read(key).refused):
                    raise MethodRefused(f"{key} was refused: {reason}")
            with _memory_errors(stage.key):
                return compute(folder)
        except MethodRefused as error:
            if not stage.optional:
                raise
            return {"refused": str(error)}


@contextlib.contextmanager
def _memory_errors(key: str) -> Iterator[None]:
    """Turns what Python, NumPy and torch raise for want of memory, on a CPU or a GPU, into one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if isinstance(error, EdgeMINError) or not (short or "allocate memory" in str(error)):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MemoryShortage(
            f"stage {key} needs more memory than is free ({said}). "
            "Finished stages are kept; close other programs, run fewer --jobs, or give --set evaluation_batch_size=16, "
            "--set teacher_cache_gigabytes=0 or, which trains anew, --set batch_size=16, and run the same command again"
        ) from error


def open_run(
    task: str = "sst2",
    profile: str = "demo",
    seed: int = 0,
    output_dir: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """The chain that a notebook's parameters name.

    Raises:
        SettingError: unknown task, profile or setting, with the nearest known name.
    """
    from edgemin_utils.tasks import resolve_task

    settings = load_settings(profile, overrides)
    folder = study_folder(output_dir, profile)
    _mount_drive(folder)
    return Run(settings, resolve_task(settings, task).name, int(seed), folder)


def open_chain(folder: Path) -> Run | None:
    """The chain in `<study>/<task>/seed-<n>`, under the settings that it was last run with; None if nothing was run.

    Raises:
        SettingError: it was run with settings that this package does not know.
        StageError: as `read_chain_file`.
    """
    if not (Path(folder) / CHAIN_FILE).is_file():
        return None
    asked = read_chain_file(folder)
    return open_run(
        folder.parent.name,
        asked["profile"],
        int(folder.name.removeprefix("seed-")),
        folder.parent.parent,
        asked["overrides"],
    )


def read_chain_file(folder: Path) -> dict[str, Any]:
    """What the chain in `<study>/<task>/seed-<n>` was last run with: profile, and overrides by setting.

    Raises:
        StageError: the file is missing, half written or damaged.
    """
    path = Path(folder) / CHAIN_FILE
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        return {"profile": str(asked["profile"]), "overrides": dict(asked["overrides"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise StageError(
            f"{path} is missing, half written or damaged; run the chain's command again, which writes it anew and "
            "computes nothing that is there"
        ) from None


def _mount_drive(folder: Path) -> None:
    """On Colab, a study folder on Google Drive has the Drive mounted first (Colab asks for permission)."""
    colab = sys.modules.get("google.colab")
    mount = Path("/content/drive")
    if colab is not None and folder.is_relative_to(mount) and not (mount / "MyDrive").is_dir():
        importlib.import_module("google.colab.drive").mount(str(mount))


def read_record(folder: Path) -> Record:
    """The record in `folder`.

    Raises:
        StageError: there is none, it is half written, or another version of the package wrote it.
    """
    path = Path(folder) / RECORD_FILE
    rerun = "run the same command again to make it anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(f"{folder} holds no {RECORD_FILE}; {rerun}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise StageError(f"{path} is half written or damaged; {rerun}") from None
    if not isinstance(content, dict) or content.get("record_version") != RECORD_VERSION:
        found = content.get("record_version") if isinstance(content, dict) else None
        raise StageError(f"{path} is of record version {found}, this package writes {RECORD_VERSION}; {rerun}")
    needed = {"stage", "variant", "task", "seed", "fingerprint", "identity", "results"}
    if not needed <= content.keys():
        raise StageError(f"{path} lacks {', '.join(sorted(needed - content.keys()))}; {rerun}")
    return Record(Path(folder), content)


def find_records(study: Path) -> list[Record]:
    """Every readable record under a study's folder, ordered by task, seed and key; unreadable ones are left out."""
    found = [
        record
        for folder in sorted(Path(study).glob("*/seed-*"))
        if not any(part.startswith(".") for part in folder.relative_to(study).parts)
        for record in find_chain_records(folder)
    ]
    return sorted(found, key=lambda record: (record.task, record.seed, record.key))


def find_chain_records(folder: Path) -> list[Record]:
    """Every readable record in a chain's folder, in no particular order."""
    found = []
    for path in sorted(Path(folder).glob(f"*/*/{RECORD_FILE}")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            with contextlib.suppress(StageError):
                found.append(read_record(path.parent))
    return found


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(plain(content), indent=1, allow_nan=False)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def plain(value: Any) -> Any:
    """`value` with NumPy and torch scalars, arrays, tuples and paths turned into plain JSON data; not-a-number
    and infinities become None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def content_identity(name: str) -> str:
    """What stands for a model or text file in a fingerprint: the content of a folder or file, else the name itself."""
    path = Path(name).expanduser()
    if path.is_file():
        return f"file-{_content_digest([path])}"
    if not path.is_dir():
        return name
    return "folder-" + _content_digest(
        sorted(
            file
            for file in path.iterdir()
            if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")
        ),
        names=True,
    )


def _content_digest(paths: Iterable[Path], names: bool = False) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if names:
            digest.update(path.name.encode())
        digest.update(bytes.fromhex(file_hash(path)))
    return digest.hexdigest()[:16]


def _digest(content: Any) -> str:
    text = json.dumps(plain(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One line that names what changed between two identities."""
    changes = []
    old_settings, new_settings = old.get("settings", {}), plain(new["settings"])
    for name in sorted(old_settings.keys() | new_settings.keys()):
        if old_settings.get(name) != new_settings.get(name):
            changes.append(f"{name} was {old_settings.get(name)!r}, now {new_settings.get(name)!r}")
    if old.get("data") != new["data"]:
        changes.append("the data changed")
    for name, fingerprint in new["upstream"].items():
        if old.get("upstream", {}).get(name) != fingerprint:
            changes.append(f"{name} changed")
    if old.get("method") != new["method"]:
        changes.append("the package computes this stage differently now")
    return "; ".join(changes) or "another run's record"
