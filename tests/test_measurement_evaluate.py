"""Metrics against values worked by hand, without a network; and what a stage records of a model."""

import math
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import small_model, small_rows

from edgemin_utils.checkpoints import save_model
from edgemin_utils.measurement.evaluate import ClassificationMetrics, classification_metrics, evaluate
from edgemin_utils.quantization.schemes import quantize


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_two_classes_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    references = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    correlation = (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)
    wanted = {"accuracy": 0.7, "f1": 2 * 3 / (2 * 3 + 1 + 2), "matthews_correlation": correlation}
    assert classification_metrics(predictions, references, 2) == pytest.approx(wanted)


def test_three_classes_take_the_mean_of_their_f1_by_hand():
    found = classification_metrics([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], 3)
    f1 = [2 * 1 / (2 + 1 + 1), 2 * 2 / (4 + 0 + 1), 2 * 1 / (2 + 1 + 0)]
    assert (found["accuracy"], found["f1"]) == pytest.approx((4 / 6, sum(f1) / 3))
    # Gorodkin's R_K: correct x rows - sum(predicted_k x true_k), over the roots of the same with themselves.
    predicted, true = np.array([2, 2, 2]), np.array([2, 3, 1])
    roots = math.sqrt((36 - predicted @ predicted) * (36 - true @ true))
    assert found["matthews_correlation"] == pytest.approx((4 * 6 - predicted @ true) / roots)
    assert classification_metrics([0, 1, 1], [0, 1, 1], 3)["f1"] == pytest.approx(2 / 3)  # a class nobody has counts


@pytest.mark.filterwarnings("error")
def test_one_class_alone_has_no_correlation_and_no_warning():
    whole = classification_metrics([0, 0, 0, 0], [0, 0, 1, 1], 2)
    assert whole == {"accuracy": 0.5, "f1": 0.0, "matthews_correlation": 0.0}
    assert classification_metrics([0], [0], 2)["accuracy"] == 1


def test_metric_adds_up_over_batches_as_evaluate_does_and_leaves_no_file(tmp_path):
    predictions, references = np.random.default_rng(0).integers(0, 3, (2, 200))
    metric = ClassificationMetrics(cache_dir=str(tmp_path))
    for part in np.split(np.arange(200), [64, 128]):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute(num_labels=3) == pytest.approx(classification_metrics(predictions, references, 3))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_stage_records_of_a_model(tmp_path):
    rows, model = small_rows(40, holdout=16), small_model(layers=1)
    save_model(model, tmp_path, rows.tokenizer)
    found = evaluate(model, rows, 8, tmp_path)
    written = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(written) == ["split", "row", "label", "prediction", "logit_0", "logit_1"]
    assert set(written["split"]) == {"dev"} and written["row"].tolist() == rows.dev["dev"]["row"]
    first = rows.dev["dev"][0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([first["input_ids"]])).logits[0]
    assert written.loc[0, ["logit_0", "logit_1"]].tolist() == pytest.approx(logits.tolist(), abs=1e-5)
    right = (written["label"] == written["prediction"]).mean()
    numbers = found["metrics"]["dev"]
    assert numbers["accuracy"] == right and numbers["rows"] == 16
    assert numbers["accuracy_low"] < right < numbers["accuracy_high"]
    table = np.array(found["confusion"]["dev"])
    assert table.sum() == 16 and np.trace(table) == right * 16
    assert table[1, 0] == ((written["label"] == 1) & (written["prediction"] == 0)).sum()
    assert found["size"]["stored_weights"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["size"]["file_bytes"] > 4 * found["size"]["stored_weights"]
    assert found["model"]["layers"] == 1 and found["data"]["dev_rows"] == {"dev": 16}
    assert list(found["operations"]) == ["1x32"]


def test_a_quantized_model_is_asked_one_row_at_a_time(monkeypatch):
    sizes = []

    def predict(model, dev, tokenizer, batch_size):
        sizes.append(batch_size)
        return np.eye(2, dtype=np.float32)[np.zeros(len(dev), dtype=int)]

    monkeypatch.setattr("edgemin_utils.measurement.evaluate.predict", predict)
    rows, model = small_rows(20, holdout=6), small_model(layers=1)
    for each in (model, quantize(model, "int8")):
        evaluate(each, rows, 64)
    assert sizes == [64, 1]
