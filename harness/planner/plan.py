"""What `gefen-plan` says about a model: bytes of a rank, cards that take it, the largest that fits.

All answers are plain values for every optimizer, with and without activation checkpointing. Nothing
is allocated. Errors are UserErrors of the models and optimizers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from tqdm import tqdm

from harness import models
from harness.config import ModelConfig, OptimizerConfig, from_dict, to_dict
from harness.models import ParameterSpec
from harness.planner import memory
from harness.planner.activations import METHOD, Pass, Peaks, activation_peaks
from harness.planner.config import GIB, PlanConfig, label
from harness.planner.memory import DDP, FSDP, ONE, Estimate

CARDS_GIB = (16, 24, 40, 80, 141)
MOST_RANKS = 1024
_LARGEST_MICRO_BATCH = 1 << 20


@dataclass(frozen=True)
class Fit:
    """The fewest cards of a size that take the model, FSDP over more than one.

    `cards` is None where MOST_RANKS do not.
    """

    optimizer: str
    card_gib: int
    checkpointing: bool
    cards: int | None


@dataclass(frozen=True)
class Plan:
    """What training takes; bytes are those of one rank, the largest."""

    model: str
    parameters: int
    seq_len: int
    micro_batch: int
    grad_accumulation: int
    precision: str
    shards: int
    headroom_gib: float
    activation_method: str
    estimates: list[Estimate]
    fits: list[Fit]


@dataclass(frozen=True)
class Largest:
    """Answers for one optimizer; None where nothing fits, or where gradients decide the state."""

    optimizer: str
    checkpointing: bool
    value: str | int | None
    peak_bytes: int | None


def plan(config: PlanConfig) -> Plan:
    """Estimates and cards for every optimizer, with and without activation checkpointing."""
    layouts = [(ONE, 1), (DDP, 1)] if config.shards == 1 else [(FSDP, config.shards)]
    return Plan(
        config.model.name,
        memory.elements(parameter_specs(config)),
        config.seq_len,
        config.micro_batch,
        config.grad_accumulation,
        config.precision,
        config.shards,
        config.headroom_gib,
        METHOD,
        [
            estimate(config, optimizer, *layout, checkpointing)
            for optimizer, checkpointing in _arms(config)
            for layout in layouts
        ],
        [
            Fit(label(optimizer), card, again, fewest_cards(config, optimizer, again, card * GIB))
            for optimizer, again in _arms(config)
            for card in CARDS_GIB
        ],
    )


def _arms(config: PlanConfig) -> Iterator[tuple[OptimizerConfig, bool]]:
    """Every optimizer without and with activation checkpointing."""
    for optimizer in config.optimizers:
        yield optimizer, False
        yield optimizer, True


def parameter_specs(config: PlanConfig) -> tuple[ParameterSpec, ...]:
    """Every parameter of the model, from the meta device, each tied one once."""
    return _specs(tuple(to_dict(config.model).items()), config.vocabulary)


@lru_cache(maxsize=64)
def _specs(model: tuple[tuple[str, object], ...], vocabulary: int) -> tuple[ParameterSpec, ...]:
    return tuple(models.meta_shapes(from_dict(ModelConfig, dict(model)), vocabulary))


def estimate(
    config: PlanConfig,
    optimizer: OptimizerConfig,
    layout: str = ONE,
    ranks: int = 1,
    checkpointing: bool = False,
) -> Estimate:
    """The bytes of one rank; see `harness.planner.memory`."""
    kind = Pass(
        config.seq_len, config.micro_batch, config.precision, checkpointing, config.vocabulary
    )
    peaks = activation_peaks(config.model, kind)
    specs = parameter_specs(config)
    return memory.estimate(config, optimizer, specs, peaks, layout, ranks, checkpointing)


def peak_within(
    config: PlanConfig,
    optimizer: OptimizerConfig,
    ranks: int,
    checkpointing: bool,
    size_bytes: int,
) -> int | None:
    """The peak in bytes if it leaves the headroom of `size_bytes` free, else None.

    One device, or FSDP over several ranks. None too where gradients decide the state.
    """
    layout, specs = ONE if ranks == 1 else FSDP, parameter_specs(config)
    free = size_bytes - int(config.headroom_gib * GIB)
    # Without activations first: what is far too large needs no look at its passes.
    least = memory.estimate(config, optimizer, specs, Peaks(), layout, ranks).peak_bytes
    if least is None or least > free:
        return None
    peak = estimate(config, optimizer, layout, ranks, checkpointing).peak_bytes
    return peak if peak is not None and peak <= free else None


def fewest_cards(
    config: PlanConfig, optimizer: OptimizerConfig, checkpointing: bool, card_bytes: int
) -> int | None:
    """How many cards of a size take the model; None where MOST_RANKS do not."""

    def takes(ranks: int) -> bool:
        return peak_within(config, optimizer, ranks, checkpointing, card_bytes) is not None

    if takes(1):
        return 1
    if not takes(MOST_RANKS):
        return None
    low, high = 1, MOST_RANKS  # bytes of a rank fall with their number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle) else (middle, high)
    return high


def largest_model(configs: list[PlanConfig], limit_bytes: int) -> list[Largest]:
    """Of several models with the same settings, the one with most parameters that fits."""
    by_size = sorted(configs, key=lambda c: memory.elements(parameter_specs(c)), reverse=True)
    found = []
    for optimizer, again in _arms(configs[0]):
        peaks = (
            (config.model.name, peak_within(config, optimizer, config.shards, again, limit_bytes))
            for config in by_size
        )
        fitting = next((item for item in peaks if item[1] is not None), (None, None))
        found.append(Largest(label(optimizer), again, *fitting))
    return found


def largest_micro_batch(config: PlanConfig, limit_bytes: int) -> list[Largest]:
    """The largest micro-batch at the sequence length of `config`, for each optimizer."""
    return _largest(config, limit_bytes, "micro_batch", 1, _LARGEST_MICRO_BATCH)


def largest_seq_len(config: PlanConfig, limit_bytes: int) -> list[Largest]:
    """The longest sequence at the micro-batch of `config`, at most the model's positions."""
    return _largest(config, limit_bytes, "seq_len", 2, models.max_positions(config.model))


def _largest(
    config: PlanConfig, limit_bytes: int, key: str, least: int, most: int
) -> list[Largest]:
    """The largest value of `key` for each optimizer; a terminal shows which pass is planned."""
    with tqdm(desc=f"planning passes for {key}", unit="", leave=False, disable=None) as bar:

        def search(optimizer: OptimizerConfig, again: bool) -> Largest:
            peaks: dict[int | None, int | None] = {None: None}

            def fits(value: int) -> bool:
                bar.set_postfix({"optimizer": label(optimizer), key: value})
                bar.update()
                shape = replace(config, **{key: value})  # type: ignore[arg-type]
                peaks[value] = peak_within(shape, optimizer, config.shards, again, limit_bytes)
                return peaks[value] is not None

            value = bisect(fits, least, most, start=getattr(config, key))
            return Largest(label(optimizer), again, value, peaks[value])

        return [search(*arm) for arm in _arms(config)]


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
