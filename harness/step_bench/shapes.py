"""Tensors with the exact shapes of a model, without building the model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from harness.config import ModelConfig, from_dict
from harness.models import ParameterSpec, meta_shapes

# A twin has every row length of its model, few rows and more than 4096 elements where it can:
# smaller tensors are not quantised, and would not touch the code that has to be built.
TWIN_ELEMENTS = 1 << 16
WEIGHT_SCALE = 0.02
GRADIENT_SCALE = 1e-3


def model_specs(values: dict[str, Any], vocab_size: int) -> list[ParameterSpec]:
    """Distinct parameters of the model group `values`; `vocab_size` where it leaves that open."""
    config = from_dict(ModelConfig, values)
    return meta_shapes(config, config.vocab_size or vocab_size)


def elements(specs: Sequence[ParameterSpec]) -> int:
    """Number of parameters."""
    return sum(math.prod(spec.shape) for spec in specs)


def twin(specs: Sequence[ParameterSpec]) -> list[ParameterSpec]:
    """One small parameter for each kind of `specs`: equal number of dimensions and row length."""
    found: dict[tuple[int, ...], ParameterSpec] = {}
    for spec in specs:
        if len(spec.shape) < 2:
            found.setdefault(spec.shape, spec)
            continue
        row = math.prod(spec.shape[1:])
        rows = min(spec.shape[0], max(16, TWIN_ELEMENTS // row))
        found.setdefault(
            (-1, *spec.shape[1:]), dataclasses.replace(spec, shape=(rows, *spec.shape[1:]))
        )
    return list(found.values())


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
