"""The update of CPU tensors by compiled kernels: their table, and the calls.

The kernels (cpu_kernel.cpp) walk through a table of tasks: a parameter that is kept exactly or has
a second moment by blocks, or one matrix of a parameter whose second moment is factored.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gefen.codebook import BINS
from gefen.codes import Codes
from gefen.updates.cpu_library import library
from gefen.updates.entry import Entry
from gefen.updates.memory import CPU_DTYPES, is_addressable, takes_gradient
from gefen.updates.square_sums import SquareSums

MAX_GROUP = 1 << 16  # elements of a group, for each of which a thread has 13 bytes of scratch
_ELEMENTS = {dtype: number for number, dtype in enumerate(CPU_DTYPES)}
_EXACT, _BLOCK, _FACTORED = 0, 1, 2
_SUMS, _UPDATE, _HISTOGRAM = 0, 1, 2

_POINTERS = ("param", "grad", "index", "scale", "first", "second", "row_mean", "column_mean")
_SIZES = ("rows", "columns", "matrix_rows", "first_row", "group_length", "groups")
_TASK = np.dtype(
    [
        *((name, np.uint64) for name in (*_POINTERS, "row_sums", "column_sums", "codes")),
        *((name, np.int64) for name in (*_SIZES, "groups_per_block")),
        ("numbers", np.float64, 8),
        ("key", np.uint32),
        *((name, np.int32) for name in ("kind", "bits", "element")),
    ],
    align=True,
)


def supports(entry: Entry) -> bool:
    """Return whether the kernels take a parameter: its device, dtype, layout and memory."""
    layout, geometry = entry.layout, entry.layout.geometry
    if entry.param.device.type != "cpu" or not is_addressable(entry, CPU_DTYPES):
        return False
    if geometry is None:
        return layout.second_moment == "none"
    known = layout.quantized and layout.second_moment in ("factored", "block")
    return known and not geometry.flat and geometry.group_length <= MAX_GROUP


class CpuUpdate:
    """Supported parameters, as a table that the kernels walk through."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Build the table; raise RuntimeError unless the kernels are there (see `library`)."""
        loaded = library()
        if loaded is None or loaded.gefen_task_bytes() != _TASK.itemsize:
            raise RuntimeError("The kernels of the CPU are not available.")
        self._run = loaded.gefen_run
        self.entries = entries
        tasks = [(i, task) for i, entry in enumerate(entries) for task in _tasks(entry)]
        self._owner = np.array([i for i, _ in tasks], dtype=np.intp)
        self._table = np.zeros(len(tasks), dtype=_TASK)
        for target, (_, task) in zip(self._table, tasks, strict=True):
            for name, value in task.items():
                target[name] = value
        self._grad_offset = self._table["grad"].copy()
        self._codes: dict[int, tuple[Codes, _Tables]] = {}

    @staticmethod
    def part_key(entry: Entry) -> Hashable:
        """Parameters of all dtypes share a table."""
        return None

    @staticmethod
    def takes(entry: Entry) -> bool:
        """Whether the gradient of this step can be read."""
        return takes_gradient(entry)

    def set_codes(self, codes: Sequence[Codes | None]) -> None:
        """Take each parameter's learned codebook, None where it has none."""
        self._codes = {id(own): (own, _Tables.of(own)) for own in codes if own is not None}
        pointers = [0 if own is None else self._codes[id(own)][1].pointer for own in codes]
        self._table["codes"] = np.array(pointers, dtype=np.uint64)[self._owner]

    def sums(self) -> list[SquareSums | None]:
        """Return each factored parameter's sums of squares over rows and columns, else None."""
        sums = [_empty_sums(entry) if entry.layout.factored else None for entry in self.entries]
        self._call(_SUMS, sums)
        return sums

    def histogram(self, sums: Sequence[SquareSums | None]) -> Tensor:
        """Return the histogram (int64, BINS) of the gradients' groups, all of them quantised.

        As `gefen.updates.statistics.gradient_histogram`; `sums` are those of these gradients.
        """
        bins = torch.zeros(BINS, dtype=torch.int64)
        signs = [-1.0 if entry.group["maximize"] else 1.0 for entry in self.entries]
        self._table["numbers"][:, 7] = np.array(signs)[self._owner]
        self._call(_HISTOGRAM, sums, bins.data_ptr())
        return bins

    def update(
        self,
        numbers: NDArray[np.float64],
        keys: NDArray[np.uint32],
        sums: Sequence[SquareSums | None],
    ) -> None:
        """Perform a step with `numbers` (n, 8) and `keys` (n,), see `gefen.updates.numbers`.

        Sums of squares that are None are computed here, while their gradients are in the cache.
        """
        self._table["numbers"] = numbers[self._owner]
        self._table["key"] = keys[self._owner]
        self._call(_UPDATE, sums)

    def _call(self, phase: int, sums: Sequence[SquareSums | None], bins: int | None = None) -> None:
        grads = np.array([entry.grad.data_ptr() for entry in self.entries], dtype=np.uint64)
        self._table["grad"] = grads[self._owner] + self._grad_offset
        self._table["row_sums"] = self._table["column_sums"] = 0
        if any(own is not None for own in sums):
            self._point_to(sums)
        threads = torch.get_num_threads()
        if self._run(self._table.ctypes.data, len(self._table), phase, bins, threads):
            raise RuntimeError("The memory for a step of Gefen could not be allocated.")

    def _point_to(self, sums: Sequence[SquareSums | None]) -> None:
        for task, owner in zip(self._table, self._owner, strict=True):
            own, entry = sums[owner], self.entries[owner]
            if own is not None:
                row = int(task["first_row"]) - _first_row(entry)
                task["row_sums"] = own.rows[row:].data_ptr()
                task["column_sums"] = own.columns[row // entry.geometry.rows].data_ptr()


def _tasks(entry: Entry) -> Iterator[dict[str, Any]]:
    """The tasks of a parameter; `grad` is an offset in bytes."""
    layout, state = entry.layout, entry.state
    address = {name: state[name].data_ptr() for name in layout.fields()}
    common = {
        "element": _ELEMENTS[entry.param.dtype],
        "bits": layout.first_moment_bits,
        "param": entry.param.data_ptr(),
    }
    if layout.geometry is None:
        sizes = dict.fromkeys((*_SIZES, "groups_per_block"), 1)
        moments = {"first": address["exp_avg"], "second": address["exp_avg_sq"]}
        yield common | sizes | moments | {"kind": _EXACT, "rows": entry.param.numel()}
        return
    g, item = layout.geometry, entry.param.element_size()
    row_bytes = g.columns if layout.first_moment_bits == 8 else -(-g.columns // 2)
    # Rows of the block form have nothing in common: they are one matrix.
    matrices, rows = (g.experts, g.rows) if layout.factored else (1, g.total_rows)
    for expert in range(matrices):
        row = expert * rows
        task = common | {
            "kind": _FACTORED if layout.factored else _BLOCK,
            "param": common["param"] + item * row * g.columns,
            "grad": item * row * g.columns,
            "index": address["index"] + row * row_bytes,
            "scale": address["scale"] + 4 * row * g.groups_per_row,
            "rows": rows,
            "columns": g.columns,
            "matrix_rows": g.matrix_rows,
            "first_row": _first_row(entry) + row,
            "group_length": g.group_length,
            "groups": g.groups_per_row,
            "groups_per_block": g.groups_per_block,
        }
        if layout.factored:
            task["row_mean"] = address["row_mean"] + 4 * row
            task["column_mean"] = address["column_mean"] + 4 * expert * g.columns
        else:
            task["second"] = address["second_moment"]
        yield task


def _first_row(entry: Entry) -> int:
    """The number, in the whole parameter, of the first row of a shard."""
    stacked = len(entry.geometry.lead) == 2
    return entry.shard_start * (entry.geometry.rows if stacked else 1)


def _empty_sums(entry: Entry) -> SquareSums:
    g = entry.geometry
    rows = torch.empty(g.total_rows, dtype=torch.float64)
    return SquareSums(rows, torch.empty(g.experts, g.columns, dtype=torch.float64))


@dataclass(frozen=True)
class _Tables:
    """A codebook's tables for the kernels, and their addresses in the order of struct Codes."""

    segments: Tensor
    addresses: NDArray[np.uint64]

    @property
    def pointer(self) -> int:
        """The address of the struct."""
        return int(self.addresses.ctypes.data)

    @classmethod
    def of(cls, codes: Codes) -> "_Tables":
        levels, slopes = (x.view(torch.float32) for x in (codes.levels_bits, codes.slope_bits))
        above = levels.roll(-1)
        above[int((levels < 1).sum()) :] = torch.inf
        segments = torch.stack([levels, slopes, above, slopes.roll(-1)], dim=1).contiguous()
        tables = (codes.levels_bits, segments, codes.below)
        return cls(segments, np.array([table.data_ptr() for table in tables], dtype=np.uint64))
