"""Integers and fake quantization against values by hand, NumPy, torch.ao, and the models that are really quantized."""

import copy

import numpy as np
import pytest
import torch
from small_models import small_batch, small_model, small_rows
from test_quantization_onnx import logits
from torch.ao.quantization.observer import MinMaxObserver

from edgemin_utils.encoders import encoder_layers
from edgemin_utils.errors import SettingError
from edgemin_utils.quantization import integers as own
from edgemin_utils.quantization.fake import FORMATS, fake_quantization, layer_sensitivity, linear_layers, rounded_to
from edgemin_utils.quantization.integers import activation_grid, grouped_int4_grid, int4_scales, symmetric_int8_grid
from edgemin_utils.quantization.schemes import quantize
from edgemin_utils.settings import load_settings
from edgemin_utils.training import Phase, label_loss, predict, train

# torch announces that its eager quantization will go.
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per", "ignore:Please use quant_min")


TORCHS = {symmetric_int8_grid: (torch.qint8, torch.per_tensor_symmetric, False)}
TORCHS |= {activation_grid: (torch.quint8, torch.per_tensor_affine, True)}


@pytest.mark.parametrize("make_grid", TORCHS)
@pytest.mark.parametrize("values", [[0.5, 2.54], [-2.54, -1.0], np.random.default_rng(0).normal(0.3, 2, (6, 40))])
def test_scales_zero_points_and_integers_are_those_of_torchs_observer(make_grid, values):
    values, (dtype, scheme, reduced) = torch.tensor(values, dtype=torch.float32), TORCHS[make_grid]
    observer, grid = MinMaxObserver(dtype=dtype, qscheme=scheme, reduce_range=reduced), make_grid(values)
    observer(values)
    scale, zero_point = map(float, observer.calculate_qparams())
    assert (float(grid.scale), float(grid.zero_point)) == (pytest.approx(scale, rel=1e-6), zero_point)
    reference = torch.quantize_per_tensor(values, scale, int(zero_point), dtype)
    assert torch.equal(grid.integers(values).to(reference.int_repr().dtype), reference.int_repr())
    assert float(grid.values(grid.integers(torch.tensor(0.0)))) == 0  # the range always holds it
    assert float(activation_grid(torch.zeros(2)).scale) == 1


def test_int4_by_hand():
    weight = torch.zeros(2, 40)
    weight[0, 3], weight[0, 35], weight[1, 0] = 7.0, -3.5, 1.75
    assert int4_scales(weight).tolist() == [[1.0, 0.5], [0.25, 1.0]]  # a group of zeros has scale 1
    assert grouped_int4_grid(weight).integers(weight)[0, [3, 35]].tolist() == [7, -7]
    assert int4_scales(torch.full((1, 4), 1e-9)).item() > 0
    integers = torch.tensor([[1, 2, -1, -8, 7], [0, -2, 3, 6, -7]], dtype=torch.int8)
    wanted = torch.tensor([[0x21, 0x8F, 0x07], [0xE0, 0x63, 0x09]], dtype=torch.uint8)
    assert torch.equal(own.pack_int4(integers), wanted)
    for columns in (1, 2, 5):
        assert torch.equal(own.unpack_int4(own.pack_int4(integers[:, :columns]), columns), integers[:, :columns])


@pytest.mark.parametrize("make_grid, low, high", [(symmetric_int8_grid, -128, 127), (activation_grid, 0, 127)])
def test_values_and_gradients_are_those_of_torchs_fake_quantizer(make_grid, low, high):
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    grid = make_grid(0.5 * values)  # of half the values' range, so that some are clipped
    upstream = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    found, torchs = [], torch.fake_quantize_per_tensor_affine
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    for quantizer in (lambda item: rounded_to(grid, item), lambda item: torchs(item, scale, zero_point, low, high)):
        item = values.clone().requires_grad_()
        rounded = quantizer(item)
        rounded.backward(upstream)
        found.append((rounded.detach(), item.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    assert torch.equal(found[0][1], found[1][1]) and (found[0][1] == 0).any()


@pytest.mark.parametrize("number_format", FORMATS)
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
    before, alone, name = logits(model, batch), copy.deepcopy(model), list(linear_layers(model))[3]
    weight = alone.get_submodule(name).weight
    grid = FORMATS["int4"][0](weight)
    weight.data = grid.values(grid.integers(weight.data))
    with fake_quantization(model, "int4", [name]):
        np.testing.assert_allclose(logits(model, batch), logits(alone, batch), rtol=1e-5, atol=1e-6)
    with fake_quantization(model, ""):
        assert np.array_equal(logits(model, batch), before)


def test_an_unknown_format_or_layer_is_refused():
    for meant, wrong in (("int8", ("int9",)), ("classifier", ("int8", ["classifer"]))):
        with pytest.raises(SettingError, match=f"did you mean '{meant}'"), fake_quantization(small_model(), *wrong):
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
    """A query unit of a thousandfold size takes the INT8 range for itself; its key is zero: none else feels it."""
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
