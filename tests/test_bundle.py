"""The edge bundle: what is written, what is refused, and that its program answers rightly whatever it is given."""

import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from four_bit_grid import with_rounded_weights
from small_models import sentences, small_model

from edgemin_utils import cli
from edgemin_utils.bundle import classify, making
from edgemin_utils.bundle.classify import Bundle, ClassifyError
from edgemin_utils.bundle.making import bundle_chain, make_bundle
from edgemin_utils.bundle.sources import labels_of_outputs, open_source
from edgemin_utils.chain import main_path
from edgemin_utils.checkpoints import save_model
from edgemin_utils.encoders import encoder_layers, set_labels
from edgemin_utils.errors import MethodRefused, ModelError, StageError, StorageError
from edgemin_utils.evaluation import write_predictions
from edgemin_utils.measurement.latency import PROTOCOLS, Protocol
from edgemin_utils.measurement.models import open_model
from edgemin_utils.quantization import quantize, save_quantized
from edgemin_utils.records import open_run
from edgemin_utils.tables.scheme_tables import bundle_sentences
from edgemin_utils.tasks import find_task
from edgemin_utils.tokenization import train_tokenizer

MAX_LENGTH = 20
SHORT = Protocol("short", warm_up=1, runs=3, seconds=0.0)
ODD_TEXTS = [
    "",
    " ",
    "good " * 20_000,
    "the film\x00 was good",
    "good \U0001f600 film",
    "\u05e1\u05e8\u05d8 \u05d8\u05d5\u05d1",
    "\u202egood",
    "e\u0301 \u00e9",
    "a\u2028b",
    "[CLS] [SEP] [PAD]",
    '"quoted, and ""doubled"""',
    "x" * 5000,
]
# Runs the bundle's program where nothing of this project nor torch can be imported, and then says its peak memory.
ALONE = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "edgemin_utils", "onnx", "datasets", "pandas", "scipy"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(*peak, end="", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small cut model with its tokenizer, and rows of one text and of two."""
    place = tmp_path_factory.mktemp("bundles")
    rows = sentences(90)
    model = small_model(layers=2, vocabulary_size=282)
    encoder_layers(model)[0].keep_heads([0, 2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    save_model(model, place / "model", train_tokenizer(rows["sentence"], 282))
    rows.to_csv(place / "one.csv", columns=["sentence", "label"])
    rows.add_column("other", [text[::-1] for text in rows["sentence"]]).to_csv(
        place / "two.csv", columns=["sentence", "other", "label"]
    )
    return place


def opened(folder, *columns):
    """The source of a bundle of one or two text columns, with the file's labels by name."""
    names = {1: "one.csv", 2: "two.csv"}
    return open_source(
        str(folder / "model"),
        overrides={
            "task_file": str(folder / names[len(columns)]),
            "text_columns": list(columns),
            "max_length": MAX_LENGTH,
        },
    )


@pytest.fixture(scope="module")
def source(folder):
    # The file's labels are 0 and 1; the model's have names that say nothing.
    config = folder / "model" / "config.json"
    content = json.loads(config.read_text())
    content |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    config.write_text(json.dumps(content))
    return opened(folder, "sentence")


@pytest.fixture(scope="module")
def made(folder, source):
    """The folder and bundle.json of a bundle for one text."""
    return folder / "single", make_bundle(source, folder / "single", max_drop=100, protocol=SHORT)


@pytest.fixture(scope="module")
def pair(folder, source):
    chosen = opened(folder, "sentence", "other")
    make_bundle(chosen, folder / "pair", max_drop=100, protocol=SHORT)
    return folder / "pair", chosen


@pytest.fixture(scope="module")
def four_bits(folder, source):
    """The folder and bundle.json of a bundle of 4-bit weights alone."""
    return folder / "four", make_bundle(source, folder / "four", 100, SHORT, matrix_bits=4, embedding_bits=4)


@pytest.fixture
def copy(made, tmp_path):
    """A bundle of a test's own to damage."""
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


def answers(bundle, content, as_csv=False, columns=None, batch_size=1, header=False):
    """The lines that the program writes for these bytes, and its error ("" for none)."""
    target, error = io.StringIO(), ""
    try:
        classify.classify_stream(
            bundle, io.BytesIO(content), target, as_csv, columns or bundle.text_columns, batch_size, header
        )
    except ClassifyError as raised:
        error = str(raised)
    return target.getvalue().splitlines(), error


def in_torch(source, *texts):
    """Probabilities by the PyTorch model and the tokenizer of transformers."""
    inputs = source.tokenizer(*texts, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt")
    with torch.inference_mode():
        return source.model(**inputs).logits.softmax(-1)[0].numpy()


# ---- what is written --------------------------------------------------------------------------------------------


def test_the_folder_holds_what_bundle_json_lists(made):
    place, content = made
    assert (
        {path.name for path in place.iterdir()}
        == {"model.onnx", "tokenizer.json", "bundle.json", "classify.py", "README.md"}
        == {*content["files"], "bundle.json"}
    )
    for name, item in content["files"].items():
        assert (place / name).stat().st_size == item["bytes"] and len(item["sha256"]) == 64
    assert content["format_version"] == 1 and content["max_length"] == MAX_LENGTH
    assert (content["task"], content["text_columns"], content["labels"]) == ("one", ["sentence"], ["0", "1"])
    assert content["inputs"] == ["input_ids", "attention_mask"] and list(content["models"]) == ["model.onnx"]
    assert content["provenance"]["source"] == "model"  # a name, no path of this machine
    assert str(place.parent) not in (place / "bundle.json").read_text() + (place / "README.md").read_text()
    rules = json.loads((place / "tokenizer.json").read_text())
    assert rules["truncation"]["max_length"] == MAX_LENGTH and rules["padding"] is None
    session = onnxruntime.InferenceSession(place / "model.onnx", providers=["CPUExecutionProvider"])
    assert {item.type for item in session.get_inputs()} == {"tensor(int64)"}
    assert [item.type for item in session.get_outputs()] == ["tensor(float)"]


def test_what_was_measured_is_what_the_files_do(made, source):
    place, content = made
    ((split, found),) = content["measured"]["accuracy"].items()
    rows, labels = source.dev[split], np.array(source.dev[split]["label"])
    told = [line.split("\t")[0] for line in answers(Bundle(place), "\n".join(rows["sentence"]).encode())[0]]
    assert found["rows"] == len(rows) == len(told) > 10
    assert found["bundle"] == pytest.approx(np.mean([int(label) for label in told] == labels))
    torch_answers = np.array([in_torch(source, text).argmax() for text in rows["sentence"]])
    assert found["pytorch"] == pytest.approx((torch_answers == labels).mean())
    assert found["agreement"] == pytest.approx(np.mean([int(label) for label in told] == torch_answers))
    assert len(bundle_sentences(content)) == 2  # one length, and the folder
    assert content["measured"]["model_bytes"] == (place / "model.onnx").stat().st_size
    assert content["measured"]["fp32_bytes"] == 4 * sum(value.numel() for value in source.model.parameters())
    assert {(row["model"], row["input"], row["runs"], row["threads"]) for row in content["measured"]["latency"]} == {
        (name, f"1x{MAX_LENGTH}", 3, 1) for name in ("bundle", "pytorch")
    }


def test_probabilities_are_those_of_the_model_but_for_rounding(made, pair, source):
    rows = source.dev["dev"]["sentence"][:8]
    for bundle, chosen, texts in (
        (Bundle(made[0]), source, [(text,) for text in rows]),
        (Bundle(pair[0]), pair[1], [(text, text[::-1]) for text in rows]),
    ):
        found = bundle.probabilities(texts)
        wanted = np.array([in_torch(chosen, *text) for text in texts])
        assert np.abs(found - wanted).max() < 0.1 and np.abs(wanted - 0.5).max() > 0.2
        # In one batch, rows share the scale of their numbers, and each still gets its own answer.
        assert np.abs(bundle.probabilities(texts, batch_size=8) - wanted).max() < 0.1


def test_four_bits_are_said_wherever_the_bundle_describes_itself(made, four_bits, source):
    place, content = four_bits
    described = content["models"]["model.onnx"]
    assert (described["matrix_bits"], described["embedding_bits"]) == (4, 4)
    assert described["what"].startswith("INT4, one scale and zero point for 64 weights; INT4 word embeddings")
    eight = made[1]["models"]["model.onnx"]
    assert (eight["matrix_bits"], eight["embedding_bits"]) == (8, 8) and "INT4" not in eight["what"]
    for folder, what in ((place, described["what"]), (made[0], eight["what"])):
        assert f"- in it: {what}\n" in (folder / "README.md").read_text()
    assert content["measured"]["model_bytes"] < made[1]["measured"]["model_bytes"]
    # Every row has scales of its own, so that an answer does not depend on the rows beside it.
    bundle, texts = Bundle(place), [(text,) for text in source.dev["dev"]["sentence"][:8]]
    alone = bundle.probabilities(texts)
    np.testing.assert_allclose(bundle.probabilities(texts, batch_size=8), alone, atol=1e-4)
    # Fitted to train rows, weights of 4 bits answer more like the float model than weights rounded to nearest.
    nearest = dataclasses.replace(source, model=with_rounded_weights(source.model, 4, 4))
    wanted, rounded = (np.array([in_torch(one, *text) for text in texts]) for one in (source, nearest))
    assert np.abs(alone - wanted).mean() < np.abs(rounded - wanted).mean()


def test_a_pair_is_told_apart_by_token_types(pair):
    content = json.loads((pair[0] / "bundle.json").read_text())
    assert content["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    bundle = Bundle(pair[0])
    encoded = bundle._tokenizer.encode("the film", "was good")
    assert encoded.type_ids == pair[1].tokenizer("the film", "was good")["token_type_ids"] and 1 in encoded.type_ids


def test_a_bundle_that_loses_more_than_allowed_is_refused_and_leaves_nothing(source, made, copy):
    perfect = {split: np.eye(2, dtype=np.float32)[rows["label"]] for split, rows in source.dev.items()}
    flattered = dataclasses.replace(source, logits=perfect)
    before = (copy / "bundle.json").read_bytes()
    for output in (copy.parent / "new", copy):
        with pytest.raises(MethodRefused, match=r"would lose \d+\.\d\d points of accuracy on dev .* allows 1;"):
            make_bundle(flattered, output, protocol=SHORT)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"] and (copy / "bundle.json").read_bytes() == before
    making.refuse_drop({"dev": {"bundle": 0.80, "pytorch": 0.81, "rows": 100}}, 1.0)
    with pytest.raises(MethodRefused, match="lose 1.01 points"):
        making.refuse_drop({"dev": {"bundle": 0.8, "pytorch": 0.8101, "rows": 10_000}}, 1.0)


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="holds no bundle"):
        make_bundle(source, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_labels_follow_the_models_outputs():
    model, mnli = small_model(layers=1), find_task("mnli")
    set_labels(model.config, ("CONTRADICTION", "entailment", "neutral"))
    assert labels_of_outputs(model, mnli, "m") == ("contradiction", "entailment", "neutral")
    set_labels(model.config, ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert labels_of_outputs(model, mnli, "m") == mnli.labels
    with pytest.raises(ModelError, match="m answers with LABEL_0.*labels of SST-2 are negative, positive"):
        labels_of_outputs(model, find_task("sst2"), "m")


# ---- stages of a study ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(folder, tmp_path_factory):
    """A chain whose stages up to the quantized one hold the small model, which has learnt nothing."""
    run = open_run(
        "sst2",
        "demo",
        0,
        tmp_path_factory.mktemp("study"),
        {"train_rows": 60, "dev_rows": 40, "holdout_fraction": 0, "max_length": MAX_LENGTH},
    )
    from edgemin_utils.evaluation import tokenized_task
    from edgemin_utils.quantization import load_model
    from edgemin_utils.tokenization import load_tokenizer
    from edgemin_utils.training import predict

    model, tokenizer = load_model(folder / "model"), load_tokenizer(str(folder / "model"))
    rows = tokenized_task(run, tokenizer, [model])
    logits = predict(model, rows.dev["dev"], tokenizer)

    def compute(place, quantized):
        if quantized:
            save_quantized(quantize(model, "dynamic-int8"), place, "dynamic-int8", tokenizer)
        else:
            save_model(model, place, tokenizer)
        write_predictions(place, "dev", rows.dev["dev"]["row"], np.array(rows.dev["dev"]["labels"]), logits)
        return {}

    for key in main_path(run.settings):
        for needed in (*run.stage(key).upstream, key):
            run.run_stage(needed, lambda place, needed=needed: compute(place, run.stage(needed).quantized))
    return run


def test_a_stage_knows_its_rows_and_a_quantized_one_names_the_way_out(chain):
    *_, pruned, quantized = main_path(chain.settings)
    opened = open_source(str(chain.stage_folder(pruned)))
    assert opened.provenance["source"] == f"sst2/seed-0/{pruned}" and opened.max_length == MAX_LENGTH
    assert opened.provenance["fingerprint"] == chain.fingerprint(pruned) and len(opened.dev["dev"]) == 40
    with pytest.raises(ModelError) as refusal:
        open_source(str(chain.stage_folder(quantized)))
    assert f"bundle the float model that it came from: {chain.stage_folder(pruned)}" in str(refusal.value)
    with pytest.raises(StageError, match="knows its own rows; leave out data_dir"):
        open_source(str(chain.stage_folder(pruned)), overrides={"data_dir": "elsewhere"})
    predictions = chain.stage_folder(pruned) / "predictions-dev.csv"
    kept = predictions.read_text()
    predictions.write_text(kept.replace("\n", "\n9999,0,0,0.1,0.2\n", 1))
    with pytest.raises(StageError, match="the rows of dev are not those"):
        open_source(str(chain.stage_folder(pruned)))
    predictions.write_text(kept)


def test_a_bundle_is_measured_like_any_model(made, source):
    folder, content = made
    model = open_model(str(folder))
    assert model.longest == content["max_length"]
    text = "the film was good and the story was bad " * 9
    wanted = source.tokenizer(text, truncation="longest_first", max_length=MAX_LENGTH)["input_ids"]
    assert model.tokenizer(text, truncation=True, max_length=model.longest)["input_ids"] == wanted


def test_a_bundle_of_short_inputs_can_be_made(folder, tmp_path):
    chosen = dataclasses.replace(opened(folder, "sentence"), max_length=12)
    assert make_bundle(chosen, tmp_path / "short", max_drop=100, protocol=SHORT)["max_length"] == 12


def test_the_chains_bundle_is_made_once(chain):
    content = bundle_chain(chain, max_drop=100)
    place = chain.folder / "bundle"
    written = (place / "bundle.json").stat()
    assert content["provenance"]["source"].endswith(main_path(chain.settings)[-2])
    assert bundle_chain(chain, max_drop=100) == content == json.loads((place / "bundle.json").read_text())
    assert (place / "bundle.json").stat() == written
    longer = dataclasses.replace(chain, settings=dataclasses.replace(chain.settings, latency_protocol="full"))
    with pytest.MonkeyPatch.context() as patched:  # a look is no measurement: it is measured anew, and then kept
        patched.setitem(PROTOCOLS, "full", dataclasses.replace(SHORT, name="full"))
        full = bundle_chain(longer, max_drop=100)
    assert {row["protocol"] for row in full["measured"]["latency"]} == {"full"}
    assert bundle_chain(chain, max_drop=100) == full
    (place / "model.onnx").write_bytes(b"damaged")
    untimed = dataclasses.replace(chain, settings=dataclasses.replace(chain.settings, latency_protocol="none"))
    assert bundle_chain(untimed, max_drop=100)["files"]["model.onnx"] == content["files"]["model.onnx"]
    Bundle(place)
    # One of other bits that was put there by hand is not the chain's; one that says nothing of its bits has 8.
    described = content["models"]["model.onnx"]
    for name, bits, current in (("matrix_bits", None, True), ("embedding_bits", 4, False)):
        written = {**content, "models": {"model.onnx": {**described, name: bits}}}
        (place / "bundle.json").write_text(json.dumps(written))
        assert (bundle_chain(chain, max_drop=100) == written) == current


# ---- the program: rows ------------------------------------------------------------------------------------------


def test_odd_texts_are_answered_as_the_models_own_tokenizer_would(made, source):
    bundle = Bundle(made[0])
    for text in ODD_TEXTS:
        wanted = source.tokenizer(text, truncation="longest_first", max_length=MAX_LENGTH)["input_ids"]
        assert bundle._tokenizer.encode(text).ids == wanted, text[:20]
        assert np.abs(bundle.probabilities([(text,)])[0] - in_torch(source, text)).max() < 0.1
    plain = [text for text in ODD_TEXTS if "\n" not in text]
    lines, error = answers(bundle, "\n".join(plain).encode())
    assert error == "" and len(lines) == len(plain)
    alone = [answers(bundle, text.encode() + b"\n")[0][0] for text in plain]
    assert lines == alone


def test_order_is_kept_whatever_the_batches(made, source):
    bundle, texts = Bundle(made[0]), [*source.dev["dev"]["sentence"], *ODD_TEXTS]
    content = "\n".join(texts).encode()
    first = answers(bundle, content)[0]
    many = answers(bundle, content, batch_size=7)[0]
    difference = [
        abs(float(one.split("\t")[1]) - float(other.split("\t")[1])) for one, other in zip(first, many, strict=True)
    ]
    assert len(first) == len(texts) and max(difference) < 0.1 and len(set(first)) > 10


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (b"good\nbad\n\xff\xfe film\ngood\n", 2, "line 3 is not UTF-8 (byte 1 is 0xff); convert"),
        ("gut\nschön".encode("latin-1"), 1, "line 2 is not UTF-8 (byte 4 is 0xf6)"),
        (b"good\n" + b"a" * 1_200_000, 1, "line 2 is longer than 1,048,576 bytes"),
    ],
)
def test_a_line_that_cannot_be_read_ends_the_rows_after_those_before_it(made, content, given, message):
    lines, error = answers(Bundle(made[0]), content)
    assert len(lines) == given and message in error


def test_lines_may_end_as_on_windows_or_not_at_all(made):
    bundle = Bundle(made[0])
    wanted, _ = answers(bundle, b"good film\nbad film\n")
    assert answers(bundle, b"\xef\xbb\xbfgood film\r\nbad film")[0] == wanted and answers(bundle, b"") == ([], "")


def test_two_columns_are_asked_for_where_they_are_needed(pair):
    bundle = Bundle(pair[0])
    lines, error = answers(bundle, b"good\tbad\none alone\n")
    assert len(lines) == 1 and error == "line 2 has 1 column where 2 are needed: sentence TAB other"
    assert "line 1 has 3 columns where 2" in answers(bundle, b"a\tb\tc\n")[1]


def test_csv_columns_are_found_by_name(pair):
    bundle, target = Bundle(pair[0]), io.StringIO()
    rows = [("good, they\nsay", "bad"), ("the film", 'was "good"')]
    csv.writer(target).writerows(
        [("id", "b", "a"), *((number, second, first) for number, (first, second) in enumerate(rows)), ()]
    )
    lines, error = answers(bundle, target.getvalue().encode(), as_csv=True, columns=["a", "b"], header=True)
    assert error == "" and lines[0] == "label\t0\t1"
    wanted = bundle.probabilities(rows)
    assert [[float(value) for value in line.split("\t")[1:]] for line in lines[1:]] == wanted.round(6).tolist()
    assert "no column 'sentence', only id, b, a" in answers(bundle, target.getvalue().encode(), as_csv=True)[1]
    short = answers(bundle, b"sentence,other\ngood,bad\ngood\n", as_csv=True)
    assert len(short[0]) == 1 and short[1] == "line 3 has 1 columns where the header has 2"


# ---- the program: the bundle ------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(folder, **changes):
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "model.onnx"), "model.onnx is damaged"),
        (lambda folder: flip(folder / "tokenizer.json"), "tokenizer.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be read (No such file"),
        (lambda folder: (folder / "bundle.json").unlink(), "holds no bundle.json, so it is no bundle"),
        (lambda folder: (folder / "bundle.json").write_text('{"format_version": 1'), "bundle.json is damaged"),
        (lambda folder: (folder / "bundle.json").write_text("[]"), "format None"),
        (lambda folder: rewrite(folder, format_version=2), "is a bundle of format 2, and this program reads 1"),
        (lambda folder: rewrite(folder, labels=None), "lacks labels"),
        (lambda folder: rewrite(folder, files={}), "does not list model.onnx"),
        (lambda folder: rewrite(folder, provenance={"minimum_onnxruntime": "99.1"}), "needs onnxruntime 99.1 or newer"),
    ],
)
def test_a_bundle_that_cannot_be_used_says_why(copy, damage, message, capsys):
    damage(copy)
    assert classify.main(["--bundle", str(copy), os.devnull]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("classify: ") and message in shown.err
    assert shown.err.count("\n") == 1
    assert cli.main(["predict", str(copy), "good"]) == 2
    assert message in capsys.readouterr().err


def test_versions_are_compared_as_numbers(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(ClassifyError, match="needs onnxruntime 1.20 or newer, and 1.9.0 is installed"):
        classify.check_runtime("1.20")
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.0rc1")
    classify.check_runtime("1.20")


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "fpu avx2 avx512_vnni", "0"),
        ("AMD64", "fpu avx_vnni", "0"),
        ("x86_64", "fpu avx2", "1"),
        ("AMD64", None, "1"),
        ("aarch64", "fp asimd", "0"),
    ],
)
def test_integers_are_added_exactly_where_they_could_overflow(monkeypatch, tmp_path, machine, flags, exact):
    monkeypatch.setattr(classify.platform, "machine", lambda: machine)
    listed = tmp_path / "cpuinfo"
    if flags is not None:
        listed.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(classify, "open", lambda path, **options: open(listed, **options), raising=False)
    options = classify.session_options(1)
    assert options.get_session_config_entry("session.x64quantprecision") == exact


def test_check_sees_every_file_and_another_answer(copy, capsys):
    assert classify.main(["--bundle", str(copy), "--check"]) == 0
    assert "4 files" in capsys.readouterr().out
    rewrite(copy, check={"texts": [["good"]], "probabilities": [[2.0, -1.0]]})
    assert classify.main(["--bundle", str(copy), "--check"]) == 2
    assert "computes its integers otherwise" in capsys.readouterr().err
    flip(copy / "README.md")
    assert classify.main(["--bundle", str(copy), "--check"]) == 2
    assert "README.md is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "No such file or directory: nowhere.txt"),
        (
            ["--column", "a", "--column", "b", os.devnull],
            "--column names a, b, and a row of this model has 1: sentence",
        ),
    ],
)
def test_options_that_cannot_be(made, arguments, message, capsys):
    assert classify.main(["--bundle", str(made[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_code_of_a_bundle_is_executed_by_the_package(copy, capsys):
    trap = copy.parent / "executed"
    for name in ("classify.py", "onnxruntime.py", "__init__.py"):
        (copy / name).write_text(f"open({str(trap)!r}, 'w')")
    assert cli.main(["predict", str(copy), "good film", ""]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 and not trap.exists()


# ---- the program: by itself -------------------------------------------------------------------------------------


def alone(folder, *arguments, content=b""):
    """The bundle's program in a process of its own: what it wrote, what it said, its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder / "classify.py"), *arguments],
        input=content,
        capture_output=True,
        timeout=120,
    )
    *said, peak = done.stderr.decode().splitlines()
    return done, "\n".join(said), int(peak.split()[1]) * 1024


def test_the_program_needs_only_its_three_packages_and_constant_memory(made):
    few, said, small = alone(made[0], "--batch-size", "64", content=b"a good film\nbad\n" * 200)
    assert few.returncode == 0 and said == "" and len(few.stdout.splitlines()) == 401
    many, _, large = alone(made[0], "--batch-size", "64", content=b"a good film\nbad\n" * 20_000)
    first, found = ([float(line.split(b"\t")[1]) for line in done.stdout.splitlines()[1:]] for done in (few, many))
    assert len(found) == 40_000 and abs(first[0] - first[1]) > 0.2
    assert np.abs(np.array(found) - first * 100).max() < 0.05
    assert large - small < 24e6
    damaged, said, _ = alone(made[0], content=b"good\n\xff\n")
    assert damaged.returncode == 2 and len(damaged.stdout.splitlines()) == 2 and "Traceback" not in said


def test_an_answer_comes_as_soon_as_its_row_and_the_first_within_a_second(made):
    """Seconds of the processor, which a busy machine does not change."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(made[0] / "classify.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        for text in ("a good film", "bad"):
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            if text == "a good film":
                assert process.stdout.readline() == b"label\t0\t1\n"
            assert process.stdout.readline().count(b"\t") == 2
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]
        assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 1.0
        process.stdin.close()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.skipif(not os.environ.get("EDGEMIN_SLOW"), reason="installs three packages; set EDGEMIN_SLOW=1 to run it")
@pytest.mark.timeout(600)
def test_the_program_runs_in_an_empty_environment(made, tmp_path):
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = [f"{name}>={version}" for name, version in making.MINIMUM_VERSIONS.items()]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=500)
    started = time.perf_counter()
    done = subprocess.run([python, made[0] / "classify.py"], input=b"a good film\n", capture_output=True, check=True)
    print(f"{time.perf_counter() - started:.2f} s from start to answer")
    assert done.stdout.splitlines()[1:] == [answers(Bundle(made[0]), b"a good film\n")[0][0].encode()]


# ---- the console ------------------------------------------------------------------------------------------------


def test_bundle_and_predict_on_the_console(folder, source, tmp_path, capsys):
    arguments = [
        "bundle",
        str(folder / "model"),
        "--output",
        str(tmp_path / "out"),
        "--task-file",
        str(folder / "one.csv"),
        "--text-columns",
        "sentence",
        "--max-length",
        "20",
        "--quick",
    ]
    status = cli.main([*arguments, "--max-drop", "100", "--embedding-bits", "4"])
    shown = capsys.readouterr().out
    assert status == 0 and "# Text classifier: one" in shown and f"bundle: {tmp_path / 'out'}" in shown
    assert "INT8, one scale an output; INT4 word embeddings" in shown
    assert cli.main(["predict", str(tmp_path / "out"), "a good film", "bad"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "label\t0\t1"
    assert lines[1:] == answers(Bundle(tmp_path / "out"), b"a good film\nbad\n")[0]
    assert cli.main([*arguments, "--max-drop", "many"]) == 2
    assert "'many' is not a number of points" in capsys.readouterr().err
    assert cli.main([*arguments, "--matrix-bits", "2"]) == 2
    assert "--matrix-bits: invalid choice: 2 (choose from 8, 4)" in capsys.readouterr().err


def test_predict_takes_the_texts_of_a_pair_in_turns(pair, capsys):
    assert cli.main(["predict", str(pair[0]), "good", "bad", "film", "story"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == answers(Bundle(pair[0]), b"good\tbad\nfilm\tstory\n")[0]
    assert cli.main(["predict", str(pair[0]), "good"]) == 2
    assert "has 2 texts (sentence, other), and 1 were given" in capsys.readouterr().err
    assert cli.main(["predict", str(pair[0]), "good", "\udcff"]) == 2  # the byte FF, as a shell hands it over
    assert "b'\\xff' is not UTF-8" in capsys.readouterr().err
