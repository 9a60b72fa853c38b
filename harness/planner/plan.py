"""plan(config): everything that `gefen-plan` says about one model, as plain values."""

from dataclasses import dataclass
from functools import lru_cache

from harness import models
from harness.config import ModelConfig, OptimizerConfig, from_dict, to_dict
from harness.models import ParameterSpec
from harness.planner import memory
from harness.planner.activations import METHOD, Pass, activation_peaks
from harness.planner.config import GIB, PlanConfig
from harness.planner.live import Peaks
from harness.planner.memory import DDP, FSDP, ONE, Estimate

CARDS_GIB = (16, 24, 40, 80, 141)
MOST_RANKS = 1024


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


def plan(config: PlanConfig) -> Plan:
    """Estimates and cards for every optimizer, with and without activation checkpointing.

    Allocates no tensor. Raises UserError as the models and optimizers do.
    """
    specs = parameter_specs(config)
    layouts = [(ONE, 1), (DDP, 1)] if config.shards == 1 else [(FSDP, config.shards)]
    estimates, fits = [], []
    for optimizer in config.optimizers:
        for checkpointing in (False, True):
            estimates += [
                estimate(config, optimizer, layout, ranks, checkpointing)
                for layout, ranks in layouts
            ]
            fits += _fits(config, optimizer, checkpointing)
    return Plan(
        config.model.name,
        memory.elements(specs),
        config.seq_len,
        config.micro_batch,
        config.grad_accumulation,
        config.precision,
        config.shards,
        config.headroom_gib,
        METHOD,
        estimates,
        fits,
    )


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


def _fits(config: PlanConfig, optimizer: OptimizerConfig, checkpointing: bool) -> list[Fit]:
    def fewest(card: int) -> int | None:
        def takes(ranks: int) -> bool:
            within = peak_within(config, optimizer, ranks, checkpointing, card * GIB)
            return within is not None

        if takes(1):
            return 1
        if not takes(MOST_RANKS):
            return None
        low, high = 1, MOST_RANKS  # bytes of a rank fall with their number
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if takes(middle) else (middle, high)
        return high

    name = optimizer.variant or optimizer.name
    return [Fit(name, card, checkpointing, fewest(card)) for card in CARDS_GIB]
