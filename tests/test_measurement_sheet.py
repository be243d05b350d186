"""`edgemin measure`: the full sheet of plain, pruned and quantized folders and of an .onnx file; what it refuses."""

import json

import pytest
import torch
from small_models import export_onnx, small_model, tokenized_sentences

from edgemin_utils import cli
from edgemin_utils.checkpoints import save_model
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import DataError, ModelError
from edgemin_utils.measurement import models, sheet
from edgemin_utils.measurement.models import open_model, open_models
from edgemin_utils.measurement.texts import read_texts
from edgemin_utils.quantization import quantize, save_quantized
from edgemin_utils.tables.measurement_sheet import sheet_text

NAMES = ("pruned", "plain", "quantized", "model.onnx")
FEW = ("--quick", "--threads", "1", "--lengths", "16", "--batches", "1", "2", "--no-compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain, a pruned and a quantized folder, an .onnx file by itself, and a file of texts."""
    place = tmp_path_factory.mktemp("measured")
    _, tokenizer = tokenized_sentences(40)
    model = small_model()
    save_model(model, place / "plain", tokenizer)
    export_onnx(small_model(), place / "model.onnx")
    encoder_layers(model)[0].keep_heads([1, 2])
    encoder_layers(model)[2].keep_neurons(range(40))
    save_model(model, place / "pruned", tokenizer)
    save_quantized(quantize(model, "dynamic-int8"), place / "quantized", "dynamic-int8", tokenizer)
    (place / "texts.txt").write_text("the film was good\n\na very dull story\tand the end\n", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def measured(folder):
    """The sheet that the command writes, and what it prints."""
    arguments = [
        "measure",
        *(str(folder / name) for name in NAMES[:1]),
        "--against",
        *(str(folder / name) for name in NAMES[1:]),
        *FEW,
        "--no-memory",
        "--texts",
        str(folder / "texts.txt"),
        "--json",
        str(folder / "sheet.json"),
    ]
    assert cli.main(arguments) == 0
    return json.loads((folder / "sheet.json").read_text())


def test_every_model_has_its_counts(measured):
    assert [model["name"] for model in measured["models"]] == list(NAMES)
    plain = small_model()
    for model in measured["models"]:
        assert sum(model["parameters"]["parts"].values()) == model["parameters"]["stored"]
        assert model["bytes"]["stored"] == sum(
            sum(sizes.values()) for sizes in model["parameters"]["part_bytes"].values()
        )
        assert model["bytes"]["file"] >= model["bytes"]["stored"]
        joules = model["energy"]["joules"]
        assert 0 < model["energy"]["cpu_seconds"] and (joules is None or joules > 0)
    by_name = {model["name"]: model for model in measured["models"]}
    assert by_name["plain"]["parameters"]["stored"] == sum(item.numel() for item in plain.parameters())
    assert by_name["model.onnx"]["parameters"]["stored"] == by_name["plain"]["parameters"]["stored"]
    assert by_name["quantized"]["parameters"]["stored"] == by_name["pruned"]["parameters"]["stored"]
    assert by_name["quantized"]["parameters"]["framework"] < by_name["pruned"]["parameters"]["framework"]
    macs = {name: by_name[name]["operations"]["1x16"]["macs"] for name in NAMES}
    assert macs["pruned"] == macs["quantized"] < macs["plain"] == macs["model.onnx"]
    for name in NAMES[:3]:
        assert by_name[name]["operations"]["1x16"]["fvcore_ratio"] == pytest.approx(1, abs=0.01)
        assert by_name[name]["operations"]["1x16"]["torch_flop_counter_ratio"] == pytest.approx(1, abs=0.01)
    assert [by_name[name]["int8"] for name in NAMES] == [False, False, True, False]


def test_every_latency_has_its_bound_and_speed_ups_are_over_the_first_other(measured):
    timed = {(row["model"], row["input"]) for row in measured["latency"]}
    fixed = {(name, "1x16") for name in NAMES}
    # The .onnx file lies beside no tokenizer.
    assert timed == fixed | {(name, kind) for name in NAMES[:3] for kind in (sheet.ROWS, sheet.TOKENIZED)}
    for row in measured["latency"]:
        assert row["of_bound"] == pytest.approx(row["median_ms"] / row["bound_ms"]) and row["protocol"] == "quick"
    assert measured["baseline"] == "plain"
    ratios = {(row["model"], row["input"]): row for row in measured["speed_ups"]}
    medians = {(row["model"], row["input"]): row["median_ms"] for row in measured["latency"]}
    assert set(ratios) == {place for place in timed if place[0] != "plain"}
    for (name, kind), row in ratios.items():
        assert row["ratio"] == pytest.approx(medians["plain", kind] / medians[name, kind])
        assert row["low"] <= row["ratio"] <= row["high"]
    assert {(row["model"], row["batch"]) for row in measured["throughput"]} == {(n, b) for n in NAMES for b in (1, 2)}
    for row in measured["throughput"]:
        assert row["rows_per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])


def test_the_printed_sheet_names_everything(measured):
    text = sheet_text(measured)
    for title in (
        "Parameters",
        "Bytes (MB = 10^6 bytes)",
        "Operations of one forward",
        "QUICK LOOK",
        "Speed-ups",
        "Throughput",
        "CPU-seconds a row",
        "Machine: ",
        "Peak with 1 thread(s)",
    ):
        assert title in text
    assert measured["int8_note"].split()[0] in text
    assert "No tokenizer lies beside model.onnx" in text and "Rows of text: lines of texts.txt." in text
    assert f"{measured['models'][1]['parameters']['stored']:,}" in text


def test_int8_note_stands_only_where_int8_is(measured):
    assert measured["int8_note"] in " ".join(sheet_text(measured).split())
    alone = {**measured, "models": measured["models"][:2]}
    assert measured["int8_note"] not in " ".join(sheet_text(alone).split())


def test_memory_is_of_a_fresh_process(folder, capsys):
    path = folder / "memory.json"
    assert (
        cli.main(
            ["measure", str(folder / "model.onnx"), *FEW, "--texts", str(folder / "texts.txt"), "--json", str(path)]
        )
        == 0
    )
    found = json.loads(path.read_text())["models"][0]["memory"]
    assert 0 < found["baseline_bytes"] < found["peak_bytes"]
    assert "Above imports MB" in capsys.readouterr().out


def test_a_torch_folder_is_loaded_in_the_fresh_process_too(folder):
    found = open_model(str(folder / "quantized")).peak_memory(16, 1, 1)
    assert found["peak_bytes"] > found["baseline_bytes"] > 50e6


def test_a_checkpoint_without_a_head_gets_one(folder, tmp_path):
    model = small_model()
    model.bert.config.architectures = ["BertModel"]
    model.bert.save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).parameters()["parts"]["head"] > 0


def test_compile_that_fails_is_a_sentence(folder, monkeypatch):
    def broken(module):
        def call(**inputs):
            raise RuntimeError("no compiler found\nmore lines")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    options = sheet.SheetOptions("quick", (1,), (16,), batches=(), memory=False)
    found = sheet.measure_models([open_model(str(folder / "plain"))], options)
    assert {row["back_end"] for row in found["latency"]} == {models.EAGER}
    assert ("plain is not timed under torch.compile, which does not work here: no compiler found") in found["notes"]


def test_a_compiled_model_is_timed_beside_the_eager_one(folder, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)  # compiling takes a minute; the path is the same
    options = sheet.SheetOptions("quick", (1,), (16,), batches=(), memory=False)
    found = sheet.measure_models([open_model(str(folder / "plain"))], options)
    assert [row["back_end"] for row in found["latency"]] == [models.EAGER, models.COMPILED]
    assert [(row["back_end"], row["baseline"]) for row in found["speed_ups"]] == [(models.COMPILED, "plain (PyTorch)")]


def test_lengths_that_do_not_fit_are_left_out_or_refused(folder):
    model = open_model(str(folder / "plain"))
    lengths, notes = sheet._lengths_that_fit([model], (32, 128))
    assert lengths == [32] and "128" in notes[0]
    with pytest.raises(ModelError, match="give --lengths 64"):
        sheet._lengths_that_fit([model], (128, 256))


def test_an_onnx_folder_is_its_file_with_the_tokenizer_beside_it(folder, tmp_path):
    _, tokenizer = tokenized_sentences(40)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    model = open_model(str(tmp_path))
    assert model.tokenizer is not None and model.describe()["back_end"] == models.ONNX
    (tmp_path / "second.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="name the one to measure: model.onnx, second.onnx"):
        open_model(str(tmp_path))


def test_models_of_the_same_folder_name_are_told_apart(folder, tmp_path):
    other = tmp_path / "plain"
    save_model(small_model(), other)
    assert [model.name for model in open_models([str(folder / "plain"), str(other)])] == [
        str(folder / "plain"),
        str(other),
    ]


@pytest.mark.parametrize(
    "name, message",
    [
        ("/absent/folder", "there is no model folder"),
        ("/absent/model.onnx", "there is no file"),
        ("empty", "holds no config.json"),
        ("notes.txt", "is a file, and not an .onnx file"),
        ("broken.onnx", "is no ONNX model"),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, name, message):
    (tmp_path / "empty").mkdir()
    for file in ("notes.txt", "broken.onnx", "texts.txt"):
        (tmp_path / file).write_text("no model\n")
    source = name if name.startswith("/") else str(tmp_path / name)
    assert cli.main(["measure", source, *FEW, "--texts", str(tmp_path / "texts.txt")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("edgemin: ") and message in shown and shown.count("\n") == 1


def test_texts_come_from_lines_or_dev_rows(tmp_path, folder):
    assert read_texts(str(folder / "texts.txt")) == (
        [("the film was good",), ("a very dull story", "and the end")],
        "lines of texts.txt",
    )
    rows, source = read_texts(task="qqp", rows=3)
    assert len(rows) == 3 and all(len(row) == 2 for row in rows) and "synthetic" in source
    with pytest.raises(DataError, match="there is no file"):
        read_texts(str(tmp_path / "absent.txt"))
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds no text"):
        read_texts(str(tmp_path / "blank.txt"))


def test_a_sheet_that_cannot_be_written_is_refused_before_measuring(folder, capsys):
    assert cli.main(["measure", str(folder / "plain"), "--json", str(folder / "absent" / "sheet.json")]) == 2
    assert "its folder is not there" in capsys.readouterr().err
