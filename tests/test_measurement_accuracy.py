"""Metrics against values worked by hand, without a network."""

import math
import socket

import numpy as np
import pytest

from edgemin_utils.errors import DataError
from edgemin_utils.measurement.accuracy import ClassificationMetrics, classification_metrics, confusion_matrix


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_two_classes_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    references = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert classification_metrics(predictions, references, 2) == pytest.approx(
        {
            "accuracy": 0.7,
            "f1": 2 * 3 / (2 * 3 + 1 + 2),
            "matthews_correlation": (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6),
        }
    )
    assert confusion_matrix(predictions, references, 2).tolist() == [[4, 1], [2, 3]]


def test_three_classes_take_the_mean_of_their_f1_by_hand():
    predictions, references = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    found = classification_metrics(predictions, references, 3)
    f1 = [2 * 1 / (2 + 1 + 1), 2 * 2 / (4 + 0 + 1), 2 * 1 / (2 + 1 + 0)]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(sum(f1) / 3)
    # Gorodkin's R_K: correct x rows - sum(predicted_k x true_k), over the roots of the same with themselves.
    predicted, true = np.array([2, 2, 2]), np.array([2, 3, 1])
    top = 4 * 6 - predicted @ true
    assert found["matthews_correlation"] == pytest.approx(
        top / math.sqrt((36 - predicted @ predicted) * (36 - true @ true))
    )
    assert confusion_matrix(predictions, references, 3).tolist() == [[1, 0, 1], [1, 2, 0], [0, 0, 1]]


def test_a_class_nobody_has_counts_in_the_mean_and_in_the_matrix():
    found = classification_metrics([0, 1, 1], [0, 1, 1], 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert confusion_matrix([0, 1, 1], [0, 1, 1], 3).shape == (3, 3)


def test_predicting_one_class_alone_has_no_correlation():
    found = classification_metrics([0, 0, 0, 0], [0, 0, 1, 1], 2)
    assert found == {"accuracy": 0.5, "f1": 0.0, "matthews_correlation": 0.0}


def test_metric_adds_up_over_batches_as_evaluate_does():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 3, 200)
    predictions = np.where(generator.random(200) < 0.7, references, generator.integers(0, 3, 200))
    metric = ClassificationMetrics()
    for start in range(0, 200, 64):
        metric.add_batch(predictions=predictions[start : start + 64], references=references[start : start + 64])
    assert metric.compute(num_labels=3) == pytest.approx(classification_metrics(predictions, references, 3))


def test_metric_leaves_no_file(tmp_path):
    metric = ClassificationMetrics(cache_dir=str(tmp_path))
    metric.compute(predictions=[0, 1], references=[0, 1], num_labels=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "predictions,references,labels,message",
    [
        ([0, 1], [0], 2, "for the same rows"),
        ([], [], 2, "at least one"),
        ([0, 3], [0, 1], 3, "prediction 3 is outside the 3 classes"),
        ([0, 1], [0, -1], 2, "label -1 is outside"),
        ([0.2, 0.8], [0, 1], 2, "argmax"),
        ([0, 0], [0, 0], 1, "at least 2 classes"),
    ],
)
def test_wrong_rows_are_refused(predictions, references, labels, message):
    with pytest.raises(DataError, match=message):
        classification_metrics(predictions, references, labels)
    with pytest.raises(DataError, match=message):
        confusion_matrix(predictions, references, labels)
