"""Cutting the vocabulary: a tokenizer without the tokens that a corpus does not need, the embedding without their rows.
WordPiece cuts a word greedily, the longest known piece first (Wu et al. 2016): a text whose pieces are all kept is cut
as before and gets the same logits; a word that lost one falls into shorter ones, down to characters, which are kept.
Instead, words may keep their tokens and share rows of the embedding, of which a bundle's graph stores each once."""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgemin_utils.encoders import word_table
from edgemin_utils.errors import MethodRefused


def tokens_in_use(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], most: int | None = None) -> list[int]:
    """Ids to keep, sorted: special and added tokens, single characters, alone and as continuations, and tokens seen in
    `texts`, of more than `most` those seen most often; what room is left takes others in their order, in which frequent
    ones come first. Raises MethodRefused for no WordPiece, or too small a `most`."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "WordPiece":
        raise MethodRefused(f"a {model['type']} vocabulary is not cut; take a WordPiece model (BERT or ELECTRA)")
    prefix = model["continuing_subword_prefix"]
    kept = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    kept.update(number for token, number in model["vocab"].items() if len(token.removeprefix(prefix)) == 1)
    encoded = tokenizer(["", *texts], add_special_tokens=False, verbose=False)["input_ids"]  # it takes no empty list
    counts = Counter(number for ids in encoded for number in ids)
    seen = [number for number in counts if number not in kept]
    if most is not None:
        if most < len(kept):
            raise MethodRefused(f"{most:,} tokens do not hold the {len(kept):,} specials and characters; allow more")
        others = sorted(number for token, number in model["vocab"].items() if not token.startswith("[unused"))
        ranked = dict.fromkeys([*sorted(seen, key=lambda number: (-counts[number], number)), *others])
        seen = [number for number in ranked if number not in kept][: most - len(kept)]
    return sorted(kept.union(seen))


def cut_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that knows only the tokens of the given ids, numbered anew in their order."""
    backend, numbers = json.loads(tokenizer.backend_tokenizer.to_str()), {old: new for new, old in enumerate(kept)}
    vocabulary = backend["model"]["vocab"].items()
    backend["model"]["vocab"] = {token: numbers[old] for token, old in vocabulary if old in numbers}
    for token in backend["added_tokens"]:
        token["id"] = numbers[token["id"]]
    _renumber(backend["post_processor"] or {}, numbers)
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(backend))
    return smaller


def keep_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Cuts the word embedding down to the rows of the given token ids, in place; the padding token keeps its part."""
    word = word_table(model)
    padding = kept.index(model.config.pad_token_id) if model.config.pad_token_id in kept else None
    word.weight = nn.Parameter(word.weight.detach()[list(kept)])
    word.num_embeddings, word.padding_idx = len(kept), padding
    model.config.vocab_size, model.config.pad_token_id = len(kept), padding


def share_rows(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Gives every token that is not kept, in place, the embedding row of the kept one that is nearest by cosine."""
    table, numbers = word_table(model).weight.data, torch.tensor(kept)
    directions = functional.normalize(table, dim=1)
    nearest = torch.cat([(some @ directions[numbers].T).argmax(dim=1) for some in directions.split(1024)])
    nearest[numbers] = torch.arange(len(numbers))
    table.copy_(table[numbers][nearest])


def _renumber(processor: Any, numbers: Mapping[int, int]) -> None:
    """New ids for the special tokens that a post-processor of any kind puts around a text, in place."""
    for part in processor.get("processors", []):
        _renumber(part, numbers)
    for special in processor.get("special_tokens", {}).values():
        special["ids"] = [numbers[old] for old in special["ids"]]
    for name in {"sep", "cls"}.intersection(processor):
        processor[name] = [processor[name][0], numbers[processor[name][1]]]
