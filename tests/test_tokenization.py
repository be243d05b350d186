"""Tokenizers: the vocabulary made from train rows, loading, and tokenized splits with their cut rows counted."""

import json
import os
import subprocess
import sys

import datasets
import huggingface_hub
import pytest
from transformers import AutoTokenizer

from edgemin_utils import tokenization
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.tasks import find_task
from edgemin_utils.tokenization import ASCII_CHARACTERS, load_tokenizer, tokenize, train_tokenizer

SST2, MNLI = find_task("sst2"), find_task("mnli")
TEXTS = ["The film is good , the plot is not .", "the zoo", "An apple, a pear!", "Zoë liked it", "good plot"]


def rows(*texts):
    return datasets.Dataset.from_dict(
        {"sentence": list(texts), "label": [0] * len(texts), "row": list(range(10, 10 + len(texts)))}
    )


def pairs(*texts):
    return datasets.Dataset.from_dict(
        {
            "premise": [pair[0] for pair in texts],
            "hypothesis": [pair[1] for pair in texts],
            "label": [2] * len(texts),
            "row": list(range(len(texts))),
        }
    )


# ---- training a vocabulary -------------------------------------------------------------------------------------


def test_vocabulary_by_count_then_alphabet():
    words = [f"w{number:02}" for number in range(40)]
    vocabulary = train_tokenizer([" ".join(words), "w39 w39 w39 w10 w10 w05 w05"], 60).get_vocab()
    order = sorted(vocabulary, key=vocabulary.get)
    assert len(order) == 60
    assert order[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # 12 characters, twice, fit into half of 60 entries beside 5 special tokens: w and 0 to 9 are all in them.
    assert {*"w0123456789"} < set(order[5:17])
    assert order[17:29] == [f"##{character}" for character in order[5:17]]
    others = [word for word in words if word not in ("w39", "w05", "w10")]
    assert order[29:] == ["w39", "w05", "w10", *others[:28]]


def test_vocabulary_does_not_outgrow_its_texts():
    words = {"the", "film", "is", "good", "plot", "not", "zoo", "an", "apple", "pear", "zoe", "liked", "it"}
    assert len(train_tokenizer(TEXTS, 10_000)) == 5 + 2 * len(ASCII_CHARACTERS) + len(words)


def test_words_are_lower_cased_and_unknown_words_cut_into_pieces():
    tokenizer = train_tokenizer(TEXTS, 1000)
    assert tokenizer.tokenize("The FILM is Zoé?") == ["the", "film", "is", "zoe", "?"]
    assert tokenizer.tokenize("plots xy") == ["plot", "##s", "x", "##y"]


def test_any_latin_text_tokenizes_without_unknown_tokens():
    tokenizer = train_tokenizer(["a"], 282)
    printable = "".join(chr(code) for code in range(32, 127))
    for text in (printable, printable.replace(" ", "")[::-1], "Ünïcödé wörds"):
        assert tokenizer.unk_token not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("\u2603") == ["[UNK]"]


def test_frequent_characters_beyond_ascii_get_a_share():
    tokenizer = train_tokenizer(["привет мир"] * 3 + ["中"], 1000)
    assert tokenizer.unk_token not in tokenizer.tokenize("приветмир 中")
    crowded = train_tokenizer(["".join(chr(code)) for code in range(0x4E00, 0x4E00 + 3000)] + ["word"] * 2, 1000)
    assert len(crowded) <= 1000
    assert "word" in crowded.get_vocab()


def test_special_tokens_around_one_and_two_texts():
    tokenizer = train_tokenizer(TEXTS, 1000)
    single, pair = tokenizer("good film"), tokenizer("good film", "the plot")
    assert tokenizer.convert_ids_to_tokens(single["input_ids"]) == ["[CLS]", "good", "film", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == [
        "[CLS]",
        "good",
        "film",
        "[SEP]",
        "the",
        "plot",
        "[SEP]",
    ]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer.decode(single["input_ids"], skip_special_tokens=True) == "good film"
    assert "token_type_ids" not in train_tokenizer(TEXTS, 1000, token_types=False)("good")


def test_the_vocabulary_is_the_same_in_every_process():
    code = (
        f"from edgemin_utils.tokenization import train_tokenizer\n"
        f"print(train_tokenizer({TEXTS!r}, 1000).backend_tokenizer.to_str())"
    )
    here = train_tokenizer(TEXTS, 1000).backend_tokenizer.to_str()
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONHASHSEED": "11",
            "PYTHONIOENCODING": "utf-8",
        },
    )
    assert result.stdout.strip() == here
    assert train_tokenizer(reversed(TEXTS), 1000).backend_tokenizer.to_str() == here


def test_too_small_a_vocabulary():
    with pytest.raises(SettingError, match="vocabulary_size is 13; it must be at least 14"):
        train_tokenizer(TEXTS, 13)
    assert len(train_tokenizer(TEXTS, 14)) == 14


# ---- saving and loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [None, "bert", "distilbert", "roberta", "electra"])
@pytest.mark.parametrize("token_types", [True, False])
def test_a_saved_tokenizer_reloads_unchanged_beside_any_model(tmp_path, model_type, token_types):
    tokenizer = train_tokenizer(TEXTS, 1000, token_types)
    tokenize(rows("good film " * 50), tokenizer, SST2, 6)  # using it must leave no trace in what is saved
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    for reloaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        unused = train_tokenizer(TEXTS, 1000, token_types)
        assert reloaded.backend_tokenizer.to_str() == unused.backend_tokenizer.to_str()
        assert reloaded.model_input_names == unused.model_input_names
        assert reloaded.model_max_length == 512
        assert reloaded.special_tokens_map == unused.special_tokens_map
        assert dict(reloaded("Zoë's plots", "the zoo")) == dict(unused("Zoë's plots", "the zoo"))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": '{"model_type": "bert"}'},
        {"tokenizer.json": "{"},
        {"config.json": '{"model_type": "roberta"}', "tokenizer_config.json": "{}"},
    ],
)
def test_a_folder_without_a_tokenizer(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ModelError, match="no tokenizer in .*: a tokenizer.json or vocabulary file is missing"):
        load_tokenizer(str(tmp_path))


def test_names_that_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no folder .*absent"):
        load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="no folder ./absent"):
        load_tokenizer("./absent")
    with pytest.raises(ModelError, match="'two words!' is neither a folder nor a name"):
        load_tokenizer("two words!")

    def no_route(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_route)
    with pytest.raises(
        ModelError,
        match="'nobody/nothing' is neither a folder nor in the cache, and the hub cannot be "
        "reached; give a folder .* demo profile",
    ):
        load_tokenizer("nobody/nothing")


def test_a_misspelt_checkpoint(monkeypatch):
    class Response:
        headers: dict[str, str] = {}
        request = None
        status_code = 404

    def not_found(*_, **__):
        raise huggingface_hub.errors.RepositoryNotFoundError("404", response=Response())

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", not_found)
    with pytest.raises(ModelError, match="no checkpoint 'distilbert-base-uncasd' on the hub"):
        load_tokenizer("distilbert-base-uncasd")


# ---- tokenizing a split ----------------------------------------------------------------------------------------


def test_tokenized_rows():
    tokenizer = train_tokenizer(TEXTS, 1000)
    tokenized, cut = tokenize(rows("good film", "the zoo is good"), tokenizer, SST2, 16)
    assert set(tokenized.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels", "length", "row"}
    assert tokenizer.convert_ids_to_tokens(tokenized[1]["input_ids"]) == ["[CLS]", "the", "zoo", "is", "good", "[SEP]"]
    assert tokenized["attention_mask"][0] == [1] * 4
    assert list(tokenized["length"]) == [4, 6]
    assert list(tokenized["row"]) == [10, 11]
    assert list(tokenized["labels"]) == [0, 0]
    assert cut == 0
    assert tokenized.cache_files == []


def test_token_types_only_where_the_tokenizer_names_them():
    tokenizer = train_tokenizer(TEXTS, 1000, token_types=False)
    assert "token_type_ids" not in tokenize(rows("good"), tokenizer, SST2, 8)[0].column_names


@pytest.mark.parametrize("count", [1, 999, 2500])
def test_cut_rows_are_counted_in_every_batch(count):
    texts = [" ".join(["good"] * (index % 9 + 1)) for index in range(count)]
    tokenized, cut = tokenize(rows(*texts), train_tokenizer(TEXTS, 1000), SST2, 8)
    # Six words fit beside two special tokens.
    assert cut == sum(len(text.split()) > 6 for text in texts)
    assert list(tokenized["length"]) == [min(len(text.split()), 6) + 2 for text in texts]


def test_the_longer_text_of_a_pair_is_cut_first():
    tokenizer = train_tokenizer(TEXTS, 1000)
    tokenized, cut = tokenize(
        pairs(("good " * 20, "the zoo"), ("film", "plot " * 20), ("film", "plot")), tokenizer, MNLI, 9
    )
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenized["input_ids"]]
    assert tokens[0] == ["[CLS]", *["good"] * 4, "[SEP]", "the", "zoo", "[SEP]"]
    assert tokens[1] == ["[CLS]", "film", "[SEP]", *["plot"] * 5, "[SEP]"]
    assert cut == 2


def test_no_row_is_longer_than_the_model():
    tokenizer = train_tokenizer(TEXTS, 1000)
    tokenized, cut = tokenize(rows("good " * 2000, "good"), tokenizer, SST2, 100_000)
    assert (list(tokenized["length"]), cut) == ([512, 3], 1)


def test_an_empty_split():
    empty = rows("good").select([])
    tokenized, cut = tokenize(empty, train_tokenizer(TEXTS, 1000), SST2, 8)
    assert (len(tokenized), cut) == (0, 0)
    assert "input_ids" in tokenized.column_names


@pytest.mark.parametrize(("task", "data", "least"), [(SST2, rows("good"), 3), (MNLI, pairs(("good", "film")), 5)])
def test_too_short_a_length(task, data, least):
    tokenizer = train_tokenizer(TEXTS, 1000)
    assert list(tokenize(data, tokenizer, task, least)[0]["length"]) == [least]
    with pytest.raises(SettingError, match=f"max_length is {least - 1}; {task.title} needs at least {least} tokens"):
        tokenize(data, tokenizer, task, least - 1)


def test_the_same_split_is_tokenized_once(monkeypatch):
    monkeypatch.setattr(tokenization, "_tokenized", {})
    monkeypatch.setattr(tokenization, "TOKENIZED_SPLITS_KEPT", 2)
    tokenizer = train_tokenizer(TEXTS, 1000)
    first = tokenize(rows("good"), tokenizer, SST2, 8)
    assert tokenize(rows("good"), train_tokenizer(TEXTS, 1000), SST2, 8)[0] is first[0]
    for changed in (tokenize(rows("film"), tokenizer, SST2, 8), tokenize(rows("good"), tokenizer, SST2, 9)):
        assert changed[0] is not first[0]
    assert len(tokenization._tokenized) == 2
    assert tokenize(rows("good"), train_tokenizer(TEXTS[:1], 1000), SST2, 8)[0] is not first[0]
