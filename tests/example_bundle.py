"""A small bundle, and the model it was made from, for the tests of what reads bundles."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers
import torch
from small_models import small_model

from edgemin_utils.bundle.classify import TOKENIZER_FILE, session_options
from edgemin_utils.bundle.making import make_bundle
from edgemin_utils.bundle.sources import open_source
from edgemin_utils.checkpoints import save_model
from edgemin_utils.corpus import embedded_corpus
from edgemin_utils.encoders import set_labels
from edgemin_utils.measurement.latency import Protocol
from edgemin_utils.tasks import find_task
from edgemin_utils.tokenization import train_tokenizer

MAX_LENGTH = 24
"""Short enough that some rows of the embedded corpora are cut."""
STEPS = ["distill:minilmv2", "prune:gradient-heads-0.2"]
"""Said of the model, though its weights are random."""
SHORT = Protocol("short", warm_up=1, runs=3, seconds=0.0)


@functools.cache
def corpus_rows(task: str, count: int) -> tuple[tuple[str, ...], ...]:
    """The texts of the first dev rows of an embedded corpus."""
    found = find_task(task)
    frame = embedded_corpus(task, train_rows=1)[found.main_dev_split].head(count)
    return tuple(frame[list(found.text_columns)].itertuples(index=False, name=None))


def write_model(folder: Path, task: str) -> None:
    """A small BERT for a task of two labels, with random weights that are the same for every task."""
    texts = [text for task in ("sst2", "qqp") for row in corpus_rows(task, 400) for text in row]
    tokenizer = train_tokenizer(texts, 600)
    model = small_model(layers=1, vocabulary_size=len(tokenizer))
    with torch.no_grad():
        model.classifier.weight.mul_(5)  # answers that lie apart
    set_labels(model.config, find_task(task).labels)
    save_model(model, folder, tokenizer)


def write_bundle(folder: Path, model: Path, task: str, bits: int = 8) -> Path:
    """The bundle of `write_model`'s model, which goes to `model`, with weights of so many bits. Its accuracy with 8 of
    them, by chance, on 40 rows is a number of one decimal in percent."""
    write_model(model, task)
    source = open_source(str(model), task, {"max_length": MAX_LENGTH, "dev_rows": 40})
    source = dataclasses.replace(source, provenance={**source.provenance, "steps": STEPS})
    make_bundle(source, folder, 100.0, SHORT, matrix_bits=bits, embedding_bits=bits)
    return folder


def python_probabilities(bundle: Path, graph: Path, rows: Sequence[Sequence[str]]) -> np.ndarray:
    """float64 (rows, labels), by onnxruntime and the tokenizers library, a row at a time as the page does."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / TOKENIZER_FILE))
    session = onnxruntime.InferenceSession(graph, session_options(1), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    found = []
    for row in rows:
        encoded = tokenizer.encode(*row)
        inputs = {
            "input_ids": encoded.ids,
            "attention_mask": encoded.attention_mask,
            "token_type_ids": encoded.type_ids,
        }
        logits = session.run(None, {name: np.array([inputs[name]]) for name in names})[0][0]
        powers = np.exp(logits.astype(np.float64) - logits.max())
        found.append(powers / powers.sum())
    return np.array(found)
