"""Paths among the settings: made absolute, and whether every machine that works on a study sees them."""

import contextlib
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemin_utils.config import Settings
from edgemin_utils.errors import StorageError
from edgemin_utils.processes import from_main_process, is_main_process, of_every_process

# Settings that name a folder or a file, and those that may name a checkpoint's folder instead of a hub id.
PATH_SETTINGS = ("data_dir", "task_file", "dev_file", "transfer_file", "vocabulary_text")
MODEL_SETTINGS = ("teacher", "student", "assistant")


def absolute_paths(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` with paths made absolute, since notebooks run in another directory.

    A teacher or student counts as a path when it is a folder here or starts like one; else it is a hub id.
    """
    changed = dict(overrides)
    for name, value in overrides.items():
        if not isinstance(value, str | os.PathLike) or not os.fspath(value) or value in ("none", "None"):
            continue
        # Only a checkpoint is looked for on disk: another value, such as a list of recipes, may be too long for a path.
        if name in PATH_SETTINGS or (name in MODEL_SETTINGS and _looks_like_a_path(value)):
            changed[name] = os.path.abspath(Path(value).expanduser())
    return changed


def _looks_like_a_path(value: str | os.PathLike) -> bool:
    return os.fspath(value).startswith((".", "~", os.sep)) or Path(value).expanduser().is_dir()


def paths_of_settings(settings: Settings) -> list[str]:
    """The absolute paths among the settings: rows, texts and checkpoints of one's own."""
    values = (getattr(settings, name) for name in (*PATH_SETTINGS, *MODEL_SETTINGS))
    return [value for value in values if value and os.path.isabs(value)]


@contextlib.contextmanager
def mark_in(study: Path) -> Iterator[str]:
    """The path of a file in the study's folder that is there for as long as the context lasts: a machine that sees it
    has the same folder, not only one of the same name.

    Raises:
        StorageError: the folder cannot be written.
    """
    mark = study / f".shared-{uuid.uuid4().hex}"
    try:
        study.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise StorageError(f"{study} cannot be written ({error.strerror}); choose another --output-dir") from error
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


def missing_paths(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that this machine does not see."""
    return [path for path in paths if not os.path.exists(path)]


def refuse_missing(missing: Mapping[str, Sequence[str]]) -> None:
    """Raises a StorageError if any place (a worker, a process) of `missing` lacks a path."""
    lacking = {place: paths for place, paths in missing.items() if paths}
    if lacking:
        place, paths = next(iter(lacking.items()))
        seen = ", ".join(str(Path(path).parent) if Path(path).name.startswith(".shared-") else path for path in paths)
        raise StorageError(
            f"{place} does not see {seen} ({len(lacking)} of {len(missing)} lack something). The study's folder, the "
            "project and the folders of data and checkpoints must lie on storage that all machines share, under the "
            "same paths"
        )


def refuse_unshared(study: Path, settings: Settings) -> None:
    """Sees that every process that trains here has the study's folder and the settings' paths; all of them call it.

    Raises:
        StorageError: one does not, in every process; or the study's folder cannot be written.
    """
    with mark_in(study) if is_main_process() else contextlib.nullcontext() as mark:
        paths = [from_main_process(mark), *paths_of_settings(settings)]
        missing = of_every_process((socket.gethostname(), missing_paths(paths)))
    refuse_missing({f"process {number} on {host}": lacking for number, (host, lacking) in enumerate(missing)})
