"""What a model makes of the dev rows, how large it is and how much it computes: what a stage records."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import evaluate as evaluate_library
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics
from transformers import PreTrainedModel

from edgemin_utils.encoders import describe_model, is_exported, longest_input
from edgemin_utils.measurement.operations import count_operations
from edgemin_utils.measurement.parameters import size_of
from edgemin_utils.quantization.schemes import is_packed
from edgemin_utils.statistics import accuracy_interval
from edgemin_utils.training import predict

if TYPE_CHECKING:
    from edgemin_utils.rows.tokens import Rows

PREDICTIONS_FILE = "predictions.parquet"
OPERATION_LENGTHS = (32, 128)  # tokens of one row for which operations are counted


def evaluate(model: PreTrainedModel, rows: "Rows", batch_size: int = 64, folder: Path | None = None) -> dict[str, Any]:
    """What is known of a model without timing it: metrics and confusion (see `answer`), data, model, size (`size_of`),
    operations ("1x32", "1x128" -> `count_operations`). The files in `folder`, the model's own, are weighed, and
    `predictions.parquet` is written there."""
    lengths = [length for length in OPERATION_LENGTHS if length <= longest_input(model)]
    # Dynamic scales of a quantized model belong to a batch.
    one_by_one = is_exported(model) or any(is_packed(module) for module in model.modules())
    found, confusion = answer(model, rows, 1 if one_by_one else batch_size, folder)
    operations = {f"1x{length}": count_operations(model, 1, length) for length in lengths}
    return {
        **{"metrics": found, "confusion": confusion, "data": rows.describe(), "model": describe_model(model)},
        **{"size": size_of(model, folder), "operations": operations},
    }


def answer(
    model: PreTrainedModel, rows: "Rows", batch_size: int = 64, folder: Path | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics (split -> accuracy, f1, matthews_correlation, rows, accuracy_low, accuracy_high) and confusion (split ->
    true class -> predicted class -> rows) on the dev rows."""
    found, confusion, frames, count = {}, {}, [], len(rows.data.task.labels)
    for split, dev in rows.dev.items():
        logits = predict(model, dev, rows.tokenizer, batch_size)
        labels, predictions = np.asarray(dev["labels"]), logits.argmax(axis=1)
        _, low, high = accuracy_interval(int((predictions == labels).sum()), len(labels))
        ends = {"rows": len(labels), "accuracy_low": low, "accuracy_high": high}
        found[split] = {**classification_metrics(predictions, labels, count), **ends}
        confusion[split] = metrics.confusion_matrix(labels, predictions, labels=np.arange(count)).tolist()
        frame = pd.DataFrame({"split": split, "row": list(dev["row"]), "label": labels, "prediction": predictions})
        frames.append(frame.join(pd.DataFrame(logits).add_prefix("logit_")))
    if folder is not None:
        pd.concat(frames).to_parquet(Path(folder) / PREDICTIONS_FILE, index=False)
    return found, confusion


class ClassificationMetrics(evaluate_library.Metric):
    """accuracy, f1 (of class 1 of two, else the mean over classes) and matthews_correlation, without a script from the
    hub."""

    def __init__(self, **options: Any):
        # Processes side by side cannot meet at a file; the folder, which stays empty, can be made anywhere.
        super().__init__(**{"keep_in_memory": True, "cache_dir": tempfile.gettempdir(), **options})

    def _info(self) -> evaluate_library.MetricInfo:
        numbers = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int64")))
        return evaluate_library.MetricInfo(features=numbers, description="", citation="")

    def _compute(self, predictions: ArrayLike, references: ArrayLike, num_labels: int) -> dict[str, float]:
        averaged = {"average": "macro", "labels": list(range(num_labels))} if num_labels > 2 else {"average": "binary"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single class among the rows
            f1 = float(metrics.f1_score(references, predictions, zero_division=0.0, **averaged))
            correlation = float(metrics.matthews_corrcoef(references, predictions))
        accuracy = float(metrics.accuracy_score(references, predictions))
        return {"accuracy": accuracy, "f1": f1, "matthews_correlation": correlation}


def classification_metrics(predictions: ArrayLike, references: ArrayLike, num_labels: int) -> dict[str, float]:
    """`ClassificationMetrics` of class numbers (rows,), from 0 to num_labels - 1."""
    return ClassificationMetrics().compute(predictions=predictions, references=references, num_labels=num_labels)
