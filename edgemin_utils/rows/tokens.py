"""Text to token ids: tokenizers made from train rows or of checkpoints, whether they fit a model, tokenized splits."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.rows.splits import TaskData
from edgemin_utils.rows.tasks import Task, reach_hub
from edgemin_utils.settings import FAMILIES

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase as Tokenizer

SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in "pad unk cls sep mask".split()}
ASCII_CHARACTERS = sorted({chr(code).lower() for code in range(33, 127)})  # first in line for a trained vocabulary


def train_tokenizer(texts: Iterable[str], size: int, token_types: bool = True) -> "Tokenizer":
    """A lower-casing WordPiece tokenizer in BERT's manner (Wu et al. 2016) of at most `size` entries: special tokens;
    characters, alone and as `##` continuations, in at most half of it; words by falling count. Raises SettingError."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if size < (least := 2 * (len(SPECIAL_TOKENS) + 2)):
        raise SettingError(f"vocabulary_size is {size}; it must be at least {least}")
    normalizer, words = normalizers.BertNormalizer(lowercase=True), Counter[str]()
    splitter, characters = pre_tokenizers.BertPreTokenizer(), Counter(dict.fromkeys(ASCII_CHARACTERS, 0))
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    for word, count in words.items():
        characters.update({mark: count * number for mark, number in Counter(word).items()})
    ranked = sorted(characters, key=lambda mark: (mark not in ASCII_CHARACTERS, -characters[mark], mark))
    alphabet = sorted(ranked[: (size // 2 - len(SPECIAL_TOKENS)) // 2])
    entries = [*SPECIAL_TOKENS.values(), *alphabet, *(f"##{character}" for character in alphabet)]
    ranked = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    vocabulary = {entry: index for index, entry in enumerate([*entries, *ranked[: size - len(entries)]])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    backend.decoder = decoders.WordPiece(prefix="##")
    one, ends = "[CLS]:0 $A:0 [SEP]:0", [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single=one, pair=f"{one} $B:1 [SEP]:1", special_tokens=ends)
    names = {"model_input_names": _input_names(token_types), **SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


def load_tokenizer(name_or_folder: str) -> "Tokenizer":
    """A checkpoint's tokenizer of the `tokenizers` library, from the hub or a folder; raises ModelError without one."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    folder, named, reachable = Path(name_or_folder).expanduser(), repr(name_or_folder), False
    local, why = folder.is_dir(), "is neither a folder nor in the cache, and the hub cannot be reached"
    try:
        if local:
            why = "cannot be loaded: its tokenizer.json or vocabulary file is missing or damaged"
        elif reachable := reach_hub(name_or_folder):
            why = "cannot be loaded"
        elif not isinstance(try_to_load_from_cache(name_or_folder, "config.json"), str):
            raise FileNotFoundError
        from transformers import AutoTokenizer  # imports torch
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder.as_posix(), local_files_only=local or not reachable)
        finally:
            logging.set_verbosity(level)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up when there is no vocabulary
            raise OSError
    except (HFValidationError, RepositoryNotFoundError):
        raise ModelError(f"no checkpoint {name_or_folder!r} on the hub (misspelt, or private), nor a folder") from None
    except Exception as error:  # each layer beneath (HTTP, JSON, tokenizers, transformers) raises its own
        raise ModelError(f"{named} {why} ({type(error).__name__}); give a folder that holds a whole one") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{named} has no tokenizer of the tokenizers library; choose a BERT, RoBERTa or ELECTRA")
    return tokenizer


def read_config(folder: str | Path) -> dict[str, Any]:
    """A folder's config.json; raises ModelError where there is none, or what it describes is no classifier for here,
    or its weights are cut short, NaN or infinite, all before torch is imported."""
    try:
        config = dict(json.loads(Path(folder, "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ModelError(f"{folder} holds no config.json that can be read; give a folder of save_pretrained") from None
    if (problem := config.get("problem_type")) not in (None, "single_label_classification"):
        raise ModelError(f"{folder} is made for {problem}; EdgeMIN's models give one label a row")
    for name, kind in {"vocab_size": int, "max_position_embeddings": int, "id2label": dict, "edgemin": dict}.items():
        if not isinstance(config.get(name) or kind(), kind):
            raise ModelError(f"config.json of {folder} says that {name} is {config[name]!r}; correct it")
    if (family := {**config, **(config.get("edgemin") or {})}.get("model_type")) not in (*FAMILIES, "mobilebert"):
        raise ModelError(f"{folder} is of family {family!r}; supported are {', '.join(FAMILIES)}")
    labels = {str(number): name for number, name in (config.get("id2label") or {}).items()}
    if {*labels} != {*map(str, range(len(labels)))}:
        found = ", ".join(f"{number} {name}" for number, name in labels.items())
        raise ModelError(f"config.json of {folder} numbers its labels {found}; correct id2label, from 0 on")
    if not any(path.suffix in (".safetensors", ".bin", ".onnx") for path in Path(folder).iterdir()):
        raise ModelError(f"{folder} holds no weights; give a folder of save_pretrained")
    for path in sorted(Path(folder).glob("*.safetensors")):
        _check_weights(path)
    return config


def _check_weights(path: Path) -> None:
    import numpy
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:  # which knows no bfloat16
            floats = [name for name in file.keys() if file.get_slice(name).get_dtype() in ("F16", "F32", "F64")]
            bad = next((name for name in floats if not numpy.isfinite(file.get_tensor(name)).all()), "")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); copy it again, or make it anew") from None
    if bad:
        raise ModelError(f"{path} holds NaN or infinity, as in {bad}; its training diverged, train it anew")


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Positions for tokens in a model of that config, None where it names none; RoBERTa's first ones are padding's."""
    shift = config.get("pad_token_id", 1) + 1 if config.get("model_type") == "roberta" else 0
    return config["max_position_embeddings"] - shift if config.get("max_position_embeddings") else None


def check_fit(tokenizer: "Tokenizer", config: Any, max_length: int, texts: list[str]) -> tuple[int, bool, list[str]]:
    """Sets a tokenizer, in place, to pad on the right and give a model's inputs; the longest input in tokens, whether
    there are token types, and notes. Raises ModelError for tokens without an embedding, or useless padding."""
    config = config if isinstance(config, Mapping) else config.to_dict()
    notes, size, padding = list[str](), config.get("vocab_size") or len(tokenizer), config.get("pad_token_id", 1)
    beyond = sorted(token for token, number in tokenizer.get_vocab().items() if number >= size)
    if beyond:
        lost = f"{len(beyond):,} tokens without a row in the embedding of {size:,} ({', '.join(beyond[:3])})"
        raise ModelError(f"the tokenizer has {lost}; take the model's own, or resize its embedding and train it")
    if tokenizer.pad_token_id is None:
        raise ModelError("the tokenizer has no padding token; name one as pad_token in tokenizer_config.json")
    if config.get("model_type") == "roberta" and tokenizer.pad_token_id != padding:
        pads = f"the tokenizer pads with token {tokenizer.pad_token_id}"
        raise ModelError(f"{pads}, but the model's positions skip token {padding}; make the two the same")
    if not tokenizer.num_special_tokens_to_add():
        notes.append("the tokenizer puts no special tokens around a text; the answer is read from its first word")
    if tokenizer.padding_side != "right":
        notes.append("the tokenizer pads on the left; here it pads on the right, so that the batch changes no answer")
    if tokenizer.truncation_side != "right":
        notes.append("the tokenizer cuts long texts at the beginning (truncation_side left); so does all else here")
    token_types = (config.get("type_vocab_size") or 0) > 1
    tokenizer.padding_side, tokenizer.model_input_names = "right", _input_names(token_types)
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # of these alone save_pretrained writes
    positions = usable_positions(config) or max_length
    limit = min(max_length, positions, tokenizer.model_max_length)
    if limit < max_length:
        what = "the model has positions for" if limit == positions else "its tokenizer names"
        notes.append(f"max_length is {max_length}, but {what} {limit} tokens: inputs are cut there")
    made = tokenizer.backend_tokenizer.encode_batch([text[:2000] for text in texts[:500]], add_special_tokens=False)
    ids = [number for encoding in made for number in encoding.ids]
    unknown = ids.count(tokenizer.unk_token_id) / max(1, len(ids))
    if unknown > 0.1:
        lost = f"the tokenizer does not know {unknown:.0%} of the tokens in these texts; is it another model's?"
        notes.append("ATTENTION: " * (unknown > 0.5) + lost)
    return limit, token_types, notes


def check_vocabulary(tokenizer: "Tokenizer", of_teacher: "Tokenizer", name: str) -> None:
    """Raises ModelError where the student `name` has another vocabulary than its teacher."""
    if tokenizer.get_vocab() != of_teacher.get_vocab():
        raise ModelError(f"student {name!r} has another vocabulary than the teacher; take another, or student=scratch")


def _input_names(token_types: bool) -> list[str]:
    return ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]


@dataclass(frozen=True)
class Rows:
    """A task's rows as models see them: `data` as read; splits by `tokenize_split`; `truncated`: split -> rows cut."""

    data: TaskData
    tokenizer: "Tokenizer"
    train: "Dataset"
    holdout: "Dataset"
    dev: "dict[str, Dataset]"
    transfer: "Dataset"
    truncated: dict[str, int]
    limit: int
    notes: tuple[str, ...]

    @property
    def learnt_from(self) -> "Dataset":
        """The rows that a student with a teacher is trained on: train, and the transfer texts after them."""
        import datasets

        return datasets.concatenate_datasets([self.train, self.transfer]) if len(self.transfer) else self.train

    def describe(self) -> dict[str, Any]:
        """The `data` entry of a record."""
        about = {name: getattr(self.data.task, name) for name in ("title", "text_columns", "labels")}
        about |= {"source": self.data.source, "notes": self.notes, "fingerprint": self.data.fingerprint}
        about |= {f"{name}_rows": len(getattr(self, name)) for name in ("train", "holdout", "transfer")}
        dev = {split: len(rows) for split, rows in self.dev.items()}
        return {**about, "dev_rows": dev, "truncated_rows": self.truncated}


def tokenize_rows(data: TaskData, tokenizer: "Tokenizer", limit: int, configs: Iterable[Any]) -> Rows:
    """All splits by `tokenize_split`, with the least limit and any token types that `check_fit` finds for `configs`."""
    fits = [check_fit(tokenizer, config, limit, data.texts) for config in configs]
    limit, token_types = min(longest for longest, _, _ in fits), any(typed for _, typed, _ in fits)
    splits = {"train": data.train, "holdout": data.holdout, "transfer": data.transfer, **data.dev}
    made = {name: tokenize_split(rows, tokenizer, data.task, limit, token_types) for name, rows in splits.items()}
    truncated = {name: cut for name, (_, cut) in made.items()}
    cut = ", ".join(f"{cut:,} of {len(splits[name]):,} in {name}" for name, cut in truncated.items() if cut)
    notes = [*data.notes, *(note for *_, said in fits for note in said)]
    notes += [f"rows longer than {limit} tokens are cut: {cut}"] if cut else []
    train, holdout, transfer = (made.pop(name)[0] for name in ("train", "holdout", "transfer"))
    dev = {name: rows for name, (rows, _) in made.items()}
    return Rows(data, tokenizer, train, holdout, dev, transfer, truncated, limit, tuple(dict.fromkeys(notes)))


def tokenize_split(
    dataset: "Dataset", tokenizer: "Tokenizer", task: Task, limit: int, token_types: bool
) -> "tuple[Dataset, int]":
    """The model's inputs (a list a row, unpadded), `labels`, `length` (tokens) and `row`; and how many rows were cut,
    of a pair the longer text first, on the tokenizer's own side. Raises SettingError where `limit` leaves no room."""
    import datasets

    least = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2) + len(task.text_columns)
    if limit < least:
        raise SettingError(f"max_length is {limit}; {task.title} needs at least {least} tokens, with special ones")
    kinds = {name: datasets.List(datasets.Value("int32")) for name in _input_names(token_types)}
    features = datasets.Features({**kinds, **{name: datasets.Value("int64") for name in ("labels", "length", "row")}})
    made, cut = {name: list[Any]() for name in features}, 0
    options = {"truncation": "longest_first", "return_attention_mask": True, "return_token_type_ids": True}
    for batch in dataset.iter(1000):
        encoded = tokenizer(*(batch[column] for column in task.text_columns), max_length=limit, **options)
        cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        for name, values in {**encoded, "labels": batch["label"], "length": lengths, "row": batch["row"]}.items():
            made.get(name, []).extend(values)
    tokenizer.backend_tokenizer.no_truncation()  # the call leaves its limit there, and save_pretrained writes it down
    return datasets.Dataset.from_dict(made, features=features), cut
