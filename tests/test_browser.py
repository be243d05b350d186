"""The page of a bundle, in Chromium, against Python."""

import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from example_bundle import MAX_LENGTH, STEPS, corpus_rows, python_probabilities, write_bundle
from playwright.sync_api import Browser, Page, sync_playwright
from tokenizers import models, pre_tokenizers, processors, trainers

from edgemin_utils.browser.comparison import Comparison, find_comparison
from edgemin_utils.browser.demo import CACHE
from edgemin_utils.browser.packages import fetch_packages
from edgemin_utils.browser.server import address_of, make_server, page_routes
from edgemin_utils.bundle.classify import read_content
from edgemin_utils.errors import PackagesError

PROJECT = Path(__file__).resolve().parent.parent
TASKS = ("sst2", "qqp")
ROWS = 100
# Of probabilities, absolute. INT8 products are exact on both sides; sums in float32 are rounded otherwise, so that now
# and then an activation falls on the other side of a quantization step.
TOLERANCE = 1e-3
FLOAT32_TOLERANCE = 1e-5
# onnxruntime-web has no 4-bit kernels: it unpacks the weights and leaves inputs in float32, where Python rounds them.
INT4_TOLERANCE = 0.03
ODD_TEXTS = (
    "",
    " ",
    "Ünïcödé CAFÉ",
    "日本語と中文",
    "مرحبا بالعالم",
    "\U0001f600 \U0001f469\u200d\U0001f467 ok",
    "1,234.56 %?!",
    "don't  stop\t\n now",
    "a\u0000b",
    "[MASK] [SEP] x",
    "x" * 150,
    "e\u0301 \u200b zero\u00adwidth",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """Task -> its bundle: one takes single texts, one pairs."""
    folder = tmp_path_factory.mktemp("bundles")
    return {task: write_bundle(folder / task, folder / f"{task}-model", task) for task in TASKS}


@pytest.fixture(scope="module")
def comparison(bundles, tmp_path_factory) -> Comparison:
    """The bundle's model in FP32, exported from its folder."""
    bundle = bundles["sst2"]
    found = find_comparison(bundle, {}, bundle.parent / "sst2-model", tmp_path_factory.mktemp("float32"))
    assert found.tokenizer is None  # the bundle's own
    return found


@pytest.fixture(scope="module")
def packages() -> dict[str, Path]:
    try:
        return fetch_packages(PROJECT / CACHE)
    except PackagesError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: chromium)")
    with sync_playwright() as playwright:
        # Without the sandbox, which a container's superuser cannot have; the page is our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(bundle: Path, packages: dict[str, Path], comparison: Comparison) -> Iterator[str]:
    """The address of a bundle's page while its server runs."""
    with make_server(page_routes(bundle, packages, comparison), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield address_of(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def pages(bundles, packages, comparison, chromium) -> Iterator[dict[str, Page]]:
    """Task -> its open page on a phone's screen, with what it asked for in `requests` and complained of in
    `complaints`."""
    with ExitStack() as stack:
        opened = {}
        for task, bundle in bundles.items():
            page = chromium.new_page(viewport={"width": 360, "height": 780})
            stack.callback(page.close)
            page.requests, page.complaints = [], []
            page.on("request", lambda request, page=page: page.requests.append(request.url))
            page.on("console", lambda message, page=page: page.complaints.append(message.text))
            page.on("pageerror", lambda error, page=page: page.complaints.append(str(error)))
            page.goto(stack.enter_context(served(bundle, packages, comparison)))
            assert page.evaluate("edgemin.ready") is not None, page.locator("#problem").text_content()
            opened[task] = page
        yield opened


@pytest.mark.parametrize("task", TASKS)
def test_the_page_answers_as_python_does(task, bundles, pages):
    rows = corpus_rows(task, ROWS)
    wanted = python_probabilities(bundles[task], bundles[task] / "model.onnx", rows)
    answers = pages[task].evaluate("rows => edgemin.classify(rows)", rows)
    found = np.array([answer["probabilities"] for answer in answers])
    labels = read_content(bundles[task])["labels"]
    assert found.shape == (ROWS, 2) and np.abs(found - wanted).max() <= TOLERANCE
    assert [answer["label"] for answer in answers] == [labels[best] for best in wanted.argmax(1)]
    # Rows differ, so that an answer to another row, or the same for all, would be seen; some are cut and some not.
    assert wanted[:, 1].std() > 10 * TOLERANCE and (task != "sst2" or set(wanted.argmax(1)) == {0, 1})
    assert 0 < sum(answer["cut"] for answer in answers) < ROWS


def test_a_bundle_of_four_bits_answers_in_the_page_too(packages, chromium, tmp_path):
    rows = corpus_rows("sst2", ROWS)
    bundle = write_bundle(tmp_path / "bundle", tmp_path / "model", "sst2", bits=4)
    wanted = python_probabilities(bundle, bundle / "model.onnx", rows)
    page = chromium.new_page()
    with served(bundle, packages, Comparison(missing="None here.")) as address:
        page.goto(address)
        assert page.evaluate("edgemin.ready") is not None, page.locator("#problem").text_content()
        answers = page.evaluate("rows => edgemin.classify(rows)", rows)
        assert "INT4 word embeddings" in page.locator("#facts").inner_text()
    page.close()
    found = np.array([answer["probabilities"] for answer in answers])
    assert np.abs(found - wanted).max() <= INT4_TOLERANCE < wanted[:, 1].std()


def test_the_float32_model_is_loaded_when_asked_for_and_compared(bundles, pages, comparison):
    page, rows = pages["sst2"], corpus_rows("sst2", ROWS)
    assert not [url for url in page.requests if url.endswith("float32/model.onnx")]
    button = page.get_by_role("button", name=re.compile("Load the FP32 model"))
    button.click()
    button.wait_for(state="hidden")
    page.locator("#measure:enabled").wait_for()
    wanted = python_probabilities(bundles["sst2"], comparison.graph, rows)
    found = [row["probabilities"] for row in page.evaluate("rows => edgemin.classify(rows, 'float32')", rows)]
    np.testing.assert_allclose(found, wanted, atol=FLOAT32_TOLERANCE)
    sizes = [file.stat().st_size for file in (bundles["sst2"] / "model.onnx", comparison.graph)]
    cells = page.locator("#size td").all_inner_texts()
    assert [float(cell.split()[0]) for cell in cells[:2]] == [round(size / 1e6, 2) for size in sizes]
    assert cells[2].split() == [f"{sizes[1] / sizes[0]:.1f}×", "smaller"]
    for row in ("#own-length", "#fixed-length"):
        assert all(
            re.search(r"[1-9].*\sms\s+IQR .*\sms\s+\d+ runs", cell)
            for cell in page.locator(f"{row} td").all_inner_texts()[:2]
        )
    typed, labels = page.get_by_label("Sentence").input_value(), read_content(bundles["sst2"])["labels"]
    best = [
        labels[python_probabilities(bundles["sst2"], graph, [[typed]])[0].argmax()]
        for graph in (bundles["sst2"] / "model.onnx", comparison.graph)
    ]
    cells = page.locator("#answers td").all_inner_texts()
    assert [cell.startswith(label) for cell, label in zip(cells[:2], best, strict=True)] == [True, True]
    assert cells[2] == ("agree" if best[0] == best[1] else "differ")


def test_latency_is_measured_without_being_asked_for(pages):
    page = pages["qqp"]
    page.locator("#measure:enabled").wait_for()
    assert f"1x{MAX_LENGTH}" in page.locator("#fixed-length th").inner_text()
    for row in ("#own-length", "#fixed-length"):
        median, runs = re.search(
            r"([\d.]+)\sms.*?(\d+) runs", page.locator(f"{row} td").first.inner_text(), re.DOTALL
        ).groups()
        assert float(median) > 0 and int(runs) >= 20
    measured = page.evaluate("edgemin.measure()")
    assert measured["own-length"][0]["median"] > 0 and measured["tokenizing"]["runs"] == 100


def test_what_the_bundle_says_of_itself_is_shown(bundles, pages):
    content = read_content(bundles["qqp"])
    measured, made = content["measured"]["accuracy"]["dev"], content["provenance"]
    shares = {name: f"{100 * measured[name]:.1f} %" for name in ("bundle", "pytorch", "agreement")}
    timed = next(row for row in content["measured"]["latency"] if row["model"] == "bundle")
    median, iqr = (f"{timed[name]:.{2 if timed[name] < 10 else 1}f} ms" for name in ("median_ms", "iqr_ms"))
    facts = dict(
        zip(
            pages["qqp"].locator("#facts dt").all_inner_texts(),
            (text.replace("\u00a0", " ") for text in pages["qqp"].locator("#facts dd").all_inner_texts()),
            strict=True,
        )
    )
    assert facts["Task"] == f"qqp: not_duplicate, duplicate; texts are cut at {MAX_LENGTH} tokens"
    assert facts["Accuracy when made"] == (
        f"{shares['bundle']} of 40 rows of dev (the PyTorch model "
        f"{shares['pytorch']}; {shares['agreement']} answered alike)"
    )
    assert facts["Latency when made"].startswith(f"1x{MAX_LENGTH} {median} (IQR {iqr}, 3 runs), outside a browser")
    assert facts["Where it came from"].startswith(
        f"qqp-model; {', then '.join(STEPS)}; bundled by EdgeMIN {made['edgemin']}"
    )
    assert facts["Same as where it was made"].startswith("yes: probabilities of 3 check texts differ by ")


def test_quartiles_are_numpys(pages):
    values = np.random.default_rng(0).exponential(size=37)
    found = pages["qqp"].evaluate("async values => (await import('./latency.mjs')).summary(values)", values.tolist())
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    assert found == pytest.approx({"median": middle, "iqr": high - low, "runs": 37})


def byte_level_tokenizer(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer in RoBERTa's manner."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE"])
def test_any_text_is_cut_into_the_tokens_of_the_tokenizers_library(kind, bundles, pages):
    sentences = [row[0] for row in corpus_rows("sst2", 40)]
    tokenizer = (
        byte_level_tokenizer(sentences)
        if kind != "WordPiece"
        else tokenizers.Tokenizer.from_file(str(bundles["qqp"] / "tokenizer.json"))
    )
    rules = json.loads(tokenizer.to_str())
    texts = [*ODD_TEXTS, *sentences, " ".join(sentences)]
    rows = [[text] for text in texts] + [[first, second] for first in texts[::4] for second in texts[::5]]
    tokenizer.enable_truncation(MAX_LENGTH)
    encoded = [tokenizer.encode(*row) for row in rows]
    found = pages["qqp"].evaluate(
        """async ([rules, length, rows]) => {
        const { makeEncoder } = await import("./classifier.mjs");
        const { Tokenizer } = await import("./packages/tokenizers.mjs");
        return rows.map(makeEncoder(Tokenizer, rules, length));
    }""",
        [rules, MAX_LENGTH, rows],
    )
    for row, wanted, own in zip(rows, encoded, found, strict=True):
        assert own["ids"] == wanted.ids, row
        assert own["cut"] == bool(wanted.overflowing), row
        assert kind != "WordPiece" or own["types"] == wanted.type_ids, row  # RoBERTa has no token types


def test_what_is_typed_is_answered_and_an_empty_box_is_not(bundles, pages):
    page = pages["sst2"]
    (text,), labels = corpus_rows("sst2", 1)[0], read_content(bundles["sst2"])["labels"]
    page.get_by_label("Sentence").fill("")
    page.locator("#state", has_text="Type a text").wait_for()
    assert page.locator("#bars li").count() == 0
    page.get_by_label("Sentence").fill(text)
    page.locator("#bars li").first.wait_for()
    wanted = python_probabilities(bundles["sst2"], bundles["sst2"] / "model.onnx", [[text]])[0]
    shown = [float(item.split()[-2]) for item in page.locator("#bars li").all_inner_texts()]
    np.testing.assert_allclose(shown, 100 * wanted, atol=100 * TOLERANCE + 0.05)
    assert page.locator("#verdict").inner_text().startswith(f"{labels[wanted.argmax()]}, ")
    for column in ("Question1", "Question2"):
        assert pages["qqp"].get_by_label(column).is_editable()


@pytest.mark.parametrize("task", TASKS)
def test_the_page_asks_no_other_server_and_fits_a_phone(task, pages):
    page = pages[task]
    assert page.requests and all(url.startswith((page.url, "data:")) for url in page.requests)
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("crossOriginIsolated")  # the fine clock


def damage(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def change_format(folder: Path) -> None:
    (folder / "bundle.json").write_text(json.dumps(read_content(folder) | {"format_version": 2}))


@pytest.mark.parametrize(
    "fault, script, sentence",
    [
        (damage, "", "model.onnx is damaged: its SHA-256 is not the recorded one"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "", "tokenizer.json is missing (the server answers 404)"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "", "bundle.json is damaged (it is not JSON)"),
        (change_format, "", "bundle.json says format 2, and this page reads format 1"),
        (None, "delete globalThis.WebAssembly", "This browser cannot run WebAssembly with SIMD"),
    ],
    ids=["damaged", "missing", "no JSON", "other format", "no WebAssembly"],
)
def test_a_fault_is_one_sentence(fault, script, sentence, bundles, packages, chromium, tmp_path):
    folder = Path(shutil.copytree(bundles["sst2"], tmp_path / "bundle"))
    if fault:
        fault(folder)
    page = chromium.new_page()
    page.add_init_script(script)
    with served(folder, packages, Comparison(missing="None here.")) as address:
        page.goto(address)
        assert page.evaluate("edgemin.ready") is None
        shown = page.get_by_role("alert").inner_text()
        assert shown.startswith(sentence) and shown.endswith(".") and "\n" not in shown
        assert page.get_by_role("button", name="Classify").is_disabled()
        assert page.locator("#state").inner_text() == ""
    page.close()
