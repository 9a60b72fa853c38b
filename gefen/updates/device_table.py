"""The table of matrices for the Triton kernel of the sums: addresses, sizes, strips of rows.

A table is made once for a set of parameters and is plain integers until it is uploaded. Its
columns are those that `triton_sums` reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gefen.updates.entry import Entry

TILE_ROWS, TILE_COLUMNS = 32, 256  # what a program of the sums reads at a time
SCRATCH_COLUMNS = 9 * 2**17  # float64 sums of the strips' columns: 9 MiB
WAVE_COLUMNS = 6 * 2**17  # two float32 factors for each column of a wave: 6 MiB
MAX_COLUMNS = WAVE_COLUMNS
_STRIP_ELEMENTS = 1 << 16  # a smaller strip would hardly pay for its sums
EXACT, ALIGNED, OTHER = 0, 1, 2

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Experts `[start, stop)` of the entry with number `number`; all of it but for huge stacks."""

    number: int
    entry: Entry
    start: int
    stop: int
    aligned: bool

    @property
    def columns(self) -> int:
        """Column factors of the piece."""
        return (self.stop - self.start) * self.entry.geometry.columns

    @property
    def kind(self) -> int:
        """EXACT, ALIGNED (rows and groups are whole vectors of 16 bytes of codes) or OTHER."""
        if self.entry.layout.geometry is None:
            return EXACT
        geometry = self.entry.geometry
        step = 16 if self.entry.layout.first_moment_bits == 8 else 32
        whole = geometry.columns % step == 0 and (
            geometry.groups_per_row == 1 or geometry.group_length % step == 0
        )
        whole = whole and self.entry.state["index"].data_ptr() % 16 == 0
        return ALIGNED if whole and self.aligned else OTHER


def waves(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Cut pieces with a factored second moment into lists whose scratch memory has its limit."""
    lists: list[list[Piece]] = []
    columns = 0
    for piece in pieces:
        if not lists or columns + piece.columns > WAVE_COLUMNS:
            lists.append([])
            columns = 0
        lists[-1].append(piece)
        columns += piece.columns
    return lists


def cut_experts(number: int, entry: Entry, *, aligned: bool) -> list[Piece]:
    """Return an entry as pieces none of which has more columns than a wave."""
    if entry.layout.geometry is None or not entry.layout.factored:
        experts = 1 if entry.layout.geometry is None else entry.geometry.experts
        return [Piece(number, entry, 0, experts, aligned)]
    experts = entry.geometry.experts
    step = max(1, WAVE_COLUMNS // entry.geometry.columns)
    starts = range(0, experts, step)
    return [Piece(number, entry, a, min(a + step, experts), aligned) for a in starts]


@dataclass(frozen=True)
class Sums:
    """The table of matrices of a wave and of the strips of its programs.

    `matrices` int64 (matrices, FIELDS), `strips` int32 (programs, 2), `kinds` the set of kinds
    of alignment; `first` gives for each piece its first matrix; `factors` counts the columns.
    """

    matrices: _Ints
    strips: NDArray[np.int32]
    kinds: int
    first: list[int]
    factors: int


def sums_table(wave: Sequence[Piece], slot: int, row_start: int, column_start: int) -> Sums:
    """Plan the sums of a wave; `slot`, `row_start` and `column_start` are its first positions."""
    sizes = [(p.entry.geometry.rows, p.entry.geometry.columns) for p in wave]
    counts = _strip_counts([(p.stop - p.start, *s) for p, s in zip(wave, sizes, strict=True)])
    matrices: list[list[int]] = []
    programs, first, scratch, factors = [], [], 0, 0
    for piece, (rows, columns), count in zip(wave, sizes, counts, strict=True):
        strip_rows = -(-rows // count)
        strip_rows += -strip_rows % TILE_ROWS
        count = -(-rows // strip_rows)
        factors += -factors % 16  # whole vectors
        first.append(len(matrices))
        state = piece.entry.state
        for expert in range(piece.start, piece.stop):
            programs += [(strip_rows * columns, len(matrices), s) for s in range(count)]
            matrices.append(
                [
                    piece.number,
                    expert * rows * columns,
                    rows,
                    columns,
                    state["row_mean"].data_ptr() + 4 * expert * rows,
                    state["column_mean"].data_ptr() + 4 * expert * columns,
                    count,
                    strip_rows,
                    scratch,
                    piece.entry.geometry.matrix_rows,
                    slot + len(matrices),
                    row_start,
                    column_start,
                    int(piece.aligned and columns % 16 == 0),
                    factors,
                ]
            )
            scratch += count * columns
            factors += columns
            row_start += rows
            column_start += columns
    # The largest first: what runs last decides how long processors wait for one another.
    programs.sort(key=lambda program: (-program[0], program[1], program[2]))
    table = np.array(matrices, dtype=np.int64)
    kinds = sum({1 if row[13] else 2 for row in matrices})
    strips = np.array([p[1:] for p in programs], dtype=np.int32)
    return Sums(table, strips, kinds, first, factors + -factors % 16)


def _strip_counts(sizes: Sequence[tuple[int, int, int]]) -> list[int]:
    """Strips of each (experts, rows, columns): as many as scratch memory and usefulness allow."""
    elements = _STRIP_ELEMENTS
    while True:
        counts = [max(1, min(r * c // elements, -(-r // TILE_ROWS))) for _, r, c in sizes]
        total = sum(e * c * count for (e, _, c), count in zip(sizes, counts, strict=True))
        if total <= SCRATCH_COLUMNS or max(counts) == 1:
            return counts
        elements += elements // 4
