"""Memory: bytes of tensors and of optimizer state, and the peak of each phase of a run.

Bytes of tensors are those of their storages, each counted once, whatever wraps or shares it:
`numel() * element_size()` misleads for views of one storage and for tensor subclasses that keep
packed data inside.

On CUDA a peak is the allocator's (`max_memory_allocated`, reset at the start of a phase). On CPU it
is the kernel's high-water mark of resident memory, reset through `/proc/self/clear_refs` (value 5,
see proc_pid_clear_refs(5)) and given as the increment over the process when the meter was made,
that is, after its imports. A meter with a cap also judges: a phase whose peak lies above it ends in
`MemoryCapExceeded`.
"""

import ctypes
import gc
import io
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from harness.meters.limits import MAPPED_FROM, MemoryCapExceeded, data_bytes, status_bytes
from harness.meters.timing import synchronize

VMHWM = "vmhwm"
VMHWM_EXACT = "vmhwm, freed blocks given back"
MAXRSS = "ru_maxrss (maximum of the whole process: phases are not separated)"
CUDA = "cuda_allocated"

StorageKey = tuple[str, int]
_LEAVES = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)
_CLOSED = (type, ModuleType, FunctionType, MethodType, torch.nn.Module, torch.Generator)


def inner_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors inside `tensor`: itself, or the parts of a subclass, recursively.

    Subclasses are taken apart by `__tensor_flatten__`, torch's protocol for it; DTensor follows
    it too, and its part is the local shard.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for name in names:
        part = getattr(tensor, name)
        if isinstance(part, torch.Tensor):  # of a DTensor its mesh is named too
            yield from inner_tensors(part)


def storage_sizes(tensors: Iterable[torch.Tensor]) -> dict[StorageKey, int]:
    """Bytes of every distinct storage behind `tensors`, by (device, address)."""
    sizes: dict[StorageKey, int] = {}
    for tensor in tensors:
        for part in inner_tensors(tensor):
            storage = part.untyped_storage()
            # Meta and empty storages have no address; their object identity stands in.
            address = storage.data_ptr() if storage.device.type != "meta" else 0
            key = (str(storage.device), address or -storage._cdata)
            sizes[key] = max(sizes.get(key, 0), storage.nbytes())
    return sizes


def tensors_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes held by `tensors`: whole storages, each counted once."""
    return sum(storage_sizes(tensors).values())


def find_tensors(root: Any) -> Iterator[torch.Tensor]:
    """Every tensor reachable from `root` through mappings, sequences and attributes of objects.

    Modules, classes and functions are not entered: what a model owns is not optimizer state.
    """
    waiting, seen = [root], set()
    kept = []  # holds temporary containers alive, so that `id` stays unique during the walk
    while waiting:
        item = waiting.pop()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting.extend(item)
        elif not isinstance(item, _CLOSED):
            waiting.extend(vars(item).values() if hasattr(item, "__dict__") else ())
            waiting.extend(_slot_values(item))


def _slot_values(item: Any) -> list[Any]:
    names = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
    return [getattr(item, name) for name in names if hasattr(item, name)]


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in `optimizer.state`: what it keeps for its parameters between steps.

    Enters containers and plain objects inside the state, such as GaLore's projector. Each storage
    counts once and wholly; storages of the parameters and of their gradients do not count.
    """
    return _bytes_beside_parameters(optimizer, find_tensors(optimizer.state))


def optimizer_held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor that the optimizer object keeps: state, and tables kept beside it."""
    return _bytes_beside_parameters(optimizer, find_tensors(vars(optimizer)))


def _bytes_beside_parameters(
    optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]
) -> int:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    held = storage_sizes(tensors)
    for key in storage_sizes([*parameters, *gradients]):
        held.pop(key, None)
    return sum(held.values())


class _CountingSink(io.RawIOBase):
    """A writable stream that keeps nothing but the number of bytes."""

    def __init__(self) -> None:
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.count += size
        return size


def serialized_bytes(value: Any) -> int:
    """Bytes of the file that `torch.save(value, file)` would write, without writing it."""
    sink = _CountingSink()
    torch.save(value, sink)  # type: ignore[arg-type]
    return sink.count


def _reset_high_water_mark() -> None:
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def _maximum_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _load_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, or None under another C library."""
    if os.name != "posix":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim if callable(trim) else None


class MemoryMeter:
    """Peak memory by phase.

        meter = MemoryMeter("cpu")
        with meter.phase("forward_backward"):
            ...
        meter.peaks["forward_backward"]  # bytes over meter.baseline_bytes

    `peaks` and, on CUDA, `reserved` are in bytes; a phase entered again keeps its larger peak.
    `method` says how peaks were obtained, `seconds` how long the meter itself worked. A phase that
    raises (out of memory) still leaves its peak. Phases do not nest. `on_phase` is told the name
    of each phase that begins.
    """

    def __init__(
        self,
        device: str | torch.device,
        cap_bytes: int | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        self.device, self.cap_bytes = torch.device(device), cap_bytes
        self.peaks: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.seconds = 0.0
        self.baseline_data_bytes: int | None = None
        self._on_phase = on_phase
        self._active: str | None = None
        self._trim: Callable[[int], int] | None = None
        if self.device.type == "cuda":
            self.method, self.baseline_bytes = CUDA, 0
            return
        self._trim = _load_trim()
        self._release_free_memory()
        self.baseline_data_bytes = data_bytes()
        try:
            _reset_high_water_mark()
            self.baseline_bytes = status_bytes("VmRSS")
            status_bytes("VmHWM")
            self.method = VMHWM_EXACT if MAPPED_FROM in os.environ else VMHWM
        except OSError:
            self.baseline_bytes = _maximum_resident_bytes()
            self.method = MAXRSS

    def _release_free_memory(self) -> None:
        """Give back what earlier phases freed, so that it does not count in the next peak."""
        gc.collect()
        if self._trim is not None:
            self._trim(0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the peak of the body.

        RuntimeError inside another phase; MemoryCapExceeded for a peak above the cap.
        """
        if self._active is not None:
            raise RuntimeError(f"memory phase {name!r} starts inside phase {self._active!r}")
        self._active = name
        self._begin(name)
        try:
            yield
        finally:
            self._active = None
            self._end(name)
        if self.cap_bytes is not None and self.peaks[name] > self.cap_bytes:
            raise MemoryCapExceeded(
                f"phase {name} held {self.peaks[name]} bytes; the cap is {self.cap_bytes}"
            )

    def _begin(self, name: str) -> None:
        started = time.perf_counter()
        if self._on_phase is not None:
            self._on_phase(name)
        if self.method == CUDA:
            synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._release_free_memory()
            if self.method != MAXRSS:
                _reset_high_water_mark()
        self.seconds += time.perf_counter() - started

    def _end(self, name: str) -> None:
        started = time.perf_counter()
        if self.method == CUDA:
            reserved = torch.cuda.max_memory_reserved(self.device)
            self.reserved[name] = max(reserved, self.reserved.get(name, 0))
        self.peaks[name] = max(self.high_water_bytes(), self.peaks.get(name, 0))
        self.seconds += time.perf_counter() - started

    def high_water_bytes(self) -> int:
        """The peak since the last phase began, over the baseline; also after that phase."""
        if self.method == CUDA:
            return torch.cuda.max_memory_allocated(self.device)
        total = _maximum_resident_bytes() if self.method == MAXRSS else status_bytes("VmHWM")
        return max(0, total - self.baseline_bytes)
