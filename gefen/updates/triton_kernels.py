"""The step of many parameters in one launch, in Triton: exact, block and factored, 8 and 4 bits.

A program holds `CHUNKS` chunks of `WIDTH` consecutive columns in registers. A chunk lies in one
group, the elements of one scale, and a program has whole groups (whole blocks in the block form):
a gradient, a parameter and a code are read once and written once. Groups of any length fill the
registers well: only their last chunk is partly empty. The formulas are those of
`gefen.updates.reference`; what the factored form needs of all rows comes from
`gefen.updates.triton_sums`.
"""

import triton
import triton.language as tl

from gefen.updates import triton_pieces as pieces


@triton.jit
def update_kernel(
    tensors: tl.tensor,
    starts: tl.tensor,
    guesses: tl.tensor,
    pointers: tl.tensor,
    numbers: tl.tensor,
    keys: tl.tensor,
    factors: tl.tensor,
    means: tl.tensor,
    levels: tl.tensor,
    cell_levels: tl.tensor,
    DTYPE: tl.constexpr,
    FACTORED: tl.constexpr,
    BITS: tl.constexpr,
    CELLS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    KINDS: tl.constexpr,
) -> None:
    """One program of the step of all tensors of a table.

    `tensors` (int64, (tensors, FIELDS)), `starts` (int32, first program of each tensor and the
    number of programs), `guesses` (int32, the tensor of every 64th program), `pointers` (int64,
    (entries, 2)), `numbers` (float32, (entries, 8)), `keys` (int32, (entries)); `factors` and
    `means` are what `triton_sums` left; `levels` (float32, twice the codes) and `cell_levels`
    (uint8, CELLS) are a codebook. `KINDS` is the set of kinds in the table, one bit each.
    """
    program = tl.program_id(0)
    tensor = tl.load(guesses + program // 64)
    while tl.load(starts + tensor + 1) <= program:
        tensor += 1
    fields = tensors + tensor * pieces.FIELDS
    tile = program - tl.load(starts + tensor)
    kind = tl.load(fields + pieces.KIND)
    if KINDS & 1:
        if kind == 0:
            pieces.update_exact(fields, tile, pointers, numbers, DTYPE, CHUNKS * WIDTH)
    if KINDS & 2:
        if kind == 1:
            _update_groups(
                fields, tile, pointers, numbers, keys, factors, means, levels, cell_levels,
                DTYPE, FACTORED, BITS, CELLS, CHUNKS, WIDTH, SCALE_SEGMENTS,
                BLOCK_SEGMENTS, 16,
            )  # fmt: skip
    if KINDS & 4:
        if kind == 2:
            _update_groups(
                fields, tile, pointers, numbers, keys, factors, means, levels, cell_levels,
                DTYPE, FACTORED, BITS, CELLS, CHUNKS, WIDTH, SCALE_SEGMENTS,
                BLOCK_SEGMENTS, 1,
            )  # fmt: skip


@triton.jit
def _update_groups(
    fields: tl.tensor,
    tile: tl.tensor,
    pointers: tl.tensor,
    numbers: tl.tensor,
    keys: tl.tensor,
    factors: tl.tensor,
    means: tl.tensor,
    levels: tl.tensor,
    cell_levels: tl.tensor,
    DTYPE: tl.constexpr,
    FACTORED: tl.constexpr,
    BITS: tl.constexpr,
    CELLS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE_SEGMENTS: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Update the groups of one program; `ALIGN` divides the lengths of rows and groups."""
    # Eight codes a thread: with sixteen, its loads of wider elements lie too far apart.
    CODE_ALIGN: tl.constexpr = 1 if ALIGN == 1 else 8
    entry = tl.load(fields + pieces.ENTRY)
    number = numbers + 8 * entry
    columns = tl.multiple_of(tl.load(fields + pieces.COLUMNS).to(tl.int32), ALIGN)
    groups = tl.load(fields + pieces.GROUPS).to(tl.int32)
    first_row, down, unit, row_unit, group, segment, position, column, valid, width = _places(
        fields, tile, columns, CHUNKS, WIDTH, ALIGN
    )
    row = first_row + down
    lane = tl.arange(0, WIDTH)
    mask = lane[None, :] < width[:, None]
    # Only the program's first row is far from the tensor's start.
    far = tl.load(fields + pieces.OFFSET) + first_row.to(tl.int64) * columns
    far = tl.multiple_of(far, ALIGN)
    offset = tl.multiple_of(down * columns + column, ALIGN)[:, None] + lane[None, :]
    grad = pieces.address(pointers + 2 * entry + 1, DTYPE, ALIGN) + far + offset
    g = tl.load(grad, mask=mask, other=0).to(tl.float32)
    param = pieces.address(pointers + 2 * entry, DTYPE, ALIGN) + far + offset
    p = tl.load(param, mask=mask, other=0).to(tl.float32)
    scale = pieces.address(fields + pieces.SCALE, tl.float32, 4)
    scale += first_row.to(tl.int64) * groups + (down * groups + group)
    stored_scale = (1 - tl.load(number + 4)) * tl.load(scale, mask=valid, other=0)

    level = tl.load(levels + tl.arange(0, 2 << BITS))
    index = pieces.address(fields + pieces.FIRST, tl.uint8, CODE_ALIGN)
    if BITS == 8:
        index += first_row.to(tl.int64) * columns + offset
        index_mask = mask
        code = tl.load(index, mask=index_mask, other=0)
    else:
        row_bytes = tl.multiple_of(tl.load(fields + pieces.ROW_BYTES), ALIGN)
        index += tl.multiple_of(first_row * row_bytes, ALIGN)
        start = tl.multiple_of(down * row_bytes.to(tl.int32) + column // 2, ALIGN)
        half = tl.arange(0, WIDTH // 2)[None, :]
        index += start[:, None] + half
        half_width = tl.multiple_of((width + 1) // 2, CODE_ALIGN)
        index_mask = half < half_width[:, None]
        code = tl.load(index, mask=index_mask, other=0)
        code = tl.interleave(code & 15, code >> 4)
    old = tl.gather(level, code.reshape(CHUNKS * WIDTH).to(tl.int32), 0).reshape(CHUNKS, WIDTH)
    g_part = tl.load(number + 4) * tl.load(number + 7) * g
    if FACTORED:
        relative, update = _factored_update(
            fields, number, factors, means, old, stored_scale, g_part, row, column, columns, valid,
            mask, ALIGN,
        )  # fmt: skip
    else:
        relative = old * stored_scale[:, None] + g_part
        squares = pieces.over_segments(tl.sum(g * g, axis=1), unit, BLOCK_SEGMENTS, True)
        rate = pieces.advance_blocks(fields, number, squares, row, row_unit, columns, column, valid)
        update = relative * rate[:, None]
    p = p * tl.load(number) - tl.load(number + 1) * update
    tl.store(param, p.to(DTYPE), mask=mask)

    # The largest magnitude: as integers, among which infinity and NaN are the largest.
    bits = tl.where(mask, relative.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
    largest = pieces.over_segments(tl.max(bits, axis=1), segment, SCALE_SEGMENTS, False)
    largest = largest.to(tl.float32, bitcast=True)
    tl.store(scale, largest, mask=valid & (position == 0))
    reciprocal = tl.where(largest > pieces.SMALLEST_SCALE, 1.0 / largest, 0.0)

    key = tl.load(keys + entry).to(tl.uint32, bitcast=True)
    key = pieces.row_keys(row + tl.load(fields + pieces.ROW_START), key)
    key += column.to(tl.uint32) * pieces.COLUMN_TERM
    random = pieces.random_floats(key[:, None] + (lane.to(tl.uint32) * pieces.COLUMN_TERM)[None, :])
    value = (relative * reciprocal[:, None]).reshape(CHUNKS * WIDTH)
    cells = tl.load(cell_levels + tl.arange(0, CELLS))
    code = pieces.find_codes(value, random.reshape(CHUNKS * WIDTH), cells, level, CELLS)
    code = code.reshape(CHUNKS, WIDTH)
    if BITS == 4:
        code = tl.where(mask, code, 0)
        low, high = tl.split(code.reshape(CHUNKS, WIDTH // 2, 2))
        code = low | (high << 4)
    tl.store(index, code.to(tl.uint8), mask=index_mask)


@triton.jit
def _places(
    fields: tl.tensor,
    tile: tl.tensor,
    columns: tl.tensor,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """Where the chunks of a program lie.

    Returns the first row, and for each chunk: rows below it, unit of the program, unit of the row,
    group of the row, group of the program, chunk of the group, first column, whether it exists, and
    its number of columns.
    """
    length = tl.multiple_of(tl.load(fields + pieces.LENGTH).to(tl.int32), ALIGN)
    unit_groups = tl.load(fields + pieces.UNIT).to(tl.int32)
    row_units = tl.load(fields + pieces.UNITS).to(tl.int32)
    units_here = tl.load(fields + pieces.UNITS_HERE).to(tl.int32)
    group_chunks = (length + WIDTH - 1) // WIDTH
    chunk = tl.arange(0, CHUNKS)
    unit = pieces.quotient(chunk, group_chunks * unit_groups)
    within = chunk - unit * (group_chunks * unit_groups)
    group_within = pieces.quotient(within, group_chunks)
    position = within - group_within * group_chunks
    first_row = (tile * units_here) // row_units
    spread = tile * units_here - first_row * row_units + unit
    down = pieces.quotient(spread, row_units)
    row_unit = spread - down * row_units
    group = row_unit * unit_groups + group_within
    column = tl.multiple_of(group * length + position * WIDTH, ALIGN)
    below = first_row + down < tl.load(fields + pieces.TOTAL_ROWS)
    valid = (unit < units_here) & below & (group < tl.load(fields + pieces.GROUPS))
    stop = tl.minimum(columns, (group + 1) * length)
    width = tl.where(valid, tl.minimum(stop - column, WIDTH), 0)
    width = tl.multiple_of(width, ALIGN)
    segment = unit * unit_groups + group_within
    return first_row, down, unit, row_unit, group, segment, position, column, valid, width


@triton.jit
def _factored_update(
    fields: tl.tensor,
    number: tl.tensor,
    factors: tl.tensor,
    means: tl.tensor,
    old: tl.tensor,
    stored_scale: tl.tensor,
    g_part: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    columns: tl.tensor,
    valid: tl.tensor,
    mask: tl.tensor,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """Return the first moment over its columns' factors, and the bounded step in units of size."""
    lane = tl.arange(0, old.shape[1])[None, :]
    matrix_rows = tl.load(fields + pieces.ROWS).to(tl.int32)
    expert = tl.zeros_like(row)
    if tl.load(fields + pieces.TOTAL_ROWS) > matrix_rows:
        expert = row // matrix_rows
    place = tl.load(fields + pieces.FACTORS).to(tl.int32) + expert * columns
    place = tl.multiple_of(place + column, ALIGN)[:, None] + lane
    old *= tl.load(factors + place, mask=mask, other=0)
    place += tl.load(fields + pieces.INVERSES).to(tl.int32)
    inverse = tl.load(factors + place, mask=mask, other=0)
    moment = old * stored_scale[:, None] + g_part
    mean = tl.load(means + tl.load(fields + pieces.MEANS) + expert, mask=valid, other=1)
    row_mean = pieces.address(fields + pieces.SECOND, tl.float32, 4)
    factor = tl.load(row_mean + row, mask=valid, other=0)
    factor = tl.sqrt_rn(factor / mean) / tl.load(number + 3)
    # Both parts of m / (row factor * column factor + eps) over the column factor. A row without
    # gradients so far has no moment either: 0 / 0 must not happen.
    factor = tl.maximum(factor, 1e-37)
    relative = moment * inverse
    root = tl.rsqrt(factor[:, None] + tl.load(number + 6) * inverse)
    bound = tl.load(number + 2)
    update = tl.minimum(tl.maximum(relative * root * root, -bound), bound)
    # The second term is zero, or NaN where the moment is not finite: a bound must not hide that.
    return relative, update + moment * 0.0
