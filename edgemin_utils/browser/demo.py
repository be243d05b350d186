"""`edgemin demo`: a bundle in the browser, from a server on this machine, with two npm packages of pinned checksums."""

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgemin_utils.bundle.classify import BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE, ClassifyError, read_content
from edgemin_utils.errors import ModelError, SettingError, StageError
from edgemin_utils.names import main_path
from edgemin_utils.settings import project_folder, study_folder
from edgemin_utils.study import find_chains, new_folder, read_record, write_json

ADDRESS, CACHE = "127.0.0.1", ".browser"
FOLDER = Path(__file__).resolve().parent
NPM = "npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --no-update-notifier".split()
# Name under which the page loads it -> where npm puts it.
PACKAGES = {"onnxruntime.mjs": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs"}
PACKAGES |= {"onnxruntime.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"}
PACKAGES |= {"tokenizers.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs"}
TYPES = {".html": "text/html", ".css": "text/css", ".mjs": "text/javascript", ".wasm": "application/wasm"}
# Pages that are isolated (same-origin, require-corp) get a clock of 5 microseconds instead of 100.
HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
HEADERS |= {"Cache-Control": "no-store"}
HEADERS |= {"Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:"}


def serve_demo(bundle: str | None = None, port: int = 0, float32: str | None = None) -> None:
    """Serves the page of a bundle (None: of the demo study) at a port (0: any free one) until Ctrl-C; `float32` names a
    model to compare with. Raises ModelError where one of these or the packages cannot be had, and as `make_server`."""
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
    """A study's bundle, made if its model has changed, and that model's folder. Raises ModelError where neither is."""
    for chain in sorted(find_chains(study), key=lambda chain: chain.task != "sst2"):
        folder, bundle = chain.folder / main_path(chain.settings)[-2], study / "bundle"
        with contextlib.suppress(StageError):
            record, found = read_record(folder), None
            with contextlib.suppress(ClassifyError):
                found = read_content(bundle)["provenance"]["fingerprint"]
            if found != record.fingerprint:
                from edgemin_utils.bundle.making import make_bundle, open_source  # imports torch

                make_bundle(open_source(str(folder)), bundle, max_drop=100)  # the page shows what it loses
            return bundle, str(folder)
    raise ModelError(f"no finished study in {study}; run `edgemin run`, or name a bundle, as in `edgemin demo DIR`")


def float32_files(source: str | None, place: Path) -> dict[str, Path]:
    """Files by the page's names for them: a float model's graph, exported to `place`, and its tokenizer; and
    comparison.json with their checksums. Raises ModelError where the source is no folder."""
    files: dict[str, Path] = {}
    if source:
        if not (path := Path(source).expanduser()).is_dir():
            raise ModelError(f"there is no folder {path}; --float32 names a model's")
        from edgemin_utils.quantization.schemes import load_model, quantize, save_quantized  # imports torch

        save_quantized(quantize(load_model(path), "onnx-float32"), place, "onnx-float32")
        files = {MODEL_FILE: place / MODEL_FILE, TOKENIZER_FILE: path / TOKENIZER_FILE}
    sums: dict[str, Any] = {"missing": "" if files else "To compare with a model, start with --float32."}
    for key, name in (("graph", MODEL_FILE), ("tokenizer", TOKENIZER_FILE)):
        found = files[name].read_bytes() if name in files else None
        sums[key] = found and {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
    write_json(comparison := place / "comparison.json", sums)
    return {**files, comparison.name: comparison}


def fetch_packages(cache: Path) -> dict[str, Path]:
    """The packages' files by the page's names, fetched once. Raises ModelError where npm fails, and as `new_folder`."""
    locks = [FOLDER / name for name in ("package.json", "package-lock.json")]
    final = cache / hashlib.sha256(b"".join(path.read_bytes() for path in locks)).hexdigest()[:12]
    if not final.is_dir():
        if not shutil.which(NPM[0]):
            raise ModelError("the page needs npm to fetch its packages once; install Node.js (Debian: nodejs and npm)")
        with new_folder(final) as kept, tempfile.TemporaryDirectory() as project:
            for path in locks:
                shutil.copy(path, project)
            done = subprocess.run(NPM, cwd=project, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().split("\n")[0].removeprefix("npm error ")
                raise ModelError(f"npm cannot fetch the page's packages ({said}); make `npm ci` work in {FOLDER}")
            for name, place in PACKAGES.items():
                shutil.move(Path(project, "node_modules", place), kept / name)
    return {name: final / name for name in PACKAGES}


def page_routes(bundle: Path, packages: Mapping[str, Path], compared: Mapping[str, Path]) -> dict[str, Path]:
    """Path -> file to answer with, of what `fetch_packages` and `float32_files` give."""
    own = {name: bundle / name for name in (BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE)}
    folders = {"packages": packages, "bundle": own, "float32": compared}
    routes = {f"/{folder}/{name}": path for folder, files in folders.items() for name, path in files.items()}
    page = {f"/{path.name}": path for path in (FOLDER / "page").iterdir()}
    return {**routes, **page, "/": page["/page.html"]}


def make_server(routes: Mapping[str, Path], port: int) -> ThreadingHTTPServer:
    """A server that is bound but does not serve yet; port 0 takes a free one. Raises SettingError where it is taken."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = TYPES

        def translate_path(self, path: str) -> str:
            return str(routes.get(urlsplit(path).path, ""))

        def end_headers(self) -> None:
            for name, value in HEADERS.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: requests are the page's own."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise SettingError(f"port {port} cannot be served ({error}); choose another --port, or 0") from None
