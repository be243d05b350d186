"""Text to token ids: a WordPiece vocabulary made from train rows, tokenizers of checkpoints, tokenized splits."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.library_messages import quiet_transformers
from edgemin_utils.sources import reach_hub
from edgemin_utils.tasks import Task

if TYPE_CHECKING:
    import datasets

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ASCII_CHARACTERS = tuple(sorted({chr(code).lower() for code in range(33, 127)}))
"""First in line for a trained vocabulary, so that any text in plain Latin letters tokenizes."""

MODEL_MAX_LENGTH = 512
"""Longest input, in tokens, that a trained tokenizer names; as BERT."""

TOKENIZED_SPLITS_KEPT = 32
"""Tokenized splits that a process keeps, so that no stage of a notebook tokenizes the same split twice."""

_tokenized: "dict[str, tuple[datasets.Dataset, int]]" = {}


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, token_types: bool = True) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer in BERT's manner, with the most frequent words of `texts` as whole tokens.

    The vocabulary holds the special tokens; then characters, alone and as `##` continuations, ASCII before others and
    frequent before rare, in at most half of its entries; then words by falling count. Ties are broken alphabetically,
    so the same texts give the same vocabulary in every process. A word that is not in it is cut greedily, longest
    piece first (Wu et al. 2016). From 282 entries on, all of ASCII is in it.

    Args:
        texts: training texts.
        vocabulary_size: most entries.
        token_types: whether the model takes `token_type_ids` (BERT and ELECTRA do, DistilBERT and RoBERTa do not).

    Returns:
        A tokenizer that `AutoTokenizer` reloads unchanged from `save_pretrained`.

    Raises:
        SettingError: `vocabulary_size` leaves no room beside the special tokens.
    """
    least = 2 * (len(SPECIAL_TOKENS) + 2)
    if vocabulary_size < least:
        raise SettingError(
            f"vocabulary_size is {vocabulary_size}; it must be at least {least} (special tokens, some "
            "characters and words)"
        )
    backend = tokenizers.Tokenizer(models.WordPiece(vocab={}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocabulary = _vocabulary(_count_words(backend, texts), vocabulary_size)
    backend.model = models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=MODEL_MAX_LENGTH, model_input_names=inputs, **SPECIAL_TOKENS
    )


def load_tokenizer(name_or_folder: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint on the hub or in a folder.

    Raises:
        ModelError: the folder holds no tokenizer, there is no such checkpoint, the hub cannot be reached and nothing
            is cached, or the tokenizer is not one of the `tokenizers` library (needed to count cut rows).
    """
    folder = Path(name_or_folder).expanduser()
    local = folder.is_dir()
    if not local and (folder.is_absolute() or name_or_folder.startswith((".", "~")) or name_or_folder.count("/") > 1):
        raise ModelError(f"no folder {name_or_folder}")
    reachable = not local and _reachable(name_or_folder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder) if local else name_or_folder, local_files_only=not reachable
            )
    except Exception as error:  # each layer beneath (HTTP, JSON, tokenizers, transformers) raises its own
        if local:
            raise ModelError(_without_vocabulary(name_or_folder) + f" ({type(error).__name__})") from error
        why = (
            f"cannot be loaded ({type(error).__name__})"
            if reachable
            else "is neither a folder nor in the cache, and the hub cannot be reached"
        )
        raise ModelError(
            f"tokenizer {name_or_folder!r} {why}; give a folder that holds the checkpoint, or take the "
            "demo profile, which needs no network"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up when there is no vocabulary
        raise ModelError(_without_vocabulary(name_or_folder))
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer {name_or_folder!r} has no version for the tokenizers library; choose a BERT, "
            "DistilBERT, RoBERTa or ELECTRA checkpoint"
        )
    return tokenizer


def tokenize(
    dataset: "datasets.Dataset", tokenizer: PreTrainedTokenizerFast, task: Task, max_length: int
) -> "tuple[datasets.Dataset, int]":
    """Token ids for every row, not padded (that is the batch's affair), and how many rows had to be cut.

    A pair that is too long loses tokens from its longer text first. The length is also held under what the tokenizer
    says its model takes. Kept in memory; the same call in one process returns the same data set again.

    Args:
        dataset: rows with the task's text columns, `label` and `row`.
        tokenizer: as `train_tokenizer` or `load_tokenizer` return it.
        task: names the text columns.
        max_length: most tokens a row, special tokens included.

    Returns:
        Data set with `input_ids`, `attention_mask`, `token_type_ids` where the model takes them (lists of int, one
        entry a token), `labels` (int), `length` (int, tokens) and `row` (int); number of rows that were cut.

    Raises:
        SettingError: `max_length` leaves no room for text beside the special tokens.
    """
    limit = min(max_length, tokenizer.model_max_length)
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if limit < special + len(task.text_columns):
        raise SettingError(
            f"max_length is {limit}; {task.title} needs at least {special + len(task.text_columns)} "
            f"tokens ({special} special ones and one a text)"
        )
    key = _tokenized_key(dataset, tokenizer, task, limit)
    if key not in _tokenized:
        while len(_tokenized) >= TOKENIZED_SPLITS_KEPT:
            del _tokenized[next(iter(_tokenized))]  # the oldest
        _tokenized[key] = _tokenize(dataset, tokenizer, task, limit)
    return _tokenized[key]


def rows_in_other_tokens(
    first: "datasets.Dataset",
    first_tokenizer: PreTrainedTokenizerFast,
    second: "datasets.Dataset",
    second_tokenizer: PreTrainedTokenizerFast,
) -> int:
    """How many rows two tokenizers cut into different tokens; which number a token has does not matter.

    Args:
        first, second: the same rows, as `tokenize` returns them for each tokenizer.
    """
    if first is second:  # equal tokenizers share what `tokenize` keeps
        return 0
    known = second_tokenizer.get_vocab()
    numbers = {number: known.get(token) for token, number in first_tokenizer.get_vocab().items()}
    return sum(
        [numbers[number] for number in one] != list(other)
        for one, other in zip(first["input_ids"], second["input_ids"], strict=True)
    )


def _tokenize(
    dataset: "datasets.Dataset", tokenizer: PreTrainedTokenizerFast, task: Task, limit: int
) -> "tuple[datasets.Dataset, int]":
    import datasets

    names = [
        name
        for name in ("input_ids", "token_type_ids", "attention_mask")
        if name != "token_type_ids" or name in tokenizer.model_input_names
    ]
    features = datasets.Features(
        {
            **{name: datasets.List(datasets.Value("int32" if name == "input_ids" else "int8")) for name in names},
            **{name: datasets.Value("int64") for name in ("labels", "length", "row")},
        }
    )
    cut, parts = 0, []
    for batch in dataset.iter(1000):
        encoded = tokenizer(
            *(batch[column] for column in task.text_columns),
            max_length=limit,
            truncation="longest_first",
            return_attention_mask=True,
            return_token_type_ids="token_type_ids" in names,
        )
        # What was cut off stays with the encoding, so a row is seen to be cut without tokenizing it twice.
        cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        columns = {name: encoded[name] for name in names}
        columns |= {"labels": batch["label"], "length": [len(ids) for ids in encoded["input_ids"]], "row": batch["row"]}
        parts.append(datasets.Dataset.from_dict(columns, features=features))
    # The call above leaves its limit in the tokenizer, where save_pretrained would write it down.
    tokenizer.backend_tokenizer.no_truncation()
    if not parts:
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features), 0
    return datasets.concatenate_datasets(parts), cut


def _tokenized_key(dataset: "datasets.Dataset", tokenizer: PreTrainedTokenizerFast, task: Task, limit: int) -> str:
    # `_fingerprint` is how datasets tells one content from another; truncation is set anew by every call.
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation")
    parts = (
        dataset._fingerprint,
        json.dumps(rules),
        str(tokenizer.model_input_names),
        str(task.text_columns),
        str(limit),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _count_words(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    return counts


def _vocabulary(words: Counter[str], size: int) -> dict[str, int]:
    characters: Counter[str] = Counter(dict.fromkeys(ASCII_CHARACTERS, 0))
    for word, count in words.items():
        for character in word:
            characters[character] += count
    ranked = sorted(_by_count(characters), key=lambda character: character not in ASCII_CHARACTERS)
    alphabet = sorted(ranked[: (size // 2 - len(SPECIAL_TOKENS)) // 2])
    entries = [*SPECIAL_TOKENS.values(), *alphabet, *(f"##{character}" for character in alphabet)]
    entries += [word for word in _by_count(words) if len(word) > 1][: size - len(entries)]
    return {entry: index for index, entry in enumerate(entries)}


def _by_count(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda item: (-counts[item], item))


def _without_vocabulary(name_or_folder: str) -> str:
    return f"no tokenizer in {name_or_folder}: a tokenizer.json or vocabulary file is missing or damaged"


def _reachable(name: str) -> bool:
    import huggingface_hub

    try:
        return reach_hub(name)
    except huggingface_hub.errors.HFValidationError:
        raise ModelError(f"{name!r} is neither a folder nor a name that a checkpoint on the hub can have") from None
    except huggingface_hub.errors.RepositoryNotFoundError:
        raise ModelError(f"no checkpoint {name!r} on the hub (misspelt, or private), and no such folder") from None
