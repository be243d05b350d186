"""The integer arithmetic against values worked out by hand, NumPy and torch.ao's observers."""

import numpy as np
import pytest
import torch
from torch.ao.quantization.observer import MinMaxObserver

from edgemin_utils.quantization import integers as own
from edgemin_utils.quantization.integers import activation_grid, grouped_int4_grid, int4_scales, symmetric_int8_grid

# torch announces that its eager quantization will go.
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per", "ignore:Please use quant_min")


@pytest.mark.parametrize("seed", range(3))
def test_symmetric_int8_is_what_torchs_observer_finds(seed):
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(seed))
    observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    grid = symmetric_int8_grid(weight)
    assert float(grid.scale) == float(scale) and float(grid.zero_point) == float(zero_point) == 0
    reference = torch.quantize_per_tensor(weight, float(scale), 0, torch.qint8)
    assert torch.equal(grid.integers(weight).to(torch.int8), reference.int_repr())


@pytest.mark.parametrize("values, zero_point", [([0.5, 2.54], 0), ([-2.54, -1.0], 127), ([0.0, 0.0], 0)])
def test_the_range_of_activations_always_holds_zero(values, zero_point):
    grid = activation_grid(torch.tensor(values))
    assert float(grid.zero_point) == zero_point and float(grid.scale) > 0
    assert float(grid.values(grid.integers(torch.tensor(0.0)))) == 0


def test_activations_against_numpy_and_torchs_observer():
    values = np.random.default_rng(0).normal(0.3, 2, (6, 40)).astype(np.float32)
    low, high = min(values.min(), 0), max(values.max(), 0)
    scale = (high - low) / np.float32(127)
    zero_point = np.round(-low / scale)
    grid = activation_grid(torch.from_numpy(values))
    by_hand = np.clip(np.round(values / scale) + zero_point, 0, 127)
    np.testing.assert_array_equal(grid.integers(torch.from_numpy(values)).numpy(), by_hand)
    observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine, reduce_range=True)
    observer(torch.from_numpy(values))
    wanted = observer.calculate_qparams()
    assert float(grid.scale) == pytest.approx(float(wanted[0]), rel=1e-6)
    assert float(grid.zero_point) == float(wanted[1])


@pytest.mark.parametrize("inputs", [32, 40, 7])
def test_int4_moves_no_weight_by_more_than_half_a_step_of_its_group(inputs):
    weight = torch.randn(12, inputs, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 12)[:, None]
    grid = grouped_int4_grid(weight)
    integers = grid.integers(weight)
    assert integers.min() >= -7 and integers.max() <= 7
    # Scales are rounded to float16: relative 2^-11 of seven steps.
    error = (grid.values(integers) - weight).abs()
    assert (error <= grid.scale * (0.5 + 7 * 2**-11 + 1e-6)).all()
    assert (integers.abs().amax(dim=1) == 7).all()  # each row reaches the end of its range


def test_int4_scales_by_hand():
    weight = torch.zeros(2, 40)
    weight[0, 3], weight[0, 35], weight[1, 0] = 7.0, -3.5, 1.75
    assert int4_scales(weight).tolist() == [[1.0, 0.5], [0.25, 1.0]]  # a group of zeros has scale 1
    assert grouped_int4_grid(weight).integers(weight)[0, [3, 35]].tolist() == [7, -7]
    assert int4_scales(torch.full((1, 4), 1e-9)).item() > 0


@pytest.mark.parametrize("columns", [1, 2, 5, 32, 41])
def test_packing_comes_back_and_takes_half_a_byte_a_number(columns):
    integers = torch.randint(-8, 8, (6, columns), generator=torch.Generator().manual_seed(columns))
    packed = own.pack_int4(integers)
    assert packed.dtype == torch.uint8 and packed.shape == (6, (columns + 1) // 2)
    assert torch.equal(own.unpack_int4(packed, columns), integers.to(torch.int8))


def test_packing_by_hand():
    assert own.pack_int4(torch.tensor([[1, 2, -1, -8, 7]])).tolist() == [[0x21, 0x8F, 0x07]]
