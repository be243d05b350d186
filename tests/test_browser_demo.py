"""What is around the page: its server, its npm packages, the demo study's bundle and what it is compared with."""

import json
import os
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from example_bundle import write_model

from edgemin_utils.browser import demo
from edgemin_utils.browser.demo import FOLDER, PACKAGES, demo_bundle, fetch_packages, make_server, serve_demo
from edgemin_utils.bundle import making
from edgemin_utils.bundle.classify import FORMAT_VERSION
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.quantization.sessions import OnnxSession

CONTENT = {"format_version": FORMAT_VERSION, "labels": ["no", "yes"], "text_columns": ["text"], "max_length": 8}
FILES = {"model.onnx": b"graph", "tokenizer.json": b"{}", "notes.txt": b"own"}
FILES["bundle.json"] = json.dumps({**CONTENT, "rules": {}, "files": {}}).encode()


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    for name, content in FILES.items():
        (tmp_path / "bundle" / name).write_bytes(content)
    return tmp_path / "bundle"


@pytest.fixture
def installed(tmp_path):
    (tmp_path / "packages").mkdir()
    for name in PACKAGES:
        (tmp_path / "packages" / name).write_text(name)
    return {name: tmp_path / "packages" / name for name in PACKAGES}


def fetch(address: str) -> tuple:
    try:
        with urllib.request.urlopen(address) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, b"", error.headers


@contextmanager
def served(routes):
    with make_server(routes, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


def test_the_server_has_the_pages_files_and_no_other(bundle, installed):
    with served(demo.page_routes(bundle, installed, demo.float32_files(None, bundle))) as address:
        for path, wanted, kind in (
            ("", (FOLDER / "page" / "page.html").read_bytes(), "text/html"),
            ("page.mjs?again", (FOLDER / "page" / "page.mjs").read_bytes(), "text/javascript"),
            ("packages/onnxruntime.wasm", b"onnxruntime.wasm", "application/wasm"),
            ("bundle/model.onnx", b"graph", "application/octet-stream"),
        ):
            status, content, headers = fetch(address + path)
            assert (status, content, headers["Content-Type"]) == (200, wanted, kind)
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert "default-src 'self'" in headers["Content-Security-Policy"]
        compared = json.loads(fetch(f"{address}float32/comparison.json")[1])
        assert compared["graph"] is compared["tokenizer"] is None and "--float32" in compared["missing"]
        (bundle / "tokenizer.json").unlink()
        absent = "bundle/notes.txt bundle/ bundle/../bundle/notes.txt float32/model.onnx demo.py bundle/tokenizer.json"
        for path in absent.split():
            assert fetch(address + path)[0] == 404, path


def fake_npm(folder, script, monkeypatch):
    program = folder / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/bin{os.pathsep}/usr/bin")


def test_packages_are_fetched_once(tmp_path, monkeypatch):
    places = " ".join(f"node_modules/{place}" for place in PACKAGES.values())
    script = f"echo run >> {tmp_path}/runs; test -f package-lock.json || exit 1\nfor file in {places} other/file; do"
    fake_npm(tmp_path, f'{script} mkdir -p "$(dirname "$file")"; echo "$file" > "$file"; done', monkeypatch)
    cache = tmp_path / "cache"
    found = fetch_packages(cache)
    assert fetch_packages(cache) == found and (tmp_path / "runs").read_text() == "run\n"
    texts = {name: path.read_text() for name, path in found.items()}
    assert texts == {name: f"node_modules/{place}\n" for name, place in PACKAGES.items()}
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == sorted(found.values())  # nothing else stays


def test_npm_missing_or_failing_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="install Node.js"):
        fetch_packages(tmp_path / "cache")
    fake_npm(tmp_path, 'echo "npm error network unreachable" >&2; exit 7', monkeypatch)
    with pytest.raises(ModelError, match=r"cannot fetch the page's packages \(network unreachable\)"):
        fetch_packages(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_model_to_compare_with_is_exported(tmp_path):
    folder = write_model(tmp_path / "model")
    files = demo.float32_files(str(folder), tmp_path)
    assert OnnxSession(files["model.onnx"]).types and files["tokenizer.json"] == folder / "tokenizer.json"
    with pytest.raises(ModelError, match="there is no folder .*model.onnx"):
        demo.float32_files(str(files["model.onnx"]), tmp_path)


def test_the_demo_studys_bundle_is_made_once_and_anew_when_its_model_is(tmp_path, monkeypatch):
    record, made = SimpleNamespace(fingerprint="abc"), []
    chains = [SimpleNamespace(task=task, settings=None, folder=tmp_path / task) for task in ("qqp", "sst2")]

    def make(source, folder, max_drop):
        made.append(source.fingerprint)
        folder.mkdir(exist_ok=True)
        content = {**json.loads(FILES["bundle.json"]), "provenance": {"fingerprint": source.fingerprint}}
        (folder / "bundle.json").write_text(json.dumps(content))

    monkeypatch.setattr(demo, "find_chains", lambda study: chains)
    monkeypatch.setattr(demo, "main_path", lambda settings: ["teacher", "minilmv2", "minilmv2+int8"])
    monkeypatch.setattr(demo, "read_record", lambda folder: record)
    monkeypatch.setattr(making, "open_source", lambda folder: record)
    monkeypatch.setattr(making, "make_bundle", make)
    for fingerprint in ("abc", "abc", "def"):
        record.fingerprint = fingerprint
        assert demo_bundle(tmp_path) == (tmp_path / "bundle", str(tmp_path / "sst2" / "minilmv2"))
    assert made == ["abc", "def"]
    chains.clear()
    with pytest.raises(ModelError, match="run `edgemin run`, or name a bundle"):
        demo_bundle(tmp_path)


def test_it_says_where_it_serves_until_it_is_stopped(bundle, installed, monkeypatch, capsys):
    monkeypatch.setattr(demo, "fetch_packages", lambda cache: installed)
    monkeypatch.setattr(demo.ThreadingHTTPServer, "serve_forever", Mock(side_effect=KeyboardInterrupt))
    serve_demo(str(bundle))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"bundle: {bundle}; preparing its page"
    assert re.fullmatch(r"open http://127\.0\.0\.1:\d+/ in a browser; Ctrl-C stops the server", second)
    with make_server({}, 0) as taken, pytest.raises(SettingError, match="choose another --port"):
        serve_demo(str(bundle), taken.server_address[1])
