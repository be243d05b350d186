"""Weights, bytes and operations of torch models against closed formulas, the paper's numbers and files on disk."""

import copy

import pytest
import torch
from safetensors import safe_open
from small_models import FAMILY_NAMES, small_model
from torch import nn
from transformers import BertConfig, DistilBertConfig
from transformers import BertForSequenceClassification as Bert
from transformers import DistilBertForSequenceClassification as DistilBert

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError
from edgemin_utils.measurement import parameters
from edgemin_utils.measurement.operations import Product, closed_formula_macs, count_operations, products_of
from edgemin_utils.quantization.schemes import quantize, save_quantized

# The paper's student.
STUDENT = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)
HIDDEN, FEED_FORWARD = 384, 1536


def on_meta(model_class, config) -> nn.Module:
    """A model without memory for weights: what they are does not change how many they are."""
    with torch.device("meta"):
        return model_class(config)


def cut(model):
    """Layers of unequal shapes: two heads of four stay in the first, 40 neurons in the second."""
    encoder_layers(model)[0].keep_heads([1, 2])
    encoder_layers(model)[1].keep_neurons(range(40))
    return model


def test_the_papers_numbers():
    teacher, student = on_meta(DistilBert, DistilBertConfig()), on_meta(Bert, STUDENT)
    assert parameters.stored_weights(teacher) == 66_955_010
    expected = {
        "embeddings": (30522 + 512 + 2) * HIDDEN,
        "attention": 12 * 4 * (HIDDEN * HIDDEN + HIDDEN),
        "feed_forward": 12 * (2 * HIDDEN * FEED_FORWARD + FEED_FORWARD + HIDDEN),
        "norms": 25 * 2 * HIDDEN,
        "head": HIDDEN * HIDDEN + HIDDEN + 2 * HIDDEN + 2,
    }
    found = parameters.size_of(student)
    assert found["parts"] == expected and found["stored_weights"] == sum(expected.values()) == 33_360_770
    assert found["paper_parameters"] == 11_937_024 == 30522 * 384 + 512 * 384 + 2 * 384 + 25 * 2 * 384
    assert found["bytes_per_part"] == {part: 4 * count for part, count in expected.items()}
    assert (found["integer_bytes"], found["fp32_bytes"]) == (0, 4 * 33_360_770)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_parts_have_their_size_in_every_family(family):
    model = small_model(family, layers=2)
    found = parameters.size_of(model)
    parts = found["parts"]
    assert parts["attention"] == 2 * 4 * (48 * 48 + 48)
    assert parts["feed_forward"] == 2 * (2 * 48 * 96 + 96 + 48)
    assert parts["head"] == 48 * 48 + 48 + 2 * 48 + 2
    assert parts["norms"] == 2 * 48 + 4 * 2 * 48
    assert sum(parts.values()) == found["framework_parameters"] == parameters.stored_weights(model)


@pytest.mark.parametrize("scheme", ["int8", "int8-embeddings"])
def test_quantization_hides_weights_from_the_framework_and_takes_a_byte_each(scheme, tmp_path):
    model = cut(small_model())
    quantized = quantize(model, scheme)
    before, after = parameters.size_of(model), parameters.size_of(quantized)
    assert after["parts"] == before["parts"] and after["stored_weights"] == before["stored_weights"]
    assert after["framework_parameters"] < before["framework_parameters"]
    if scheme == "int8":  # embeddings and norms alone
        assert after["framework_parameters"] == after["paper_parameters"] == before["paper_parameters"]
    assert after["bytes_per_part"]["norms"] == before["bytes_per_part"]["norms"]
    assert after["integer_bytes"] < sum(after["bytes_per_part"].values()) < before["fp32_bytes"] / 2
    # As many bytes as the tensors of the file.
    save_quantized(quantized, tmp_path, scheme)
    with safe_open(next(tmp_path.glob("*.safetensors")), "pt") as file:
        stored = [file.get_tensor(name) for name in file.keys()]
    assert sum(after["bytes_per_part"].values()) == sum(one.numel() * one.element_size() for one in stored)


def test_a_shared_weight_is_counted_once():
    model = small_model(layers=2)
    whole, layers = parameters.stored_weights(model), model.bert.encoder.layer
    layers[1].attention.self.query = layers[0].attention.self.query
    assert whole - parameters.stored_weights(model) == 48 * 48 + 48


def test_saved_bytes_are_the_files_sizes(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    for name, size in (("vocab.txt", 700), ("tokenizer_config.json", 2), ("record.json", 5000)):
        (tmp_path / name).write_bytes(b"x" * size)
    files = (tmp_path / "model.safetensors").stat().st_size + (tmp_path / "config.json").stat().st_size
    assert parameters.saved_bytes(tmp_path) == {"file_bytes": files, "tokenizer_bytes": 702}
    assert files > parameters.size_of(model, tmp_path)["fp32_bytes"]  # FP32 weights and a header
    assert parameters.size_of(model, tmp_path)["file_bytes"] == files
    with pytest.raises(ModelError, match="no model weights"):
        parameters.saved_bytes(tmp_path / "absent")
    with pytest.raises(ModelError, match="conv1.weight"):
        parameters.size_of(nn.ModuleDict({"conv1": nn.Conv1d(2, 2, 1)}))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_three_counts_agree_in_every_family_whole_and_cut(family, attention):
    whole = small_model(family)
    for model in (whole, cut(copy.deepcopy(whole))):
        model.set_attn_implementation(attention)
        found = count_operations(model, batch=2, length=24)
        assert (found["fvcore_ratio"], found["torch_ratio"]) == pytest.approx((1, 1), abs=0.001)
        assert found["macs"] == closed_formula_macs(model, 2, 24) and found["int8_macs"] == 0
        assert model.config._attn_implementation == attention


def test_closed_formula_written_out():
    batch, length, hidden, feed_forward = 3, 24, 48, 96
    layer = length * (4 * hidden * hidden + 2 * hidden * feed_forward) + 2 * length * length * hidden
    head = hidden * hidden + hidden * 2
    model = small_model(layers=2)
    assert closed_formula_macs(model, batch, length) == batch * (2 * layer + head)
    # Two heads of size 12 are gone, and 56 neurons.
    gone = 2 * (length * 4 * hidden * 12 + 2 * length * length * 12) + length * 2 * hidden * 56
    assert closed_formula_macs(cut(model), batch, length) == batch * (2 * layer + head - gone)
    assert Product("attention", "fp32", batch * 2, length, 12, length) in products_of(model, batch, length)


@pytest.mark.parametrize(
    "model_class,config,expected", [(DistilBert, DistilBertConfig(), 5.594e9), (Bert, STUDENT, 2.875e9)]
)
def test_papers_models_at_one_row_of_128_tokens(model_class, config, expected):
    found = count_operations(on_meta(model_class, config), 1, 128)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer = 128 * 12 * hidden * hidden + 2 * 128 * 128 * hidden  # a feed-forward size of 4 x hidden
    norms = (1 + 2 * layers) * 128 * hidden * 5  # in fvcore's count, with which the expected values were taken
    assert found["macs"] + norms == pytest.approx(expected, abs=0.0005e9)
    assert found["macs"] == found["fvcore"] == found["torch"] == layers * layer + hidden * hidden + 2 * hidden


@pytest.mark.parametrize("scheme", ["int8", "int8-embeddings", "int4", "onnx-int8"])
def test_quantization_removes_no_operation(scheme):
    model = cut(small_model())
    found, before = count_operations(quantize(model, scheme), 1, 24), count_operations(model, 1, 24)
    assert found["macs"] == before["macs"]
    # Attention's products stay in FP32; INT4 weights are unpacked, and their products too are in FP32.
    attention = sum(product.macs for product in products_of(model, 1, 24) if product.kind == "attention")
    assert found["int8_macs"] == (0 if scheme == "int4" else before["macs"] - attention)
    if scheme == "int4":
        assert found["fvcore_ratio"] == pytest.approx(1, abs=0.001) and found["note"] == ""
    else:
        assert found["fvcore"] is found["torch_ratio"] is None and "No tool sees inside" in found["note"]
