"""The update on devices with Triton: what it supports, and its two launches a step."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from gefen.codes import Codes
from gefen.updates import device_table as table
from gefen.updates.device_codes import CodeTable
from gefen.updates.device_support import supports
from gefen.updates.device_table import Piece, Sums
from gefen.updates.device_tiles import WIDTH, Updates, updates_table
from gefen.updates.entry import Entry
from gefen.updates.square_sums import SquareSums
from gefen.updates.triton_kernels import update_kernel
from gefen.updates.triton_sums import advance_kernel, sums_kernel

__all__ = ["DeviceUpdate", "supports"]
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_WARPS = 8


@dataclass(frozen=True)
class _Wave:
    """What one or two launches need: plans and their tables on the device."""

    sums: Sums | None
    updates: Updates
    codes: CodeTable
    factored: bool
    matrices: Tensor
    strips: Tensor
    tensors: Tensor
    starts: Tensor
    guesses: Tensor


GRAPH_STEPS = 8  # tables for steps captured in CUDA graphs, made beforehand: 32 bytes a tensor


class DeviceUpdate:
    """The step of all supported parameters of one device and one dtype.

    Two launches for all parameters of one form and number of bits (one launch for the block form);
    where there are more than 700,000 column factors, two for each such share of them, so that
    scratch memory stays below 16 MiB. Parameters without groups travel along.

    Args:
        entries: parameters that `supports` accepts; their state stays where it is.
        codes: learned codes by number of bits, made for float32 with stochastic rounding.
    """

    def __init__(self, entries: Sequence[Entry], codes: Mapping[int, Codes]) -> None:
        self._entries = list(entries)
        self._device, dtype = entries[0].param.device, entries[0].param.dtype
        self._dtype = _DTYPES[dtype]
        self._codes = {bits: CodeTable.build(value) for bits, value in codes.items()}
        self._own = torch.zeros(len(entries), 2, dtype=torch.int64, device=self._device)
        self._pointers = self._own
        self._spare = [self._table_pair() for _ in range(GRAPH_STEPS)]
        self._known: list[tuple[int, int]] = []
        self._aligned: list[bool] = []
        self._kept: list[Tensor] = []
        self._compiling = False
        self._totals: tuple[Tensor, Tensor] | None = None
        self.set_tensors([e.param for e in entries], [e.grad for e in entries])

    @property
    def launches(self) -> int:
        """Kernel launches of a step."""
        return sum(2 if wave.factored else 1 for wave in self._waves)

    @property
    def scratch_bytes(self) -> int:
        """Memory of the object that is neither state nor table."""
        parts = (self._scratch, self._factors, self._means, self._counters)
        return sum(part.nbytes for part in parts)

    def set_tensors(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Take new addresses of contiguous parameters and gradients, in the entries' order.

        One asynchronous upload where any has moved, no synchronisation.
        """
        known = [(p.data_ptr(), g.data_ptr()) for p, g in zip(params, grads, strict=True)]
        capturing = self._capturing()
        if known == self._known and not capturing:
            return
        aligned = [p % 16 == 0 and g % 16 == 0 for p, g in known]
        if aligned != self._aligned:
            self._aligned = aligned
            self._plan()
        addresses = torch.tensor(known, dtype=torch.int64)
        if capturing:
            self._capture(addresses)
            return
        self._known, self._pointers = known, self._own
        pinned = addresses if self._device.type == "cpu" else addresses.pin_memory()
        self._own.copy_(pinned, non_blocking=True)

    def _capture(self, addresses: Tensor) -> None:
        """A captured step has a table of its own, filled in every replay, whatever others do."""
        if not self._spare:
            raise RuntimeError(
                f"One optimizer can be captured in at most {GRAPH_STEPS} steps of CUDA graphs."
            )
        self._pointers, staged = self._spare.pop()
        staged.copy_(addresses)
        self._pointers.copy_(staged, non_blocking=True)
        self._kept += [self._pointers, staged]
        self._known = []  # the next step outside the graph takes its own table again

    def compile(self, *, sharded: bool = False) -> None:
        """Compile the kernels of `run`, or of `sums` and `finish`, and launch none of them."""
        self._compiling = True
        try:
            if sharded:
                self.sums()
                self.finish(self._means, self._counters)
            else:
                self.run(self._means, self._counters)
        finally:
            self._compiling = False

    def run(self, numbers: Tensor, keys: Tensor) -> None:
        """Perform the step; `numbers` float32 (n, 8) and `keys` int32 (n) on the device."""
        with self._on_device():
            for wave in self._waves:
                if wave.factored:
                    self._launch_sums(wave, numbers, advance=True)
                self._launch_updates(wave, numbers, keys)

    def sums(self) -> list[SquareSums | None]:
        """Return each entry's sums of squares, None for forms without.

        They are memory that `finish` reads: columns may be added up over shards in place.
        """
        rows, columns = self._sum_memory()
        with self._on_device():
            for wave in self._waves:
                if wave.factored:
                    self._launch_sums(wave, self._means, advance=False)
        found: list[SquareSums | None] = [None] * len(self._entries)
        row = column = 0
        for number in self._order:
            geometry = self._entries[number].geometry
            wide = geometry.experts * geometry.columns
            found[number] = SquareSums(
                rows[row : row + geometry.total_rows],
                columns[column : column + wide].view(geometry.experts, geometry.columns),
            )
            row, column = row + geometry.total_rows, column + wide
        return found

    def finish(self, numbers: Tensor, keys: Tensor) -> None:
        """Perform the step from what `sums` returned."""
        with self._on_device():
            for wave in self._waves:
                if wave.sums is not None:
                    rows, columns = self._sum_memory()
                    self._launch(
                        advance_kernel, len(wave.matrices), wave.matrices, numbers, self._factors,
                        wave.sums.factors, self._means, rows, columns, TILE=table.TILE_COLUMNS,
                        num_warps=_WARPS,
                    )  # fmt: skip
                self._launch_updates(wave, numbers, keys)

    def _sum_memory(self) -> tuple[Tensor, Tensor]:
        if self._totals is None:
            geometries = [self._entries[number].geometry for number in self._order]
            sizes = (
                sum(g.total_rows for g in geometries),
                sum(g.experts * g.columns for g in geometries),
            )
            rows, columns = (
                torch.zeros(size, dtype=torch.float64, device=self._device) for size in sizes
            )
            self._totals = rows, columns
        return self._totals

    def _plan(self) -> None:
        kinds: dict[tuple[str, int], list[Piece]] = {}
        exact: list[Piece] = []
        for number, entry in enumerate(self._entries):
            pieces = table.cut_experts(number, entry, aligned=self._aligned[number])
            if entry.layout.geometry is None:
                exact += pieces
            else:
                key = (entry.layout.second_moment, entry.layout.first_moment_bits)
                kinds.setdefault(key, []).extend(pieces)
        if not kinds:
            kinds["block", 0] = []
        self._waves: list[_Wave] = []
        self._order: list[int] = []
        slots = rows = columns = scratch = factors = 0
        for (form, bits), pieces in kinds.items():
            for wave in table.waves(pieces) if form == "factored" else [pieces]:
                sums = None
                if form == "factored":
                    sums = table.sums_table(wave, slots, rows, columns)
                    self._order += [p.number for p in wave if p.start == 0]
                    slots += len(sums.matrices)
                    rows += int(sums.matrices[:, 2].sum())
                    columns += int(sums.matrices[:, 3].sum())
                    factors = max(factors, 2 * sums.factors)
                    scratch = max(scratch, int((sums.matrices[:, 3] * sums.matrices[:, 6]).sum()))
                self._waves.append(self._wave([*wave, *exact], sums, bits))
                exact = []
        self._totals = None
        self._scratch = torch.empty(max(1, scratch), dtype=torch.float64, device=self._device)
        self._factors = torch.empty(max(1, factors), dtype=torch.float32, device=self._device)
        self._means = torch.empty(max(1, slots), dtype=torch.float32, device=self._device)
        self._counters = torch.zeros(max(1, slots), dtype=torch.int32, device=self._device)

    def _wave(self, pieces: Sequence[Piece], sums: Sums | None, bits: int) -> _Wave:
        updates = updates_table(pieces, sums)
        empty = np.zeros((0, 2), dtype=np.int32)
        arrays = (
            empty if sums is None else sums.matrices,
            empty if sums is None else sums.strips,
            updates.tensors,
            updates.starts,
            updates.guesses,
        )
        on_device = (torch.from_numpy(array).to(self._device) for array in arrays)
        codes = self._codes[bits] if bits else self._no_codes()
        return _Wave(sums, updates, codes, sums is not None, *on_device)

    def _no_codes(self) -> CodeTable:
        """For models of exact tensors alone, whose kernel reads no code."""
        nothing = torch.zeros(256, dtype=torch.uint8, device=self._device)
        return CodeTable(nothing.view(torch.float32), nothing, 8)

    def _launch_sums(self, wave: _Wave, numbers: Tensor, *, advance: bool) -> None:
        assert wave.sums is not None
        rows, columns = (self._scratch, self._scratch) if advance else self._sum_memory()
        self._launch(
            sums_kernel, len(wave.strips), wave.matrices, wave.strips, self._pointers, numbers,
            self._scratch, self._factors, wave.sums.factors, self._counters, self._means, rows,
            columns, DTYPE=self._dtype,
            TILE_ROWS=table.TILE_ROWS, TILE_COLUMNS=table.TILE_COLUMNS, ADVANCE=advance,
            KINDS=wave.sums.kinds, num_warps=_WARPS,
        )  # fmt: skip

    def _launch_updates(self, wave: _Wave, numbers: Tensor, keys: Tensor) -> None:
        plan, codes = wave.updates, wave.codes
        self._launch(
            update_kernel, int(plan.starts[-1]), wave.tensors, wave.starts, wave.guesses,
            self._pointers, numbers, keys, self._factors, self._means, codes.levels,
            codes.cell_levels, DTYPE=self._dtype,
            FACTORED=wave.factored, BITS=codes.bits, CELLS=len(codes.cell_levels),
            CHUNKS=plan.chunks, WIDTH=WIDTH, SCALE_SEGMENTS=plan.scale_segments,
            BLOCK_SEGMENTS=plan.block_segments, KINDS=plan.kinds, num_warps=plan.chunks // 8,
        )  # fmt: skip

    def _launch(self, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        if self._compiling:
            kernel.warmup(*args, grid=(programs,), **constants)
        else:
            kernel[(programs,)](*args, **constants)

    def _on_device(self) -> AbstractContextManager[Any]:
        """Triton launches on the current device."""
        if self._device.type == "cpu":
            return nullcontext()
        context: AbstractContextManager[Any] = torch.get_device_module(self._device).device(
            self._device
        )
        return context

    def _capturing(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _table_pair(self) -> tuple[Tensor, Tensor]:
        """A table of addresses and pinned memory to fill it from: not to be made in a graph."""
        staged = torch.zeros(self._own.shape, dtype=torch.int64)
        if self._device.type != "cpu":
            staged = staged.pin_memory()
        return torch.zeros_like(self._own), staged
