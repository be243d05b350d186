"""How well predicted classes match the labels: accuracy, F1 and the Matthews correlation coefficient."""

import tempfile
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics

from edgemin_utils.errors import DataError


class ClassificationMetrics(evaluate.Metric):
    """An `evaluate` metric that lives in the package: `evaluate.load` would fetch a script from the hub.

    `compute(predictions=..., references=..., num_labels=...)` returns accuracy, f1 (of class 1 where there
    are two classes, else the mean over classes, "macro") and matthews_correlation (0 where one class alone is
    predicted).
    """

    def __init__(self, **options: Any):
        # Values stay in memory: processes side by side cannot meet at a cache file. The folder that evaluate
        # makes all the same stays empty, and lies where it can be made even if the home folder is read-only.
        super().__init__(**{"keep_in_memory": True, "cache_dir": tempfile.gettempdir(), **options})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, F1 and Matthews correlation of predicted classes.",
            citation="",
            inputs_description="predictions and references: class numbers from 0; num_labels: how many.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike, num_labels: int) -> dict[str, float]:
        averaged: dict[str, Any] = {"average": "binary"}
        if num_labels > 2:
            averaged = {"average": "macro", "labels": list(range(num_labels))}
        return {
            "accuracy": float(metrics.accuracy_score(references, predictions)),
            "f1": float(metrics.f1_score(references, predictions, zero_division=0.0, **averaged)),
            "matthews_correlation": float(metrics.matthews_corrcoef(references, predictions)),
        }


def classification_metrics(predictions: ArrayLike, references: ArrayLike, num_labels: int) -> dict[str, float]:
    """accuracy, f1 and matthews_correlation of predicted classes (see `ClassificationMetrics`).

    Args:
        predictions: int (rows,), predicted classes, from 0.
        references: int (rows,), true classes.
        num_labels: number of classes, at least 2.

    Raises:
        DataError: no rows, unequal lengths, or a class outside 0..num_labels-1.
    """
    predicted, truth = _checked(predictions, references, num_labels)
    return ClassificationMetrics().compute(predictions=predicted, references=truth, num_labels=num_labels)


def confusion_matrix(predictions: ArrayLike, references: ArrayLike, num_labels: int) -> np.ndarray:
    """int64 (num_labels, num_labels): rows of true class i predicted as class j stand at [i, j].

    Raises:
        DataError: as `classification_metrics`.
    """
    predicted, truth = _checked(predictions, references, num_labels)
    return metrics.confusion_matrix(truth, predicted, labels=np.arange(num_labels))


def _checked(predictions: ArrayLike, references: ArrayLike, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = np.asarray(predictions), np.asarray(references)
    if num_labels < 2:
        raise DataError(f"a classification needs at least 2 classes, not {num_labels}")
    if predicted.ndim != 1 or predicted.shape != truth.shape or predicted.size == 0:
        raise DataError(
            f"predictions {predicted.shape} and labels {truth.shape} must be one class a row, "
            "for the same rows, at least one"
        )
    for name, values in (("prediction", predicted), ("label", truth)):
        if not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"{name}s must be whole class numbers, not {values.dtype}; take the argmax of logits")
        outside = values[(values < 0) | (values >= num_labels)]
        if outside.size:
            raise DataError(f"{name} {outside[0]} is outside the {num_labels} classes 0..{num_labels - 1}")
    return predicted, truth
