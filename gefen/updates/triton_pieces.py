"""Pieces of the Triton kernels: the table of tensors, random bits, the search for a code."""

import triton
import triton.language as tl

# Columns of the table of tensors, int64, one row a tensor (`gefen.updates.device_table`).
FIELDS = tl.constexpr(20)
KIND = tl.constexpr(0)  # 0 exact, 1 groups with rows of whole vectors, 2 any other groups
ENTRY = tl.constexpr(1)  # row of `pointers`, `numbers` and `keys`
FIRST = tl.constexpr(2)  # address: index, or exp_avg
SCALE = tl.constexpr(3)  # address: scale, or exp_avg_sq
SECOND = tl.constexpr(4)  # address: second_moment, or row_mean
FACTORS = tl.constexpr(5)  # position of the first expert's factors before this step
INVERSES = tl.constexpr(6)  # from those to one over the factors after it
MEANS = tl.constexpr(7)  # position of the first expert's mean(c)
COLUMNS = tl.constexpr(8)
ROWS = tl.constexpr(9)  # of one expert
TOTAL_ROWS = tl.constexpr(10)  # of all experts; of an exact tensor its elements
LENGTH = tl.constexpr(11)  # elements of a group
GROUPS = tl.constexpr(12)  # groups of a row
UNIT = tl.constexpr(13)  # groups of a unit: of a block, or one
UNITS = tl.constexpr(14)  # units of a row
UNITS_HERE = tl.constexpr(15)  # units of a program
ROW_START = tl.constexpr(16)  # global number of the first row
ROW_BYTES = tl.constexpr(17)  # bytes of a row of codes
OFFSET = tl.constexpr(18)  # first element of the experts of this row of the table

LARGEST = tl.constexpr(3.4028234663852886e38)
SMALLEST_SCALE = tl.constexpr(2.0**-126)  # of groups that keep a moment; one over it is finite
_MIX = tl.constexpr(0x7FEB352D)
_MIX_AGAIN = tl.constexpr(0x846CA68B)
_ROW_TERM = tl.constexpr(0x9E3779B1)
COLUMN_TERM = tl.constexpr(0x85EBCA77)


@triton.jit
def address(place: tl.tensor, DTYPE: tl.constexpr, ALIGN: tl.constexpr) -> tl.tensor:
    """The pointer stored at `place` as an int64, of which `ALIGN` bytes are known to divide it."""
    pointer = tl.load(place).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, ALIGN)


@triton.jit
def quotient(values: tl.tensor, divisor: tl.tensor) -> tl.tensor:
    """values // divisor without integer division; exact below 10^6."""
    return ((values.to(tl.float32) + 0.5) * (1.0 / divisor.to(tl.float32))).to(tl.int32)


@triton.jit
def row_keys(rows: tl.tensor, key: tl.tensor) -> tl.tensor:
    """`gefen.rounding.row_keys`."""
    keys = rows.to(tl.uint32) * _ROW_TERM + key
    keys = (keys ^ (keys >> 16)) * _MIX
    keys = (keys ^ (keys >> 15)) * _MIX_AGAIN
    return keys ^ (keys >> 16)


@triton.jit
def random_floats(values: tl.tensor) -> tl.tensor:
    """1 + `gefen.rounding.random_integers` / 2^24, of which float32 holds all bits but the last."""
    values = (values ^ (values >> 15)) * _MIX
    values = (values ^ (values >> 13)) * _MIX_AGAIN
    return ((values >> 9) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def find_codes(
    values: tl.tensor,
    random: tl.tensor,
    cell_levels: tl.tensor,
    levels: tl.tensor,
    CELLS: tl.constexpr,
) -> tl.tensor:
    """Codes (int32) of flat values in [-1, 1], rounded up where they exceed `random` in [1, 2).

    A cell holds at most one level above -1. The cell comes from the low bits of a sum whose last
    place is one; one comparison with the level named by the cell then finishes the search, and the
    neighbour on the value's side is all that rounding needs. The level after the last is infinity.
    """
    position = values * (CELLS // 2) + (8388608.0 + CELLS // 2)
    cell = tl.minimum(position.to(tl.int32, bitcast=True) & (2 * CELLS - 1), CELLS - 1)
    near = tl.gather(cell_levels, cell, 0).to(tl.int32)
    border = tl.gather(levels, near, 0)
    above = values >= border
    other = tl.gather(levels, near + tl.where(above, 1, -1), 0)
    gap = tl.abs(other - border)
    up = (values - tl.where(above, border, other)) > (random * gap - gap)
    return tl.where(above, near, near - 1) + up.to(tl.int32)


@triton.jit
def over_segments(
    values: tl.tensor, segment: tl.tensor, SEGMENTS: tl.constexpr, ADD: tl.constexpr
) -> tl.tensor:
    """For each chunk the sum or the maximum over the chunks of its segment."""
    if SEGMENTS == 0:
        result = values
    else:
        chosen = segment[:, None] == tl.arange(0, SEGMENTS)[None, :]
        spread = tl.where(chosen, values[:, None], tl.zeros_like(values)[:, None])
        total = tl.sum(spread, axis=0) if ADD else tl.max(spread, axis=0)
        result = tl.gather(total, tl.minimum(segment, SEGMENTS - 1), 0)
    return result


@triton.jit
def update_exact(
    fields: tl.tensor,
    tile: tl.tensor,
    pointers: tl.tensor,
    numbers: tl.tensor,
    DTYPE: tl.constexpr,
    SIZE: tl.constexpr,
) -> tl.tensor:
    """AdamW on `SIZE` consecutive elements of a tensor."""
    entry = tl.load(fields + ENTRY)
    param = address(pointers + 2 * entry, DTYPE, 1)
    grad = address(pointers + 2 * entry + 1, DTYPE, 1)
    first = address(fields + FIRST, tl.float32, 1)
    second = address(fields + SCALE, tl.float32, 1)
    number = numbers + 8 * entry
    size, correction, eps = tl.load(number + 1), tl.load(number + 3), tl.load(number + 6)
    weight, square_weight = tl.load(number + 4), tl.load(number + 5)
    decay, sign = tl.load(number), tl.load(number + 7)
    count = tl.load(fields + TOTAL_ROWS)
    for start in range(0, SIZE, 1024):
        offset = tile.to(tl.int64) * SIZE + start + tl.arange(0, 1024)
        mask = offset < count
        g = tl.load(grad + offset, mask=mask, other=0).to(tl.float32) * sign
        p = tl.load(param + offset, mask=mask, other=0).to(tl.float32) * decay
        mean = tl.load(first + offset, mask=mask, other=0)
        square = tl.load(second + offset, mask=mask, other=0)
        mean = (1 - weight) * mean + weight * g
        square = (1 - square_weight) * square + square_weight * (g * g)
        p -= size * (mean / (tl.sqrt_rn(square) / correction + eps))
        tl.store(param + offset, p.to(DTYPE), mask=mask)
        tl.store(first + offset, mean, mask=mask)
        tl.store(second + offset, square, mask=mask)


@triton.jit
def advance_blocks(
    fields: tl.tensor,
    number: tl.tensor,
    squares: tl.tensor,
    row: tl.tensor,
    row_unit: tl.tensor,
    columns: tl.tensor,
    column: tl.tensor,
    valid: tl.tensor,
) -> tl.tensor:
    """Advance the blocks' second moment from sums of squares; return 1 / (sqrt(v / c) + eps)."""
    length = (tl.load(fields + UNIT) * tl.load(fields + LENGTH)).to(tl.int32)
    place = row.to(tl.int64) * tl.load(fields + UNITS) + row_unit
    second = address(fields + SECOND, tl.float32, 4) + place
    old = tl.load(second, mask=valid, other=0)
    tl.debug_barrier()  # all chunks of a block have read it before one writes it
    count = tl.maximum(tl.minimum(columns - row_unit * length, length), 1)
    mean = squares / count.to(tl.float32)
    mean = tl.where(mean > LARGEST, LARGEST, mean)
    new = old + tl.load(number + 5) * (mean - old)
    tl.store(second, new, mask=valid & (column == row_unit * length))
    return 1.0 / (tl.sqrt_rn(new) / tl.load(number + 3) + tl.load(number + 6))
