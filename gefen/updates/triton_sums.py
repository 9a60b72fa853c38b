"""Sums of squares of many gradients in one launch, in Triton, for the factored second moment.

A program reads a strip of rows of one matrix. Sums over a row are complete in the strip; sums over
the strip's columns go to memory that only this program touches. The last program of a matrix to
finish adds the strips up in their order, whoever it is, so that results repeat bit for bit without
a second launch. Sums of a tile are float32, everything above it is float64.
"""

import triton
import triton.language as tl

from gefen.updates import triton_pieces as pieces

# Loops are `while`: a range over loaded numbers is beyond the interpreter.

# Columns of the table of matrices, int64, one row a matrix (`gefen.updates.device_table`).
FIELDS = tl.constexpr(15)
ENTRY = tl.constexpr(0)
OFFSET = tl.constexpr(1)  # of the matrix in its gradient, in elements
ROWS = tl.constexpr(2)
COLUMNS = tl.constexpr(3)
ROW_MEAN = tl.constexpr(4)  # address
COLUMN_MEAN = tl.constexpr(5)  # address
STRIPS = tl.constexpr(6)  # how many
STRIP_ROWS = tl.constexpr(7)
SCRATCH = tl.constexpr(8)  # position of the strips' sums
MATRIX_ROWS = tl.constexpr(9)  # on all ranks together
SLOT = tl.constexpr(10)  # of `means` and `counters`
ROW_SUMS = tl.constexpr(11)  # position in `row_sums`
COLUMN_SUMS = tl.constexpr(12)  # position in `column_sums`
ALIGNED = tl.constexpr(13)
FACTORS = tl.constexpr(14)  # position of the columns' factors


@triton.jit
def _advance_rows(
    matrix: tl.tensor, rows: tl.tensor, sums: tl.tensor, mask: tl.tensor, weight: tl.tensor
) -> None:
    """r <- r + weight (mean - r) for some rows of a matrix."""
    state = pieces.address(matrix + ROW_MEAN, tl.float32, 4) + rows
    mean = tl.minimum(sums / tl.load(matrix + COLUMNS).to(tl.float64), pieces.LARGEST)
    old = tl.load(state, mask=mask, other=0).to(tl.float64)
    tl.store(state, (old + weight.to(tl.float64) * (mean - old)).to(tl.float32), mask=mask)


@triton.jit
def _advance_columns(
    matrix: tl.tensor, columns: tl.tensor, sums: tl.tensor, mask: tl.tensor, weight: tl.tensor
) -> tl.tensor:
    """c <- c + weight (mean - c) for some columns; return old and new c."""
    state = pieces.address(matrix + COLUMN_MEAN, tl.float32, 4) + columns
    mean = tl.minimum(sums / tl.load(matrix + MATRIX_ROWS).to(tl.float64), pieces.LARGEST)
    old = tl.load(state, mask=mask, other=0)
    wide = old.to(tl.float64)
    new = (wide + weight.to(tl.float64) * (mean - wide)).to(tl.float32)
    tl.store(state, new, mask=mask)
    return old, new


@triton.jit
def _store_factors(
    factors: tl.tensor,
    inverses: tl.tensor,
    columns: tl.tensor,
    old: tl.tensor,
    new: tl.tensor,
    mask: tl.tensor,
) -> None:
    """sqrt(old c), and 1 / sqrt(new c) or zero."""
    root = tl.sqrt_rn(new)
    inverse = tl.where(root == 0, 0.0, tl.div_rn(1.0, tl.where(root == 0, 1.0, root)))
    tl.store(factors + columns, tl.sqrt_rn(old), mask=mask)
    tl.store(factors + inverses + columns, inverse, mask=mask)


@triton.jit
def _store_mean(matrix: tl.tensor, means: tl.tensor, total: tl.tensor) -> None:
    mean = (total / tl.load(matrix + COLUMNS).to(tl.float64)).to(tl.float32)
    # A matrix without any gradient so far has zero rows, a zero mean and no update.
    tl.store(means + tl.load(matrix + SLOT), tl.where(mean == 0, 1.0, mean))


@triton.jit
def _sum_strip(
    matrix: tl.tensor,
    strip: tl.tensor,
    pointers: tl.tensor,
    weight: tl.tensor,
    scratch: tl.tensor,
    row_sums: tl.tensor,
    DTYPE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    ADVANCE: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Sum one strip: its rows into r (or `row_sums`), its columns into `scratch`."""
    entry = tl.load(matrix + ENTRY)
    columns = tl.multiple_of(tl.load(matrix + COLUMNS).to(tl.int32), ALIGN)
    grad = pieces.address(pointers + 2 * entry + 1, DTYPE, ALIGN)
    grad += tl.multiple_of(tl.load(matrix + OFFSET), ALIGN)
    begin = strip * tl.load(matrix + STRIP_ROWS).to(tl.int32)
    end = tl.load(matrix + ROWS).to(tl.int32)
    end = tl.minimum(end, begin + tl.load(matrix + STRIP_ROWS).to(tl.int32))
    start = begin
    while start < end:
        row = start + tl.arange(0, TILE_ROWS)
        base = tl.multiple_of(row.to(tl.int64) * columns, ALIGN)
        total = tl.zeros([TILE_ROWS], tl.float64)
        left = tl.zeros([], tl.int32)
        while left < columns:
            column = left + tl.arange(0, TILE_COLUMNS)
            inside = column < columns
            mask = (row < end)[:, None] & inside[None, :]
            sums = tl.load(scratch + column, mask=inside & (start > begin), other=0.0)
            g = tl.load(grad + (base[:, None] + column[None, :]), mask=mask, other=0)
            square = g.to(tl.float32) * g.to(tl.float32)
            # What is not finite reaches its own group through the first moment, nothing further.
            square = tl.minimum(tl.where(square == square, square, 0.0), pieces.LARGEST)
            part = tl.minimum(tl.sum(square, axis=1), pieces.LARGEST)
            total += part.to(tl.float64)
            part = tl.minimum(tl.sum(square, axis=0), pieces.LARGEST)
            tl.store(scratch + column, sums + part.to(tl.float64), mask=inside)
            left += TILE_COLUMNS
        if ADVANCE:
            _advance_rows(matrix, row, total, row < end, weight)
        else:
            tl.store(row_sums + tl.load(matrix + ROW_SUMS) + row, total, mask=row < end)
        tl.debug_barrier()  # the next rows read the columns' sums that these have written
        start += TILE_ROWS


@triton.jit
def _finish_matrix(
    matrix: tl.tensor,
    weight: tl.tensor,
    scratch: tl.tensor,
    factors: tl.tensor,
    inverses: tl.tensor,
    means: tl.tensor,
    column_sums: tl.tensor,
    TILE_COLUMNS: tl.constexpr,
    ADVANCE: tl.constexpr,
) -> None:
    """Add the strips up; advance c and leave the factors, or leave the sums."""
    columns = tl.load(matrix + COLUMNS).to(tl.int32)
    strips = tl.load(matrix + STRIPS).to(tl.int32)
    total = tl.zeros([1], tl.float64)
    left = tl.zeros([], tl.int32)
    while left < columns:
        column = left + tl.arange(0, TILE_COLUMNS)
        inside = column < columns
        sums = tl.zeros([TILE_COLUMNS], tl.float64)
        strip = tl.zeros([], tl.int32)
        while strip < strips:
            place = scratch + strip.to(tl.int64) * columns + column
            # Other programs wrote these: a cache of this processor must not answer.
            sums += tl.load(place, mask=inside, other=0.0, cache_modifier=".cg")
            strip += 1
        if ADVANCE:
            old, new = _advance_columns(matrix, column, sums, inside, weight)
            total += tl.sum(tl.where(inside, new, 0.0).to(tl.float64), axis=0)
            _store_factors(factors, inverses, column, old, new, inside)
        else:
            tl.store(column_sums + tl.load(matrix + COLUMN_SUMS) + column, sums, mask=inside)
        left += TILE_COLUMNS
    if ADVANCE:
        _store_mean(matrix, means, tl.sum(total, axis=0))


@triton.jit
def sums_kernel(
    matrices: tl.tensor,
    strip_of_program: tl.tensor,
    pointers: tl.tensor,
    numbers: tl.tensor,
    scratch: tl.tensor,
    factors: tl.tensor,
    inverses: tl.tensor,
    counters: tl.tensor,
    means: tl.tensor,
    row_sums: tl.tensor,
    column_sums: tl.tensor,
    DTYPE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    ADVANCE: tl.constexpr,
    KINDS: tl.constexpr,
) -> None:
    """Sum the squares of one strip; the last program of a matrix finishes the matrix.

    `strip_of_program` (int32, (programs, 2)) names matrix and strip, `scratch` is float64,
    `counters` (int32) are zero before and after. With `ADVANCE` the second moment is advanced and
    `factors` and `means` hold the factors, else the sums go to `row_sums` and `column_sums`
    (float64). `KINDS`: bit 0, there are aligned matrices, bit 1, others.
    """
    program = tl.program_id(0)
    matrix = matrices + tl.load(strip_of_program + 2 * program) * FIELDS
    strip = tl.load(strip_of_program + 2 * program + 1)
    weight = tl.load(numbers + 8 * tl.load(matrix + ENTRY) + 5) if ADVANCE else 0.0
    base = scratch + tl.load(matrix + SCRATCH)
    own = base + strip.to(tl.int64) * tl.load(matrix + COLUMNS)
    aligned = tl.load(matrix + ALIGNED)
    if KINDS & 1:
        if aligned == 1:
            _sum_strip(matrix, strip, pointers, weight, own, row_sums, DTYPE, TILE_ROWS,
                       TILE_COLUMNS, ADVANCE, 16)  # fmt: skip
    if KINDS & 2:
        if aligned == 0:
            _sum_strip(matrix, strip, pointers, weight, own, row_sums, DTYPE, TILE_ROWS,
                       TILE_COLUMNS, ADVANCE, 1)  # fmt: skip
    tl.debug_barrier()  # all of this program has written before it counts itself
    counter = counters + tl.load(matrix + SLOT)
    done = tl.atomic_add(counter, 1, sem="acq_rel")
    if done == tl.load(matrix + STRIPS) - 1:
        place = factors + tl.load(matrix + FACTORS)
        _finish_matrix(matrix, weight, base, place, inverses, means, column_sums, TILE_COLUMNS,
                       ADVANCE)  # fmt: skip
        tl.store(counter, 0)


@triton.jit
def advance_kernel(
    matrices: tl.tensor,
    numbers: tl.tensor,
    factors: tl.tensor,
    inverses: tl.tensor,
    means: tl.tensor,
    row_sums: tl.tensor,
    column_sums: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Advance the second moment of one matrix from sums that were added up over shards."""
    matrix = matrices + tl.program_id(0) * FIELDS
    weight = tl.load(numbers + 8 * tl.load(matrix + ENTRY) + 5)
    rows, columns = tl.load(matrix + ROWS), tl.load(matrix + COLUMNS).to(tl.int32)
    start = tl.zeros([], tl.int32)
    while start < rows:
        row = start + tl.arange(0, TILE)
        sums = tl.load(row_sums + tl.load(matrix + ROW_SUMS) + row, mask=row < rows, other=0.0)
        _advance_rows(matrix, row, sums, row < rows, weight)
        start += TILE
    total = tl.zeros([1], tl.float64)
    left = tl.zeros([], tl.int32)
    while left < columns:
        column = left + tl.arange(0, TILE)
        inside = column < columns
        place = column_sums + tl.load(matrix + COLUMN_SUMS) + column
        sums = tl.load(place, mask=inside, other=0.0)
        old, new = _advance_columns(matrix, column, sums, inside, weight)
        total += tl.sum(tl.where(inside, new, 0.0).to(tl.float64), axis=0)
        _store_factors(factors + tl.load(matrix + FACTORS), inverses, column, old, new, inside)
        left += TILE
    _store_mean(matrix, means, tl.sum(total, axis=0))
