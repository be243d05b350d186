"""What is around the page: its server, its npm packages, which bundle it shows and what it is compared with."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edgemin_utils.browser import packages as npm
from edgemin_utils.browser.comparison import Comparison, find_comparison, source_folder
from edgemin_utils.browser.demo import newest_bundle
from edgemin_utils.browser.packages import PACKAGE_FILES, fetch_packages
from edgemin_utils.browser.server import PAGE_FOLDER, address_of, make_server, page_routes
from edgemin_utils.bundle.classify import FORMAT_VERSION
from edgemin_utils.cli import main
from edgemin_utils.errors import ModelError, PackagesError

CONTENT = {
    "format_version": FORMAT_VERSION,
    "labels": ["no", "yes"],
    "text_columns": ["text"],
    "max_length": 8,
    "inputs": ["input_ids"],
    "pad_token_id": 0,
    "files": {},
    "provenance": {"minimum_onnxruntime": "1.20"},
}
FILES = {
    "model.onnx": b"graph",
    "tokenizer.json": b"{}",
    "bundle.json": json.dumps(CONTENT).encode(),
    "notes.txt": b"own",
}


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def installed(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in PACKAGE_FILES:
        (folder / name).write_text(name)
    return {name: folder / name for name in PACKAGE_FILES}


def fetch(address: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(address) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, b"", dict(error.headers)


def test_the_server_has_the_pages_files_and_no_other(bundle, installed):
    with make_server(page_routes(bundle, installed, Comparison(missing="None here.")), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        address = address_of(server)
        try:
            for path, wanted, kind in (
                ("", (PAGE_FOLDER / "page.html").read_bytes(), "text/html; charset=utf-8"),
                ("page.mjs?again", (PAGE_FOLDER / "page.mjs").read_bytes(), "text/javascript; charset=utf-8"),
                ("packages/onnxruntime.wasm", b"onnxruntime.wasm", "application/wasm"),
                ("bundle/model.onnx", b"graph", "application/octet-stream"),
                ("bundle/bundle.json", FILES["bundle.json"], "application/json"),
            ):
                status, content, headers = fetch(address + path)
                assert (status, content, headers["Content-Type"]) == (200, wanted, kind)
                assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
                assert "default-src 'self'" in headers["Content-Security-Policy"]
            assert json.loads(fetch(f"{address}comparison.json")[1]) == {
                "graph": None,
                "tokenizer": None,
                "missing": "None here.",
            }
            (bundle / "tokenizer.json").unlink()
            for path in (
                "bundle/notes.txt",
                "bundle/",
                "bundle/../bundle/notes.txt",
                "float32/model.onnx",
                "server.py",
                "bundle/tokenizer.json",
            ):
                assert fetch(address + path)[0] == 404, path
        finally:
            server.shutdown()
            thread.join()


# ---- npm packages -----------------------------------------------------------------------------------------------


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/bin{os.pathsep}/usr/bin")


def test_packages_are_fetched_once(tmp_path, monkeypatch):
    places = " ".join(f"node_modules/{place}" for place in PACKAGE_FILES.values())
    fake_npm(
        tmp_path,
        f"echo run >> {tmp_path}/runs; test -f package-lock.json || exit 1\n"
        f'for file in {places} node_modules/other/file; do mkdir -p "$(dirname "$file")"; echo "$file" > "$file"; '
        "done",
        monkeypatch,
    )
    cache = tmp_path / "cache"
    found = fetch_packages(cache)
    assert fetch_packages(cache) == found
    assert (tmp_path / "runs").read_text() == "run\n"
    assert {name: path.read_text() for name, path in found.items()} == {
        name: f"node_modules/{place}\n" for name, place in PACKAGE_FILES.items()
    }
    # Nothing else stays: neither the other files of the packages nor the folder they came in.
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == sorted(found.values())


def test_npm_missing_or_failing_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackagesError, match="install Node.js"):
        fetch_packages(tmp_path / "cache")
    fake_npm(tmp_path, 'echo "npm error network unreachable" >&2; exit 7', monkeypatch)
    with pytest.raises(PackagesError, match=r"cannot fetch the page's packages \(network unreachable\)"):
        fetch_packages(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_package_is_pinned_with_its_checksum_and_no_host_is_named():
    wanted = json.loads((npm.FOLDER / "package.json").read_text())["dependencies"]
    text = (npm.FOLDER / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert locked[""]["dependencies"] == wanted
    assert {name.split("/dist/")[0] for name in PACKAGE_FILES.values()} == set(wanted)
    assert all(entry["integrity"].startswith("sha512-") for name, entry in locked.items() if name)
    assert "://" not in text and "resolved" not in text


# ---- the bundle and what it is compared with --------------------------------------------------------------------


def test_the_newest_bundle_is_taken(bundle, tmp_path):
    later = tmp_path / "study" / "sst2" / "bundle"
    half_made = tmp_path / "study" / ".sst2.partial-1" / "bundle"
    earlier = tmp_path / "study" / "qqp" / "seed-0" / "bundle"
    for age, folder in enumerate((half_made, later, earlier)):
        folder.mkdir(parents=True)
        (folder / "bundle.json").write_text("{}")
        moment = (bundle / "bundle.json").stat().st_mtime - age
        os.utime(folder / "bundle.json", (moment, moment))
    assert newest_bundle(tmp_path / "study") == later
    with pytest.raises(ModelError, match="make one with `edgemin bundle"):
        newest_bundle(tmp_path / "study" / "mnli")


def test_a_folder_that_is_no_bundle_is_refused(bundle, tmp_path, capsys):
    assert main(["demo", str(tmp_path / "absent")]) == 2
    assert "absent holds no bundle.json, so it is no bundle" in capsys.readouterr().err
    for content, complaint in (("{", "is damaged"), ('{"format_version": 1}', "lacks labels")):
        (bundle / "bundle.json").write_text(content)
        assert main(["demo", str(bundle)]) == 2
        assert complaint in capsys.readouterr().err


def test_a_bundle_is_compared_with_the_stage_it_was_made_from(tmp_path):
    """As long as that stage lies in a study's folder around the bundle, and is the one that it was."""
    bundle, stage = tmp_path / "sst2" / "seed-0" / "bundle", tmp_path / "sst2" / "seed-0" / "pruning" / "pruned"
    for folder in (bundle, stage):
        folder.mkdir(parents=True)
    provenance = {"source": "sst2/seed-0/pruning/pruned", "fingerprint": "abc"}
    for content, found in (('{"fingerprint": "abc"}', stage), ('{"fingerprint": "other"}', None), ("{", None)):
        (stage / "record.json").write_text(content)
        assert source_folder(bundle, {"provenance": provenance}) == found
    (stage / "record.json").write_text('{"fingerprint": "abc"}')
    for changes in (
        {"source": str(stage)},
        {"source": "sst2/../sst2/seed-0/pruning/pruned"},
        {"fingerprint": None},
        {"source": 7},
    ):
        assert source_folder(bundle, {"provenance": provenance | changes}) is None
    assert source_folder(bundle, {}) is None
    assert "name it with --float32" in find_comparison(bundle, {}, None, tmp_path).missing
    # The stage holds no model that could be exported.
    broken = find_comparison(bundle, {"provenance": provenance}, None, tmp_path)
    assert broken.graph is None and broken.missing.startswith("There is no FP32 model to compare with: ")


def test_a_float_graph_beside_the_bundle_or_named_comes_first(bundle, tmp_path):
    (bundle / "model-float32.onnx").write_bytes(b"larger")
    found = find_comparison(bundle, {}, None, tmp_path)
    assert found == Comparison(bundle / "model-float32.onnx")
    assert found.as_record()["graph"] == {"bytes": 6, "sha256": hashlib.sha256(b"larger").hexdigest()}
    with pytest.raises(ModelError, match="there is no .*other.onnx"):
        find_comparison(bundle, {}, tmp_path / "other.onnx", tmp_path)
    given = tmp_path / "given" / "float.onnx"
    given.parent.mkdir()
    given.write_bytes(b"given")
    assert find_comparison(bundle, {}, given, tmp_path).files() == {"model.onnx": given}
    # A model with another vocabulary brings its tokenizer; limits on the length are the bundle's own.
    rules = given.with_name("tokenizer.json")
    rules.write_text('{"truncation": {"max_length": 9}}')
    assert find_comparison(bundle, {}, given, tmp_path).tokenizer is None
    rules.write_text('{"model": {"type": "BPE"}}')
    assert find_comparison(bundle, {}, given, tmp_path).files() == {"model.onnx": given, "tokenizer.json": rules}


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_stopped(bundle, tmp_path, monkeypatch):
    lock = hashlib.sha256(b"".join((npm.FOLDER / name).read_bytes() for name in npm.LOCK_FILES)).hexdigest()
    kept = tmp_path / ".browser" / lock[:12]
    kept.mkdir(parents=True)
    command = [sys.executable, "-m", "edgemin_utils", "demo", str(bundle), "--port"]
    # Started in the background, these tests would ignore the interrupt, and so would what they start.
    process = subprocess.Popen(
        [*command, "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == f"bundle: {bundle}; preparing its page\n"
        assert process.stdout.readline().startswith("There is no FP32 model to compare with")
        address = re.match(r"open (http://127\.0\.0\.1:\d+/) in a browser", process.stdout.readline()).group(1)
        assert fetch(f"{address}bundle/model.onnx")[1] == b"graph"
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=30)
        assert process.returncode == 0 and complaints == ""
    finally:
        process.kill()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.chdir(tmp_path)
        assert main(["demo", str(bundle), "--port", str(taken.getsockname()[1])]) == 2
