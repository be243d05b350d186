"""What a model makes of the dev rows, how large it is and how much it computes: what a stage records."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import evaluate as evaluate_library
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics
from transformers import PreTrainedModel

from edgemin_utils.encoders import is_exported
from edgemin_utils.measurement.operations import describe_costs
from edgemin_utils.quantization.schemes import is_packed
from edgemin_utils.rows.tokens import Rows
from edgemin_utils.statistics import accuracy_interval
from edgemin_utils.training import predict

PREDICTIONS_FILE = "predictions.parquet"


def evaluate(model: PreTrainedModel, rows: Rows, batch_size: int = 64, folder: Path | None = None) -> dict[str, Any]:
    """What is known of a model without timing it: metrics and confusion (see `answer`), data, and what `describe_costs`
    says. The files in `folder`, the model's own, are weighed, and `predictions.parquet` is written there."""
    # Dynamic scales of a quantized model belong to a batch.
    one_by_one = is_exported(model) or any(is_packed(module) for module in model.modules())
    found, confusion = answer(model, rows, 1 if one_by_one else batch_size, folder)
    costs = describe_costs(model, (32, 128), folder)  # operations of rows of so many tokens
    return {"metrics": found, "confusion": confusion, "data": rows.describe(), **costs}


def answer(
    model: PreTrainedModel, rows: Rows, batch_size: int = 64, folder: Path | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics (split -> accuracy, f1, matthews_correlation, rows, accuracy_low, accuracy_high) and confusion (split ->
    true class -> predicted class -> rows) on the dev rows."""
    found, confusion, frames, count = {}, {}, [], len(rows.data.task.labels)
    for split, dev in rows.dev.items():
        logits = predict(model, dev, rows.tokenizer, batch_size)
        labels, predictions = np.asarray(dev["labels"]), logits.argmax(axis=1)
        _, low, high = accuracy_interval(int((predictions == labels).sum()), len(labels))
        own = ClassificationMetrics().compute(predictions=predictions, references=labels, num_labels=count)
        found[split] = {**own, "rows": len(labels), "accuracy_low": low, "accuracy_high": high}
        confusion[split] = metrics.confusion_matrix(labels, predictions, labels=np.arange(count)).tolist()
        frame = pd.DataFrame({"split": split, "row": list(dev["row"]), "label": labels, "prediction": predictions})
        frames.append(frame.join(pd.DataFrame(logits).add_prefix("logit_")))
    if folder is not None:
        pd.concat(frames).to_parquet(Path(folder) / PREDICTIONS_FILE, index=False)
    return found, confusion


class ClassificationMetrics(evaluate_library.Metric):
    """accuracy, f1 (of class 1 of two, else the classes' mean) and matthews_correlation of class numbers (rows,)."""

    def __init__(self) -> None:
        # Processes side by side cannot meet at a file; the folder, which stays empty, can be made anywhere.
        super().__init__(keep_in_memory=True, cache_dir=tempfile.gettempdir())

    def _info(self) -> evaluate_library.MetricInfo:
        numbers = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int64")))
        return evaluate_library.MetricInfo(features=numbers, description="", citation="")

    def _compute(self, predictions: ArrayLike, references: ArrayLike, num_labels: int) -> dict[str, float]:
        averaged = {"average": "macro", "labels": list(range(num_labels))} if num_labels > 2 else {"average": "binary"}
        with warnings.catch_warnings(action="ignore"):  # of a single class among the rows
            f1 = float(metrics.f1_score(references, predictions, zero_division=0.0, **averaged))
            correlation = float(metrics.matthews_corrcoef(references, predictions))
        accuracy = float(metrics.accuracy_score(references, predictions))
        return {"accuracy": accuracy, "f1": f1, "matthews_correlation": correlation}
