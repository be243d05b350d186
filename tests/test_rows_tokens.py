"""Tokenizers: the vocabulary made from train rows, loading, the check against a model, and tokenized splits."""

import json
import os
import subprocess
import sys
from unittest.mock import Mock

import datasets
import huggingface_hub
import pytest
from small_models import small_model
from transformers import AutoTokenizer, BertConfig

from edgemin_utils.distillation.teacher import Teacher
from edgemin_utils.errors import MethodRefused, ModelError, SettingError
from edgemin_utils.rows.splits import TaskData
from edgemin_utils.rows.tasks import TASKS
from edgemin_utils.rows.tokens import check_fit, load_tokenizer, tokenize_rows, tokenize_split, train_tokenizer
from edgemin_utils.settings import load_settings

SST2, MNLI = TASKS["sst2"], TASKS["mnli"]
TEXTS = ["The film is good , the plot is not .", "the zoo", "An apple, a pear!", "Zoë liked it", "good plot"]
CONFIG = {"model_type": "bert", "vocab_size": 1000, "type_vocab_size": 2, "max_position_embeddings": 512}
MISSING = huggingface_hub.errors.RepositoryNotFoundError


def rows(*texts, task=SST2):
    texts = [text if isinstance(text, tuple) else (text,) for text in texts]
    columns = {column: [text[index] for text in texts] for index, column in enumerate(task.text_columns)}
    return datasets.Dataset.from_dict({**columns, "label": [0] * len(texts), "row": list(range(10, 10 + len(texts)))})


def data(*texts, task=SST2):
    made = rows(*texts, task=task)
    return TaskData(task, made, made.select([]), {"dev": made}, made.select([]), "rows of a test", ("a note",), "f")


def words(tokenizer, tokenized):
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenized["input_ids"]]


def test_vocabulary_by_count_then_alphabet():
    made = [f"w{number:02}" for number in range(40)]
    vocabulary = train_tokenizer([" ".join(made), "w39 w39 w39 w10 w10 w05 w05"], 60).get_vocab()
    order = sorted(vocabulary, key=vocabulary.get)
    assert len(order) == 60 and order[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # 12 characters, twice, fit into half of 60 entries beside 5 special tokens: w and 0 to 9 are all in them.
    assert {*"w0123456789"} < set(order[5:17]) and order[17:29] == [f"##{character}" for character in order[5:17]]
    others = [word for word in made if word not in ("w39", "w05", "w10")]
    assert order[29:] == ["w39", "w05", "w10", *others[:28]]
    assert len(train_tokenizer(TEXTS, 10_000)) == 5 + 2 * 68 + 13
    with pytest.raises(SettingError, match="vocabulary_size is 13; it must be at least 14"):
        train_tokenizer(TEXTS, 13)


def test_words_are_lower_cased_and_unknown_words_cut_into_pieces():
    tokenizer = train_tokenizer(TEXTS, 1000)
    assert tokenizer.tokenize("The FILM is Zoé?") == ["the", "film", "is", "zoe", "?"]
    assert tokenizer.tokenize("plots xy") == ["plot", "##s", "x", "##y"]
    printable = "".join(chr(code) for code in range(32, 127))
    assert "[UNK]" not in train_tokenizer(["a"], 282).tokenize(f"{printable} {printable[::-1]} Ünïcödé")
    assert "[UNK]" not in train_tokenizer(["привет мир"] * 3 + ["中"], 1000).tokenize("приветмир 中")


def test_the_vocabulary_is_the_same_in_every_process():
    code = f"from edgemin_utils.rows.tokens import *\nprint(ascii(train_tokenizer({TEXTS!r}, 1000).get_vocab()))"
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, "PYTHONHASHSEED": "11"})
    assert eval(found) == train_tokenizer(reversed(TEXTS), 1000).get_vocab()


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "electra"])
def test_a_saved_tokenizer_reloads_unchanged_beside_any_model(tmp_path, model_type):
    tokenizer, unused = (train_tokenizer(TEXTS, 1000, model_type != "distilbert") for _ in range(2))
    tokenize_split(rows("good film " * 50), tokenizer, SST2, 6, False)  # using it must leave no trace in what is saved
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    for reloaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        assert reloaded.backend_tokenizer.to_str() == unused.backend_tokenizer.to_str()
        assert reloaded.model_input_names == unused.model_input_names
        assert dict(reloaded("Zoë's plots", "the zoo")) == dict(unused("Zoë's plots", "the zoo"))


@pytest.mark.parametrize("files", [{}, {"config.json": '{"model_type": "bert"}'}, {"tokenizer.json": "{"}])
def test_a_folder_without_a_tokenizer(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ModelError, match="its tokenizer.json or vocabulary file is missing or damaged"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("/absent", None, "no checkpoint '/absent' on the hub .*, nor a folder"),
        ("two words!", None, "no checkpoint 'two words!'"),
        ("nobody/nothing", ConnectionError(), "is neither a folder nor in the cache, and the hub cannot be reached"),
        ("nobody/nothing", MISSING.__new__(MISSING), "no checkpoint 'nobody/nothing'"),
    ],
)
def test_names_that_cannot_be_loaded(monkeypatch, name, error, message):
    if error:
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", Mock(side_effect=error))
    with pytest.raises(ModelError, match=message):
        load_tokenizer(name)


def test_more_tokens_than_rows_of_the_embedding_and_padding_that_cannot_work():
    tokenizer = train_tokenizer(TEXTS, 1000)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64)
    assert check_fit(tokenizer, config, 32, []) == (32, True, [])
    tokenizer.add_tokens(["<user>", "<url>"])
    with pytest.raises(ModelError, match=r"has 2 tokens without a row .*\(<url>, <user>\); take the model's own"):
        check_fit(tokenizer, config, 32, [])
    with pytest.raises(ModelError, match="pads with token 0, but the model's positions skip token 3"):
        check_fit(tokenizer, {**CONFIG, "model_type": "roberta", "pad_token_id": 3}, 32, [])
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="no padding token"):
        check_fit(tokenizer, CONFIG, 32, [])


def test_sides_and_inputs_are_the_models(tmp_path):
    for name in ("truncation_side", "padding_side"):
        train_tokenizer(TEXTS, 1000).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, name: "left"}))
        tokenizer = load_tokenizer(str(tmp_path))
        made = tokenize_rows(data("good plot is the film", "zoo"), tokenizer, 5, configs=[CONFIG])
        assert made.notes[0] == "a note" and "left" in made.notes[1] and tokenizer.padding_side == "right"
        assert tokenizer.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
        kept = ["good", "plot", "is"] if name == "padding_side" else ["is", "the", "film"]
        assert words(tokenizer, made.train) == [["[CLS]", *kept, "[SEP]"], ["[CLS]", "zoo", "[SEP]"]]
        tokenizer.save_pretrained(tmp_path / "saved")
        assert load_tokenizer(str(tmp_path / "saved")).truncation_side == tokenizer.truncation_side
        padded = tokenizer.pad({"input_ids": made.train["input_ids"]})
        assert padded["input_ids"][1][-2:] == [tokenizer.pad_token_id] * 2


@pytest.mark.parametrize(("types", "token_types"), [(2, True), (1, False), (None, False)])
def test_token_types_are_the_models(tmp_path, types, token_types):
    train_tokenizer(TEXTS, 1000).save_pretrained(tmp_path)
    generic = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del generic["model_input_names"]  # a generic class names no token types
    generic["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(generic))
    tokenizer, pair = load_tokenizer(str(tmp_path)), data(("good film", "the plot"), task=MNLI)
    made = tokenize_rows(pair, tokenizer, 16, configs=[{**CONFIG, "type_vocab_size": types}])
    assert ("token_type_ids" in made.train.column_names) == token_types == ("token_type_ids" in tokenizer("good"))
    if token_types:
        assert made.train["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).model_input_names == tokenizer.model_input_names


@pytest.mark.parametrize(("changes", "limit"), [({}, 100), ({"max_position_embeddings": None}, 512),
    ({"model_type": "roberta", "pad_token_id": 0}, 99)])  # fmt: skip
def test_inputs_are_cut_at_usable_positions_and_said(changes, limit):
    config = {**CONFIG, "max_position_embeddings": 100, **changes}
    found, _, (note,) = check_fit(train_tokenizer(TEXTS, 1000), config, 700, [])
    assert found == limit and note.startswith("max_length is 700, but")
    assert note.endswith(f"{limit} tokens: inputs are cut there")


def test_unknown_words_are_said_loudly():
    tokenizer = train_tokenizer(["plain words"], 300)
    *_, (note,) = check_fit(tokenizer, CONFIG, 32, ["слова words", "и слова", "plain"])
    assert note.startswith("ATTENTION: the tokenizer does not know 60% of the tokens")
    *_, (note,) = check_fit(tokenizer, CONFIG, 32, ["слова plain words words"])
    assert note.startswith("the tokenizer does not know 25%")
    assert check_fit(tokenizer, CONFIG, 32, ["unseen vocabulary", ""])[2] == []


def test_tokenized_rows_and_what_is_said_of_them():
    tokenizer = train_tokenizer(TEXTS, 1000)
    made = tokenize_rows(data("good film", "the zoo is good", "good " * 30), tokenizer, 16, [CONFIG])
    names = {"input_ids", "attention_mask", "token_type_ids", "labels", "length", "row"}
    assert set(made.train.column_names) == names == set(made.holdout.column_names) and len(made.holdout) == 0
    assert words(tokenizer, made.train)[1] == ["[CLS]", "the", "zoo", "is", "good", "[SEP]"]
    assert made.train["length"] == [4, 6, 16] and made.train["row"] == [10, 11, 12] and made.train.cache_files == []
    assert made.truncated == {"train": 1, "holdout": 0, "transfer": 0, "dev": 1} and made.limit == 16
    assert made.notes == ("a note", "rows longer than 16 tokens are cut: 1 of 3 in train, 1 of 3 in dev")
    described = json.loads(json.dumps(made.describe()))
    assert described["train_rows"] == 3 and described["notes"] == list(made.notes) and made.data.task is SST2
    assert made.learnt_from is made.train


def test_the_longer_text_of_a_pair_is_cut_first_and_some_room_is_needed():
    tokenizer = train_tokenizer(TEXTS, 1000)
    pairs = rows(("good " * 20, "the zoo"), ("film", "plot " * 20), ("film", "plot"), task=MNLI)
    tokenized, cut = tokenize_split(pairs, tokenizer, MNLI, 9, False)
    assert words(tokenizer, tokenized)[0] == ["[CLS]", *["good"] * 4, "[SEP]", "the", "zoo", "[SEP]"]
    assert words(tokenizer, tokenized)[1] == ["[CLS]", "film", "[SEP]", *["plot"] * 5, "[SEP]"] and cut == 2
    assert tokenize_split(pairs, tokenizer, MNLI, 5, False)[0]["length"] == [5, 5, 5]
    with pytest.raises(SettingError, match="max_length is 4; MNLI needs at least 5 tokens"):
        tokenize_split(pairs, tokenizer, MNLI, 4, False)


def test_rows_in_other_tokens():
    tokenizers = (train_tokenizer(texts, 1000) for texts in (TEXTS, TEXTS[:2]))
    whole, cut = (tokenize_rows(data(*TEXTS), tokenizer, 16, [CONFIG]) for tokenizer in tokenizers)
    teacher = Teacher(small_model(), whole.tokenizer, whole, load_settings("demo"))
    teacher.require_same_tokens(whole)
    with pytest.raises(MethodRefused, match="cut 2 of"):  # apple, pear; zoe, liked
        teacher.require_same_tokens(cut)
