"""A small bundle, and the model it was made from, for the tests of what reads bundles."""

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from small_models import small_model

from edgemin_utils.checkpoints import save_model
from edgemin_utils.corpus import embedded_corpus
from edgemin_utils.quantization.registry import quantize
from edgemin_utils.tasks import find_task
from edgemin_utils.tokenization import train_tokenizer

MAX_LENGTH = 24
"""Short enough that some rows of the embedded corpora are cut."""
MODEL_FILES = ("model.onnx", "tokenizer.json")


@functools.cache
def corpus_rows(task: str, count: int) -> tuple[tuple[str, ...], ...]:
    """The texts of the first dev rows of an embedded corpus."""
    found = find_task(task)
    frame = embedded_corpus(task, train_rows=1)[found.main_dev_split].head(count)
    return tuple(frame[list(found.text_columns)].itertuples(index=False, name=None))


def write_bundle(folder: Path, source: Path) -> Path:
    """A bundle for SST-2 of a small BERT with random weights, in INT8 with the embedding; the model goes to
    `source`."""
    folder.mkdir(parents=True)
    texts = [text for task in ("sst2", "qqp") for row in corpus_rows(task, 400) for text in row]
    tokenizer = train_tokenizer(texts, 600)
    model = small_model(layers=1, vocabulary_size=len(tokenizer))
    with torch.no_grad():
        model.classifier.weight.mul_(5)  # answers that lie apart
    save_model(model, source, tokenizer)
    quantize(model, "onnx-dynamic-int8-embeddings").save(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(folder, "sst2", provenance={"model": str(source)})
    return folder


def same_model_for(task: str, bundle: Path, folder: Path) -> Path:
    """A bundle of another task with two labels that has the same graph and tokenizer."""
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copy(bundle / name, folder)
    write_manifest(folder, task)
    return folder


def write_manifest(bundle: Path, task: str, **changes: Any) -> None:
    """bundle.json of the files that lie in the folder."""
    found = find_task(task)
    contents = {name: (bundle / name).read_bytes() for name in MODEL_FILES}
    manifest = {
        "format_version": 1, "task": task, "text_columns": list(found.text_columns), "labels": list(found.labels),
        "max_length": MAX_LENGTH, "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "files": {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                  for name, content in contents.items()},
        "provenance": {}, "measured": {"accuracy": 0.5}, **changes}
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
