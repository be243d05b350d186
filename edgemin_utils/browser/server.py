"""The server of the page, on this machine's own address: it has exactly the files that the page needs."""

import json
import os
import shutil
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgemin_utils.browser.comparison import Comparison
from edgemin_utils.bundle.classify import BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE
from edgemin_utils.errors import SettingError

ADDRESS = "127.0.0.1"
PAGE_FOLDER = Path(__file__).resolve().parent / "page"
CONTENT_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
HEADERS: Mapping[str, str] = {
    # A file that was made anew must not be taken from the browser's cache.
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Isolated pages get a clock of 5 microseconds instead of 100, which short latencies need.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    # The browser itself refuses any request to another server.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:",
}
Routes = Mapping[str, Path | bytes]
"""Path of an address -> the file or the bytes there."""


def page_routes(bundle: Path, packages: Mapping[str, Path], comparison: Comparison) -> dict[str, Path | bytes]:
    """What the server answers to.

    Args:
        bundle: the bundle's folder.
        packages: as `fetch_packages` returns them.
        comparison: the FP32 model beside it, or why there is none.
    """
    routes: dict[str, Path | bytes] = {"/": PAGE_FOLDER / "page.html"}
    routes |= {f"/{path.name}": path for path in PAGE_FOLDER.iterdir()}
    routes |= {f"/packages/{name}": path for name, path in packages.items()}
    routes |= {f"/bundle/{name}": bundle / name for name in (BUNDLE_FILE, MODEL_FILE, TOKENIZER_FILE)}
    routes |= {f"/float32/{name}": path for name, path in comparison.files().items()}
    routes["/comparison.json"] = json.dumps(comparison.as_record()).encode()
    return routes


def make_server(routes: Routes, port: int) -> ThreadingHTTPServer:
    """A server that is bound but does not serve yet.

    Args:
        port: 0 takes a free one.

    Raises:
        SettingError: the port cannot be had.
    """

    class Handler(_RoutesHandler):
        served = routes

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        raise SettingError(
            f"port {port} cannot be served ({error}); choose another one with --port, or 0 for any free one"
        ) from None


def address_of(server: ThreadingHTTPServer) -> str:
    """The address to open in a browser."""
    return f"http://{ADDRESS}:{server.server_address[1]}/"


class _RoutesHandler(BaseHTTPRequestHandler):
    served: Routes = {}

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        content = self.served.get(path)
        if isinstance(content, bytes):
            self._head(path, len(content))
            self.wfile.write(content)
        elif content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._send_file(content)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: requests are the page's own."""

    def _send_file(self, path: Path) -> None:
        try:
            file = open(path, "rb")
        except OSError:  # gone since the server was started
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            self._head(path.name, os.fstat(file.fileno()).st_size)
            shutil.copyfileobj(file, self.wfile)

    def _head(self, name: str, size: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(size))
        self.end_headers()
