"""A small bundle, and its FP32 graph, for the tests of what reads bundles."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_models import small_model

from edgemin_utils.corpus import embedded_corpus
from edgemin_utils.quantization.registry import quantize
from edgemin_utils.tasks import find_task
from edgemin_utils.tokenization import train_tokenizer

MAX_LENGTH = 24
"""Short enough that some rows of the embedded corpora are cut."""


@functools.cache
def corpus_rows(task: str, count: int) -> tuple[tuple[str, ...], ...]:
    """The texts of the first dev rows of an embedded corpus."""
    found = find_task(task)
    frame = embedded_corpus(task, train_rows=1)[found.main_dev_split].head(count)
    return tuple(frame[list(found.text_columns)].itertuples(index=False, name=None))


def write_bundle(folder: Path, task: str, source: Path | None = None) -> Path:
    """A bundle of a small BERT with random weights in INT8, embedding included, and `float32/model.onnx` beside it.

    Args:
        source: a folder of this function whose graphs and tokenizer are taken, which saves the export.
    """
    bundle, float32 = folder / "bundle", folder / "float32"
    bundle.mkdir(parents=True)
    if source is None:
        texts = [text for name in ("sst2", "qqp") for row in corpus_rows(name, 400) for text in row]
        tokenizer = train_tokenizer(texts, 600)
        model = small_model(layers=2, vocabulary_size=len(tokenizer))
        quantize(model, "onnx-dynamic-int8-embeddings").save(bundle)
        float32.mkdir()
        quantize(model, "onnx-float32").save(float32)
        tokenizer.backend_tokenizer.save(str(bundle / "tokenizer.json"))
    else:
        for name in ("model.onnx", "tokenizer.json"):
            (bundle / name).write_bytes((source / "bundle" / name).read_bytes())
    write_manifest(bundle, task, find_task(task).text_columns, ["token_type_ids"])
    return bundle


def write_manifest(bundle: Path, task: str, text_columns: Sequence[str], more_inputs: Sequence[str],
                   **changes: Any) -> None:
    files = {name: (bundle / name).read_bytes() for name in ("model.onnx", "tokenizer.json")}
    manifest = {
        "format_version": 1, "task": task, "text_columns": list(text_columns),
        "labels": list(find_task(task).labels), "max_length": MAX_LENGTH,
        "inputs": ["input_ids", "attention_mask", *more_inputs], "models": {"portable": "model.onnx"},
        "files": {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                  for name, content in files.items()},
        "provenance": {"student": "random weights", "rows": "embedded corpus (synthetic)"},
        "measured": {"accuracy": 0.5, "processor": "a test's"}, **changes}
    (bundle / "bundle.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
