"""`edgemin demo`: a bundle in the browser, from this machine's own server."""

import json
import tempfile
from pathlib import Path
from typing import Any

from edgemin_utils.browser.comparison import find_comparison
from edgemin_utils.browser.packages import fetch_packages
from edgemin_utils.browser.server import address_of, make_server, page_routes
from edgemin_utils.config import project_folder, study_folder
from edgemin_utils.errors import ModelError

MANIFEST_FILE = "bundle.json"
CACHE = ".browser"
"""Folder of the page's packages in the project's folder."""


def serve_demo(bundle: str | None, port: int, float32: str | None = None) -> None:
    """Serves the page of a bundle until it is stopped from the keyboard; prints the address to open.

    Args:
        bundle: the bundle's folder; None takes the newest of the demo study.
        port: 0 takes a free one.
        float32: the .onnx file or model folder to compare with; None looks for one (see `find_comparison`).

    Raises:
        ModelError: there is no bundle, or no such file.
        PackagesError: the page's packages cannot be fetched.
        SettingError: the port cannot be had.
    """
    folder = Path(bundle).expanduser() if bundle else newest_bundle(study_folder(None, "demo"))
    manifest = read_manifest(folder)
    print(f"bundle: {folder}; preparing its page", flush=True)
    packages = fetch_packages(project_folder() / CACHE)
    with tempfile.TemporaryDirectory() as temporary:
        comparison = find_comparison(folder, manifest, Path(float32).expanduser() if float32 else None,
                                     Path(temporary))
        with make_server(page_routes(folder, packages, comparison), port) as server:
            if comparison.missing:
                print(comparison.missing)
            print(f"open {address_of(server)} in a browser; Ctrl-C stops the server", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()


def newest_bundle(study: Path) -> Path:
    """The bundle made last under a study's folder. Raises ModelError, with the way to make one, if there is none."""
    found = [path for path in study.glob(f"**/{MANIFEST_FILE}")
             if not any(part.startswith(".") for part in path.relative_to(study).parts)]
    if not found:
        raise ModelError(f"there is no bundle under {study}; make one with `edgemin bundle MODEL --output DIR` and "
                         "name it, as in `edgemin demo DIR`")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def read_manifest(bundle: Path) -> dict[str, Any]:
    """A bundle's bundle.json. Raises ModelError if the folder is no bundle."""
    path = bundle / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{bundle} is no bundle: it has no {MANIFEST_FILE}; `edgemin bundle MODEL --output DIR` "
                         "makes one") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); make the bundle again") from None
    if not isinstance(manifest, dict):
        raise ModelError(f"{path} holds no JSON object; make the bundle again")
    return manifest
