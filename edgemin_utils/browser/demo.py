"""`edgemin demo`: a bundle in the browser, from this machine's own server."""

import tempfile
from pathlib import Path

from edgemin_utils.browser.comparison import find_comparison
from edgemin_utils.browser.packages import fetch_packages
from edgemin_utils.browser.server import address_of, make_server, page_routes
from edgemin_utils.bundle.classify import BUNDLE_FILE, ClassifyError, read_content
from edgemin_utils.config import project_folder, study_folder
from edgemin_utils.errors import ModelError

CACHE = ".browser"
"""Folder of the page's packages in the project's folder."""


def serve_demo(bundle: str | None, port: int, float32: str | None = None) -> None:
    """Serves the page of a bundle until it is stopped from the keyboard; prints the address to open.

    Args:
        bundle: the bundle's folder; None takes the newest of the demo study.
        port: 0 takes a free one.
        float32: the .onnx file or model folder to compare with; None looks for one (see `find_comparison`).

    Raises:
        ModelError: there is no bundle, it is damaged or of another format, or there is no such file.
        PackagesError: the page's packages cannot be fetched.
        SettingError: the port cannot be had.
    """
    folder = Path(bundle).expanduser() if bundle else newest_bundle(study_folder(None, "demo"))
    try:
        manifest = read_content(folder)
    except ClassifyError as error:
        raise ModelError(str(error)) from error
    print(f"bundle: {folder}; preparing its page", flush=True)
    packages = fetch_packages(project_folder() / CACHE)
    with tempfile.TemporaryDirectory() as temporary:
        comparison = find_comparison(folder, manifest, Path(float32).expanduser() if float32 else None, Path(temporary))
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
    found = [
        path
        for path in study.glob(f"**/{BUNDLE_FILE}")
        if not any(part.startswith(".") for part in path.relative_to(study).parts)
    ]
    if not found:
        raise ModelError(
            f"there is no bundle under {study}; make one with `edgemin bundle MODEL --output DIR` and "
            "name it, as in `edgemin demo DIR`"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent
