"""The reverse question: the largest model, micro-batch and sequence that a size of memory takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tqdm import tqdm

from harness import models
from harness.config import OptimizerConfig
from harness.planner import memory
from harness.planner.config import PlanConfig
from harness.planner.plan import parameter_specs, peak_within

MOST = 1 << 20


@dataclass(frozen=True)
class Largest:
    """Answers for one optimizer; None where nothing fits, or where gradients decide the state."""

    optimizer: str
    checkpointing: bool
    value: str | int | None
    peak_bytes: int | None


def largest_model(configs: list[PlanConfig], limit_bytes: int) -> list[Largest]:
    """Of several models with the same settings, the one with most parameters that fits."""
    by_size = sorted(configs, key=lambda c: memory.elements(parameter_specs(c)), reverse=True)
    found = []
    for index, optimizer in enumerate(configs[0].optimizers):
        for checkpointing in (False, True):
            answer = Largest(_name(optimizer), checkpointing, None, None)
            for config in by_size:
                peak = peak_within(
                    config, config.optimizers[index], config.shards, checkpointing, limit_bytes
                )
                if peak is not None:
                    answer = Largest(_name(optimizer), checkpointing, config.model.name, peak)
                    break
            found.append(answer)
    return found


def largest_micro_batch(config: PlanConfig, limit_bytes: int) -> list[Largest]:
    """The largest micro-batch at the sequence length of `config`, for each optimizer."""
    return _largest(config, limit_bytes, "micro_batch", 1, MOST)


def largest_seq_len(config: PlanConfig, limit_bytes: int) -> list[Largest]:
    """The longest sequence at the micro-batch of `config`, at most the model's positions."""
    longest = models.max_positions(config.model)
    return _largest(config, limit_bytes, "seq_len", 2, longest)


def _largest(
    config: PlanConfig, limit_bytes: int, key: str, least: int, most: int
) -> list[Largest]:
    """The largest value of `key` for each optimizer; a terminal shows which pass is planned."""
    found: list[Largest] = []
    with tqdm(desc=f"planning passes for {key}", unit="", leave=False, disable=None) as bar:
        for optimizer in config.optimizers:
            for checkpointing in (False, True):

                def peak(
                    value: int, optimizer: OptimizerConfig = optimizer, again: bool = checkpointing
                ) -> int | None:
                    bar.set_postfix({"optimizer": _name(optimizer), key: value})
                    bar.update()
                    shape = replace(config, **{key: value})  # type: ignore[arg-type]
                    return peak_within(shape, optimizer, config.shards, again, limit_bytes)

                def fits(value: int, peak: Callable[[int], int | None] = peak) -> bool:
                    return peak(value) is not None

                value = bisect(fits, least, most, start=getattr(config, key))
                held = None if value is None else peak(value)
                found.append(Largest(_name(optimizer), checkpointing, value, held))
    return found


def bisect(
    holds: Callable[[int], bool], least: int, most: int, start: int | None = None
) -> int | None:
    """The largest number in [least, most] up to which `holds` is true; None if not at `least`.

    Doubles, from `start` if that holds, then halves the gap until it is under 1/16 of the value:
    what an estimate tells apart.
    """
    first = least
    if start is not None and least < start <= most and holds(start):
        first = start
    elif not holds(least):
        return None
    low, high = first, most + 1
    while low * 2 < high:
        if holds(low * 2):
            low *= 2
        else:
            high = low * 2
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _name(optimizer: OptimizerConfig) -> str:
    return optimizer.variant or optimizer.name
