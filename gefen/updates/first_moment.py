"""The first moment in its two forms: float32, or codes times the scale of their group."""

import torch
from torch import Tensor

from gefen.blocks import Geometry
from gefen.chunks import Chunk
from gefen.codes import Codes, cell_index, pack_nibbles, unpack_nibbles
from gefen.rounding import column_terms, random_integers, row_keys
from gefen.updates.rule import Step
from gefen.updates.scratch import Buffers

_SMALLEST = 2.0**-149  # of float32: as a lower bound it changes nothing but zero


def read_codes(
    index: Tensor,
    scale: Tensor,
    factor: Tensor | None,
    codes: Codes,
    buffers: Buffers,
    columns: int,
) -> Tensor:
    """Return the stored first moment of a chunk, (rows, groups, length), in `buffers.moment`.

    `index` are the codes (rows, bytes), `scale` is (rows, groups), `factor` what the columns were
    divided by, (1, groups, length), or None; `columns` the number of columns without padding.
    """
    moment, rows = buffers.moment, len(index)
    matrix = buffers.cells.view(rows, -1)
    if codes.bits == 4:
        unpack_nibbles(index, matrix[:, :columns])
    else:
        matrix[:, :columns].copy_(index)
    matrix[:, columns:].fill_(codes.zero_code)
    torch.index_select(codes.levels_bits, 0, buffers.cells, out=buffers.moment_bits)
    moment.mul_(scale.to(moment.dtype).unsqueeze(-1))
    return moment if factor is None else moment.mul_(factor)


def write_codes(
    index: Tensor,
    scale: Tensor,
    inverse: Tensor | None,
    codes: Codes,
    buffers: Buffers,
    columns: int,
) -> None:
    """Store the first moment in `buffers.moment`, which is overwritten, as scale and codes.

    `inverse` is one over the columns' factor, (1, groups, length), or None; `columns` the number
    of columns without padding. For stochastic rounding `buffers.random` holds integers in
    [0, 2^24).
    """
    moment = buffers.moment
    if inverse is not None:
        moment.mul_(inverse)
    torch.maximum(moment.amax(-1), moment.amin(-1).neg_(), out=scale)
    moment.div_(scale.to(moment.dtype).clamp_min(_SMALLEST).unsqueeze(-1))
    chosen = find_codes(codes, buffers).view(len(index), -1)[:, :columns]
    if codes.bits == 4:
        pack_nibbles(chosen, index)
    else:
        index.copy_(chosen)


def find_codes(codes: Codes, buffers: Buffers) -> Tensor:
    """Return the code (flat uint8) of each value of `buffers.moment`, all in [-1, 1]."""
    values, cells, position = buffers.moment.view(-1), buffers.cells, buffers.position
    cell_index(values, position, cells)
    torch.index_select(codes.threshold_bits, 0, cells, out=buffers.position_bits)
    torch.index_select(codes.below, 0, cells, out=buffers.codes)
    torch.ge(values, position, out=buffers.above)
    buffers.codes.add_(buffers.above_bits)
    if codes.stochastic:
        # Up with the probability (value - level) / (next level - level): the mean is the value.
        cells.copy_(buffers.codes)
        torch.index_select(codes.levels_bits, 0, cells, out=buffers.position_bits)
        values.sub_(position)
        torch.index_select(codes.slope_bits, 0, cells, out=buffers.position_bits)
        values.mul_(position)
        position.copy_(buffers.random)
        torch.gt(values, position, out=buffers.above)
        buffers.codes.add_(buffers.above_bits)
    return buffers.codes


def draw(geometry: Geometry, chunk: Chunk, shard_start: int, step: Step, buffers: Buffers) -> None:
    """Fill `buffers.random` with a chunk's random bits; `shard_start` counts along dimension 0."""
    device = buffers.random.device
    # A shard of stacked experts begins with an expert, which has several rows.
    shard_start *= geometry.rows if len(geometry.lead) == 2 else 1
    rows = torch.arange(chunk.row_start, chunk.row_stop, device=device).add_(shard_start)
    start = chunk.group_start * geometry.group_length
    terms = column_terms(start, start + chunk.groups * geometry.group_length, device)
    shape = (chunk.rows, len(terms))
    out, shifted = buffers.random.view(shape), buffers.shifted.view(shape)
    random_integers(row_keys(step.key, rows), terms, out, shifted)
