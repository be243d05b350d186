"""The page of a bundle, in Chromium, against Python. Collected where Chromium and npm are."""

import dataclasses
import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from example_bundle import MAX_LENGTH, source_of, write_model
from playwright.sync_api import sync_playwright
from test_browser_demo import served

from edgemin_utils.browser.demo import CACHE, fetch_packages, float32_files, page_routes
from edgemin_utils.bundle.classify import Bundle
from edgemin_utils.bundle.making import make_bundle
from edgemin_utils.quantization.sessions import OnnxSession

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
__test__ = bool(CHROMIUM and shutil.which("npm"))

COLUMNS = {"single": ("sentence",), "pair": ("sentence", "other"), "four": ("sentence",)}
# Sums are rounded otherwise, so that an activation may fall on another step; 4-bit weights meet inputs in float32.
TOLERANCES = {"single": 0.01, "pair": 0.01, "four": 0.03}
FAULTS = [("model.onnx", "x", "", "model.onnx is damaged: its SHA-256 is not the recorded one")]
FAULTS += [("tokenizer.json", "", "", "tokenizer.json is missing (the server answers 404)")]
FAULTS += [("bundle.json", '{"format_version": 1}', "", "bundle.json says format 1, and this page reads format 2")]
FAULTS += [("", "", "delete globalThis.WebAssembly", "This browser cannot run WebAssembly with SIMD")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("bundles") / "model")
    found = {name: source_of(folder, *columns) for name, columns in COLUMNS.items()}
    return {**found, "single": dataclasses.replace(found["single"], synthetic=True)}, folder


@pytest.fixture(scope="module")
def bundles(sources):
    """One takes single texts, one pairs, one has weights of 4 bits."""
    for name, source in sources[0].items():
        make_bundle(source, sources[1].parent / name, "edge-int4" if name == "four" else "", max_drop=100)
    return {name: sources[1].parent / name for name in COLUMNS}


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        # Without the sandbox, which a container's superuser cannot have; the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(bundles, sources, chromium):
    """Each bundle's open page on a phone's screen, with what it asked for and complained of."""
    compared = float32_files(str(sources[1]), sources[1].parent)
    with ExitStack() as stack:
        opened = {}
        for name, bundle in bundles.items():
            page = opened[name] = chromium.new_page(viewport={"width": 360, "height": 780})
            stack.callback(page.close)
            page.requests, page.complaints = [], []
            page.on("request", lambda request, page=page: page.requests.append(request.url))
            page.on("console", lambda message, page=page: page.complaints.append(message.text))
            page.on("pageerror", lambda error, page=page: page.complaints.append(str(error)))
            page.goto(stack.enter_context(served(page_routes(bundle, fetch_packages(PROJECT / CACHE), compared))))
            assert page.evaluate("edgemin.ready") is not None, page.locator("#problem").text_content()
        yield opened


def rows_of(source):
    columns = [source.rows.data.dev["dev"][column] for column in source.rows.data.task.text_columns]
    return [*zip(*columns, strict=True), ("ΟΔΟΣ ΣΟΦΟΣ", "İ ß")[: len(columns)]]


@pytest.mark.parametrize("name", COLUMNS)
def test_the_page_answers_as_python_does(name, sources, bundles, pages):
    bundle, rows = Bundle(bundles[name]), rows_of(sources[0][name])
    wanted = bundle.probabilities(rows)
    answers = pages[name].evaluate("rows => edgemin.classify(rows)", rows)
    found = np.array([answer["probabilities"] for answer in answers])
    apart = np.abs(found - wanted).max(axis=1)
    assert apart.max() <= TOLERANCES[name] < wanted[:, 1].std() and (name == "four" or np.median(apart) < 1e-6)
    assert [answer["tokens"] for answer in answers] == [len(bundle.tokenizer.encode(*row).ids) for row in rows]
    if name != "four":
        assert [answer["label"] for answer in answers] == [bundle.labels[best] for best in wanted.argmax(1)]
    assert (0 < sum(answer["cut"] for answer in answers)) == (name == "pair")
    facts = pages[name].locator("#facts").inner_text()
    assert "probabilities of 2 check texts differ by" in facts and "answered alike" in facts
    assert ("INT4" in facts) == (name == "four")


def test_a_synthetic_model_says_so_and_offers_its_sentences(bundles, pages):
    page, content = pages["single"], json.loads((bundles["single"] / "bundle.json").read_text())
    note, box = page.locator("#synthetic"), page.get_by_label("Sentence")
    assert "synthetic sentences" in note.inner_text() and note.bounding_box()["y"] < box.bounding_box()["y"]
    assert box.input_value() == content["examples"][0][0]
    (text,) = content["examples"][-1]
    page.get_by_role("button", name=text, exact=True).click()
    assert box.input_value() == text
    assert pages["pair"].locator("#synthetic").is_hidden() and not pages["pair"].locator("#examples button").count()


def test_the_float32_model_is_loaded_when_asked_for_and_compared(sources, bundles, pages):
    page, source = pages["single"], sources[0]["single"]
    assert not [url for url in page.requests if url.endswith("float32/model.onnx")]
    page.get_by_role("button", name=re.compile("Load the FP32 model")).click()
    page.locator("#answers td", has_text=re.compile("agree|differ")).wait_for()
    page.locator("#measure:enabled").wait_for()
    graph, found = OnnxSession(sources[1].parent / "model.onnx"), []
    for (text,) in (rows := rows_of(source)):
        ids = source.rows.tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="np")["input_ids"]
        powers = np.exp(graph({"input_ids": ids})[0])
        found.append(powers / powers.sum())
    answers = page.evaluate("rows => edgemin.classify(rows, 'float32')", rows)
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], found, atol=1e-5)
    measured = page.evaluate("edgemin.measure()")
    assert all(row["median"] > 0 and row["runs"] >= 20 for row in measured["own-length"] + measured["fixed-length"])


def test_what_is_typed_is_answered_and_an_empty_box_is_not(bundles, pages):
    page = pages["pair"]
    page.get_by_label("Other").fill("")
    page.locator("#state", has_text="Type both texts").wait_for()
    assert page.locator("#bars li").count() == 0
    for label, text in (("Sentence", "a good film"), ("Other", "a bad story")):
        page.get_by_label(label).fill(text)
    page.locator("#bars li").first.wait_for()
    wanted = 100 * Bundle(bundles["pair"]).probabilities([("a good film", "a bad story")])[0]
    shown = [float(item.split()[-2]) for item in page.locator("#bars li").all_inner_texts()]
    np.testing.assert_allclose(shown, wanted, atol=0.15)


def test_the_page_asks_no_other_server_and_fits_a_phone(pages):
    for page in pages.values():
        assert page.requests and all(url.startswith((page.url, "data:")) for url in page.requests)
        assert page.complaints == [] and page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("crossOriginIsolated")  # the fine clock


@pytest.mark.parametrize(("name", "content", "script", "sentence"), FAULTS)
def test_a_fault_is_one_sentence(name, content, script, sentence, bundles, chromium, tmp_path):
    folder = Path(shutil.copytree(bundles["single"], tmp_path / "bundle"))
    if content:
        (folder / name).write_text(content)
    elif name:
        (folder / name).unlink()
    page = chromium.new_page()
    page.add_init_script(script)
    with served(page_routes(folder, fetch_packages(PROJECT / CACHE), float32_files(None, tmp_path))) as address:
        page.goto(address)
        assert page.evaluate("edgemin.ready") is None
        shown = page.get_by_role("alert").inner_text()
        assert shown.startswith(sentence) and shown.endswith(".") and "\n" not in shown
        assert page.get_by_role("button", name="Classify").is_disabled()
    page.close()
