"""A learned codebook in use: its tensor, dequantising, and the search for a code."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gefen.codebook import BINS
from gefen.rounding import RANDOM_BITS

# Two levels of a learned codebook are at least half a bin (1 / BINS) apart, and so are the middles
# between them; cells of half that width hold at most one, whatever the rounding at their edges.
_CELLS = 4 * BINS
_INTEGERS = {4: torch.int32, 8: torch.int64}


def padded_codebook(levels: NDArray[np.float32], count: int) -> Tensor:
    """Return the levels as a CPU float32 tensor of `count` values; unused codes repeat 1.

    The fixed size keeps state shapes independent of the data; unused codes are never emitted.
    """
    codebook = torch.ones(count, dtype=torch.float32)
    codebook[: len(levels)] = torch.from_numpy(levels)
    return codebook


def is_learned(codebook: Tensor) -> bool:
    """Whether a codebook of the state holds levels: it is all zero until it is learned."""
    return bool(codebook[0] == -1)


@dataclass(frozen=True)
class Codes:
    """A codebook made ready for one device and dtype: dequantising and the search for a code.

    [-1, 1] is cut into equal cells; for each, `below` (uint8) counts the thresholds in lower
    cells and `threshold_bits` is the one inside, or infinity. The code of a value is the number of
    thresholds that it reaches. They are the middles between levels (nearest rounding) or the
    levels above -1 (`stochastic`: the value lies between that code's level and the next one).
    `slope_bits` is 2^24 over the distance to the next level (stochastic rounding), zero at the
    top. `below` aside, values of the working dtype are kept as integers of the same bytes.
    The cell of a value is computed by the same monotone arithmetic as the cell of a threshold,
    so one comparison finishes the search exactly, whatever the rounding.
    """

    levels_bits: Tensor
    slope_bits: Tensor
    below: Tensor
    threshold_bits: Tensor
    zero_code: int
    stochastic: bool
    bits: int

    @classmethod
    def build(
        cls, codebook: Tensor, device: torch.device, dtype: torch.dtype, *, stochastic: bool
    ) -> "Codes":
        """Prepare a CPU float32 codebook; raise ValueError if its levels are too close."""
        levels = codebook[: int((codebook < 1).sum()) + 1].double()
        # Rounded up to the working dtype, which leaves every comparison as it was.
        exact = levels[1:] if stochastic else (levels[1:] + levels[:-1]) / 2
        thresholds = exact.to(dtype)
        upper = torch.nextafter(thresholds, torch.full_like(thresholds, torch.inf))
        thresholds = torch.where(thresholds.double() < exact, upper, thresholds)
        cells = torch.empty(thresholds.shape, dtype=torch.int32)
        cells = cell_index(thresholds, torch.empty_like(thresholds), cells).long()
        if len(cells.unique()) != len(cells):
            raise ValueError("The codebook has levels closer together than a learned one can have.")
        below = torch.bincount(cells + 1, minlength=_CELLS + 2).cumsum(0)[: _CELLS + 1]
        threshold = torch.full((_CELLS + 1,), torch.inf, dtype=dtype)
        threshold[cells] = thresholds
        slope = torch.zeros(len(codebook), dtype=torch.float64)
        slope[: len(levels) - 1] = (1 << RANDOM_BITS) / levels.diff()
        return cls(
            levels_bits=as_integers(codebook.to(device, dtype)),
            slope_bits=as_integers(slope.to(device, dtype)),
            below=below.to(device, torch.uint8),
            threshold_bits=as_integers(threshold.to(device)),
            zero_code=int((levels < 0).sum()),
            stochastic=stochastic,
            bits=(len(codebook) - 1).bit_length(),
        )


def cell_index(values: Tensor, position: Tensor, cells: Tensor) -> Tensor:
    """Write the cell (int32, 0 to _CELLS) of each value to `cells`; NaN gets a valid one too.

    `position` is scratch of the values' dtype. The product with a power of two is exact, so the
    position is rounded once and in the same way however the sum is computed.
    """
    half = _CELLS // 2
    torch.mul(values, half, out=position).add_(half)
    return cells.copy_(position).clamp_(0, _CELLS)


def as_integers(values: Tensor) -> Tensor:
    """Return the same bytes as integers: index_select moves those twice as fast."""
    return values.view(_INTEGERS[values.element_size()])


def pack_nibbles(codes: Tensor, out: Tensor) -> None:
    """Write codes below 16, (rows, columns) uint8, two to a byte: the even column is the low half.

    `out` is (rows, ceil(columns / 2)); an odd last column leaves the high half zero.
    """
    out.copy_(codes[:, 0::2])
    high = codes[:, 1::2]
    out[:, : high.shape[1]].bitwise_or_(high << 4)


def unpack_nibbles(packed: Tensor, out: Tensor) -> None:
    """Write the codes of `pack_nibbles` to `out`, (rows, columns) of any integer dtype."""
    out[:, 0::2].copy_(packed & 15)
    high = out[:, 1::2]
    high.copy_(packed[:, : high.shape[1]] >> 4)
