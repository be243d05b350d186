"""The arithmetic of quantization: a real number r is stored as the integer q = clip(round(r / scale) + zero_point, low,
high) and read back as scale * (q - zero_point) (Jacob et al. 2018, equation 1); halves go to the even neighbour."""

from typing import NamedTuple

import torch
from torch.nn import functional

INT4_GROUP = 32  # weights along the input dimension that share one INT4 scale


class Grid(NamedTuple):
    """What integers from `low` to `high` stand for; scale and zero point are float32, of a shape that broadcasts."""

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
        """Bool: which of `values` are rounded to an integer of the range, not clipped."""
        return self._unclipped(values) == self.integers(values)

    def _unclipped(self, values: torch.Tensor) -> torch.Tensor:
        return torch.round(values * (1 / self.scale)) + self.zero_point  # by the reciprocal, as PyTorch's kernels do


def symmetric_int8_grid(weight: torch.Tensor) -> Grid:
    """One scale for a matrix (outputs, inputs), max|w| / 127.5, as torch.ao's MinMaxObserver for symmetric qint8."""
    scale = torch.clamp(weight.detach().abs().max().float() / 127.5, min=torch.finfo(torch.float32).eps)
    return Grid(scale, torch.zeros_like(scale), -128, 127)


def activation_grid(values: torch.Tensor) -> Grid:
    """Unsigned, over the range of one batch (batch, tokens, inputs), widened to hold 0, in 7 bits, as PyTorch's dynamic
    linear layers see inputs: sums of two products fit into 16 bits ("reduce_range"). Zeros alone get scale 1."""
    values = values.detach().float()
    smallest, largest = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = (largest - smallest) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Grid(scale, torch.clamp(torch.round(-smallest / scale), 0, 127), 0, 127)


def grouped_int4_grid(weight: torch.Tensor) -> Grid:
    """One scale for every `INT4_GROUP` weights along the input dimension of a matrix (outputs, inputs), max|w| / 7,
    rounded to float16 as it is stored; nothing is clipped. The last group of a row may be shorter."""
    return Grid(spread_scales(int4_scales(weight), weight.shape[1]), torch.zeros(()), -7, 7)


def int4_scales(weight: torch.Tensor) -> torch.Tensor:
    """float16 (outputs, groups): the scale of every group; 1 for a group of zeros."""
    padded = functional.pad(weight.detach().float(), (0, -weight.shape[1] % INT4_GROUP))
    scales = padded.reshape(len(weight), -1, INT4_GROUP).abs().amax(dim=2) / 7
    smallest = torch.finfo(torch.float16).tiny  # that has full precision; weights below half of it become 0
    return torch.where(scales > 0, scales.clamp(min=smallest), torch.ones_like(scales)).half()


def spread_scales(scales: torch.Tensor, inputs: int) -> torch.Tensor:
    """float32 (outputs, inputs): every weight's scale, from that of its group."""
    return scales.float().repeat_interleave(INT4_GROUP, dim=1)[:, :inputs]


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """uint8 (rows, ceil(columns / 2)) from integers (rows, columns) of -8 to 7 or of 0 to 15: the even column in a
    byte's low half, the odd one in its high half, in two's complement."""
    codes = functional.pad(integers.to(torch.int16), (0, integers.shape[1] % 2)) & 0xF
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def unpack_int4(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """int8 (rows, columns): the inverse of `pack_int4`."""
    # Shifted to the high half as int8, so that the shift back copies the sign.
    return torch.stack([packed << 4, packed], dim=2).flatten(1)[:, :columns].view(torch.int8) >> 4
