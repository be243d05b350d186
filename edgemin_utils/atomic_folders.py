"""Folders that appear whole or not at all, and one sentence where the disk does not allow it."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgemin_utils.errors import StorageError


@contextlib.contextmanager
def partial_folder(final: Path) -> Iterator[Path]:
    """A fresh folder beside `final`, removed if anything goes wrong. Leftovers of dead processes are removed; where one
    died between taking the old folder away and putting the new one in its place, the old one is put back."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in [path for kind in ("partial", "old") for path in final.parent.glob(f".{final.name}.{kind}-*")]:
        if not _process_runs(int(leftover.name.rsplit("-", 1)[1])):
            if ".old-" in leftover.name and not final.exists():
                leftover.rename(final)
            else:
                shutil.rmtree(leftover, ignore_errors=True)
    partial = final.parent / f".{final.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, final: Path) -> None:
    """Moves a whole folder into place; a former one goes only once the new one can take its name."""
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _process_runs(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into one sentence; other errors pass.

    Raises:
        StorageError: the disk that holds `folder` is full, or a file cannot be written.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if full:
            raise StorageError(
                f"the disk that holds {folder.parent} is full; finished stages are kept. Free some "
                "space or choose another --output-dir, then run the same command again"
            ) from error
        if isinstance(error, OSError) and number in (errno.EACCES, errno.EROFS) and error.filename:
            raise StorageError(
                f"{error.filename} cannot be written ({error.strerror}); choose another --output-dir"
            ) from error
        raise


def check_storage(folder: Path, gigabytes: float) -> None:
    """Makes a study's folder and sees that it can be written and has room.

    Raises:
        StorageError: it cannot be written, or has less than `gigabytes` (10^9 bytes) free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); choose another --output-dir") from error
    if free < gigabytes:
        raise StorageError(
            f"{folder} has {free:.2g} GB free and this study may take {gigabytes:.2g} GB; free some "
            "space or choose another --output-dir"
        )
