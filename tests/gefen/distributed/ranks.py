"""What the worker scripts share: the process group of two gloo ranks, and counting collectives."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._ops import OpOverload
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

TIMEOUT = timedelta(seconds=60)


def run(main: Callable[[int, Path], dict[str, Any]]) -> None:
    """Join the group, call `main(rank, folder)` and save what it returns as folder/rank<n>.pt."""
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
    try:
        torch.save(main(rank, folder), folder / f"rank{rank}.pt")
        # no rank may leave while another still waits for its data
        dist.barrier()
    finally:
        dist.destroy_process_group()


class _Counter(TorchDispatchMode):
    """Counts the collectives that reach the dispatcher, functional or not, by operator name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # the operators on its local tensors come here again
        if "c10d" in func.namespace:
            name = func.overloadpacket.__name__
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_collectives() -> Iterator[dict[str, int]]:
    """Fill a dictionary of operator name -> calls with all collectives issued inside."""
    mode = _Counter()
    with mode:
        yield mode.counts


def refusal(call: Callable[[], object]) -> str:
    """Return the text of the ValueError that a call raises."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was refused"
