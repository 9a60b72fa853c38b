"""Seconds of a piece of work: synchronised, with the garbage collector out of the way."""

import gc
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def synchronize(device: str | torch.device) -> None:
    """Wait until the work queued on `device` is finished; nothing to wait for on CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Wall-clock seconds between two synchronisations of `device`.

    with Stopwatch("cuda") as watch:
        optimizer.step()
    watch.seconds
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds = math.nan
        self._start = math.nan

    def __enter__(self) -> "Stopwatch":
        synchronize(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # After an error the device may not answer any more; the error is what matters then.
        if kind is None:
            synchronize(self.device)
        self.seconds = time.perf_counter() - self._start


class Total(Stopwatch):
    """Seconds spent inside, added up over all entries, between synchronisations of `device`."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        super().__init__(device)
        self.seconds = 0.0
        self._running = False

    def __enter__(self) -> "Total":
        if self._running:
            raise RuntimeError("a total is entered while it runs; it would count twice")
        super().__enter__()
        self._running = True
        return self

    def __exit__(self, *raised: Any) -> None:
        earlier, self._running = self.seconds, False
        super().__exit__(*raised)
        self.seconds += earlier


@contextmanager
def frozen_gc() -> Iterator[None]:
    """Collect once, then keep the garbage collector from running inside the body.

    Objects that exist at entry are moved aside (`gc.freeze`), so that the collection after the
    body does not walk them either. State before entry is restored.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Median, p10 and p90 (linear interpolation); NaN, which the store writes as null, if empty."""
    if not seconds:
        return {"median": math.nan, "p10": math.nan, "p90": math.nan}
    if len(seconds) == 1:
        return {"median": seconds[0], "p10": seconds[0], "p90": seconds[0]}
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return {"median": statistics.median(seconds), "p10": tenths[0], "p90": tenths[-1]}
