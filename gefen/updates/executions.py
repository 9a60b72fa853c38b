"""The fused executions of the update, and which parameters each of them takes."""

import warnings
from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gefen.codes import Codes
from gefen.sharding import is_sharded, mesh_of
from gefen.updates import cpu
from gefen.updates.cpu import CpuUpdate
from gefen.updates.cpu_library import library
from gefen.updates.entry import Entry
from gefen.updates.memory import takes_gradient
from gefen.updates.rule import Rule
from gefen.updates.square_sums import SquareSums

if TYPE_CHECKING:
    from gefen.updates.device import DeviceUpdate


class Execution(Protocol):
    """Parameters of one device that a fused update takes together."""

    entries: Sequence[Entry]

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Prepare tables for these parameters."""

    @staticmethod
    def part_key(entry: Entry) -> Hashable:
        """What parameters must have in common, beside their device."""

    @staticmethod
    def takes(entry: Entry) -> bool:
        """Whether the gradient of this step can be read."""

    def set_codes(self, codes: Sequence[Codes | None]) -> None:
        """Take each parameter's learned codebook, None where it has none."""

    def sums(self) -> list[SquareSums | None]:
        """Return each factored parameter's sums of squares over rows and columns, else None."""

    def update(self, numbers: Any, keys: Any, sums: Sequence[SquareSums | None]) -> None:
        """Perform a step; the tables of `gefen.updates.numbers` lie where the steps are counted."""


class TritonUpdate:
    """`DeviceUpdate` as an execution: parameters of one dtype on one device, and of one mesh."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._sharded = is_sharded(entries[0].owner)
        self._update: DeviceUpdate | None = None
        self._known: list[SquareSums | None] = []

    @staticmethod
    def part_key(entry: Entry) -> Hashable:
        """One dtype, and one codebook for each number of bits."""
        return entry.param.dtype, mesh_of(entry.owner)

    @staticmethod
    def takes(entry: Entry) -> bool:
        """Whether the gradient of this step can be read."""
        return takes_gradient(entry)

    def set_codes(self, codes: Sequence[Codes | None]) -> None:
        """Build the tables and compile the kernels; whatever that raises leaves all unchanged."""
        from gefen.updates.device import DeviceUpdate

        self._update = DeviceUpdate(self.entries, {own.bits: own for own in codes if own})
        self._update.compile(sharded=self._sharded)

    def sums(self) -> list[SquareSums | None]:
        """Return each factored parameter's sums of squares: memory that `update` reads."""
        self._known = self._ready().sums()
        return self._known

    def update(self, numbers: Any, keys: Any, sums: Sequence[SquareSums | None]) -> None:
        """Perform a step. `sums` matter for DTensor parameters alone: those are of all shards."""
        update, device = self._ready(), self.entries[0].param.device
        if isinstance(numbers, np.ndarray):
            numbers = _uploaded(torch.from_numpy(numbers).float(), device)
            keys = _uploaded(torch.from_numpy(keys.view(np.int32)), device)
        if not self._sharded:
            update.run(numbers, keys)
            return
        if not self._known:
            self.sums()
        for own, given in zip(self._known, sums, strict=True):
            if own is not None and given is not None and own is not given:
                own.rows.copy_(given.rows)
                own.columns.copy_(given.columns)
        self._known = []
        update.finish(numbers, keys)

    def _ready(self) -> "DeviceUpdate":
        """The update with the addresses of this step."""
        assert self._update is not None
        self._update.set_tensors([e.param for e in self.entries], [e.grad for e in self.entries])
        return self._update


def execution_of(entry: Entry, rule: Rule) -> type[Execution] | None:
    """Return the fused execution for a parameter, None where the reference has to do.

    Variants of the rule that the harness compares run on the reference alone.
    """
    if entry.group["fused"] is False or not (rule.stochastic and rule.relative):
        return None
    if entry.param.device.type == "cpu":
        return CpuUpdate if cpu.supports(entry) and library() is not None else None
    if not _has_triton() or entry.param.device.type in _failed_devices():
        return None
    from gefen.updates.device import supports

    return TritonUpdate if supports(entry) else None


def give_up(kind: type[Execution], device: torch.device, error: Exception) -> None:
    """Leave a type of device to the reference from now on, and say why; raise what is no build's.

    The kernels of the CPU report their own failure when they are built.
    """
    if kind is CpuUpdate or isinstance(error, torch.OutOfMemoryError):
        raise error
    _failed_devices().add(device.type)
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"Gefen runs its slower reference on {device.type}, because its kernels could not be "
        f"compiled: {cause}",
        RuntimeWarning,
        stacklevel=2,
    )


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def _failed_devices() -> set[str]:
    """Types of devices whose kernels did not compile in this process."""
    return set()


def _uploaded(table: Tensor, device: torch.device) -> Tensor:
    """Copied without waiting for the device; the pinned memory outlives the copy."""
    return table.pin_memory().to(device, non_blocking=True)
