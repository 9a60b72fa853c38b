"""Geometry: which elements of a parameter share a scale and a second moment.

The geometry follows from the shape alone, never from values. State therefore has the same shapes
on every rank and before the first gradient.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_COLUMNS = 16
MIN_QUANTIZED_SIZE = 4096
BLOCK_SIZE = 2048
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Geometry:
    """A parameter seen as `experts` matrices of `rows` x `columns`, each row cut into blocks.

    Every row has `blocks_per_row` blocks of `block_length` elements; the last block of a row may
    be shorter, never empty. `state_shape` is the shape of a tensor with one value per block.
    """

    experts: int
    rows: int
    columns: int
    blocks_per_row: int
    block_length: int
    state_shape: tuple[int, ...]

    @property
    def total_rows(self) -> int:
        """Rows of all experts together."""
        return self.experts * self.rows

    @property
    def blocks(self) -> int:
        """Blocks of the whole parameter."""
        return self.total_rows * self.blocks_per_row

    @property
    def last_block_length(self) -> int:
        """Elements of the last block of a row."""
        return self.columns - (self.blocks_per_row - 1) * self.block_length


@dataclass(frozen=True)
class Chunk:
    """Rows `[row_start, row_stop)` of all experts' rows, blocks `[block_start, block_stop)`."""

    row_start: int
    row_stop: int
    block_start: int
    block_stop: int


def row_geometry(
    shape: Iterable[int],
    block_size: int = BLOCK_SIZE,
    min_quantized_size: int = MIN_QUANTIZED_SIZE,
) -> Geometry | None:
    """Return the rule `row` for a shape, or None where the state is exactly AdamW's.

    A matrix is one expert; a 3-D tensor is (experts, rows, columns); with four or more dimensions
    (convolutions) a row is all elements of one index of dimension 0. A row of C elements has
    k = ceil(C / block_size) blocks of ceil(C / k). None for fewer than two dimensions, rows
    shorter than 16 elements, or fewer than `min_quantized_size` elements.
    """
    shape = tuple(shape)
    numel = math.prod(shape)
    if len(shape) < 2 or numel == 0 or numel < min_quantized_size:
        return None
    experts, rows = shape[:2] if len(shape) == 3 else (1, shape[0])
    columns = numel // (experts * rows)
    if columns < MIN_COLUMNS:
        return None
    blocks_per_row = -(-columns // block_size)
    lead = shape[:2] if len(shape) == 3 else shape[:1]
    return Geometry(
        experts=experts,
        rows=rows,
        columns=columns,
        blocks_per_row=blocks_per_row,
        block_length=-(-columns // blocks_per_row),
        state_shape=(*lead, blocks_per_row),
    )


def state_bytes(
    shapes: Iterable[Iterable[int]],
    first_moment_bits: int = 8,
    block_size: int = BLOCK_SIZE,
    min_quantized_size: int = MIN_QUANTIZED_SIZE,
) -> int:
    """Return the bytes of Gefen's state for parameters of these shapes, in closed form.

    For n elements in b blocks: n + 8 b bytes (8-bit), 4 n + 4 b (32-bit), 8 n where the state is
    AdamW's; 4 for each parameter's step; one shared codebook of 256 float32 values, present when
    any first moment is quantised (one for each device, should the parameters lie on several).
    """
    total, quantized = 0, False
    for shape in shapes:
        shape = tuple(shape)
        numel = math.prod(shape)
        geometry = row_geometry(shape, block_size, min_quantized_size)
        total += _FLOAT_BYTES
        if geometry is None:
            total += 2 * _FLOAT_BYTES * numel
        elif first_moment_bits == 32:
            total += _FLOAT_BYTES * (numel + geometry.blocks)
        else:
            total += numel * first_moment_bits // 8 + 2 * _FLOAT_BYTES * geometry.blocks
            quantized = True
    return total + _FLOAT_BYTES * (1 << first_moment_bits) if quantized else total


def chunks(
    geometry: Geometry, limit: int, *, split_rows: bool = True, join_experts: bool = True
) -> Iterator[Chunk]:
    """Cut a parameter into chunks of whole blocks, of at most about `limit` elements each.

    A chunk holds whole rows, or part of one row when a row exceeds `limit`. `split_rows=False`
    keeps every row whole; `join_experts=False` keeps every chunk inside one expert.
    """
    matrix_rows = geometry.total_rows if join_experts else geometry.rows
    per_row = geometry.blocks_per_row
    if split_rows and geometry.columns > limit:
        rows_step, blocks_step = 1, max(1, limit // geometry.block_length)
    else:
        rows_step, blocks_step = max(1, limit // geometry.columns), per_row
    for base in range(0, geometry.total_rows, matrix_rows):
        for row in range(base, base + matrix_rows, rows_step):
            row_stop = min(row + rows_step, base + matrix_rows)
            for block in range(0, per_row, blocks_step):
                yield Chunk(row, row_stop, block, min(block + blocks_step, per_row))


def tensor_chunks(tensors: Sequence[Tensor], geometry: Geometry, limit: int) -> list[Chunk]:
    """Return chunks for which `slabs` gives views of every one of the tensors, all of one shape."""
    contiguous = all(tensor.is_contiguous() for tensor in tensors)
    dims = tensors[0].ndim
    split_rows, join_experts = contiguous or dims <= 3, contiguous or dims != 3
    return list(chunks(geometry, limit, split_rows=split_rows, join_experts=join_experts))


def chunk_shape(geometry: Geometry, chunk: Chunk) -> tuple[int, int, int]:
    """Return (rows, blocks, block length) of a chunk."""
    return (
        chunk.row_stop - chunk.row_start,
        chunk.block_stop - chunk.block_start,
        geometry.block_length,
    )


def slabs(tensor: Tensor, geometry: Geometry, plan: Sequence[Chunk]) -> Sequence[Tensor]:
    """Return the views of a parameter-shaped tensor that the chunks cover, never copies.

    The elements of a view in row-major order are its chunk's (rows, columns); it is
    two-dimensional unless the tensor is a convolution that is not contiguous.
    """
    if not tensor.is_contiguous():
        return [_strided_slab(tensor, geometry, chunk) for chunk in plan]
    matrix = tensor.view(geometry.total_rows, geometry.columns)
    return _cut(matrix, geometry, plan, geometry.block_length)


def block_slabs(tensor: Tensor, geometry: Geometry, plan: Sequence[Chunk]) -> Sequence[Tensor]:
    """Return the (rows, blocks) views of a contiguous tensor with one value per block."""
    return _cut(tensor.view(geometry.total_rows, -1), geometry, plan, 1)


def _cut(matrix: Tensor, geometry: Geometry, plan: Sequence[Chunk], width: int) -> Sequence[Tensor]:
    """Cut a matrix along the chunks, `width` of its columns to a block."""
    if plan[0].block_stop == geometry.blocks_per_row:
        return torch.split(matrix, [chunk.row_stop - chunk.row_start for chunk in plan])
    return [
        matrix[c.row_start : c.row_stop, c.block_start * width : c.block_stop * width] for c in plan
    ]


def _strided_slab(tensor: Tensor, geometry: Geometry, chunk: Chunk) -> Tensor:
    length = geometry.block_length
    columns = slice(chunk.block_start * length, chunk.block_stop * length)
    if tensor.ndim == 3:
        expert, start = divmod(chunk.row_start, geometry.rows)
        stop = start + chunk.row_stop - chunk.row_start
        return tensor[expert, start:stop, columns]
    rows = slice(chunk.row_start, chunk.row_stop)
    return tensor[rows, columns] if tensor.ndim == 2 else tensor[rows]
