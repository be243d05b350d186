"""Cutting the vocabulary: a tokenizer without the tokens that a corpus does not need, the embedding without their rows.
WordPiece cuts a word greedily, the longest known piece first (Wu et al. 2016): a text whose pieces are all kept is cut
as before and gets the same logits; a word that lost one falls into shorter ones, down to characters, which are kept."""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgemin_utils.errors import MethodRefused


def tokens_in_use(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], occurrences: int = 1, most: int | None = None
) -> list[int]:
    """Ids to keep, sorted: special and added tokens, single characters, alone and as continuations, and tokens seen in
    `texts` at least `occurrences` times, of more than `most` those seen most often. Raises MethodRefused where the
    tokenizer is not WordPiece, or `most` holds too few."""
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
            always = f"the {len(kept):,} special tokens and single characters that always stay"
            raise MethodRefused(f"a vocabulary of {most:,} tokens does not hold {always}; allow more")
        seen = sorted(seen, key=lambda number: (-counts[number], number))[: most - len(kept)]
    return sorted(kept.union(seen))


def cut_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that knows only the tokens of the given ids, numbered anew in their order."""
    _word_piece(tokenizer)
    backend, numbers = json.loads(tokenizer.backend_tokenizer.to_str()), {old: new for new, old in enumerate(kept)}
    vocabulary = backend["model"]["vocab"].items()
    backend["model"]["vocab"] = {token: numbers[old] for token, old in vocabulary if old in numbers}
    for token in backend["added_tokens"]:
        token["id"] = numbers[token["id"]]
    _renumber(backend["post_processor"], numbers)
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(backend))
    return smaller


def keep_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Cuts the word embedding down to the rows of the given token ids, in place; the padding token keeps its part."""
    word = model.get_input_embeddings()
    padding = kept.index(model.config.pad_token_id) if model.config.pad_token_id in kept else None
    smaller = nn.Embedding(len(kept), word.embedding_dim, padding_idx=padding, device=word.weight.device)
    with torch.no_grad():
        smaller.weight.copy_(word.weight[torch.tensor(kept, device=word.weight.device)])
    model.set_input_embeddings(smaller)
    model.config.vocab_size, model.config.pad_token_id = len(kept), padding


def parameters_of_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> int:
    """How many parameters `keep_vocabulary` takes away, by formula: one row of the embedding size a token."""
    word = model.get_input_embeddings()
    return (word.num_embeddings - len(kept)) * word.embedding_dim


def _word_piece(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "WordPiece":
        why = f"a {model['type']} vocabulary is not cut: its longer tokens are merges of shorter ones"
        raise MethodRefused(f"{why}; cut that of a WordPiece model (BERT, DistilBERT, ELECTRA)")
    return model


def _renumber(processor: Any, numbers: Mapping[int, int]) -> None:
    """New ids for the special tokens that a post-processor of any kind puts around a text, in place."""
    processor = processor or {}
    for part in processor.get("processors", []):
        _renumber(part, numbers)
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [numbers[old] for old in special["ids"]]
    for name in {"sep", "cls"}.intersection(processor):
        processor[name] = [processor[name][0], numbers[processor[name][1]]]
