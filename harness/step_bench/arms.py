"""Candidates that are ready to step: optimizers on synthetic tensors with a model's shapes."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from harness.config import OptimizerConfig, from_dict
from harness.meters.memory import optimizer_state_bytes, tensors_bytes
from harness.optimizers import build_optimizer
from harness.step_bench.clock import timed
from harness.step_bench.memory import transient
from harness.step_bench.shapes import build_parameters, model_specs, random_gradients, twin

DTYPES = {"fp32": torch.float32, "bf16_pure": torch.bfloat16}


@dataclass
class StepSettings:
    """What one process times; `candidates` maps a shown name to an optimizer group's values.

    `gradient_reads` says how often a candidate's step has to read a gradient, 1 unless it is
    named. With `keep_going` a candidate that fails is left out and its error recorded.
    """

    model: dict[str, Any]
    candidates: dict[str, dict[str, Any]]
    gradient_reads: dict[str, int] = field(default_factory=dict)
    precision: str = "fp32"
    device: str = "cuda"
    threads: int | None = None
    vocab_size: int = 50257
    warmup_steps: int = 10
    timed_rounds: int = 20
    copy_bytes: int = 1 << 29
    evict_bytes: int = 1 << 27
    share_parameters: bool = False
    keep_going: bool = False
    seed: int = 0


@dataclass
class Arm:
    """One candidate with its parameters, and what was measured of its steps.

    `first` is the seconds of the first step and its transient bytes, `steady_transient` those of
    one later step.
    """

    name: str
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    warmup_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first: tuple[float, int] | None = None
    steady_transient: int | None = None

    def first_step(self, device: torch.device) -> None:
        """The step that creates the state."""
        self.first = transient(device, lambda: timed(device, self.optimizer.step))

    def checksums(self) -> list[float]:
        """The sum of every gradient, in float64."""
        gradients = (p.grad for p in self.parameters)
        return [float(g.sum(dtype=torch.float64)) for g in gradients if g is not None]

    def bytes_moved(self, gradient_reads: int) -> int:
        """Floor of one step: gradients read, parameters and state read and written once."""
        gradients = tensors_bytes(p.grad for p in self.parameters if p.grad is not None)
        kept = tensors_bytes(self.parameters) + optimizer_state_bytes(self.optimizer)
        return gradient_reads * gradients + 2 * kept


def build_arms(settings: StepSettings) -> list[Arm]:
    """All candidates on the same parameters or copies of them, with shared synthetic gradients.

    Sharing parameters saves memory; their values do not change how long a step takes.
    """
    specs = model_specs(settings.model, settings.vocab_size)
    device, dtype = torch.device(settings.device), DTYPES[settings.precision]
    module = build_parameters(specs, device, dtype, settings.seed)
    gradients = random_gradients(module, settings.seed + 1)
    arms = []
    for name, values in settings.candidates.items():
        own = module if settings.share_parameters else copy.deepcopy(module)
        for key, parameter in own.named_parameters():
            parameter.grad = gradients[key]
        optimizer = build_optimizer(own, from_dict(OptimizerConfig, values))
        arms.append(Arm(name, optimizer, list(own.parameters())))
    return arms


def build_code(settings: StepSettings, name: str) -> float:
    """Seconds that a candidate takes once to build and load code, on a few small tensors.

    That is by how much a first optimizer there takes longer than a second one, each with two
    steps: the one that creates the state and those after it may need different kernels.
    """
    specs = twin(model_specs(settings.model, settings.vocab_size))
    device, dtype = torch.device(settings.device), DTYPES[settings.precision]
    module = build_parameters(specs, device, dtype, settings.seed)
    for key, gradient in random_gradients(module, settings.seed + 1).items():
        module.get_parameter(key).grad = gradient
    config = from_dict(OptimizerConfig, settings.candidates[name])

    def work() -> None:
        optimizer = build_optimizer(module, config)
        optimizer.step()
        optimizer.step()

    first = timed(device, work)
    return max(0.0, first - timed(device, work))
