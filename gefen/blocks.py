"""Geometry: which elements of a parameter share a scale, a second moment, a row and a column.

The geometry follows from the shape alone, never from values. State therefore has the same shapes
on every rank and before the first gradient.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

MIN_COLUMNS = 16
MIN_QUANTIZED_SIZE = 4096
BLOCK_SIZE = 2048
# Elements that share a scale. Sixteen levels need the smaller groups; 64 cost 1/16 byte each.
GROUP_SIZES = {4: 64, 8: 2048, 32: 2048}


@dataclass(frozen=True)
class Geometry:
    """A parameter seen as `experts` matrices of `rows` x `columns`, each row cut into groups.

    Every row has `groups_per_row` groups of `group_length` elements that share a scale of the
    first moment; the last group of a row may be shorter, never empty. `groups_per_block`
    consecutive groups share a second moment (form "block"). `matrix_rows` are the rows of one
    matrix on all ranks together; `lead` is the shape of a tensor with one value per row. `flat`
    means that rows are pieces of the flattened parameter and have nothing to do with its shape.
    """

    experts: int
    rows: int
    columns: int
    groups_per_row: int
    group_length: int
    groups_per_block: int
    matrix_rows: int
    lead: tuple[int, ...]
    flat: bool = False

    @property
    def total_rows(self) -> int:
        """Rows of all experts together."""
        return self.experts * self.rows

    @property
    def blocks_per_row(self) -> int:
        """Blocks of the second moment in one row."""
        return -(-self.groups_per_row // self.groups_per_block)

    @property
    def groups(self) -> int:
        """Groups of the whole parameter."""
        return self.total_rows * self.groups_per_row

    @property
    def blocks(self) -> int:
        """Blocks of the whole parameter."""
        return self.total_rows * self.blocks_per_row

    @property
    def group_shape(self) -> tuple[int, ...]:
        """Shape of a tensor with one value per group."""
        return (*self.lead, self.groups_per_row)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of a tensor with one value per block."""
        return (*self.lead, self.blocks_per_row)

    @property
    def column_shape(self) -> tuple[int, ...]:
        """Shape of a tensor with one value per column of each matrix."""
        return (*self.lead[:-1], self.columns)

    @property
    def block_lengths(self) -> list[int]:
        """Elements of each block of a row."""
        length = self.groups_per_block * self.group_length
        last = self.columns - (self.blocks_per_row - 1) * length
        return [length] * (self.blocks_per_row - 1) + [last]

    def in_order(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose memory has the order of flat groups; others may lie as they do."""
        return tensor.contiguous() if self.flat else tensor

    def with_leading_size(self, size: int) -> "Geometry":
        """The geometry of a shard with `size` indices of dimension 0; `matrix_rows` stays."""
        if len(self.lead) == 2:
            return replace(self, experts=size, lead=(size, self.rows))
        return replace(self, rows=size, lead=(size,))


def row_geometry(
    shape: Iterable[int],
    group_size: int = GROUP_SIZES[8],
    block_size: int = BLOCK_SIZE,
    min_quantized_size: int = MIN_QUANTIZED_SIZE,
    *,
    even_groups: bool = False,
) -> Geometry | None:
    """Return the rule `row` for a shape, or None where the state is exactly AdamW's.

    A matrix is one expert; a 3-D tensor whose last two dimensions are at least 16 is (experts,
    rows, columns); of any other shape (convolutions) a row is all elements of one index of
    dimension 0.
    A row of C elements has k = ceil(C / group_size) groups of ceil(C / k), with `even_groups` made
    even where a row has several, so that two 4-bit codes of a byte belong to one group. A block is
    as many whole groups, evenly spread, as `block_size` elements hold, at least one. None for
    fewer than two dimensions, rows shorter than 16 elements, or fewer than `min_quantized_size`
    elements.
    """
    shape = tuple(shape)
    numel = math.prod(shape)
    if len(shape) < 2 or numel == 0 or numel < min_quantized_size:
        return None
    stacked = len(shape) == 3 and min(shape[1:]) >= MIN_COLUMNS
    lead = shape[:2] if stacked else shape[:1]
    columns = numel // math.prod(lead)
    if columns < MIN_COLUMNS:
        return None
    length = _even_share(columns, group_size)
    if even_groups and length < columns:
        length += length % 2
    groups = -(-columns // length)
    return Geometry(
        experts=shape[0] if stacked else 1,
        rows=lead[-1],
        columns=columns,
        groups_per_row=groups,
        group_length=length,
        groups_per_block=_even_share(groups, max(1, block_size // length)),
        matrix_rows=lead[-1],
        lead=lead,
    )


def flat_geometry(numel: int, group_length: int) -> Geometry:
    """Return the geometry of groups that are consecutive pieces of the flattened parameter."""
    rows = numel // group_length
    return Geometry(1, rows, group_length, 1, group_length, 1, rows, (rows,), flat=True)


def _even_share(total: int, limit: int) -> int:
    """Return the size of parts when `total` is cut evenly into parts of at most `limit`."""
    return -(-total // -(-total // limit))
