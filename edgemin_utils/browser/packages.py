"""The page's two npm packages: onnxruntime-web, which computes the graph, and the tokenizers library.

`package-lock.json` beside this file pins them with their checksums, and `npm ci` installs exactly those. Only the files
that the page loads are kept.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgemin_utils.errors import PackagesError, StorageError

FOLDER = Path(__file__).resolve().parent
LOCK_FILES = ("package.json", "package-lock.json")
# Name under which the page loads it -> where npm puts it. The runtime's build for WebAssembly alone, without WebGPU.
PACKAGE_FILES: Mapping[str, str] = {
    "onnxruntime.mjs": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
}
FETCH_SECONDS = 300
"""After so long npm is given up."""


def fetch_packages(cache: Path) -> dict[str, Path]:
    """The packages' files by the name under which the page loads them, fetched if `cache` does not hold them yet.

    Args:
        cache: folder in which each set of pinned versions has a folder of its own.

    Raises:
        PackagesError: npm is not installed, or cannot fetch the pinned versions.
        StorageError: the folder cannot be written.
    """
    lock = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in LOCK_FILES)).hexdigest()
    final = cache / lock[:12]
    if not final.is_dir():
        npm = shutil.which("npm")
        if npm is None:
            raise PackagesError(
                "the page needs npm to fetch its two packages once; install Node.js (Debian: nodejs and npm)"
            )
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _fetch(npm, final)
        except OSError as error:
            raise StorageError(f"the page's packages cannot be kept in {cache}: {error}") from error
    return {name: final / name for name in PACKAGE_FILES}


def _fetch(npm: str, final: Path) -> None:
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetching-") as temporary:
        project, kept = Path(temporary) / "project", Path(temporary) / "kept"
        for folder in (project, kept):
            folder.mkdir()
        for name in LOCK_FILES:
            shutil.copy(FOLDER / name, project)
        _install(npm, project)
        for name, place in PACKAGE_FILES.items():
            shutil.move(project / "node_modules" / place, kept / name)
        try:
            kept.rename(final)  # whole or not at all
        except OSError:
            if not final.is_dir():  # else another process was first
                raise


def _install(npm: str, project: Path) -> None:
    # Scripts of packages are not run: nothing that the page loads is built.
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    environment = {**os.environ, "npm_config_update_notifier": "false"}
    try:
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise PackagesError(
            f"npm did not fetch the page's packages within {FETCH_SECONDS} s; check the network and run it again"
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise PackagesError(
            f"npm cannot fetch the page's packages ({lines[0].removeprefix('npm error ')}); check "
            f"that `npm ci` works with the {LOCK_FILES[1]} in {FOLDER}"
        )
