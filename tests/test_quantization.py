import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import FAMILY_NAMES, small_batch, small_model
from transformers import AutoModelForSequenceClassification

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import ModelError, SettingError
from edgemin_utils.measurement.parameters import framework_parameters, stored_weights
from edgemin_utils.quantization import QUANTIZED_WEIGHTS_FILE, layer_table, load_model, quantize, save_quantized


def logits(model, batch):
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("scheme", ["dynamic-int8", "dynamic-int8-embeddings"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_saved_and_reloaded_model_gives_the_same_logits(family, scheme, tmp_path):
    model, batch = small_model(family), small_batch()
    encoder_layers(model)[0].keep_heads([1, 3])
    quantized = quantize(model, scheme)
    save_quantized(quantized, tmp_path, scheme)
    assert torch.equal(logits(load_model(tmp_path), batch), logits(quantized, batch))
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))  # no pickle


def test_weights_are_rounded_to_the_grid_of_one_scale_a_matrix():
    """Against symmetric rounding worked out with NumPy: w / scale rounded, scale = largest weight / 127.5."""
    model = small_model(layers=1)
    weight = encoder_layers(model)[0].query.weight.detach().numpy()
    packed = encoder_layers(quantize(model, "dynamic-int8"))[0].query.weight()
    scale = packed.q_scale()
    assert scale == pytest.approx(np.abs(weight).max() / 127.5, rel=1e-5)
    by_hand = np.clip(np.round(weight / np.float32(scale)), -128, 127)
    assert np.abs(by_hand - packed.int_repr().numpy()).max() <= 1  # a tie may round either way
    assert (by_hand == packed.int_repr().numpy()).mean() > 0.999
    assert np.abs(packed.dequantize().numpy() - weight).max() <= scale / 2 * 1.01


def test_the_original_is_left_alone_and_logits_stay_near():
    model, batch = small_model(), small_batch()
    before = logits(model, batch)
    quantized = quantize(model, "dynamic-int8")
    assert torch.equal(logits(model, batch), before)
    difference = (logits(quantized, batch) - before).abs().max()
    assert 0 < difference < 0.1 * before.abs().max()


def test_packed_weights_vanish_from_the_framework_count_but_are_all_stored():
    model = small_model()
    linear = sum(parameter.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)
                 for parameter in module.parameters())
    quantized = quantize(model, "dynamic-int8")
    assert framework_parameters(quantized) == framework_parameters(model) - linear
    assert stored_weights(quantized) == stored_weights(model)


@pytest.mark.parametrize("scheme", ["dynamic-int8", "dynamic-int8-embeddings"])
def test_layer_table_adds_up_to_the_model_and_its_file(scheme, tmp_path):
    model = small_model()
    quantized = quantize(model, scheme)
    table = layer_table(model, quantized)
    assert sum(row["parameters"] for row in table) == framework_parameters(model)
    assert {row["kind"] for row in table if row["quantized"]} == (
        {"Linear"} if scheme == "dynamic-int8" else {"Linear", "Embedding"})
    save_quantized(quantized, tmp_path, scheme)
    stored = load_file(tmp_path / QUANTIZED_WEIGHTS_FILE).values()
    assert sum(row["bytes_after"] for row in table) == sum(value.numel() * value.element_size() for value in stored)


def test_stock_loading_of_a_quantized_folder_says_how_to_load_it(tmp_path):
    save_quantized(quantize(small_model(), "dynamic-int8"), tmp_path, "dynamic-int8")
    with pytest.raises(ValueError, match=r"load this folder with edgemin_utils\.quantization\.load_model"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_truncated_quantized_weights_are_named(tmp_path):
    save_quantized(quantize(small_model(), "dynamic-int8"), tmp_path, "dynamic-int8")
    path = tmp_path / QUANTIZED_WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(tmp_path)


def test_unknown_scheme_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'dynamic-int8'"):
        quantize(small_model(), "dynamic-int4")
