"""MREM and EfficientQAT: packing, what training lowers, what is stored, what the second phase leaves alone."""

import math

import pytest
import torch
from safetensors.torch import load_file
from small_models import logits, small_batch, small_model
from test_quantization_onnx import single_rows

from edgemin_utils.encoders import captured_states, encoder_layers
from edgemin_utils.quantization import reconstruction
from edgemin_utils.quantization.integers import Grid
from edgemin_utils.quantization.reconstruction import Rounding, pack_bits, unpack_bits
from edgemin_utils.quantization.schemes import WEIGHTS_FILE, load_model, quantize, save_quantized, stored_sizes

NAMES = {"mrem-int8": 8, "mrem-int4": 4, "efficientqat-int4": 4, "efficientqat-int3": 3, "efficientqat-int2": 2}
PACKED = {2: [0b11_01_00_10, 0b01], 3: [0b11_001_010, 0b001_000_0], 4: [0x12, 0x03, 0x01]}  # the first lowest
ROWS = single_rows(small_batch(20, 24))


def steps(monkeypatch, count, end_to_end):
    monkeypatch.setattr(reconstruction, "STEPS", count)
    monkeypatch.setattr(reconstruction, "END_TO_END_STEPS", end_to_end)


@torch.no_grad()
def errors(model, other):
    """Mean squared differences of what the last layer and the model give out for the calibration rows."""
    found = []
    for row in ROWS:
        with captured_states(model, ["hidden.-1"]) as wanted, captured_states(other, ["hidden.-1"]) as given:
            answers = model(**row).logits - other(**row).logits
        states = wanted["hidden.-1"] - given["hidden.-1"]
        found.append(torch.stack([states.square().mean(), answers.square().mean()]))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("bits", PACKED)
def test_packing_by_hand(bits):
    assert pack_bits(torch.tensor([2, 0, 1, 3, 1] if bits == 2 else [2, 1, 3, 0, 1]), bits).tolist() == PACKED[bits]
    every = torch.randint(0, 2**bits, (7, 13), generator=torch.Generator().manual_seed(0))
    assert len(pack_bits(every, bits)) == math.ceil(7 * 13 * bits / 8)
    assert torch.equal(unpack_bits(pack_bits(every, bits), bits, (7, 13)), every.float())


def test_rounding_and_its_gradients_by_hand():
    weight = torch.tensor([[-1.0, 2.0, 0.4, 0.6]], requires_grad=True)
    rounding = Rounding(weight, 2, affine=True)
    assert rounding.start.item() == rounding.zero_point.item() == 1  # 0, 1, 2, 3 stand for -1, 0, 1, 2
    assert rounding(weight).tolist() == [[-1, 2, 0, 1]]
    (rounding(weight) * torch.tensor([1.0, 10, 100, 1000])).sum().backward()
    assert weight.grad.tolist() == [[1, 10, 100, 1000]]
    assert rounding.factor.grad.item() == pytest.approx(100 * (0 - 0.4) + 1000 * (1 - 0.6))  # q - z - w / s
    assert rounding.zero_point.grad.item() == 0
    clipped = torch.tensor([[5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    rounding.zero_grad()
    rounding(clipped)[0, 0].backward()
    assert (clipped.grad.sum(), rounding.factor.grad.item(), rounding.zero_point.grad.item()) == (0, 2, -1)


def test_without_training_a_weight_goes_to_the_nearest_integers(monkeypatch):
    steps(monkeypatch, 0, 0)
    model, batch = small_model(layers=1), small_batch()
    assert torch.equal(logits(quantize(model, "mrem-int4", ROWS), batch), logits(quantize(model, "int4"), batch))
    weight = encoder_layers(model)[0].query.weight.detach()  # 48 inputs: groups of 32 and 16
    low, high = weight[:, 32:].amin(1, True), weight[:, 32:].amax(1, True)
    wanted = Grid(((high - low) / 3).half().float(), torch.round(-low / ((high - low) / 3)), 0, 3)
    made = encoder_layers(quantize(model, "efficientqat-int2", ROWS))[0].query.weight[:, 32:]
    torch.testing.assert_close(made, wanted.values(wanted.integers(weight[:, 32:])), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_error_of_states_and_answers_on_its_rows(name, monkeypatch):
    model, found = small_model(layers=4 if "mrem" in name else 2), []  # two modules
    for count in (0, 16, 64):
        steps(monkeypatch, count, count)
        found.append(errors(model, quantize(model, name, ROWS)))
    assert (found[2] < found[1]).all() and (found[1] < found[0]).all()  # first: rounded to the nearest


@pytest.mark.parametrize("name", ["mrem-int8", "efficientqat-int3", "int8-embeddings", "int4-embeddings"])
def test_cut_models_of_every_family_come_back_with_true_sizes(family, name, tmp_path, monkeypatch):
    steps(monkeypatch, 4, 4)
    cut, batch, bits = small_model(family, layers=4), small_batch(), NAMES.get(name)
    encoder_layers(cut)[0].keep_heads([1, 3])
    encoder_layers(cut)[2].keep_neurons(range(77))
    made = quantize(cut, name, ROWS)
    save_quantized(made, tmp_path, name)
    reloaded, file = load_model(tmp_path), load_file(tmp_path / WEIGHTS_FILE)
    assert torch.equal(logits(reloaded, batch), logits(made, batch))
    assert len(encoder_layers(made)) == 4 and stored_sizes(made) == stored_sizes(reloaded)
    assert sum(size for _, size in stored_sizes(reloaded).values()) == sum(one.nbytes for one in file.values())
    zeros = 48 * 3 * 3 // 8 if bits == 3 else 0
    if bits:  # 77 inputs: three groups
        wanted = {"weight": (48 * 77, 48 * 77 * bits // 8 + 2 * 48 * 3 + zeros)}
        assert encoder_layers(reloaded)[2].feed_forward_out.stored_sizes == wanted


def test_the_second_phase_moves_step_sizes_alone_and_answers_come_nearer(monkeypatch):
    model, made = small_model(), []
    for count in (0, 32):
        steps(monkeypatch, 8, count)
        made.append(quantize(model, "efficientqat-int2", ROWS))
    assert errors(model, made[1])[1] < errors(model, made[0])[1] / 2
    stored = [reconstruction.Reconstruction(2, end_to_end=True).pack(encoder_layers(one)[1].key) for one in made]
    assert stored[0].keys() == {"bias", "packed_weight", "packed_zero_point", "weight_scale"}
    assert {name for name in stored[0] if not torch.equal(stored[0][name], stored[1][name])} == {"weight_scale"}
    pairs = zip(made[0].parameters(), made[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs if one.dim() == 1)  # biases and norms
