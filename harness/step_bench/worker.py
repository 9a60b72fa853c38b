"""One process of the step benchmark: interleaved optimizer steps on synthetic gradients.

The candidates share their gradients and take turns, in an order that is drawn anew for each round
(`turns`), so that clock changes and neighbours on the machine fall on all of them and none of them
always follows the same other one. Each step starts with caches that hold nothing of its tensors,
as after a backward pass. Run as `python -m harness.step_bench.worker SETTINGS.json RESULT.json`; it
prints its progress.
"""

import gc
import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from harness.cells import store
from harness.errors import UserError
from harness.meters.memory import optimizer_state_bytes
from harness.meters.timing import frozen_gc, summarize
from harness.step_bench.arms import Arm, build_arms, build_code
from harness.step_bench.clock import copy_bandwidth, eviction, timed, transient
from harness.step_bench.plan import StepSettings
from harness.step_bench.process import printed

Progress = Callable[[str], Any]


def silent(_: str) -> None:
    """Progress that nobody asked for."""


def run_rounds(
    arms: list[Arm],
    device: torch.device,
    warmup: int,
    rounds: int,
    evict: Callable[[], Any] = lambda: None,
    progress: Progress = silent,
    seed: int = 0,
) -> None:
    """Interleaved steps, each after a call of `evict`; the first `warmup` are kept apart."""
    # Of their own, so that the timed rounds are balanced by themselves.
    orders = [*turns(len(arms), warmup, seed), *turns(len(arms), rounds, seed + 1)]
    with frozen_gc():
        for number, order in enumerate(orders):
            for arm in (arms[index] for index in order):
                evict()
                seconds = timed(device, arm.optimizer.step)
                (arm.warmup_seconds if number < warmup else arm.seconds).append(seconds)
                progress(arm.name)


def turns(count: int, rounds: int, seed: int) -> list[list[int]]:
    """The order of `count` candidates in each of `rounds` rounds, drawn from `seed`.

    Blocks of rounds are Williams designs (Australian Journal of Scientific Research A 2, 1949):
    in each block every candidate stands at every place equally often and follows every other one
    equally often. Names and rounds are shuffled anew for each block. A block has `count` rounds,
    twice as many for an odd count; a last block that is cut short is balanced in its rounds alone.
    """
    draw = random.Random(seed)
    zigzag = [(-(step // 2) if step % 2 == 0 else step // 2 + 1) for step in range(count)]
    square = [[(place + shift) % count for place in zigzag] for shift in range(count)]
    design = square if count % 2 == 0 else [*square, *(row[::-1] for row in square)]
    orders: list[list[int]] = []
    while len(orders) < rounds:
        names = draw.sample(range(count), count)
        block = draw.sample(design, len(design))
        orders += [[names[index] for index in row] for row in block]
    return orders[:rounds]


def attempt(
    names: Iterable[str], work: Callable[[str], Any], keep_going: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The results of `work` by name, and the errors of names that failed if they may fail."""
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            results[name] = work(name)
        except Exception as error:
            if not keep_going:
                raise
            lines = str(error).strip().splitlines() or ["no message"]
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            failed[name] = kind + lines[0]
    return results, failed


def working_arms(
    settings: StepSettings, progress: Progress
) -> tuple[list[Arm], dict[str, float], dict[str, str]]:
    """Arms after their first step, the build seconds by name, and the errors of those left out."""
    device = torch.device(settings.device)
    load_torch_code()
    built, failed = attempt(
        settings.candidates, lambda name: build_code(settings, name), settings.keep_going
    )
    left = {name: settings.candidates[name] for name in built}
    arms = {arm.name: arm for arm in build_arms(replace(settings, candidates=left))}

    def first(name: str) -> None:
        arms[name].first_step(device)
        progress(name)

    with frozen_gc():  # memory is measured after a collection, which is then quick
        for name in list(arms):
            _, errors = attempt([name], first, settings.keep_going)
            if errors:  # a state that was half created must not take memory from the next
                del arms[name]
                gc.collect()
                failed |= errors
    if not arms:
        raise RuntimeError(f"no candidate works: {failed}")
    return list(arms.values()), built, failed


def measure(settings: StepSettings, progress: Progress = silent) -> dict[str, Any]:
    """Time all candidates in this process; copy bandwidth is measured before and after.

    Raises RuntimeError when a candidate changes the gradients, or none of them works.
    """
    device = torch.device(settings.device)
    before = copy_bandwidth(device, settings.copy_bytes)
    arms, built, failed = working_arms(settings, progress)
    checksums = arms[0].checksums()
    evict = eviction(device, settings.evict_bytes)
    count, rounds = settings.warmup_steps, settings.timed_rounds
    run_rounds(arms, device, count, rounds, evict, progress, settings.seed)
    if arms[0].checksums() != checksums:
        raise RuntimeError("a candidate changed the gradients that all candidates share")
    del evict
    with frozen_gc():
        for arm in arms:
            _, arm.steady_transient = transient(device, arm.optimizer.step)
    after = copy_bandwidth(device, settings.copy_bytes)
    bandwidth = max(before, after)
    reads = settings.gradient_reads
    return {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in arms[0].parameters),
        "threads": torch.get_num_threads(),
        "copy_bytes_per_second": bandwidth,
        "copy_bytes_per_second_before_after": [before, after],
        "failed": failed,
        "candidates": {
            arm.name: describe(arm, bandwidth, reads.get(arm.name, 1), built[arm.name])
            for arm in arms
        },
    }


def describe(arm: Arm, bandwidth: float, gradient_reads: int, built: float) -> dict[str, Any]:
    """Facts of one arm; `roofline_percent` is the floor's time over the median step's."""
    summary = summarize(arm.seconds)
    floor = arm.bytes_moved(gradient_reads)
    first_seconds, first_transient = arm.first or (None, None)
    return {
        "step_median_seconds": summary["median"],
        "step_p10_seconds": summary["p10"],
        "step_p90_seconds": summary["p90"],
        "first_step_seconds": first_seconds,
        "build_seconds": built,
        "step_seconds": arm.seconds,
        "optimizer_state_bytes": optimizer_state_bytes(arm.optimizer),
        "gradient_reads": gradient_reads,
        "bytes_moved": floor,
        "roofline_percent": 100 * floor / bandwidth / summary["median"],
        "first_step_transient_bytes": first_transient,
        "step_transient_bytes": arm.steady_transient,
        "parameters_finite": all(bool(torch.isfinite(p).all()) for p in arm.parameters),
    }


def load_torch_code() -> None:
    """Let torch import what its optimizers import late, before the first candidate pays for it."""
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    torch.optim.AdamW([parameter]).step()


def main(arguments: list[str]) -> int:
    """Read settings, measure, write the result."""
    settings = StepSettings(**json.loads(Path(arguments[0]).read_text()))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    steps = len(settings.candidates) * (1 + settings.warmup_steps + settings.timed_rounds)
    store.write_json_atomic(Path(arguments[1]), measure(settings, printed(steps)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
