"""Cutting the vocabulary: the tokenizer without the tokens that a corpus does not need, the embedding without their
rows.

WordPiece cuts a word greedily, the longest known piece first (Wu et al. 2016). A text whose pieces are all kept is
therefore cut just as before, and gets the same logits; a word that lost a piece falls into shorter ones, in the end
into single characters, which are always kept.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgemin_utils.errors import MethodRefused


def tokens_in_use(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], occurrences: int = 1, most: int | None = None
) -> list[int]:
    """Ids to keep, sorted: tokens seen in `texts` at least `occurrences` times, special and added tokens, and all
    single characters, alone and as continuations.

    Args:
        most: ids kept at most; the tokens seen most often stay, of equally frequent ones the lower numbers.

    Raises:
        MethodRefused: the tokenizer is not WordPiece, or `most` does not even hold special tokens and characters.
    """
    model = _word_piece(tokenizer)
    prefix = model["continuing_subword_prefix"]
    kept = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    kept.update(number for token, number in model["vocab"].items() if len(token.removeprefix(prefix)) == 1)
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # a tokenizer keeps the truncation that it was last used with
    backend.no_padding()
    counts: Counter[int] = Counter()
    for encoding in backend.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    seen = [number for number, count in counts.items() if count >= occurrences and number not in kept]
    if most is not None:
        if most < len(kept):
            raise MethodRefused(
                f"a vocabulary of {most:,} tokens does not hold the {len(kept):,} special tokens and "
                "single characters that always stay; allow more"
            )
        seen = sorted(seen, key=lambda number: (-counts[number], number))[: most - len(kept)]
    return sorted(kept.union(seen))


def cut_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that knows only the tokens of the given ids, numbered anew in their order.

    Raises:
        MethodRefused: the tokenizer is not WordPiece.
    """
    _word_piece(tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    numbers = {old: new for new, old in enumerate(kept)}
    vocabulary = backend["model"]["vocab"]
    backend["model"]["vocab"] = {token: numbers[old] for token, old in vocabulary.items() if old in numbers}
    for token in backend["added_tokens"]:
        token["id"] = numbers[token["id"]]
    _renumber(backend["post_processor"], numbers)
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(backend))
    return smaller


def keep_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Cuts the word embedding down to the rows of the given token ids, in place, in their order; the padding token
    keeps its part."""
    word = model.get_input_embeddings()
    padding = kept.index(model.config.pad_token_id) if model.config.pad_token_id in kept else None
    smaller = nn.Embedding(len(kept), word.embedding_dim, padding_idx=padding, device=word.weight.device)
    with torch.no_grad():
        smaller.weight.copy_(word.weight[torch.tensor(kept, device=word.weight.device)])
    model.set_input_embeddings(smaller)
    model.config.vocab_size = len(kept)
    model.config.pad_token_id = padding


def parameters_of_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> int:
    """How many parameters `keep_vocabulary` takes away, by formula: one row of the embedding size a token."""
    word = model.get_input_embeddings()
    return (word.num_embeddings - len(kept)) * word.embedding_dim


def _word_piece(tokenizer: PreTrainedTokenizerFast) -> dict:
    """The tokenizer's model as tokenizer.json has it, if it is WordPiece."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "WordPiece":
        raise MethodRefused(
            f"a {model['type']} vocabulary is not cut: its longer tokens are merges of shorter ones, so that a token "
            "is needed by every longer one, used or not; cut the vocabulary of a WordPiece model (BERT, DistilBERT, "
            "ELECTRA)"
        )
    return model


def _renumber(processor: dict | None, numbers: dict[int, int]) -> None:
    """New ids for the special tokens that a post-processor puts around a text, in place."""
    if processor is None:
        return
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            _renumber(part, numbers)
    elif processor["type"] == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [numbers[old] for old in special["ids"]]
    else:  # BertProcessing
        for name in ("sep", "cls"):
            if name in processor:
                processor[name] = [processor[name][0], numbers[processor[name][1]]]
