"""A study on disk: chains (a task and seed), their stages in `<study>/<task>/seed-<n>/<model name>/`, each whole or not
at all, and their records. What has the fingerprint of its settings, rows, code and upstream is not made again."""

import ast
import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from edgemin_utils import names
from edgemin_utils.environment import describe_environment, from_main_process, is_main_process
from edgemin_utils.errors import EdgeMINError, MemoryShortage, MethodRefused, SettingError, StageError, StorageError
from edgemin_utils.rows.tasks import resolve_task, rows_fingerprint
from edgemin_utils.settings import Settings, changed_settings, load_settings, setting_fields, study_folder

RECORD_VERSION = 3
COSTS = "costs"
# Which chapter makes what `Chain.todo` gives, and in which order; an order of steps that goes back crosses chapters.
CHAPTERS = {"teacher": 1, "distillation": 2, "pruning": 3, "scan": 3, "tuning": 4, "sensitivity": 4, "quantization": 5}
# Where the code of a kind of stage begins, beside training and checkpoints; what these import of the core belongs to it
_CODE = {"pruning": ["pruning/cut.py", "distillation/objective.py"], "scan": ["pruning/cut.py"]}
_CODE |= {"tuning": ["quantization/fake.py", "distillation/objective.py"]}
_CODE["quantization"] = [f"quantization/{name}.py" for name in "torch_schemes onnx_schemes reconstruction".split()]
_CORE = ("rows/", "encoders", "checkpoints", "training", "distillation/", "pruning/", "quantization/")
_PACKAGE = Path(__file__).parent


def made_as(step: names.Step) -> str:
    """What `Chain.todo` calls the stages of a step: their kind, or sensitivity, which is a scan of chapter 4."""
    return "sensitivity" if step.method == "sensitivity" else step.kind


class Record(types.SimpleNamespace):
    """One stage's `folder`, and the entries of its record.json: `results`, `refused` (why there is no model), ..."""

    @property
    def outcome(self) -> str:
        """For the terminal: how long it took and how often it is right, or why it was refused."""
        said = f"refused: {self.refused}" if self.refused else f"{self.seconds:.0f} s"
        for counts in list((self.results.get("confusion") or {}).values())[:1]:  # true label by answer
            right, rows = sum(row[at] for at, row in enumerate(counts)), [sum(row) for row in counts]
            alone = f" (ATTENTION: the most frequent label alone gives {100 * max(rows) / sum(rows):.1f} %)"
            said += f", {100 * right / sum(rows):.1f} % right{alone * (right <= max(rows))}"
        return said


class State(NamedTuple):
    """`status` is done, stale or missing; `reason` says why a stage is not done."""

    status: str
    reason: str = ""


class Stage:
    """The last step of a name in one chain, under `settings`, from the model `source` ("": none). `with stage:` makes
    its `folder`, whole or not at all; `record` says what came out, and a refused method is its result."""

    _partial: Path | None = None
    _results: dict[str, Any] | None = None

    def __init__(self, chain: "Chain", name: names.Name):
        self.chain, self.read_name, self.name, self.step = chain, name, name.text, name.step
        self.kind, self.source = name.kind, name.source.text if name.source else ""
        self.settings = names.step_settings(name, chain.settings)

    @property
    def teacher(self) -> str:
        """Name of the model that it learns from; "" where it learns from labels alone."""
        if not names.learns_from_teacher(self.read_name, self.chain.settings):
            return ""
        if self.step.role != "by-assistant":
            return names.TEACHER.text
        return next(name for name in self.chain.plan if re.fullmatch(f"assistant-{self.step.method}(,[^+]*)?", name))

    @property
    def upstream(self) -> list[str]:
        """Names of the models that must be there before it."""
        return list(dict.fromkeys(name for name in (self.source, self.teacher) if name))

    @property
    def folder(self) -> Path:
        """Where the stage's files lie; within `with stage:` a temporary folder that becomes it."""
        return self._partial or self.chain.folder / self.name

    @property
    def crossing(self) -> bool:
        """Whether its order of steps goes back to an earlier chapter, so that no one chapter can make it."""
        chapters = [CHAPTERS[made_as(step)] for step in self.read_name.steps]
        return chapters != sorted(chapters)

    @property
    def chapter(self) -> int:
        """The chapter that makes it, 1 to 4."""
        return 4 if self.crossing else min(4, CHAPTERS[made_as(self.step)])

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the stage's result: settings, rows, upstream fingerprints and code."""
        values = {one: getattr(self.settings, one) for one in names.felt_settings(self.read_name, self.chain.settings)}
        files = ("teacher", "student", "assistant", "vocabulary_text", "transfer_file")
        values |= {name: content_identity(values[name]) for name in files if values.get(name)}
        upstream = {name: self.chain.plan[name].fingerprint for name in self.upstream}
        # What a notebook cell defined and this stage uses: objective, scheme or criterion.
        words = {*re.split("[+,]", self.name), *map(str, values.values())}
        own = {f"own {one}": code_digest(code) for one, code in names.OWN_CODE.items() if one in words}
        code = code_of(self.kind, self.step.method, bool(self.teacher)) | own
        return {"settings": plain(values), "rows": self.chain.rows_fingerprint, "upstream": upstream, "code": code}

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the stage's result could."""
        return _digest({"version": RECORD_VERSION, "task": self.chain.task, "seed": self.chain.seed, **self.identity})

    @property
    def state(self) -> State:
        """Whether the record on disk is the one that is asked for, and if not, why."""
        folder = self.chain.folder / self.name
        try:
            record = read_record(folder)
        except StageError as error:
            return State("missing", str(error) if folder.exists() else "not made yet")
        changed = record.fingerprint != self.fingerprint
        return State("stale", _difference(record.identity, self.identity)) if changed else State("done")

    def require(self) -> None:
        """Raises StageError where making this stage would replace a finished one and that was not asked for."""
        status, reason = self.state
        if status == "stale" and not self.chain.replace and self.kind != COSTS:  # costs may always be measured again
            ways = "say --replace (in a notebook: replace = True), choose another --output-dir, or go back to those"
            raise StageError(f"{self.chain}: {self.name} is finished under other conditions ({reason}); {ways}")

    def __enter__(self) -> "Stage":
        self._block = self._make()
        return self._block.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)

    def record(self, results: Mapping[str, Any], **more: Any) -> None:
        """Says what came out: the results of `measurement.evaluate`, and what else the kind of stage has."""
        self._results = {**results, **more}

    @contextlib.contextmanager
    def _make(self) -> Iterator["Stage"]:
        final, refused, started, self._results = self.chain.folder / self.name, "", time.perf_counter(), None
        with _in_one_sentence(self.name, final), _beside(final) as self._partial:
            if is_main_process():
                asked = {"profile": self.chain.settings.profile, "overrides": changed_settings(self.chain.settings)}
                write_json(final.parent / "chain.json", asked)
            try:
                self.require()  # after the wait for a run that may have made it otherwise
                yield self
            except MethodRefused as error:
                refused = str(error)
            finally:
                partial, self._partial = self._partial, None
            if is_main_process() and (refused or self.state.status != "done"):  # else another run was faster
                if self._results is None and not refused:
                    raise StageError(f"{self.name}: nothing was recorded; end the block with stage.record(...)")
                self._write(partial, refused, time.perf_counter() - started)
        from_main_process(None)  # waits for every process

    def _write(self, folder: Path, refused: str, seconds: float) -> None:
        if refused:
            shutil.rmtree(folder)
            folder.mkdir()
        content: dict[str, Any] = {"version": RECORD_VERSION, "model": self.name, "kind": self.kind}
        content |= {"task": self.chain.task, "seed": self.chain.seed, "profile": self.chain.settings.profile}
        content |= {"finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "seconds": seconds}
        content |= {"fingerprint": self.fingerprint, "identity": self.identity, "environment": describe_environment()}
        content |= {"results": {}, "refused": refused} if refused else {"results": self._results}
        write_json(folder / "record.json", content)


class Costs(Stage):
    """The stage in which every model of a chain is timed and its memory measured; made anew when models come."""

    source, teacher = "", ""

    def __init__(self, chain: "Chain"):
        self.chain, self.name, self.kind = chain, COSTS, COSTS

    @functools.cached_property
    def models(self) -> dict[str, Record]:
        """Name -> record of every model on disk that was not refused: also those of other settings keep their costs."""
        folders = [*(self.chain.folder / name for name in self.chain.plan), *sorted(self.chain.folder.glob("[!.]*/"))]
        found = {one.model: one for one in _readable(folders) if not one.refused and one.kind != "scan"}
        return {name: one for name, one in found.items() if names.is_known(name, self.chain.settings)}

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Settings of the measurement, and the models."""
        felt = [name for name, item in setting_fields().items() if "costs" in item.metadata["felt"]]
        upstream = {name: record.fingerprint for name, record in self.models.items()}
        values = {name: getattr(self.chain.settings, name) for name in felt}
        return {"settings": plain(values), "rows": self.chain.rows_fingerprint, "upstream": upstream, "code": {}}


@dataclass(frozen=True)
class Chain:
    """One task and seed of a study: its settings, where it lies, and its plan."""

    settings: Settings
    task: str
    seed: int
    study: Path
    replace: bool = False

    @property
    def folder(self) -> Path:
        """Where the chain's stages lie."""
        return self.study / self.task / f"seed-{self.seed}"

    @functools.cached_property
    def plan(self) -> dict[str, Stage]:
        """Name -> stage, every prefix of every model once, in an order in which they can be made."""
        return {text: Stage(self, name) for text, name in names.plan_names(self.settings).items()}

    @functools.cached_property
    def rows_fingerprint(self) -> str:
        """What changes when, and only when, the task's rows do."""
        return rows_fingerprint(self.settings, self.task)

    def __str__(self) -> str:
        return f"{self.task}, seed {self.seed}"

    def todo(self, kind: str) -> Iterator[Stage]:
        """The stages of a kind (as `made_as`) to make, but crossing ones; raises StageError as `require` and `read`."""
        return self.make_in_turn([one for one in self.plan.values() if made_as(one.step) == kind and not one.crossing])

    def make_in_turn(self, stages: Sequence[Stage]) -> Iterator[Stage]:
        """Those of the stages not on disk; what needs a refused one is refused too (MethodRefused in its block)."""
        for stage in stages:
            stage.require()
        kept = [stage.name for stage in stages if stage.state.status == "done"]
        if kept and is_main_process():
            print(f"on disk: {', '.join(kept)}")
        for stage in (stage for stage in stages if not from_main_process(stage.state.status == "done")):
            refused = [f"{name} was refused: {why}" for name in stage.upstream if (why := self.read(name).refused)]
            if refused:
                with stage:
                    raise MethodRefused(refused[0])
            else:
                yield stage

    def read(self, name: str) -> Record:
        """The record of a finished stage; raises StageError if it has not been made under these settings."""
        if name not in self.plan:
            raise StageError(f"no model {name!r} under these settings; this chain has: {', '.join(self.plan)}")
        status, reason = self.plan[name].state
        if status != "done":
            raise StageError(f"{self}: {name} is {status} ({reason}); run its chapter or `edgemin run` first")
        return read_record(self.folder / name)


def open_chain(
    task: str = "sst2",
    profile: str = "demo",
    seed: int = 0,
    output_dir: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Chain:
    """The chain that a notebook's parameters name; raises SettingError for what is unknown, and a seed that is none."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise SettingError(f"seed {seed!r} cannot be used; a seed is a whole number from 0 to {2**32 - 1}")
    for name, value in {"task": task, "profile": profile, "output_dir": output_dir or ""}.items():
        if not isinstance(value, str | os.PathLike):
            raise SettingError(f"{name} is {value!r}; give text (with papermill: -r {name} ..., or -y for overrides)")
    if not isinstance(replace, bool):
        raise SettingError(f"replace is {replace!r}; give true or false (with papermill: -y 'replace: true')")
    settings, folder = load_settings(profile, overrides), study_folder(output_dir, profile)
    if folder.is_file():
        raise SettingError(f"{folder} is a file; --output-dir names a folder")
    drive, colab = Path("/content/drive"), "google.colab"
    if colab in sys.modules and folder.is_relative_to(drive) and not (drive / "MyDrive").is_dir():
        __import__(f"{colab}.drive", fromlist=["mount"]).mount(str(drive))  # Colab asks for permission
    chain = Chain(settings, resolve_task(settings, task).name, seed, folder, replace)
    _ = chain.plan  # an unknown model is refused here
    return chain


def open_chain_folder(folder: Path) -> Chain:
    """The chain in `<study>/<task>/seed-<n>` as last run, but for models unknown here; raises StageError if damaged."""
    path = Path(folder) / "chain.json"
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
        profile, overrides = str(asked["profile"]), dict(asked["overrides"])
    except (OSError, ValueError, KeyError, TypeError):
        raise StageError(f"{path} is missing or damaged; run the chain's command again, which writes it anew") from None
    settings = load_settings(profile, overrides)
    known = [text for text in settings.models if names.is_known(text, settings)]
    settings, seed = replace(settings, models=known), int(folder.name.removeprefix("seed-"))
    return Chain(settings, folder.parent.name, seed, folder.parent.parent)


def find_chains(study: Path) -> list[Chain]:
    """The chains of a study, ordered by task and seed."""
    return [open_chain_folder(path.parent) for path in sorted(Path(study).glob("[!.]*/seed-*/chain.json"))]


def read_record(folder: Path) -> Record:
    """The record in `folder`; raises StageError if there is none, or it is damaged or of another version."""
    path = Path(folder) / "record.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != RECORD_VERSION:
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(f"{folder} holds no record.json") from None
    except (ValueError, KeyError, TypeError):
        raise StageError(f"{path} is damaged or of another version; the same command makes it anew") from None
    return Record(**{"refused": "", **content, "folder": Path(folder)})


def find_records(study: Path) -> list[Record]:
    """Every readable record under a study's folder, ordered by task, seed and model; others are left out."""
    found = _readable(path.parent for path in Path(study).glob("[!.]*/seed-*/[!.]*/record.json"))
    return sorted(found, key=lambda record: (record.task, record.seed, record.model))


def _readable(folders: Iterable[Path]) -> Iterator[Record]:
    for folder in folders:
        with contextlib.suppress(StageError):
            yield read_record(folder)


def study_status(chains: Iterable[Chain]) -> list[dict[str, Any]]:
    """task, seed, model, status, seconds and reason of every stage, and of models on disk of a step unknown here."""
    rows, unknown = [], State("unknown", "a step that a notebook's cell defines, which alone can make it")
    for chain in chains:
        found = {name: stage.state for name, stage in chain.plan.items()}
        others = {path.parent.name for path in chain.folder.glob("[!.]*/record.json")} - {COSTS, *chain.plan}
        found |= {name: unknown for name in sorted(others) if not names.is_known(name, chain.settings)}
        for name, (status, reason) in found.items():
            seconds = f"{read_record(chain.folder / name).seconds:.0f}" if status == "done" else ""
            place = {"task": chain.task, "seed": chain.seed, "model": name}
            rows.append({**place, "status": status, "seconds": seconds, "reason": reason})
    return rows


def code_of(kind: str, method: str, taught: bool = True) -> dict[str, str]:
    """File -> digest of the code that computes a stage: where its kind and method begin, and what that imports. What
    learns from labels alone (not `taught`) uses nothing that distillation/objective.py imports."""
    waiting, found = ["training.py", "checkpoints.py", f"pruning/{method}.py", *_CODE.get(kind, [])], dict[str, str]()
    if isinstance(found_in := names.IMPLEMENTATIONS.get(method), str):
        waiting.append(f"distillation/{found_in.partition(':')[0]}.py")
    while waiting:
        file = waiting.pop()
        if file not in found and (_PACKAGE / file).is_file():
            found[file], imported = _read_code(file)
            waiting += imported if taught or file != "distillation/objective.py" else ()
    options = {"scheme": _digest(names.SCHEME_CLASSES[method])} if method in names.SCHEME_CLASSES else {}
    return dict(sorted(found.items())) | options


@functools.cache
def _read_code(file: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a file's syntax tree, and the files of the core that it imports."""
    tree, modules = ast.parse((_PACKAGE / file).read_text(encoding="utf-8")), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgemin_utils"):
            module = (node.module or "").removeprefix("edgemin_utils").strip(".").replace(".", "/")
            modules += [module, *(f"{module}/{item.name}".lstrip("/") for item in node.names)]
    return code_digest(tree), tuple(f"{module}.py" for module in modules if module.startswith(_CORE))


def code_digest(code: str | ast.AST) -> str:
    """16 hexadecimal digits of a syntax tree without its docstrings."""
    tree = ast.parse(code) if isinstance(code, str) else code
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def content_identity(name: str) -> str:
    """What stands for a model or a file in a fingerprint: the content of a folder or file, else the name itself."""
    path = Path(name).expanduser()
    if path.is_dir():
        suffixes = (".json", ".safetensors", ".bin", ".txt", ".model")
        files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in suffixes)
        return "folder-" + _digest({file.name: _file_digest(file, file.stat().st_mtime_ns) for file in files})
    return f"file-{_file_digest(path, path.stat().st_mtime_ns)[:16]}" if path.is_file() else name


@functools.cache
def _file_digest(path: Path, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One line that names what changed between two identities."""
    said = {"settings": "{0} was {1!r}, now {2!r}", "upstream": "{0} changed", "code": "the code of {0} changed"}
    changes = ["the rows changed"] if old.get("rows") != new["rows"] else []
    for part, sentence in said.items():
        before, now = old.get(part, {}), plain(new[part])
        both = [(name, before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())]
        changes += [sentence.format(*each) for each in both if each[1] != each[2]]
    return "; ".join(changes) or "another run's record"


@functools.cache
def say_once(text: str) -> None:
    """Prints a line that this process has not said before, in the process that writes."""
    if is_main_process():
        print(text, flush=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def plain(value: Any) -> Any:
    """`value` as plain JSON data: arrays and tuples as lists, paths as text, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def require_writable(folder: Path) -> None:
    """Makes a folder; raises StorageError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); choose another place") from error


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder that takes the place of `final` once the context ends well. Raises StorageError where it cannot."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.partial-") as partial:
            (made := Path(partial, "made")).mkdir()
            yield made
            if final.exists():
                final.rename(Path(partial, "old"))
            made.rename(final)
    except OSError as error:
        raise StorageError(f"{final} cannot be written ({error.strerror}); choose another place") from error


@contextlib.contextmanager
def _beside(final: Path) -> Iterator[Path]:
    """A new folder, in the process that writes: once it holds a record it becomes `final`, which no other run makes
    meanwhile. What killed runs left goes, but a folder comes back where one died before its new one was in place."""
    if not is_main_process():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(final.with_name(f".{final.name}.lock"))
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"{final.name}: another run is making it; waiting", flush=True)
        held = lock.acquire()
    with held:
        partial, old = (final.with_name(f".{final.name}.{kind}") for kind in ("partial", "old"))
        if old.exists() and not final.exists():
            old.rename(final)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            if (partial / "record.json").exists():
                if final.exists():
                    final.rename(old)
                partial.rename(final)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _in_one_sentence(name: str, folder: Path) -> Iterator[None]:
    """Turns a full or unwritable disk, and want of memory on a CPU or a GPU, into one sentence; other errors pass."""
    try:
        yield
    except Exception as error:
        said = "" if isinstance(error, EdgeMINError) else str(error).strip().partition("\n")[0]
        full = any(words in said for words in ("No space left", "quota exceeded", "Read-only file system"))
        if full or isinstance(error, PermissionError):
            raise StorageError(f"{folder.parent} cannot be written ({said}); free space and run it again") from error
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in said:
            way = "run fewer --jobs, or give --set evaluation_batch_size=16 or teacher_cache_gigabytes=0"
            raise MemoryShortage(f"{name} needs more memory than is free ({said}). Run it again: {way}") from error
        raise
