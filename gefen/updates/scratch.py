"""Scratch memory of the reference update, used again for every chunk of a step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gefen.codes import as_integers

# On a CPU a chunk of 2**15 elements stays in the second-level cache, and is the size up to which
# torch runs an operation on one thread: no barrier on a busy machine. Other devices want few and
# large launches.
CPU_CHUNK_ELEMENTS = 1 << 15
DEVICE_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Buffers:
    """Buffers for chunks of one shape (rows, blocks, length) and working dtype, undefined values.

    `gradient`, `value`, `moment` and `denominator` have that shape; the others are flat:
    `position` (working dtype), `cells`, `random` and `shifted` (int32), `codes` (uint8), `above`
    (bool). The names with `_bits` are the same memory as integers.
    """

    gradient: Tensor
    value: Tensor
    moment: Tensor
    denominator: Tensor
    moment_bits: Tensor
    position: Tensor
    position_bits: Tensor
    cells: Tensor
    random: Tensor
    shifted: Tensor
    codes: Tensor
    above: Tensor
    above_bits: Tensor


class Scratch:
    """The scratch memory of one device for one step, for chunks of about `elements` elements."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.elements = CPU_CHUNK_ELEMENTS if device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}
        self._buffers: dict[tuple[tuple[int, ...], torch.dtype], Buffers] = {}

    def buffers(self, shape: tuple[int, ...], dtype: torch.dtype) -> Buffers:
        """Return the buffers for a chunk; those of another shape may share their memory."""
        key = (shape, dtype)
        if key not in self._buffers:
            moment = self._get("moment", shape, dtype)
            position = self._get("position", shape, dtype).view(-1)
            above = self._get("above", shape, torch.bool).view(-1)
            self._buffers[key] = Buffers(
                gradient=self._get("gradient", shape, dtype),
                value=self._get("value", shape, dtype),
                moment=moment,
                denominator=self._get("denominator", shape, dtype),
                moment_bits=as_integers(moment.view(-1)),
                position=position,
                position_bits=as_integers(position),
                cells=self._get("cells", shape, torch.int32).view(-1),
                random=self._get("random", shape, torch.int32).view(-1),
                shifted=self._get("shifted", shape, torch.int32).view(-1),
                codes=self._get("codes", shape, torch.uint8).view(-1),
                above=above,
                above_bits=above.view(torch.uint8),
            )
        return self._buffers[key]

    def _get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numel = math.prod(shape)
        memory = self._memory.get((name, dtype))
        if memory is None or memory.numel() < numel:
            memory = torch.empty(max(numel, self.elements), dtype=dtype, device=self.device)
            self._memory[name, dtype] = memory
        return memory[:numel].view(shape)


def as_blocks(piece: Tensor, buffer: Tensor, *, negate: bool = False) -> Tensor:
    """Return a slab as (rows, blocks, length) in the buffer's dtype, short blocks filled with 0.

    The slab's own memory where it has that form already, otherwise a copy in `buffer`.
    """
    whole = piece.numel() == buffer.numel()
    if whole and piece.dtype == buffer.dtype and piece.is_contiguous() and not negate:
        return piece.view(buffer.shape)
    rows = buffer.view(len(buffer), -1)
    width = piece.numel() // len(buffer)
    rows[:, width:].zero_()
    inner = rows[:, :width].view(piece.shape)
    inner.copy_(piece)
    if negate:
        inner.neg_()
    return buffer


def store_blocks(piece: Tensor, blocks: Tensor) -> None:
    """Write blocks of `as_blocks` back to their slab, unless they are the slab's own memory."""
    if blocks.data_ptr() != piece.data_ptr():
        width = piece.numel() // len(blocks)
        piece.copy_(blocks.view(len(blocks), -1)[:, :width].view(piece.shape))
