"""Chunks: pieces of a parameter small enough for scratch memory, as views of its tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gefen.blocks import Geometry


@dataclass(frozen=True)
class Chunk:
    """Rows `[row_start, row_stop)` of all experts' rows, groups `[group_start, group_stop)`."""

    row_start: int
    row_stop: int
    group_start: int
    group_stop: int

    @property
    def rows(self) -> int:
        """Rows of the chunk."""
        return self.row_stop - self.row_start

    @property
    def groups(self) -> int:
        """Groups of each of its rows."""
        return self.group_stop - self.group_start

    def columns(self, geometry: Geometry) -> slice:
        """The columns that the chunk covers."""
        stop = min(self.group_stop * geometry.group_length, geometry.columns)
        return slice(self.group_start * geometry.group_length, stop)


def chunks(
    geometry: Geometry, limit: int, *, split_rows: bool = True, join_experts: bool = True
) -> Iterator[Chunk]:
    """Cut a parameter into chunks of whole groups, of at most about `limit` elements each.

    A chunk holds whole rows, or part of one row when a row exceeds `limit`. `split_rows=False`
    keeps every row whole; `join_experts=False` keeps every chunk inside one expert.
    """
    if geometry.total_rows == 0:
        return
    matrix_rows = geometry.total_rows if join_experts else geometry.rows
    per_row = geometry.groups_per_row
    if split_rows and geometry.columns > limit:
        rows_step, groups_step = 1, max(1, limit // geometry.group_length)
    else:
        rows_step, groups_step = max(1, limit // geometry.columns), per_row
    for base in range(0, geometry.total_rows, matrix_rows):
        for row in range(base, base + matrix_rows, rows_step):
            row_stop = min(row + rows_step, base + matrix_rows)
            for group in range(0, per_row, groups_step):
                yield Chunk(row, row_stop, group, min(group + groups_step, per_row))


def tensor_chunks(
    tensors: Sequence[Tensor], geometry: Geometry, limit: int, *, join_experts: bool = True
) -> list[Chunk]:
    """Return chunks for which `slabs` gives views of every one of the tensors, all of one shape."""
    contiguous = all(tensor.is_contiguous() for tensor in tensors)
    matrices = tensors[0].ndim == len(geometry.lead) + 1
    join_experts = join_experts and (contiguous or len(geometry.lead) == 1)
    split_rows = contiguous or matrices
    return list(chunks(geometry, limit, split_rows=split_rows, join_experts=join_experts))


def slabs(tensor: Tensor, geometry: Geometry, plan: Sequence[Chunk]) -> Sequence[Tensor]:
    """Return the views of a parameter-shaped tensor that the chunks cover, never copies.

    The elements of a view in row-major order are its chunk's (rows, columns); it is
    two-dimensional unless the tensor is a convolution that is not contiguous.
    """
    if not tensor.is_contiguous():
        return [_strided_slab(tensor, geometry, chunk) for chunk in plan]
    return _cut(tensor.view(geometry.total_rows, geometry.columns), geometry, plan, 1, 1)


def code_slabs(index: Tensor, geometry: Geometry, plan: Sequence[Chunk]) -> Sequence[Tensor]:
    """Return the views of the contiguous codes; 4-bit ones have half a row's bytes, rounded up."""
    if not plan:
        return []
    matrix = index.view(geometry.total_rows, -1)
    per_byte = 1 if matrix.shape[1] == geometry.columns else 2
    return _cut(matrix, geometry, plan, 1, per_byte)


def group_slabs(tensor: Tensor, geometry: Geometry, plan: Sequence[Chunk]) -> Sequence[Tensor]:
    """Return the (rows, groups) views of a contiguous tensor with one value per group."""
    matrix = tensor.view(geometry.total_rows, geometry.groups_per_row)
    return _cut(matrix, geometry, plan, None, 1)


def _cut(
    matrix: Tensor, geometry: Geometry, plan: Sequence[Chunk], width: int | None, per_byte: int
) -> Sequence[Tensor]:
    """Cut a matrix along the chunks; `width` is None where it has one column for each group."""
    if not plan:
        return []
    if plan[0].groups == geometry.groups_per_row:
        return torch.split(matrix, [chunk.rows for chunk in plan])
    length = 1 if width is None else geometry.group_length
    return [
        matrix[
            c.row_start : c.row_stop,
            c.group_start * length // per_byte : c.group_stop * length // per_byte
            if c.group_stop < geometry.groups_per_row
            else None,
        ]
        for c in plan
    ]


def _strided_slab(tensor: Tensor, geometry: Geometry, chunk: Chunk) -> Tensor:
    columns = chunk.columns(geometry)
    if len(geometry.lead) == 2:
        expert, start = divmod(chunk.row_start, geometry.rows)
        return tensor[expert, start : start + chunk.rows, columns]
    rows = slice(chunk.row_start, chunk.row_stop)
    return tensor[rows, columns] if tensor.ndim == 2 else tensor[rows]
