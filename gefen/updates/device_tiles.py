"""The table of tensors for the Triton kernel of the update, and which program has what.

A table is made once for a set of parameters and is plain integers until it is uploaded. Its
columns are those that `triton_pieces` names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gefen.updates.device_table import EXACT, Piece, Sums
from gefen.updates.entry import Entry

WIDTH = 64  # columns of a chunk
CHUNKS = (64, 128)  # of a program
_FEW_SEGMENTS, _MANY_SEGMENTS = 16, CHUNKS[-1]
_GUESS_EVERY = 64


def chunks_of_unit(entry: Entry) -> tuple[int, int]:
    """Return chunks of a group, and of a unit: a block in the block form, else a group."""
    geometry = entry.geometry
    of_group = -(-geometry.group_length // WIDTH)
    groups = 1 if entry.layout.factored else geometry.groups_per_block
    return of_group, of_group * groups


@dataclass(frozen=True)
class Tiling:
    """Programs of `chunks` chunks that have at most `limit` groups of several chunks."""

    chunks: int
    limit: int

    def units_here(self, piece: Piece) -> int:
        """Units of a program of a tensor with groups."""
        of_group, of_unit = chunks_of_unit(piece.entry)
        return max(1, min(self.chunks // of_unit, self.limit * of_group // of_unit))

    def programs(self, piece: Piece) -> int:
        """Programs of a tensor."""
        if piece.kind == EXACT:
            return -(-piece.entry.param.numel() // (self.chunks * WIDTH))
        geometry = piece.entry.geometry
        rows = (piece.stop - piece.start) * geometry.rows
        factored = piece.entry.layout.factored
        units = geometry.groups_per_row if factored else geometry.blocks_per_row
        return -(-rows * units // self.units_here(piece))

    def cost(self, pieces: Sequence[Piece]) -> int:
        """Chunks that all programs have room for."""
        return self.chunks * sum(self.programs(piece) for piece in pieces)


def tiling_for(pieces: Sequence[Piece]) -> Tiling:
    """Choose small programs with few groups, unless these are clearly emptier."""
    of_unit = [chunks_of_unit(piece.entry) for piece in pieces]
    few = _FEW_SEGMENTS if any(group > 1 for group, _ in of_unit) else _MANY_SEGMENTS
    largest = max((unit for _, unit in of_unit), default=1)
    choices = [
        Tiling(chunks, limit)
        for chunks in CHUNKS
        for limit in (few, _MANY_SEGMENTS)
        if largest <= chunks
    ]
    least = min(choice.cost(pieces) for choice in choices)
    return next(choice for choice in choices if choice.cost(pieces) <= 1.125 * least)


@dataclass(frozen=True)
class Updates:
    """The table of tensors of one launch of the update.

    `tensors` int64 (tensors, FIELDS); `starts` int32, the first program of each tensor and the
    number of programs; `guesses` int32, the tensor of every 64th program. The segments are the
    kernel's SCALE_SEGMENTS and BLOCK_SEGMENTS, `chunks` is CHUNKS, `kinds` the set of kinds, one
    bit each.
    """

    tensors: NDArray[np.int64]
    starts: NDArray[np.int32]
    guesses: NDArray[np.int32]
    scale_segments: int
    block_segments: int
    kinds: int
    chunks: int


def updates_table(pieces: Sequence[Piece], sums: Sums | None) -> Updates:
    """Plan the update of pieces of one form and number of bits, and of exact tensors."""
    grouped = [piece for piece in pieces if piece.kind != EXACT]
    tiling = tiling_for(grouped)
    of_unit = [chunks_of_unit(piece.entry) for piece in grouped]
    units = [tiling.units_here(piece) for piece in grouped]
    parts = [count * unit // group for count, (group, unit) in zip(units, of_unit, strict=True)]
    scales = _power_of_two(max(parts)) if any(group > 1 for group, _ in of_unit) else 0
    blocks = _power_of_two(max(units)) if any(unit > 1 for _, unit in of_unit) else 0
    rows = [_tensor_row(piece, sums, place, tiling) for place, piece in enumerate(pieces)]
    programs = [tiling.programs(piece) for piece in pieces]
    starts = np.concatenate([[0], np.cumsum(programs)]).astype(np.int32)
    every = np.arange(0, starts[-1], _GUESS_EVERY)
    guesses = np.searchsorted(starts, every, side="right").astype(np.int32) - 1
    kinds = sum({1 << piece.kind for piece in pieces})
    table = np.array(rows, dtype=np.int64)
    return Updates(table, starts, guesses, scales, blocks, kinds, tiling.chunks)


def _power_of_two(count: int) -> int:
    return max(2, 1 << (count - 1).bit_length())


def _tensor_row(piece: Piece, sums: Sums | None, position: int, tiling: Tiling) -> list[int]:
    entry, state = piece.entry, piece.entry.state
    if piece.kind == EXACT:
        first, second = state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()
        row = [EXACT, piece.number, first, second] + [0] * 16
        row[10] = entry.param.numel()
        return row
    geometry, factored = entry.geometry, entry.layout.factored
    row_bytes = -(-geometry.columns * entry.layout.first_moment_bits // 8)
    skipped = piece.start * geometry.rows
    factors = inverses = means = 0
    if factored:
        assert sums is not None
        matrix = sums.matrices[sums.first[position]]
        factors, inverses, means = matrix[14], sums.factors, matrix[10]
    lead = geometry.rows if len(geometry.lead) == 2 else 1
    return [
        piece.kind,
        piece.number,
        state["index"].data_ptr() + skipped * row_bytes,
        state["scale"].data_ptr() + 4 * skipped * geometry.groups_per_row,
        state["row_mean"].data_ptr() + 4 * skipped
        if factored
        else state["second_moment"].data_ptr(),
        factors,
        inverses,
        means,
        geometry.columns,
        geometry.rows,
        (piece.stop - piece.start) * geometry.rows,
        geometry.group_length,
        geometry.groups_per_row,
        1 if factored else geometry.groups_per_block,
        geometry.groups_per_row if factored else geometry.blocks_per_row,
        tiling.units_here(piece),
        entry.shard_start * lead + skipped,
        row_bytes,
        skipped * geometry.columns,
        0,
    ]
