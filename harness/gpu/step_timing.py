"""One process of part speed: interleaved optimizer steps on synthetic gradients.

Every candidate has its own copy of the parameters; all share one set of gradients. The
candidates take turns, in an order that rotates from round to round, so that clock changes and
neighbours on the machine fall on all of them. Run as
`python -m harness.gpu.step_timing SETTINGS.json RESULT.json`.
"""

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import store
from harness.meters.memory import optimizer_state_bytes, tensors_bytes
from harness.meters.timing import frozen_gc, summarize, synchronize
from harness.schema import ModelConfig, OptimizerConfig, from_dict

DTYPES = {"fp32": torch.float32, "bf16_pure": torch.bfloat16}


@dataclass
class StepSettings:
    """What one process times; `candidates` maps a shown name to an optimizer group's values."""

    model: dict[str, Any]
    candidates: dict[str, dict[str, Any]]
    precision: str = "fp32"
    device: str = "cuda"
    vocab_size: int = 50257
    warmup_steps: int = 10
    timed_rounds: int = 20
    copy_bytes: int = 1 << 29
    seed: int = 0


@dataclass
class Arm:
    """One candidate with its own parameters, and the seconds of its steps."""

    name: str
    optimizer: torch.optim.Optimizer
    parameters: list[torch.nn.Parameter]
    warmup_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of `work`, started on an idle device: CUDA events, or the wall clock on CPU."""
    synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def copy_bandwidth(device: torch.device, size: int, rounds: int = 20) -> float:
    """Bytes per second of copying a buffer of `size` bytes, read and written bytes both counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    seconds = [timed(device, lambda: target.copy_(source)) for _ in range(rounds)]
    return 2 * size / summarize(seconds)["median"]


def build_arms(settings: StepSettings) -> list[Arm]:
    """All candidates on copies of one model, with shared synthetic gradients."""
    from harness.models import build_model
    from harness.optimizers import build_optimizer

    device = torch.device(settings.device)
    config = from_dict(ModelConfig, settings.model)
    model: torch.nn.Module = build_model(config, settings.vocab_size, settings.seed)
    model.to(device=device, dtype=DTYPES[settings.precision])
    generator = torch.Generator(device=device).manual_seed(settings.seed)
    gradients = {
        name: (1e-3 * torch.randn(p.shape, generator=generator, device=device)).to(p.dtype)
        for name, p in model.named_parameters()
    }
    arms = []
    for name, values in settings.candidates.items():
        own = copy.deepcopy(model)
        for key, parameter in own.named_parameters():
            parameter.grad = gradients[key]
        optimizer = build_optimizer(own, from_dict(OptimizerConfig, values))
        arms.append(Arm(name, optimizer, list(own.parameters())))
    return arms


def run_rounds(arms: list[Arm], device: torch.device, warmup: int, rounds: int) -> None:
    """Interleaved steps; the first `warmup` of each arm are kept apart."""
    with frozen_gc():
        for number in range(warmup + rounds):
            shift = number % len(arms)
            for arm in arms[shift:] + arms[:shift]:
                seconds = timed(device, arm.optimizer.step)
                (arm.warmup_seconds if number < warmup else arm.seconds).append(seconds)


def bytes_moved(arm: Arm) -> int:
    """Floor of one step: gradients read once, parameters and state read and written once."""
    parameters = tensors_bytes(arm.parameters)
    gradients = tensors_bytes(p.grad for p in arm.parameters if p.grad is not None)
    return 2 * parameters + gradients + 2 * optimizer_state_bytes(arm.optimizer)


def gradient_checksums(arm: Arm) -> list[float]:
    """Sum of every gradient, in float64."""
    return [float(p.grad.double().sum()) for p in arm.parameters if p.grad is not None]


def describe(arm: Arm, bandwidth: float) -> dict[str, Any]:
    """Facts of one arm; `roofline_percent` is the floor's time over the median step's."""
    summary = summarize(arm.seconds)
    floor = bytes_moved(arm)
    finite = all(bool(torch.isfinite(p).all()) for p in arm.parameters)
    return {
        "step_median_seconds": summary["median"],
        "step_p10_seconds": summary["p10"],
        "step_p90_seconds": summary["p90"],
        "first_step_seconds": arm.warmup_seconds[0] if arm.warmup_seconds else math.nan,
        "step_seconds": arm.seconds,
        "optimizer_state_bytes": optimizer_state_bytes(arm.optimizer),
        "bytes_moved": floor,
        "roofline_percent": 100 * floor / bandwidth / summary["median"],
        "parameters_finite": finite,
    }


def measure(settings: StepSettings) -> dict[str, Any]:
    """Time all candidates in this process; copy bandwidth is measured before and after."""
    device = torch.device(settings.device)
    before = copy_bandwidth(device, settings.copy_bytes)
    arms = build_arms(settings)
    checksums = gradient_checksums(arms[0])
    run_rounds(arms, device, settings.warmup_steps, settings.timed_rounds)
    if gradient_checksums(arms[0]) != checksums:
        raise RuntimeError("a candidate changed the gradients that all candidates share")
    after = copy_bandwidth(device, settings.copy_bytes)
    bandwidth = max(before, after)
    return {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in arms[0].parameters),
        "copy_bytes_per_second": bandwidth,
        "copy_bytes_per_second_before_after": [before, after],
        "candidates": {arm.name: describe(arm, bandwidth) for arm in arms},
    }


def main(arguments: list[str]) -> int:
    """Read settings, measure, write the result."""
    settings = StepSettings(**json.loads(Path(arguments[0]).read_text()))
    store.write_json_atomic(Path(arguments[1]), measure(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
