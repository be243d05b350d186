"""What a stage records of a model: metrics, weights, bytes and operations by hand, closed formulas and the paper."""

import math
import socket
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import small_model, small_rows, unequal
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from edgemin_utils.checkpoints import save_model
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import operations
from edgemin_utils.measurement.evaluate import ClassificationMetrics, evaluate
from edgemin_utils.measurement.operations import Product, closed_formula_macs, count_operations, products_of
from edgemin_utils.quantization.schemes import quantize, stored_sizes


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", Mock(side_effect=AssertionError("a metric reached for the network")))


def metrics_of(predictions, references, count):
    return ClassificationMetrics().compute(predictions=predictions, references=references, num_labels=count)


def test_two_classes_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    predictions, references = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    wanted = {"accuracy": 0.7, "f1": 2 * 3 / (2 * 3 + 1 + 2)}
    wanted["matthews_correlation"] = (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)
    assert metrics_of(predictions, references, 2) == pytest.approx(wanted)


def test_three_classes_take_the_mean_of_their_f1_by_hand():
    found = metrics_of([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], 3)
    f1 = [2 * 1 / (2 + 1 + 1), 2 * 2 / (4 + 0 + 1), 2 * 1 / (2 + 1 + 0)]
    assert (found["accuracy"], found["f1"]) == pytest.approx((4 / 6, sum(f1) / 3))
    # Gorodkin's R_K: correct x rows - sum(predicted_k x true_k), over the roots of the same with themselves.
    predicted, true = np.array([2, 2, 2]), np.array([2, 3, 1])
    roots = math.sqrt((36 - predicted @ predicted) * (36 - true @ true))
    assert found["matthews_correlation"] == pytest.approx((4 * 6 - predicted @ true) / roots)
    assert metrics_of([0, 1, 1], [0, 1, 1], 3)["f1"] == pytest.approx(2 / 3)  # a class nobody has counts


@pytest.mark.filterwarnings("error")
def test_one_class_alone_has_no_correlation_and_no_warning():
    wanted = {"accuracy": 0.5, "f1": 0.0, "matthews_correlation": 0.0}
    assert metrics_of([0, 0, 0, 0], [0, 0, 1, 1], 2) == wanted


def test_what_a_stage_records_of_a_model(tmp_path):
    rows, model = small_rows(40, holdout=16), small_model(layers=1)
    save_model(model, tmp_path, rows.tokenizer)
    found = evaluate(model, rows, 8, tmp_path)
    written = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(written) == ["split", "row", "label", "prediction", "logit_0", "logit_1"]
    assert set(written["split"]) == {"dev"} and written["row"].tolist() == rows.dev["dev"]["row"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rows.dev["dev"][0]["input_ids"]])).logits[0]
    assert written.loc[0, ["logit_0", "logit_1"]].tolist() == pytest.approx(logits.tolist(), abs=1e-5)
    right, numbers = (written["label"] == written["prediction"]).mean(), found["metrics"]["dev"]
    assert numbers["accuracy"] == right and numbers["rows"] == 16
    assert numbers["accuracy_low"] < right < numbers["accuracy_high"]
    table = np.array(found["confusion"]["dev"])
    assert table.sum() == 16 and np.trace(table) == right * 16
    assert table[1, 0] == ((written["label"] == 1) & (written["prediction"] == 0)).sum()
    assert found["size"]["stored_weights"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["size"]["file_bytes"] > 4 * found["size"]["stored_weights"]  # FP32 weights and a header
    assert found["model"]["layers"] == 1 and found["data"]["dev_rows"] == {"dev": 16}
    assert list(found["operations"]) == ["1x32"]


def test_a_quantized_model_is_asked_one_row_at_a_time(monkeypatch):
    predict = Mock(return_value=np.ones((6, 2), dtype=np.float32))
    monkeypatch.setattr("edgemin_utils.measurement.evaluate.predict", predict)
    rows, model = small_rows(20, holdout=6), small_model(layers=1)
    for each in (model, quantize(model, "int8")):
        evaluate(each, rows, 64)
    assert [call.args[3] for call in predict.call_args_list] == [64, 1]


def test_the_papers_numbers():
    student = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)
    expected = {"embeddings": (30522 + 512 + 2) * 384, "attention": 12 * 4 * (384 * 384 + 384), "norms": 25 * 2 * 384}
    expected |= {"feed_forward": 12 * (2 * 384 * 1536 + 1536 + 384), "head": 384 * 384 + 384 + 2 * 384 + 2}
    with torch.device("meta"):  # without memory for weights: what they are does not change how many they are
        found = operations.size_of(AutoModelForSequenceClassification.from_config(student))
    assert found["parts"] == expected and found["stored_weights"] == sum(expected.values()) == 33_360_770
    assert found["paper_parameters"] == 11_937_024 == 30522 * 384 + 512 * 384 + 2 * 384 + 25 * 2 * 384
    assert found["bytes_per_part"] == {part: 4 * count for part, count in expected.items()}
    assert found["integer_bytes"] == 0


def test_parts_have_their_size_in_every_family(family):
    model = small_model(family, layers=2)
    found = operations.size_of(model)
    wanted = {"attention": 2 * 4 * (48 * 48 + 48), "feed_forward": 2 * (2 * 48 * 96 + 96 + 48)}
    wanted |= {"norms": 2 * 48 + 4 * 2 * 48, "head": 48 * 48 + 48 + 2 * 48 + 2}
    assert {part: count for part, count in found["parts"].items() if part != "embeddings"} == wanted
    assert sum(found["parts"].values()) == found["framework_parameters"] == operations.size_of(model)["stored_weights"]


@pytest.mark.parametrize("scheme", ["int8", "int8-embeddings"])
def test_quantization_hides_weights_from_the_framework_and_takes_a_byte_each(scheme):
    model = unequal()
    quantized = quantize(model, scheme)
    before, after = operations.size_of(model), operations.size_of(quantized)
    assert after["parts"] == before["parts"] and after["stored_weights"] == before["stored_weights"]
    assert after["framework_parameters"] < before["framework_parameters"]
    if scheme == "int8":  # embeddings and norms alone
        assert after["framework_parameters"] == after["paper_parameters"] == before["paper_parameters"]
    assert after["bytes_per_part"]["norms"] == before["bytes_per_part"]["norms"]
    assert after["integer_bytes"] < sum(after["bytes_per_part"].values()) < 2 * before["stored_weights"]
    assert sum(after["bytes_per_part"].values()) == sum(size for _, size in stored_sizes(quantized).values())


def test_saved_bytes_are_the_files_sizes(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    for name in ("vocab.txt", "record.json"):  # do not count
        (tmp_path / name).write_bytes(b"x" * 5000)
    files = (tmp_path / "model.safetensors").stat().st_size + (tmp_path / "config.json").stat().st_size
    assert operations.saved_bytes(tmp_path) == files == operations.size_of(model, tmp_path)["file_bytes"]
    with pytest.raises(ModelError, match="no model weights"):
        operations.saved_bytes(tmp_path / "absent")
    with pytest.raises(ModelError, match="conv1.weight"):
        operations.size_of(nn.ModuleDict({"conv1": nn.Conv1d(2, 2, 1)}))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_three_counts_agree_in_every_family_whole_and_cut(family, attention):
    for model in (small_model(family), unequal(family)):
        model.set_attn_implementation(attention)
        found = count_operations(model, batch=2, length=24)
        assert found["macs"] == found["fvcore"] == found["torch"] == closed_formula_macs(model, 2, 24)
        assert found["fvcore_ratio"] == found["torch_ratio"] == 1 and found["int8_macs"] == 0
        assert model.config._attn_implementation == attention


def test_closed_formula_written_out():
    batch, length, hidden, cut = 3, 24, 48, unequal()
    layer = length * (4 * hidden * hidden + 2 * hidden * 96) + 2 * length * length * hidden
    head = hidden * hidden + hidden * 2
    assert closed_formula_macs(small_model(layers=2), batch, length) == batch * (2 * layer + head)
    # A head of size 12 is gone, and 56 neurons.
    gone = length * 4 * hidden * 12 + 2 * length * length * 12 + length * 2 * hidden * 56
    assert closed_formula_macs(cut, batch, length) == batch * (2 * layer + head - gone)
    assert Product("attention", "fp32", batch * 3, length, 12, length) in products_of(cut, batch, length)


@pytest.mark.parametrize("scheme", ["int8", "int8-embeddings", "int4", "onnx-int8"])
def test_quantization_removes_no_operation(scheme):
    model = unequal()
    found, before = count_operations(quantize(model, scheme), 1, 24), count_operations(model, 1, 24)
    assert found["macs"] == before["macs"]
    # Attention's products stay in FP32; INT4 weights are unpacked, and their products too are in FP32.
    attention = sum(math.prod(product[2:]) for product in products_of(model, 1, 24) if product.kind == "attention")
    assert found["int8_macs"] == (0 if scheme == "int4" else before["macs"] - attention)
    if scheme == "int4":
        assert found["fvcore_ratio"] == pytest.approx(1, abs=0.001)
    else:
        assert found["fvcore"] is found["torch_ratio"] is None
