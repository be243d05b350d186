"""Making a bundle: what is written, how near its answers come to the model's, what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from example_bundle import MAX_LENGTH, source_of, write_bundle, write_model

from edgemin_utils.bundle.classify import Bundle
from edgemin_utils.bundle.making import describe_in_words, make_bundle, tokenizer_rules
from edgemin_utils.errors import MethodRefused, SettingError, StorageError


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


def in_torch(source, *texts):
    """Probabilities by the PyTorch model and the tokenizer of transformers."""
    given = {"truncation": "longest_first", "max_length": source.rows.limit, "return_tensors": "pt"}
    with torch.inference_mode():
        return source.model(**source.rows.tokenizer(*texts, **given)).logits.softmax(-1)[0].numpy()


def test_the_folder_holds_what_bundle_json_lists(made, place):
    folder, content = made
    assert content == json.loads((folder / "bundle.json").read_text())
    assert describe_in_words(content) == (folder / "README.txt").read_text()
    names = {*"model.onnx tokenizer.json bundle.json classify.py README.txt".split()}
    assert {path.name for path in folder.iterdir()} == names == {*content["files"], "bundle.json"}
    for name, item in content["files"].items():
        assert (folder / name).stat().st_size == item["bytes"] and len(item["sha256"]) == 64
    assert (content["task"], content["text_columns"]) == ("rows", ["sentence"])
    assert content["labels"] == ["negative", "positive"] and content["max_length"] == MAX_LENGTH
    assert content["rules"] == {"truncation_side": "right", "pad_token_id": 0}
    assert not content["synthetic"] and content["examples"] == []  # rows of one's own stay out of a bundle
    assert content["provenance"]["source"] == "model"  # a name, no path of this machine
    assert str(place) not in (folder / "bundle.json").read_text() + (folder / "README.txt").read_text()
    rules = json.loads((folder / "tokenizer.json").read_text())
    assert rules["truncation"]["max_length"] == MAX_LENGTH and rules["padding"] is None
    size = (folder / "model.onnx").stat().st_size
    assert content["measured"]["model_bytes"] == size < content["measured"]["fp32_bytes"] / 2


def test_what_was_measured_is_what_the_files_do(made, source):
    folder, content = made
    found, rows = content["measured"]["accuracy"]["dev"], source.rows.data.dev["dev"]
    labels, bundle = np.array(rows["label"]), Bundle(folder)
    answers = np.array([bundle.probabilities([(text,)])[0].argmax() for text in rows["sentence"]])
    before = np.array([in_torch(source, text).argmax() for text in rows["sentence"]])
    assert found["rows"] == len(rows) > 10 and found["bundle"] == (answers == labels).mean()
    assert found["pytorch"] == (before == labels).mean() and found["agreement"] == (answers == before).mean()
    assert content["measured"]["fp32_bytes"] == 4 * sum(value.numel() for value in source.model.parameters())


def test_probabilities_are_those_of_the_model_but_for_rounding(made, pair, source):
    rows = source.rows.data.dev["dev"]["sentence"][:8]
    for bundle, chosen, texts in (
        (Bundle(made[0]), source, [(text,) for text in rows]),
        (Bundle(pair[0]), pair[1], [(text, text[::-1]) for text in rows]),
    ):
        wanted = np.array([in_torch(chosen, *text) for text in texts])
        assert np.abs(bundle.probabilities(texts) - wanted).max() < 0.1 < np.abs(wanted - 0.5).max()
        # In one batch, rows share the scale of their numbers, and each still gets its own answer.
        assert np.abs(bundle.probabilities(texts, batch_size=8) - wanted).max() < 0.1


def test_schemes_of_fewer_bits_are_smaller_and_say_so(place, made, source):
    sizes = [made[1]["measured"]["model_bytes"]]
    for scheme in ("edge-int8-int4", "edge-int4"):
        content = make_bundle(source, place / scheme, scheme, max_drop=100)
        assert content["scheme"] == scheme and "INT4" in content["what"]
        assert content["what"] in (place / scheme / "README.txt").read_text()
        sizes.append(content["measured"]["model_bytes"])
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(SettingError, match="by scheme 'int8'; choose one of edge-int8, edge-int8-int4, edge-int4"):
        make_bundle(source, place / "other", "int8")


def test_texts_are_cut_on_the_side_on_which_training_cuts_them(place):
    config = write_model(place / "left") / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"truncation_side": "left"}))
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
    rules = tokenizers.Tokenizer.from_str(tokenizer_rules(tokenizer, 9))
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


def test_a_former_bundle_is_replaced_and_anything_else_left_alone(source, tmp_path):
    for _ in range(2):
        make_bundle(source, tmp_path / "bundle", max_drop=100)
        assert not (tmp_path / "bundle" / "thesis.txt").exists()
        (tmp_path / "bundle" / "thesis.txt").write_text("years of work")
    (tmp_path / "bundle" / "bundle.json").unlink()
    with pytest.raises(StorageError, match="holds no bundle"):
        make_bundle(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "years of work"
