"""Sums of a gradient's squares over the rows and the columns of its matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gefen.blocks import Geometry
from gefen.chunks import Chunk, slabs, tensor_chunks
from gefen.updates.rule import working_dtype
from gefen.updates.scratch import Scratch, as_blocks


@dataclass(frozen=True)
class SquareSums:
    """Sums of a gradient's squares over rows and columns, float64 (float32 on devices without).

    `rows` is (experts * rows), `columns` (experts, columns). Of a sharded parameter they are sums
    over the local rows until `columns` is added up over the shards.
    """

    rows: Tensor
    columns: Tensor


def square_sums(grad: Tensor, geometry: Geometry, scratch: Scratch) -> SquareSums:
    """Return the sums over rows and columns of each matrix, read in one pass."""
    # Wide sums of narrow squares: the result hardly depends on how chunks and shards cut the rows.
    dtype = torch.float32 if grad.device.type == "mps" else torch.float64
    rows = torch.zeros(geometry.total_rows, dtype=dtype, device=grad.device)
    columns = torch.zeros(geometry.experts, geometry.columns, dtype=dtype, device=grad.device)
    plan = tensor_chunks((grad,), geometry, scratch.elements, join_experts=False)
    work = working_dtype(grad)
    for chunk, piece in zip(plan, slabs(grad, geometry, plan), strict=True):
        buffers = scratch.buffers((chunk.rows, chunk.groups, geometry.group_length), work)
        gradient = as_blocks(piece, buffers.gradient)
        squares = torch.mul(gradient, gradient, out=buffers.moment).view(chunk.rows, -1)
        # What is not finite reaches its own group through the first moment and nothing further.
        squares.nan_to_num_(nan=0.0)
        rows[chunk.row_start : chunk.row_stop] += squares.sum(1, dtype=dtype)
        covered = chunk.columns(geometry)
        width = covered.stop - covered.start
        columns[chunk.row_start // geometry.rows, covered] += squares.sum(0, dtype=dtype)[:width]
    return SquareSums(rows, columns)


def column_values(columns: Tensor, geometry: Geometry, chunk: Chunk, dtype: torch.dtype) -> Tensor:
    """Return a value per column, (experts, columns), for a chunk: (1, groups, length), padded 0."""
    values = columns[chunk.row_start // geometry.rows, chunk.columns(geometry)]
    width = chunk.groups * geometry.group_length
    if len(values) < width:
        values = torch.nn.functional.pad(values, (0, width - len(values)))
    return values.to(dtype).view(1, chunk.groups, geometry.group_length)


def inverse(factor: Tensor) -> Tensor:
    """Return one over a factor, zero where it is zero: such a column has had no gradient."""
    return torch.where(factor == 0, 0, 1 / factor)
