"""The arithmetic of quantization: real numbers as small integers with a scale and a zero point.

A real number r is stored as the integer q = clip(round(r / scale) + zero_point, low, high) and read back as
scale * (q - zero_point) (Jacob et al. 2018, equation 1). Halves round to the even neighbour.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

INT8_RANGE = (-128, 127)
# PyTorch's dynamic linear layers use seven of the eight bits of an activation, so that sums of two products fit into
# the 16 bits of older processors' instructions ("reduce_range").
ACTIVATION_RANGE = (0, 127)
INT4_RANGE = (-7, 7)
INT4_GROUP = 32
"""Weights along the input dimension that share one INT4 scale."""


@dataclass(frozen=True)
class Grid:
    """The numbers that integers from `low` to `high` stand for.

    Attributes:
        scale: float32, distance of neighbours; a scalar, or of a shape that broadcasts to the values.
        zero_point: the integer that stands for 0; float32 of the same shape as scale.
        low, high: smallest and largest integer.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    low: int
    high: int

    def integers(self, values: torch.Tensor) -> torch.Tensor:
        """The integers nearest to `values`, clipped to the range, as float32 of the same shape."""
        return torch.clamp(self._unclipped(values), self.low, self.high)

    def values(self, integers: torch.Tensor) -> torch.Tensor:
        """What `integers` stand for, float32."""
        return (integers - self.zero_point) * self.scale

    def inside(self, values: torch.Tensor) -> torch.Tensor:
        """Bool: which of `values` round to an integer of the range rather than being clipped."""
        unclipped = self._unclipped(values)
        return (unclipped >= self.low) & (unclipped <= self.high)

    def _unclipped(self, values: torch.Tensor) -> torch.Tensor:
        # By the reciprocal, as PyTorch's kernels do it.
        return torch.round(values * (1 / self.scale)) + self.zero_point


def symmetric_int8_grid(weight: torch.Tensor) -> Grid:
    """One scale for the whole matrix (outputs, inputs), max|w| / 127.5, zero point 0: what torch.ao's MinMaxObserver
    gives for a symmetric qint8 weight."""
    low, high = INT8_RANGE
    largest = weight.detach().abs().max().float()
    scale = torch.clamp(largest / ((high - low) / 2), min=torch.finfo(torch.float32).eps)
    return Grid(scale, torch.zeros_like(scale), low, high)


def activation_grid(values: torch.Tensor) -> Grid:
    """Unsigned and affine over the range of one batch (batch, tokens, inputs), widened to hold 0, as PyTorch's dynamic
    linear layers see their inputs. A batch of zeros alone gets scale 1."""
    low, high = ACTIVATION_RANGE
    values = values.detach().float()
    smallest, largest = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = (largest - smallest) / (high - low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Grid(scale, torch.clamp(torch.round(low - smallest / scale), low, high), low, high)


def grouped_int4_grid(weight: torch.Tensor, group: int = INT4_GROUP) -> Grid:
    """One scale for every `group` weights along the input dimension of a matrix (outputs, inputs), max|w| / 7.

    Integers run from -7 to 7, so nothing is clipped and no weight moves by more than half a step. Scales are rounded
    to float16, as they are stored. The last group of a row is shorter where `group` does not divide the inputs.

    Returns:
        a grid whose scale has the weight's shape.
    """
    return Grid(spread_scales(int4_scales(weight, group), weight.shape[1], group).float(), torch.zeros(()), *INT4_RANGE)


def int4_scales(weight: torch.Tensor, group: int = INT4_GROUP) -> torch.Tensor:
    """float16 (outputs, groups): the scale of every group; 1 for a group of zeros."""
    outputs, inputs = weight.shape
    padded = functional.pad(weight.detach().float(), (0, -inputs % group))
    scales = padded.reshape(outputs, -1, group).abs().amax(dim=2) / INT4_RANGE[1]
    # The smallest number that float16 holds in full precision; weights below half of it become 0.
    smallest = torch.finfo(torch.float16).tiny
    return torch.where(scales > 0, scales.clamp(min=smallest), torch.ones_like(scales)).half()


def spread_scales(scales: torch.Tensor, inputs: int, group: int = INT4_GROUP) -> torch.Tensor:
    """(outputs, inputs): every weight's scale, from that of its group."""
    return scales.repeat_interleave(group, dim=1)[:, :inputs]


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """Two 4-bit integers a byte: uint8 (rows, ceil(columns / 2)) from integers (rows, columns) of -8 to 7, or of 0
    to 15.

    The even column lies in the low half of the byte, the odd one in the high half, negative ones in two's complement.
    """
    codes = functional.pad(integers.to(torch.int16), (0, integers.shape[1] % 2)) & 0xF
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def unpack_int4(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """int8 (rows, columns): the inverse of `pack_int4`."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=2).reshape(packed.shape[0], -1)[:, :columns].to(torch.int8)
    return torch.where(codes > 7, codes - 16, codes)
