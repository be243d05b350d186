"""A small bundle, and the model it was made from, for the tests of what reads bundles."""

import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers
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
    write_manifest(folder, "sst2")
    return folder


def same_model_for(task: str, bundle: Path, folder: Path) -> Path:
    """A bundle of another task with two labels that has the same graph and tokenizer."""
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copy(bundle / name, folder)
    write_manifest(folder, task)
    return folder


def write_manifest(bundle: Path, task: str) -> None:
    """bundle.json of the files that lie in the folder."""
    found = find_task(task)
    contents = {name: (bundle / name).read_bytes() for name in MODEL_FILES}
    check = [["A warm film.", "A cold one."][:len(found.text_columns)]]
    manifest = {
        "format_version": 1, "task": task, "text_columns": list(found.text_columns), "labels": list(found.labels),
        "max_length": MAX_LENGTH, "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "files": {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                  for name, content in contents.items()},
        "measured": {
            "accuracy": {"dev": {"rows": 1200, "bundle": 0.8125, "pytorch": 0.825, "agreement": 0.975}},
            "latency": [{"model": model, "input": "1x32", "median_ms": median, "iqr_ms": 0.5, "runs": 30}
                        for model, median in (("bundle", 2.5), ("pytorch", 40.0))], "processor": "a processor"},
        "provenance": {"source": "a-model", "steps": ["distill:minilmv2", "prune:gradient-heads-0.2"],
                       "rows": "the embedded corpus", "edgemin": "0.1.0"},
        "check": {"texts": check,
                  "probabilities": python_probabilities(bundle, bundle / "model.onnx", check).tolist()}}
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def python_probabilities(bundle: Path, graph: Path, rows: Sequence[Sequence[str]]) -> np.ndarray:
    """float64 (rows, labels), by onnxruntime and the tokenizers library, a row at a time as the page does."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact products also without VNNI
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found = []
    for row in rows:
        encoded = tokenizer.encode(*row)
        inputs = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask,
                  "token_type_ids": encoded.type_ids}
        logits = session.run(None, {name: np.array([values]) for name, values in inputs.items()})[0][0]
        powers = np.exp(logits.astype(np.float64) - logits.max())
        found.append(powers / powers.sum())
    return np.array(found)
