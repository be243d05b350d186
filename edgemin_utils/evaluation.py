"""A chain's rows as the models see them, what a model makes of them, and predictions on disk."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgemin_utils import quantization
from edgemin_utils.data import TaskData, load_task_data
from edgemin_utils.encoders import describe_model, input_names, longest_input
from edgemin_utils.measurement.accuracy import classification_metrics, confusion_matrix
from edgemin_utils.measurement.operations import count_operations
from edgemin_utils.measurement.parameters import (
    bytes_by_part,
    framework_parameters,
    saved_bytes,
    stored_weights,
    weights_by_part,
)
from edgemin_utils.records import Run
from edgemin_utils.statistics import accuracy_interval
from edgemin_utils.tokenization import load_tokenizer, tokenize
from edgemin_utils.training import TrainingLog, predict

# Lengths at batch 1 for which operations are counted.
OPERATION_LENGTHS = (32, 128)


@dataclass(frozen=True)
class TokenizedTask:
    """A chain's rows as the models see them: `data` as read, and train, holdout, dev and transfer tokenized.

    `truncated` maps split -> rows longer than the model takes, which were cut.
    """

    data: TaskData
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    holdout: Dataset
    dev: dict[str, Dataset]
    truncated: dict[str, int]
    transfer: Dataset

    @property
    def learnt_from(self) -> Dataset:
        """The rows that a student with a teacher is trained on: train, and the transfer texts after them."""
        return concatenate_datasets([self.train, self.transfer]) if len(self.transfer) else self.train

    def describe(self) -> dict[str, Any]:
        """The `data` entry of a record."""
        task = self.data.task
        return {
            "title": task.title,
            "text_columns": task.text_columns,
            "labels": task.labels,
            "source": self.data.source,
            "notes": self.data.notes,
            "train_rows": len(self.train),
            "holdout_rows": len(self.holdout),
            "dev_rows": {split: len(rows) for split, rows in self.dev.items()},
            "truncated_rows": self.truncated,
            "transfer_rows": len(self.transfer),
            "fingerprint": self.data.fingerprint,
        }


def tokenized_task(
    run: Run, tokenizer: PreTrainedTokenizerBase, models: Sequence[nn.Module], data: TaskData | None = None
) -> TokenizedTask:
    """The chain's rows tokenized for `models`, cut to the shortest of their longest inputs."""
    data = data or load_task_data(run.settings, run.task, run.seed)
    if (
        any("token_type_ids" in input_names(model) for model in models)
        and "token_type_ids" not in tokenizer.model_input_names
    ):
        # A DistilBERT tokenizer leaves them out; a BERT student of a DistilBERT teacher needs them.
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    limit = min(run.settings.max_length, *(longest_input(model) for model in models))
    splits = {"train": data.train, "holdout": data.holdout, "transfer": data.transfer, **data.dev}
    tokenized = {name: tokenize(rows, tokenizer, data.task, limit) for name, rows in splits.items()}
    return TokenizedTask(
        data,
        tokenizer,
        tokenized["train"][0],
        tokenized["holdout"][0],
        {name: tokenized[name][0] for name in data.dev},
        {name: cut for name, (_, cut) in tokenized.items()},
        tokenized["transfer"][0],
    )


def predictor(model: PreTrainedModel) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    """A function from a batch, tensors (batch, tokens), to logits (batch, labels), as the latency protocol times it."""
    names = input_names(model)
    return lambda batch: model(**{name: batch[name] for name in names if name in batch}).logits


def load_stage_model(run: Run, key: str) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """The tokenizer and model that a finished stage left; raises StageError when it is not there."""
    folder = run.read(key).folder
    return load_stage_tokenizer(run, key), quantization.load_model(folder, run.settings.attention_implementation)


def load_stage_tokenizer(run: Run, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a finished stage's model; raises StageError when it is not there."""
    return load_tokenizer(str(run.read(key).folder))


def describe_trained(
    model: nn.Module, folder: Path, rows: TokenizedTask, batch_size: int, log: TrainingLog | None
) -> dict[str, Any]:
    """The entries that every stage with a model shares; writes `predictions-<split>.csv` into `folder`."""
    started = time.perf_counter()
    metrics, confusion = evaluate(model, rows, batch_size, folder)
    results = {
        "data": rows.describe(),
        "metrics": metrics,
        "confusion": confusion,
        "model": describe_model(model),
        "size": {
            "framework_parameters": framework_parameters(model),
            "stored_weights": stored_weights(model),
            "parts": weights_by_part(model),
            "bytes_per_part": bytes_by_part(model),
            "fp32_bytes": 4 * stored_weights(model),
            **saved_bytes(folder),
        },
        "operations": {f"1x{length}": count_operations(model, 1, length) for length in OPERATION_LENGTHS},
        "seconds_by_part": {"evaluation": time.perf_counter() - started},
    }
    if log is not None:
        results["training"] = log.as_dict()
        results["seconds_by_part"] |= {phase["name"]: phase["seconds"] for phase in log.phases}
    return results


def evaluate(
    model: nn.Module, rows: TokenizedTask, batch_size: int, folder: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics with 95 % intervals and the confusion matrix of every dev split."""
    count = len(rows.data.task.labels)
    metrics, confusion = {}, {}
    for split, tokenized in rows.dev.items():
        logits = predict(model, tokenized, rows.tokenizer, batch_size)
        labels, predictions = np.asarray(tokenized["labels"]), logits.argmax(axis=1)
        interval = accuracy_interval(int((predictions == labels).sum()), len(labels))
        metrics[split] = {
            **classification_metrics(predictions, labels, count),
            "rows": len(labels),
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
        }
        confusion[split] = confusion_matrix(predictions, labels, count)
        if folder is not None:
            write_predictions(folder, split, tokenized["row"], labels, logits)
    return metrics, confusion


def write_predictions(folder: Path, split: str, rows: Sequence[int], labels: np.ndarray, logits: np.ndarray) -> None:
    """Writes `predictions-<split>.csv`: row, label, prediction and one logit column a class, in the split's order.

    Args:
        logits: (rows, labels).
    """
    frame = pd.DataFrame({"row": list(rows), "label": labels, "prediction": logits.argmax(axis=1)})
    for number in range(logits.shape[1]):
        frame[f"logit_{number}"] = logits[:, number]
    frame.to_csv(folder / f"predictions-{split}.csv", index=False, float_format="%.6g")


def read_predictions(folder: Path, split: str) -> pd.DataFrame:
    """What `write_predictions` wrote: columns row, label, prediction and logit_0, logit_1, ..."""
    return pd.read_csv(folder / f"predictions-{split}.csv")
