"""A learned codebook as the Triton kernels read it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gefen.codes import Codes

_MIN_CELLS, _MAX_CELLS = 1 << 8, 1 << 14


@dataclass(frozen=True)
class CodeTable:
    """A codebook as the kernels read it, on a device.

    `levels` (float32, twice the number of codes) are followed by infinities; `cell_levels` (uint8)
    has for each of equal cells of [-1, 1] the first level that is not below the cell. The number
    of cells is the smallest for which none holds two levels.
    """

    levels: Tensor
    cell_levels: Tensor
    bits: int

    @classmethod
    def build(cls, codes: Codes) -> "CodeTable":
        """Prepare codes made for float32; raises ValueError if two levels are too close."""
        count = 1 << codes.bits
        padded = codes.levels_bits.cpu().view(torch.float32)[:count].numpy()
        levels = padded[: int((padded < 1).sum()) + 1]
        cells = _MIN_CELLS
        while len(np.unique(cells_of(levels[1:], cells))) < len(levels) - 1:
            cells *= 2
            if cells > _MAX_CELLS:
                raise ValueError("The codebook has levels closer together than a learned one.")
        below = np.searchsorted(cells_of(levels[1:], cells), np.arange(cells)) + 1
        extended = np.full(2 * count, np.inf, dtype=np.float32)
        extended[: len(levels)] = levels
        device = codes.levels_bits.device
        return cls(
            levels=torch.from_numpy(extended).to(device),
            cell_levels=torch.from_numpy(below.astype(np.uint8)).to(device),
            bits=codes.bits,
        )


def cells_of(values: NDArray[np.float32], cells: int) -> NDArray[np.int64]:
    """Return the cells of float32 values in [-1, 1] by the arithmetic of the kernels."""
    position = values * np.float32(cells // 2) + np.float32(2**23 + cells // 2)
    found = position.view(np.int32) & (2 * cells - 1)
    return np.minimum(found, cells - 1).astype(np.int64)
