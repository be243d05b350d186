"""Hashes of files' contents, which fingerprints stand on."""

import functools
import hashlib
from pathlib import Path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; a file that has not changed since is not read again.

    Raises:
        OSError: the file cannot be read.
    """
    stat = path.stat()
    return _hash(path.absolute(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash(path: Path, size: int, modified: int) -> str:
    # Size and time of change are part of the key, so that an edited file is hashed again.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
