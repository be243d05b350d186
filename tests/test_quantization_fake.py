"""Fake quantization: gradients by hand, torch.ao's fake quantizers and the real quantized models as references."""

import copy

import numpy as np
import pytest
import torch
from small_models import FAMILY_NAMES, small_batch, small_model, small_rows
from test_quantization_onnx import logits

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import SettingError
from edgemin_utils.quantization.fake import FORMATS, fake_quantization, linear_layers, rounded_to
from edgemin_utils.quantization.integers import activation_grid, symmetric_int8_grid
from edgemin_utils.quantization.schemes import quantize
from edgemin_utils.quantization.sensitivity import layer_sensitivity
from edgemin_utils.settings import load_settings
from edgemin_utils.training import Phase, label_loss, predict, train


@pytest.mark.parametrize("make_grid, low, high", [(symmetric_int8_grid, -128, 127), (activation_grid, 0, 127)])
def test_values_and_gradients_are_those_of_torchs_fake_quantizer(make_grid, low, high):
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    grid = make_grid(0.5 * values)  # of half the values' range, so that some are clipped
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


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_it_computes_what_the_really_quantized_model_computes(family, number_format):
    model, batch = small_model(family), small_batch()
    encoder_layers(model)[0].keep_heads([1, 3])
    before, real = logits(model, batch), logits(quantize(model, number_format), batch)
    with fake_quantization(model, number_format):
        fake = logits(model, batch)
    assert np.abs(fake - real).max() < 1e-5 < np.abs(before - real).max()
    assert np.array_equal(logits(model, batch), before)  # nothing is left behind


def test_numbers_stay_on_their_grid_under_bfloat16_autocast(monkeypatch):
    """What the product gets is float32 and a whole number of steps, of weights and of inputs."""
    seen, linear = [], torch.nn.functional.linear

    def spy(inputs, weight, bias=None):
        seen.append((inputs, weight, torch.is_autocast_enabled("cpu")))
        return linear(inputs, weight, bias)

    model, batch = small_model(), small_batch()
    monkeypatch.setattr("edgemin_utils.quantization.fake.functional.linear", spy)
    with fake_quantization(model, "int8"), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()
    assert len(seen) == len(linear_layers(model)) and not any(autocast for *_, autocast in seen)
    scales = [float(symmetric_int8_grid(module.weight).scale) for module in linear_layers(model).values()]
    for inputs, weight, _ in seen:
        assert inputs.dtype == weight.dtype == torch.float32 and len(torch.unique(inputs)) <= 128
        steps = [weight.detach() / scale for scale in scales]  # of one of the layers: they need not come in order
        assert min(float((step - step.round()).abs().max()) for step in steps) < 1e-4
    assert encoder_layers(model)[0].query.weight.grad.abs().sum() > 0


def test_one_layer_alone_and_none_at_all():
    model, batch = small_model(), small_batch()
    names = list(linear_layers(model))
    before, alone = logits(model, batch), copy.deepcopy(model)
    chosen = alone.get_submodule(names[3])
    with torch.no_grad():
        grid = FORMATS["int4"].weights(chosen.weight)
        chosen.weight.copy_(grid.values(grid.integers(chosen.weight)))
    with fake_quantization(model, "int4", [names[3]]):
        np.testing.assert_allclose(logits(model, batch), logits(alone, batch), rtol=1e-5, atol=1e-6)
    with fake_quantization(model, ""):
        assert np.array_equal(logits(model, batch), before)


@pytest.mark.parametrize(
    "number_format, layers, message",
    [("int9", None, "did you mean 'int8'"), ("int8", ["classifer"], "did you mean 'classifier'")],
)
def test_an_unknown_format_or_layer_is_refused(number_format, layers, message):
    with pytest.raises(SettingError, match=message), fake_quantization(small_model(), number_format, layers):
        pass


@pytest.mark.parametrize("precision, number_format", [("float32", "int4"), ("float32", "int8"), ("bfloat16", "int8")])
def test_training_under_it_lowers_the_quantized_models_loss_and_keeps_float_weights(precision, number_format):
    rows = small_rows(64)
    model = small_model(layers=1, vocabulary_size=len(rows.tokenizer), dropout=0.0)
    labels = torch.tensor(rows.train["labels"])
    settings = load_settings("demo", {"batch_size": 16, "training_precision": precision})

    def loss():
        with fake_quantization(model, number_format):
            found = torch.from_numpy(predict(model, rows.train, rows.tokenizer))
        return float(torch.nn.functional.cross_entropy(found, labels))

    before = loss()
    with fake_quantization(model, number_format):
        train(model, rows, [Phase("tuning", 8, 3e-3, label_loss)], settings, 0)
    assert loss() < 0.7 * before
    assert len(torch.unique(encoder_layers(model)[0].query.weight)) > 1000  # not on the grid


def test_sensitivity_finds_the_layer_that_rounding_hurts():
    """One query unit of a thousandfold size takes the whole INT8 range for itself. The key beside it is zero, so that
    nothing else of the model feels it."""
    rows = small_rows(24)
    model = small_model(layers=2, vocabulary_size=len(rows.tokenizer))
    hurt, attention = "bert.encoder.layer.1.attention.self.query", encoder_layers(model)[1]
    with torch.no_grad():
        attention.query.weight[0] *= 1000
        attention.key.weight[0], attention.key.bias[0] = 0, 0
    found = layer_sensitivity(model, rows.train, rows.tokenizer, 8)
    assert {row["layer"] for row in found["layers"]} == set(linear_layers(model)) and found["rows"] == 24
    by_layer = {row["layer"]: row for row in found["layers"] if row["format"] == "int8"}
    assert max(by_layer, key=lambda name: by_layer[name]["divergence"]) == hurt
    assert all(0 <= row["agreement"] <= 1 and row["divergence"] >= 0 for row in found["layers"])
    answers = predict(model, rows.train, rows.tokenizer, 8).argmax(1)
    assert found["accuracy"] == pytest.approx((answers == np.asarray(rows.train["labels"])).mean())
