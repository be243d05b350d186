"""Making a bundle: from what, what is written, how near its answers come to the model's, and what is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from example_bundle import MAX_LENGTH, source_of, write_bundle, write_model
from small_models import edit_json

from edgemin_utils.bundle.checks import labels_of_outputs
from edgemin_utils.bundle.classify import Bundle
from edgemin_utils.bundle.making import describe_in_words, judge, make_bundle, open_source, tokenizer_rules
from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.errors import MethodRefused, ModelError, StageError, StorageError
from edgemin_utils.measurement.evaluate import PREDICTIONS_FILE, answer
from edgemin_utils.quantization.schemes import quantize, save_quantized
from edgemin_utils.rows.splits import load_task_data
from edgemin_utils.rows.tasks import Task
from edgemin_utils.rows.tokens import load_tokenizer, tokenize_rows
from edgemin_utils.study import Chain, open_chain
from edgemin_utils.training import batches, model_inputs

LABELS = [({0: "pos", 1: "neg"}, "pos neg", ""), ({0: " NEG", 1: "Pos"}, "neg pos", "")]
LABELS += [({0: "LABEL_1", 1: "LABEL_0"}, "pos neg", "LABEL_1 is pos, LABEL_0 is neg")]
unnamed, three = (None, {"0": "LABEL_0", "1": "LABEL_1"}), {0: "neg", 1: "pos", 2: "other"}
LABELS += [(config, "neg pos", "LABEL_0 is neg, LABEL_1 is pos") for config in unnamed]
LABELS += [({0: "pos", 1: "POS"}, "", "m answers with pos, POS")]
LABELS += [(three, "", "m answers with neg, pos, other, and the labels of reviews are neg, pos")]
LABELS += [({"neg": 0, "pos": 1}, "", "config.json of m numbers its labels neg 0, pos 1; correct id2label")]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def source(place):
    return source_of(place / "model", "sentence")


@pytest.fixture(scope="module")
def made(place, source):
    return place / "one", make_bundle(source, place / "one", max_drop=100)


@pytest.fixture(scope="module")
def pair(place):
    return write_bundle(place / "pair", "sentence", "other"), source_of(place / "model", "sentence", "other")


def test_the_folder_holds_what_bundle_json_lists(made, place):
    folder, content = made
    assert content == json.loads((folder / "bundle.json").read_text())
    assert describe_in_words(content) == (folder / "README.txt").read_text()
    names = {*"model.onnx config.json tokenizer.json bundle.json classify.py README.txt".split()}
    assert {path.name for path in folder.iterdir()} == names == {*content["files"], "bundle.json"}
    for name, item in content["files"].items():
        assert (folder / name).stat().st_size == item["bytes"] and len(item["sha256"]) == 64
    assert (content["task"], content["text_columns"]) == ("rows", ["sentence"])
    assert content["labels"] == ["negative", "positive"] and content["max_length"] == MAX_LENGTH
    assert content["rules"] == {"truncation_side": "right", "pad_token_id": 0}
    assert not content["synthetic"] and content["examples"] == []  # rows of one's own stay out of a bundle
    assert content["provenance"]["source"] == "model"  # a name, no path of this machine
    assert not [name for name in names if str(place).encode() in (folder / name).read_bytes()]
    rules = json.loads((folder / "tokenizer.json").read_text())
    assert rules["truncation"]["max_length"] == MAX_LENGTH and rules["padding"] is None
    size = (folder / "model.onnx").stat().st_size
    assert content["measured"]["model_bytes"] == size < content["measured"]["fp32_bytes"] / 2


def test_what_was_measured_is_what_the_files_do_and_near_the_model(made, pair, source):
    for folder, chosen in ((made[0], source), pair):
        bundle, rows = Bundle(folder), chosen.rows.data.dev["dev"]
        texts, labels = [*zip(*(rows[name] for name in bundle.text_columns), strict=True)], np.array(rows["label"])
        given = {"truncation": "longest_first", "max_length": MAX_LENGTH, "return_tensors": "pt"}
        with torch.inference_mode():
            outputs = [chosen.model(**chosen.rows.tokenizer(*row, **given)).logits[0] for row in texts]
        found, wanted = bundle.probabilities(texts), torch.stack(outputs).softmax(-1).numpy()
        assert np.abs(found - wanted).max() < 0.1 < np.abs(wanted - 0.5).max()
        # In one batch, rows share the scale of their numbers, and each still gets its own answer.
        assert np.abs(bundle.probabilities(texts, batch_size=8) - wanted).max() < 0.1
        answers, before = found.argmax(axis=1), wanted.argmax(axis=1)
        equal = {"bundle": answers == labels, "pytorch": before == labels, "agreement": answers == before}
        shares = {name: each.mean() for name, each in equal.items()}
        shares["most_frequent"] = max(labels.mean(), 1 - labels.mean())
        assert bundle.content["measured"]["accuracy"]["dev"] == pytest.approx({"rows": len(rows), **shares})
        assert bundle.content["measured"]["fp32_bytes"] == 4 * sum(each.numel() for each in chosen.model.parameters())


def test_texts_are_cut_on_the_side_on_which_training_cuts_them(place):
    edit_json(write_model(place / "left") / "tokenizer_config.json", truncation_side="left")
    source = source_of(place / "left", "sentence")
    content, text = make_bundle(source, place / "cut", max_drop=100), "good " + "film " * 20 + "bad"
    found = Bundle(place / "cut").tokenizer.encode(text)
    assert found.ids == source.rows.tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    assert "bad" in found.tokens and "good" not in found.tokens and content["rules"]["truncation_side"] == "left"
    assert content["measured"]["accuracy"]["dev"]["agreement"] > 0.9
    assert "beginning goes" in (place / "cut" / "README.txt").read_text()


def test_a_pair_is_cut_and_told_apart_by_token_types_as_transformers_does(pair):
    bundle, tokenizer = Bundle(pair[0]), pair[1].rows.tokenizer
    assert [item.name for item in bundle.session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    rules = tokenizers.Tokenizer.from_buffer(tokenizer_rules(tokenizer, 9))
    for texts in (("good " * 9, "bad"), ("good", "bad " * 9), ("good " * 9, "bad " * 9), ("", "bad " * 20)):
        wanted = tokenizer(*texts, truncation="longest_first", max_length=9, return_token_type_ids=True)
        found = rules.encode(*texts)
        assert found.ids == wanted["input_ids"] and found.type_ids == wanted["token_type_ids"] and 1 in found.type_ids


def test_a_bundle_that_loses_more_than_allowed_is_refused_and_leaves_nothing(place, source, made):
    perfect = {split: np.eye(2, dtype=np.float32)[rows["label"]] for split, rows in source.rows.data.dev.items()}
    flattered, before = dataclasses.replace(source, logits=perfect), (made[0] / "bundle.json").read_bytes()
    for output in (place / "new", made[0]):
        with pytest.raises(MethodRefused, match=r"would lose \d+\.\d\d points of .* of dev, and .* allows 1;"):
            make_bundle(flattered, output)
    assert not (place / "new").exists() and (made[0] / "bundle.json").read_bytes() == before
    assert not list(place.glob(".*partial*"))


def test_answers_far_below_chance_are_said_first(place, source, pair):
    wrong = {"dev": np.eye(2, dtype=np.float32)[1 - np.array(source.rows.data.dev["dev"]["label"])]}
    content = make_bundle(dataclasses.replace(source, logits=wrong), place / "turned", max_drop=100)
    assert content["notes"][0].startswith("ATTENTION: dev: right in 0.0 % of rows, the commonest label in ")
    said = " ".join(Bundle(pair[0]).content["notes"])  # of dev rows: train rows are there for calibration alone
    assert re.search(r"dev: \d+ of \d+ rows are longer than 12 tokens and cut", said) and "train" not in said


def test_a_former_bundle_is_replaced_and_anything_else_left_alone(source, tmp_path):
    for _ in range(2):
        make_bundle(source, tmp_path / "bundle", max_drop=100)
        assert not (tmp_path / "bundle" / "thesis.txt").exists()
        (tmp_path / "bundle" / "thesis.txt").write_text("years of work")
    (tmp_path / "bundle" / "bundle.json").unlink()
    with pytest.raises(StorageError, match="holds no bundle"):
        make_bundle(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def chain(place) -> Chain:
    """A chain whose every float stage holds the same small model, which has learnt nothing."""
    settings = {"models": ["minilmv2+int8", "minilmv2+edge-int8"], "train_rows": 60, "dev_rows": 40}
    settings |= {"holdout_fraction": 0, "max_length": MAX_LENGTH}
    chain = open_chain("sst2", "demo", 0, place / "study", settings)
    model, tokenizer = load_model(place / "model"), load_tokenizer(str(place / "model"))
    rows = tokenize_rows(load_task_data(chain.settings, "sst2", 0), tokenizer, MAX_LENGTH, configs=[model.config])
    inputs = [model_inputs(model, batch) for _, batch in batches(rows.train, tokenizer, 1)]
    for stage in chain.plan.values():
        with stage:
            if stage.kind == "quantization":
                made = quantize(model, stage.step.method, inputs, MAX_LENGTH)
                save_quantized(made, stage.folder, stage.step.method, tokenizer)
            else:
                save_model(made := model, stage.folder, tokenizer)
            metrics, _ = answer(made, rows, 1, stage.folder)
            stage.record({"accuracy": metrics["dev"]["accuracy"]})
    return chain


def test_a_stage_knows_its_rows_and_an_edge_stage_brings_its_graph_and_its_float_model(chain, tmp_path):
    source = open_source(str(chain.folder / "minilmv2"))
    assert source.provenance["source"] == "sst2/seed-0/minilmv2" and source.rows.limit == MAX_LENGTH
    assert source.synthetic and source.labels == ("negative", "positive") and not source.scheme
    assert len(source.logits["dev"]) == len(source.rows.dev["dev"]) == 40
    source = open_source(str(chain.folder / "minilmv2+edge-int8"))
    content = make_bundle(source, tmp_path / "bundle", max_drop=100)
    graph = (chain.folder / "minilmv2+edge-int8" / "model.onnx").read_bytes()
    assert content["scheme"] == "edge-int8" and (tmp_path / "bundle" / "model.onnx").read_bytes() == graph
    assert content["provenance"]["float_source"] == "sst2/seed-0/minilmv2"
    assert content["provenance"]["fingerprint"] == chain.read("minilmv2").fingerprint
    config = (chain.folder / "minilmv2+edge-int8" / "config.json").read_text()
    assert json.loads(config)["max_position_embeddings"] == MAX_LENGTH
    predicted = chain.read("minilmv2+edge-int8").results["accuracy"]
    assert content["measured"]["accuracy"]["dev"]["bundle"] == pytest.approx(predicted)


def test_what_cannot_be_bundled_is_said_before_torch_is_imported(chain, tmp_path):
    (Path(shutil.copytree(chain.folder / "minilmv2+int8", tmp_path / "int8")) / "record.json").unlink()
    several, from_one = {"problem_type": "multi_label_classification"}, {"id2label": {"1": "negative", "2": "positive"}}
    for name, config in {"several": several, "one": from_one, "spam": {"id2label": {"0": "ham", "1": "spam"}}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
        (tmp_path / name / "pytorch_model.bin").touch()
    (tmp_path / "empty").mkdir()
    float_model = chain.folder / "minilmv2"
    refused = {
        f"{float_model}+int8": f"holds integers; bundle its float model: {float_model}",
        f"{float_model} --task mnli --data-dir glue": "knows its own rows; leave out task mnli, data_dir",
        f"{float_model} --scheme int8": "by scheme 'int8'; choose one of edge-int8, edge-int8-int4, edge-int4",
        f"{float_model} --output {tmp_path}": "is there and holds no bundle",
        f"{tmp_path}/int8": "is no stage of a study; name the rows to judge it on with --task",
        f"{tmp_path}/int8 --task sst2": "was quantized by int8 already; bundle the float model",
        f"{tmp_path}/empty --task sst2": "holds no config.json that can be read",
        f"{tmp_path}/several --task sst2": "give one label a row",
        f"{tmp_path}/one --task sst2": "numbers its labels 1 negative, 2 positive; correct id2label",
        f"{tmp_path}/spam --task sst2": "answers with ham, spam, and the labels of SST-2 are negative, positive",
        f"{tmp_path}/spam --task sst3": "unknown task 'sst3'",
    }
    code = "import sys; from edgemin_utils.cli import main\n"
    code += "print({main(['bundle', *words.split()]) for words in sys.argv[1:]}, 'torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code, *refused], capture_output=True, text=True)
    assert child.stdout == "{2} False\n"
    for said, sentence in zip(child.stderr.splitlines(), refused.values(), strict=True):
        assert sentence in said


def test_rows_that_changed_are_refused(chain):
    path = chain.folder / "teacher" / PREDICTIONS_FILE
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    with pytest.raises(StageError, match="the rows of dev are not those that"):
        open_source(str(path.parent))


@pytest.mark.parametrize(("names", "labels", "said"), LABELS)
def test_labels_follow_the_models_outputs(names, labels, said):
    config, task = {"id2label": names}, Task("reviews", "reviews", ("text",), ("neg", "pos"))
    if labels:
        found, note = labels_of_outputs(config, task, "m")
        assert " ".join(found) == labels and note.endswith(said) and bool(note) == bool(said)
    else:
        with pytest.raises(ModelError, match=said):
            labels_of_outputs(config, task, "m")


def test_labels_in_another_order_are_judged_by_name(tmp_path):
    """The same weights under names that stand the other way round are right where they were wrong."""
    bundle, folder = Bundle(write_bundle(tmp_path / "bundle", "sentence")), tmp_path / "model"
    found = judge(bundle, source_of(folder, "sentence"), max_drop=100)["dev"]
    names = {"id2label": {"0": "Positive", "1": "NEGATIVE"}, "label2id": {"Positive": 0, "NEGATIVE": 1}}
    edit_json(folder / "config.json", **names)
    source = source_of(folder, "sentence")
    assert source.labels == ("positive", "negative") and source.rows.data.task.labels == ("negative", "positive")
    turned = judge(bundle, source, max_drop=100)["dev"]
    assert turned["agreement"] == found["agreement"] > 0.9
    assert [turned[name] for name in ("bundle", "pytorch")] == [1 - found[name] for name in ("bundle", "pytorch")]
