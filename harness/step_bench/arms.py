"""Candidates that are ready to step: optimizers on synthetic tensors with a model's shapes."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from harness.config import OptimizerConfig, from_dict
from harness.meters.memory import optimizer_state_bytes, tensors_bytes
from harness.models import ParameterSpec
from harness.optimizers import build_optimizer
from harness.step_bench.clock import timed, transient
from harness.step_bench.plan import StepSettings, model_specs

DTYPES = {"fp32": torch.float32, "bf16_pure": torch.bfloat16}
# A twin has every row length of its model, few rows and more than 4096 elements where it can:
# smaller tensors are not quantised, and would not touch the code that has to be built.
TWIN_ELEMENTS = 1 << 16
WEIGHT_SCALE = 0.02
GRADIENT_SCALE = 1e-3


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


def build_parameters(
    specs: Sequence[ParameterSpec], device: torch.device, dtype: torch.dtype, seed: int
) -> nn.Module:
    """A module that holds normal random parameters under the names of `specs`, and no code."""
    generator = torch.Generator(device=device).manual_seed(seed)
    root = nn.Module()
    for spec in specs:
        *path, leaf = spec.name.split(".")
        owner = root
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        value = torch.randn(spec.shape, generator=generator, device=device)
        parameter = nn.Parameter(value.mul_(WEIGHT_SCALE).to(dtype), requires_grad=spec.trainable)
        owner.register_parameter(leaf, parameter)
    return root


def random_gradients(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A normal random gradient for each parameter of `module`, by name, in its dtype."""
    device = next(module.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator, device=device)
        found[name] = value.mul_(GRADIENT_SCALE).to(parameter.dtype)
    return found


def twin(specs: Sequence[ParameterSpec]) -> list[ParameterSpec]:
    """One small parameter for each kind of `specs`: equal number of dimensions and row length."""
    found: dict[tuple[int, ...], ParameterSpec] = {}
    for spec in specs:
        if len(spec.shape) < 2:
            found.setdefault(spec.shape, spec)
            continue
        rows = min(spec.shape[0], max(16, TWIN_ELEMENTS // math.prod(spec.shape[1:])))
        small = dataclasses.replace(spec, shape=(rows, *spec.shape[1:]))
        found.setdefault((-1, *spec.shape[1:]), small)
    return list(found.values())


def build_arms(settings: StepSettings) -> list[Arm]:
    """All candidates on the same parameters or copies of them, with shared synthetic gradients.

    Sharing parameters saves memory; their values do not change how long a step takes.
    """
    module, gradients = _tensors(settings, model_specs(settings.model, settings.vocab_size))
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
    module, gradients = _tensors(settings, specs)
    for key, gradient in gradients.items():
        module.get_parameter(key).grad = gradient
    config = from_dict(OptimizerConfig, settings.candidates[name])

    def work() -> None:
        optimizer = build_optimizer(module, config)
        optimizer.step()
        optimizer.step()

    device = torch.device(settings.device)
    first = timed(device, work)
    return max(0.0, first - timed(device, work))


def _tensors(
    settings: StepSettings, specs: Sequence[ParameterSpec]
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    device, dtype = torch.device(settings.device), DTYPES[settings.precision]
    module = build_parameters(specs, device, dtype, settings.seed)
    return module, random_gradients(module, settings.seed + 1)
