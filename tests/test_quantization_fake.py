"""Fake quantization: gradients by hand, torch.ao's fake quantizers and the real quantized models as references."""

import copy

import numpy as np
import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model, tokenized_sentences

from edgemin_utils.config import EVERY_FORMAT, load_settings
from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import SettingError
from edgemin_utils.quantization import FORMATS, fake_quantization, linear_layers, quantize
from edgemin_utils.quantization.fake import rounded_to
from edgemin_utils.quantization.integers import Grid, activation_grid, symmetric_int8_grid
from edgemin_utils.quantization_stages import layer_sensitivity
from edgemin_utils.training import Phase, label_loss, predict, train_phases


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_gradients_are_the_identity_inside_the_range_and_zero_outside():
    values = torch.tensor([-3.0, -1.26, -1.0, 0.0, 0.7, 1.24, 1.3, 9.0], requires_grad=True)
    grid = Grid(torch.tensor(0.5), torch.tensor(0.0), -2, 2)  # numbers from -1 to 1
    upstream = torch.arange(1.0, 9.0)
    rounded = rounded_to(grid, values)
    assert rounded.tolist() == [-1, -1, -1, 0, 0.5, 1, 1, 1]
    (rounded * upstream).sum().backward()
    assert values.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]


@pytest.mark.parametrize("make_grid, low, high", [(symmetric_int8_grid, -128, 127), (activation_grid, 0, 127)])
def test_values_and_gradients_are_those_of_torchs_fake_quantizer(make_grid, low, high):
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    # A grid of half the values' range, so that some are clipped.
    grid = make_grid(0.5 * values)
    upstream = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    found = []
    for quantizer in (
        lambda item: rounded_to(grid, item),
        lambda item: torch.fake_quantize_per_tensor_affine(item, float(grid.scale), int(grid.zero_point), low, high),
    ):
        item = values.clone().requires_grad_()
        rounded = quantizer(item)
        rounded.backward(upstream)
        found.append((rounded.detach(), item.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    assert torch.equal(found[0][1], found[1][1]) and (found[0][1] == 0).any()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_int8_computes_what_the_real_int8_model_computes(family):
    model, batch = small_model(family), small_batch()
    encoder_layers(model)[0].keep_heads([1, 3])
    before, real = logits(model, batch), logits(quantize(model, "dynamic-int8"), batch)
    with fake_quantization(model, "int8"):
        fake = logits(model, batch)
    assert (fake - real).abs().max() < 1e-5 < (before - real).abs().max()
    assert torch.equal(logits(model, batch), before)  # nothing is left behind


def test_int4_computes_what_the_real_int4_model_computes():
    model, batch = small_model(), small_batch()
    real = logits(quantize(model, "weight-int4"), batch)
    with fake_quantization(model, "int4"):
        torch.testing.assert_close(logits(model, batch), real)


def test_one_layer_alone_and_none_at_all():
    model, batch = small_model(), small_batch()
    names = list(linear_layers(model))
    before, alone = logits(model, batch), copy.deepcopy(model)
    chosen = alone.get_submodule(names[3])
    with torch.no_grad():
        grid = FORMATS["int4"].weights(chosen.weight)
        chosen.weight.copy_(grid.values(grid.integers(chosen.weight)))
    with fake_quantization(model, "int4", [names[3]]):
        torch.testing.assert_close(logits(model, batch), logits(alone, batch))
    with fake_quantization(model, ""):
        assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize(
    "number_format, layers, message",
    [("int9", None, "did you mean 'int8'"), ("int8", ["classifer"], "did you mean 'classifier'")],
)
def test_an_unknown_format_or_layer_is_refused(number_format, layers, message):
    with pytest.raises(SettingError, match=message), fake_quantization(small_model(), number_format, layers):
        pass


def test_formats_are_those_of_the_settings():
    assert tuple(FORMATS) == EVERY_FORMAT


@pytest.mark.parametrize("number_format", EVERY_FORMAT)
def test_training_under_it_lowers_the_quantized_models_loss_and_keeps_float_weights(number_format):
    rows, tokenizer = tokenized_sentences(64)
    model = small_model(layers=1, vocabulary_size=len(tokenizer), dropout=0.0)
    labels = torch.tensor(rows["labels"])
    settings = load_settings("demo", {"batch_size": 16})

    def loss():
        with fake_quantization(model, number_format):
            return float(torch.nn.functional.cross_entropy(torch.from_numpy(predict(model, rows, tokenizer)), labels))

    before = loss()
    with fake_quantization(model, number_format):
        train_phases(model, rows, [Phase("tuning", 8, 3e-3, label_loss)], tokenizer, settings, 0)
    assert loss() < 0.7 * before
    weight = encoder_layers(model)[0].query.weight
    assert len(torch.unique(weight)) > 1000  # not on the grid


def test_sensitivity_finds_the_layer_that_rounding_hurts():
    """One query unit of a thousandfold size takes the whole INT8 range for itself. The key beside it is zero, so that
    nothing else of the model feels it."""
    rows, tokenizer = tokenized_sentences(24)
    model = small_model(layers=2, vocabulary_size=len(tokenizer))
    hurt, attention = "bert.encoder.layer.1.attention.self.query", encoder_layers(model)[1]
    with torch.no_grad():
        attention.query.weight[0] *= 1000
        attention.key.weight[0], attention.key.bias[0] = 0, 0
    found = layer_sensitivity(model, rows, tokenizer, 8)
    assert {row["layer"] for row in found["layers"]} == set(linear_layers(model))
    by_layer = {row["layer"]: row for row in found["layers"] if row["format"] == "int8"}
    assert max(by_layer, key=lambda name: by_layer[name]["divergence"]) == hurt
    assert all(0 <= row["agreement"] <= 1 and row["divergence"] >= 0 for row in found["layers"])
    answers = predict(model, rows, tokenizer, 8).argmax(1)
    assert found["accuracy"] == pytest.approx((answers == np.asarray(rows["labels"])).mean())
