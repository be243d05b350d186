"""`edgemin demo`: a bundle in the browser, from a server on this machine's address. The page needs two npm packages,
onnxruntime-web and the tokenizers library, pinned with their checksums in `package-lock.json`."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgemin_utils.bundle.classify import BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE, ClassifyError, read_content
from edgemin_utils.errors import ModelError, SettingError, StageError, StorageError
from edgemin_utils.names import main_path
from edgemin_utils.settings import project_folder, study_folder
from edgemin_utils.study import find_chains, read_record

ADDRESS, CACHE = "127.0.0.1", ".browser"
FOLDER = Path(__file__).resolve().parent
NPM = "npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --no-update-notifier".split()
# Name under which the page loads it -> where npm puts it.
PACKAGES = {
    "onnxruntime.mjs": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
}
TYPES = {".html": "text/html", ".css": "text/css", ".mjs": "text/javascript", ".wasm": "application/wasm"}
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",  # isolated pages get a clock of 5 microseconds instead of 100
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:",
}
Routes = Mapping[str, Path | bytes]


def serve_demo(bundle: str | None = None, port: int = 0, float32: str | None = None) -> None:
    """Serves the page of a bundle (None: of the demo study) at a port (0: any free one) until Ctrl-C, and prints where;
    `float32` names a model to compare with. Raises ModelError where one of these or the packages cannot be had,
    SettingError where the port is taken."""
    folder, source = (Path(bundle), float32) if bundle else demo_bundle(study_folder(None, "demo"))
    try:
        read_content(folder := folder.expanduser())
    except ClassifyError as error:
        raise ModelError(str(error)) from error
    print(f"bundle: {folder}; preparing its page", flush=True)
    packages = fetch_packages(project_folder() / CACHE)
    with tempfile.TemporaryDirectory() as place:
        compared = float32_files(float32 or source, Path(place))
        with make_server(page_routes(folder, packages, compared), port) as server:
            print(f"open http://{ADDRESS}:{server.server_port}/ in a browser; Ctrl-C stops the server", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


def demo_bundle(study: Path) -> tuple[Path, str]:
    """The bundle in a study's folder, made if it is not of the model as it is now, and that model's folder: what the
    main path quantizes. Raises ModelError where no such model is there."""
    from edgemin_utils.bundle.making import make_bundle  # imports torch
    from edgemin_utils.bundle.sources import stage_source

    for chain in sorted(find_chains(study), key=lambda chain: chain.task != "sst2"):
        folder, bundle = chain.folder / main_path(chain.settings)[-2], study / "bundle"
        with contextlib.suppress(StageError):
            record, found = read_record(folder), None
            with contextlib.suppress(ClassifyError):
                found = read_content(bundle)["provenance"]["fingerprint"]
            if found != record.fingerprint:
                make_bundle(stage_source(record), bundle, max_drop=100)  # the page shows what it loses
            return bundle, str(folder)
    raise ModelError(f"no finished study in {study}; run `edgemin run`, or name a bundle, as in `edgemin demo DIR`")


def float32_files(source: str | None, place: Path) -> dict[str, Path]:
    """Files by the names that the page asks for of an .onnx file, or of a float model with its tokenizer, exported to
    `place`. Raises ModelError where the source is not there."""
    if not source or (path := Path(source).expanduser()).is_file():
        return {MODEL_FILE: path} if source else {}
    if not path.exists():
        raise ModelError(f"there is no {path}; --float32 names an .onnx file or a model's folder")
    from edgemin_utils.quantization.schemes import load_model, quantize, save_quantized  # imports torch

    save_quantized(quantize(load_model(path), "onnx-float32"), place, "onnx-float32")
    return {MODEL_FILE: place / MODEL_FILE, TOKENIZER_FILE: path / TOKENIZER_FILE}


def fetch_packages(cache: Path) -> dict[str, Path]:
    """The packages' files by the page's names for them, fetched if `cache` does not hold them. Raises ModelError where
    npm is missing or fails, StorageError where the folder cannot be written."""
    locks = [FOLDER / name for name in ("package.json", "package-lock.json")]
    final = cache / hashlib.sha256(b"".join(path.read_bytes() for path in locks)).hexdigest()[:12]
    if not final.is_dir() and not shutil.which(NPM[0]):
        raise ModelError("the page needs npm to fetch its two packages once; install Node.js (Debian: nodejs and npm)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as place:
            if not final.is_dir():
                _fetch(locks, Path(place), Path(place, "kept"))
            if not final.is_dir():  # else another process was first
                Path(place, "kept").rename(final)
    except OSError as error:
        raise StorageError(f"the page's packages cannot be kept in {cache}: {error}") from error
    return {name: final / name for name in PACKAGES}


def _fetch(locks: list[Path], project: Path, kept: Path) -> None:
    for path in locks:
        shutil.copy(path, project)
    done = subprocess.run(NPM, cwd=project, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().split("\n")[0].removeprefix("npm error ")
        raise ModelError(f"npm cannot fetch the page's packages ({said}); check that `npm ci` works in {FOLDER}")
    kept.mkdir()
    for name, place in PACKAGES.items():
        shutil.move(project / "node_modules" / place, kept / name)


def page_routes(bundle: Path, packages: Mapping[str, Path], compared: Mapping[str, Path]) -> Routes:
    """Path -> file or bytes to answer with, of what `fetch_packages` and `float32_files` give."""
    checksums: dict[str, Any] = {"missing": "" if compared else "To compare with a model, start with --float32."}
    for key, name in (("graph", MODEL_FILE), ("tokenizer", TOKENIZER_FILE)):
        found = compared[name].read_bytes() if name in compared else None
        checksums[key] = found and {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
    own = {name: bundle / name for name in (BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE)}
    folders = {"packages": packages, "bundle": own, "float32": compared}
    routes = {f"/{folder}/{name}": path for folder, files in folders.items() for name, path in files.items()}
    routes |= {f"/{path.name}": path for path in (FOLDER / "page").iterdir()} | {"/": FOLDER / "page" / "page.html"}
    return {**routes, "/comparison.json": json.dumps(checksums).encode()}


def make_server(routes: Routes, port: int) -> ThreadingHTTPServer:
    """A server that is bound but does not serve yet; port 0 takes a free one. Raises SettingError where it is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = routes.get(path := urlsplit(self.path).path, b"")
            file = content if isinstance(content, Path) else Path(path)
            found = content if isinstance(content, bytes) else content.read_bytes() if content.exists() else b""
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            about = {"Content-Type": TYPES.get(file.suffix, "application/octet-stream"), "Content-Length": len(found)}
            for name, value in {**about, **HEADERS}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_: Any) -> None:
            """Nothing: requests are the page's own."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise SettingError(f"port {port} cannot be served ({error}); choose another --port, or 0") from None
