"""Bytes that tensors really hold: each storage counted once, whatever wraps or shares it.

`numel() * element_size()` misleads for views of one storage and for tensor subclasses that keep
packed data inside, so bytes are counted from `untyped_storage()`.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

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
