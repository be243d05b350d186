"""A cut vocabulary: the same answers wherever no token was lost, and an answer for every text."""

import numpy as np
import pytest
import tokenizers
import torch
from small_models import sentences, small_model
from transformers import AutoModelForSequenceClassification, BertTokenizer, PreTrainedTokenizerFast

from edgemin_utils.checkpoints import load_model, save_model
from edgemin_utils.errors import MethodRefused
from edgemin_utils.pruning.vocabulary import cut_tokenizer, keep_vocabulary, share_rows, tokens_in_use
from edgemin_utils.quantization.schemes import quantize
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


def test_what_is_kept(tokenizer):
    tokenizer("the film", max_length=4, truncation=True, padding="max_length")  # which hides no token from here on
    kept = tokens_in_use(tokenizer, SEEN)
    names = tokenizer.convert_ids_to_tokens(kept)
    assert kept == sorted(set(kept)) and set(tokenizer.all_special_ids) <= set(kept)
    assert {"東", "##東", "z", "##z"} <= set(names)
    words = {name for name in names if len(name.removeprefix("##")) > 1 and not name.startswith("[")}
    assert words == {"the", "film", "good", "story", "warm"}


def test_tokens_stay_that_are_seen_often_enough_or_most_often(tokenizer):
    always, whole = len(tokens_in_use(tokenizer, [])), len(tokenizer)
    texts = ["the film", "the good film", "the", "story good film"]  # the 3, film 3, good 2, story 1
    words = [*sorted(("the", "film"), key=tokenizer.convert_tokens_to_ids), "good", "story"]
    for count in (0, 1, 2, 3, 4):
        kept = tokens_in_use(tokenizer, texts, always + count)
        assert {*words} & {*tokenizer.convert_ids_to_tokens(kept)} == {*words[:count]} and len(kept) == always + count
    # What room is left takes others in the vocabulary's order, and never more than there are.
    first = min(set(range(whole)) - set(tokens_in_use(tokenizer, texts)))
    assert tokens_in_use(tokenizer, texts, most=always + 5) == sorted([*tokens_in_use(tokenizer, texts), first])
    assert tokens_in_use(tokenizer, texts, most=10**6) == [*range(whole)]
    with pytest.raises(MethodRefused, match="tokens do not hold the"):
        tokens_in_use(tokenizer, texts, most=always - 1)


@pytest.mark.parametrize("made", ["trained", "bert"])
def test_texts_without_a_lost_token_are_cut_as_before_and_others_into_characters(tmp_path, tokenizer, made):
    whole = tokenizer if made == "trained" else BertTokenizer(vocab=tokenizer.get_vocab())
    kept = tokens_in_use(whole, SEEN)
    smaller = cut_tokenizer(whole, kept)
    smaller.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert len(again) == len(smaller) == len(kept) < len(tokenizer)
    for text in (*SEEN, *CORPUS, *ODD):
        before, after = whole(text), smaller(text)
        if set(before.input_ids) <= set(kept):
            assert after.tokens() == before.tokens(), text
        # What could be written before can still be written: nothing becomes unknown.
        assert after.tokens().count("[UNK]") == before.tokens().count("[UNK]"), text
        assert max(after.input_ids) < len(kept) and again(text).input_ids == after.input_ids
    assert smaller("dull").tokens() == ["[CLS]", "d", "##u", "##l", "##l", "[SEP]"]


def test_special_tokens_have_their_new_numbers():
    """Also where they do not come first, as in BERT's own vocabulary."""
    names = ["[unused0]", "[unused1]", "[PAD]", "a", "##a", "ab", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "b"]
    bert = BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    kept, model = tokens_in_use(bert, ["ab"]), small_model(vocabulary_size=11)
    smaller = cut_tokenizer(bert, kept)
    pair = smaller("ab", "b")
    assert smaller.convert_ids_to_tokens(pair.input_ids) == ["[CLS]", "ab", "[SEP]", "b", "[SEP]"]
    assert pair.token_type_ids == [0, 0, 0, 1, 1] and len(smaller) == 9
    padded = smaller(["ab a", "a"], padding=True).input_ids[1]
    assert smaller.convert_ids_to_tokens(padded)[-1] == "[PAD]" and smaller.pad_token_id == padded[-1] == 0
    model.config.pad_token_id = 2
    keep_vocabulary(model, kept)
    assert model.get_input_embeddings().padding_idx == model.config.pad_token_id == 0
    assert len(bert) == 11 and bert("ab").tokens()[1] == "ab"  # the tokenizer it was cut from stays whole


def test_words_share_the_nearest_row_which_a_bundle_stores_once():
    """Rows by hand: 3 points as 1 does, 4 as 2; the graph answers as the model does, from fewer bytes."""
    model = small_model(vocabulary_size=300)
    table = model.get_input_embeddings().weight.data
    table[3], table[4] = 5 * table[1] + 0.01, 0.2 * table[2] - 0.01
    kept = [0, 1, 2, *range(5, 60)]
    ids = torch.tensor([[2, 299, 3, 4, 150, 1]])
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before, whole = table.clone(), quantize(model, "edge-int8-int4", [row], 32).graph
    share_rows(model, kept)
    assert torch.equal(table[kept], before[kept])
    assert torch.equal(table[3], before[1]) and torch.equal(table[4], before[2])
    shared = quantize(model, "edge-int8-int4", [row], 32)
    answers = [each(**row).logits for each in (model, shared)]
    torch.testing.assert_close(answers[1], answers[0], atol=0.05, rtol=0.05)
    assert len(shared.graph) < len(whole) - 240 * 48 // 2
    assert shared.notes["sizes"]["bert.embeddings.word_embeddings.weight"][0] == len(kept) * 48


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_predictions_stay_and_the_parameters_gone_are_rows_of_the_embedding(family, tmp_path):
    rows, task = sentences(20), TASKS["sst2"]
    tokenizer = train_tokenizer(rows["sentence"], 300)
    model = small_model(family, vocabulary_size=len(tokenizer) + 3)  # rows without a token go too
    kept = tokens_in_use(tokenizer, rows["sentence"][:10])
    seen = rows.filter(lambda row: set(tokenizer(row["sentence"]).input_ids) <= set(kept))
    smaller, count = cut_tokenizer(tokenizer, kept), model.num_parameters()
    before = predict(model, tokenize_split(seen, tokenizer, task, 32, True)[0], tokenizer)
    keep_vocabulary(model, kept)
    cut_rows = tokenize_split(seen, smaller, task, 32, True)[0]
    assert np.array_equal(predict(model, cut_rows, smaller), before)
    assert count - model.num_parameters() == (len(tokenizer) + 3 - len(kept)) * 48
    save_model(model, tmp_path, smaller)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)  # a plain transformers folder
    assert np.array_equal(predict(stock, cut_rows, load_tokenizer(str(tmp_path))), before)
    load_model(tmp_path).train()(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([0])).loss.backward()


def test_byte_pairs_are_refused_with_the_reason():
    model = tokenizers.models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")], unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), unk_token="<unk>")
    with pytest.raises(MethodRefused, match="a BPE vocabulary is not cut; take a WordPiece model"):
        tokens_in_use(tokenizer, ["ab"])
