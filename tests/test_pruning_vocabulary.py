"""A cut vocabulary: the same answers wherever no token was lost, and an answer for every text."""

import numpy as np
import pytest
import tokenizers
import torch
from small_models import LABELS, sentences, small_model
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForSequenceClassification, BertTokenizer, PreTrainedTokenizerFast

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.encoders import scratch_model
from edgemin_utils.errors import MethodRefused
from edgemin_utils.pruning.vocabulary import cut_tokenizer, keep_vocabulary, parameters_of_vocabulary, tokens_in_use
from edgemin_utils.rows.tasks import TASKS
from edgemin_utils.rows.tokens import load_tokenizer, tokenize_split, train_tokenizer
from edgemin_utils.training import predict

CORPUS = ["the film was good and the story warm", "naïve 東京 café dull plot", "unbelievable storytelling \U0001f600"]
SEEN = ["the film", "good story , warm"]
ODD = ["zyzzyva quixotry", "the café was naïve", "東京 film", "\U0001f600 good", "a" * 120, "ÅNGSTRÖM İstanbul"]
ODD += ["don't... re-do\tit\n", "", "\u200b\u0301", "\U0001f468\u200d\U0001f469 ok"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 400)


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(ids(tokenizer, text))


def test_what_is_kept(tokenizer):
    tokenizer("the film", max_length=4, truncation=True, padding="max_length")  # which hides no token from here on
    kept = tokens_in_use(tokenizer, SEEN)
    names = tokenizer.convert_ids_to_tokens(kept)
    assert kept == sorted(set(kept)) and set(tokenizer.all_special_ids) <= set(kept)
    assert {"film", "story", "warm", "東", "##東", "z", "##z"} <= set(names)
    assert not {"unbelievable", "dull", "plot"} & set(names)
    words = {name for name in names if len(name.removeprefix("##")) > 1 and not name.startswith("[")}
    assert words == {"the", "film", "good", "story", "warm"}


def test_a_token_must_be_seen_often_enough(tokenizer):
    for least, words in enumerate([{"the", "film", "good"}, {"the", "film"}, {"the"}, set()], 1):
        kept = tokens_in_use(tokenizer, ["the film", "the good film", "the"], least)
        assert {"the", "film", "good"} & set(tokenizer.convert_ids_to_tokens(kept)) == words


def test_a_limit_leaves_the_tokens_seen_most_often(tokenizer):
    texts = ["the film", "the good film", "the", "story good film"]  # the 3, film 3, good 2, story 1
    always = len(tokens_in_use(tokenizer, []))
    for room, words in enumerate([set(), {"the"}, {"the", "film"}, {"the", "film", "good"}]):
        names = set(tokenizer.convert_ids_to_tokens(tokens_in_use(tokenizer, texts, most=always + room)))
        if room == 1:  # as often as one another: the lower number
            words = {min(("the", "film"), key=tokenizer.convert_tokens_to_ids)}
        assert names & {"the", "film", "good", "story"} == words and len(names) == always + room
    assert tokens_in_use(tokenizer, texts, most=10**6) == tokens_in_use(tokenizer, texts)
    with pytest.raises(MethodRefused, match="does not hold the"):
        tokens_in_use(tokenizer, texts, most=always - 1)


def test_texts_without_a_lost_token_are_cut_as_before_and_others_into_characters(tokenizer):
    kept = tokens_in_use(tokenizer, SEEN)
    smaller = cut_tokenizer(tokenizer, kept)
    assert len(smaller) == len(kept) < len(tokenizer)
    for text in (*SEEN, *CORPUS, *ODD):
        before, after = tokens(tokenizer, text), tokens(smaller, text)
        if set(ids(tokenizer, text)) <= set(kept):
            assert after == before, text
        # What could be written before can still be written: nothing becomes unknown.
        assert after.count("[UNK]") == before.count("[UNK]"), text
        assert max(ids(smaller, text)) < len(kept)
    assert tokens(smaller, "dull") == ["[CLS]", "d", "##u", "##l", "##l", "[SEP]"]


def test_special_tokens_have_their_new_numbers(tokenizer):
    """Also where they do not come first, as in BERT's own vocabulary."""
    names = ["[unused0]", "[unused1]", "[PAD]", "a", "##a", "ab", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "b"]
    bert = BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    kept = tokens_in_use(bert, ["ab"])
    smaller = cut_tokenizer(bert, kept)
    assert tokens(smaller, "ab a") == ["[CLS]", "ab", "a", "[SEP]"] and len(smaller) == 9
    pair = smaller("ab", "b")
    assert smaller.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "ab", "[SEP]", "b", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    padded = smaller(["ab a", "a"], padding=True)["input_ids"][1]
    assert smaller.convert_ids_to_tokens(padded)[-1] == "[PAD]" and smaller.pad_token_id == padded[-1] == 0
    assert len(bert) == 11 and tokens(bert, "ab")[1] == "ab"  # the tokenizer it was cut from stays whole


@pytest.mark.parametrize("made", ["trained", "bert"])
def test_a_cut_tokenizer_reloads_as_it_was_saved(tmp_path, tokenizer, made):
    whole = tokenizer if made == "trained" else BertTokenizer(vocab=tokenizer.get_vocab())
    smaller = cut_tokenizer(whole, tokens_in_use(whole, SEEN))
    smaller.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert len(again) == len(smaller)
    for text in (*SEEN, *CORPUS, *ODD):
        assert ids(again, text) == ids(smaller, text)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_predictions_stay_and_the_parameters_gone_are_rows_of_the_embedding(family, tmp_path):
    rows, task = sentences(20), TASKS["sst2"]
    tokenizer = train_tokenizer(rows["sentence"], 300)
    torch.manual_seed(0)
    model = scratch_model(family, 2, 48, 4, 96, len(tokenizer) + 3, LABELS, 64).eval()  # rows without a token go too
    kept = tokens_in_use(tokenizer, rows["sentence"][:10])
    seen = rows.filter(lambda row: set(ids(tokenizer, row["sentence"])) <= set(kept))
    smaller = cut_tokenizer(tokenizer, kept)
    before = predict(model, tokenize_split(seen, tokenizer, task, 32, True)[0], tokenizer)
    count, by_formula = sum(p.numel() for p in model.parameters()), parameters_of_vocabulary(model, kept)
    keep_vocabulary(model, kept)
    cut_rows = tokenize_split(seen, smaller, task, 32, True)[0]
    assert np.array_equal(predict(model, cut_rows, smaller), before)
    assert count - sum(p.numel() for p in model.parameters()) == by_formula == (len(tokenizer) + 3 - len(kept)) * 48
    save_model(model, tmp_path, smaller)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)  # a plain transformers folder
    assert np.array_equal(predict(stock, cut_rows, load_tokenizer(str(tmp_path))), before)
    load_model(tmp_path).train()(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([0])).loss.backward()


def test_padding_keeps_its_part():
    model = small_model(vocabulary_size=40)
    model.config.pad_token_id = 3
    keep_vocabulary(model, [1, 3, 5])
    assert model.get_input_embeddings().padding_idx == model.config.pad_token_id == 1


def test_byte_pairs_are_refused_with_the_reason():
    model = tokenizers.models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")], unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(MethodRefused, match="a BPE vocabulary is not cut: its longer tokens are merges"):
        tokens_in_use(tokenizer, ["ab"])
