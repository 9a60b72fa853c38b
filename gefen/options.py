"""Checks of what a user passes to the optimizer."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gefen.layout import GRADIENT_RULES
from gefen.sharding import check_placements, is_sharded
from gefen.updates.memory import CPU_DTYPES, TRITON_DTYPES

_FLAGS = ("amsgrad", "maximize", "capturable", "differentiable", "skip_nonfinite")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError, in one sentence, when options of a group are not allowed."""
    _check_flags(options)
    for key in ("amsgrad", "differentiable"):
        if options[key]:
            raise ValueError(f"{key}={options[key]} is not available in Gefen; use {key}=False.")
    lr, betas = options["lr"], options["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not options["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {options['eps']}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError("betas must be either both floats or both Tensors")
    for number, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{number}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {number}: {beta}")
    if not options["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {options['weight_decay']}")
    _check_choice(options, "first_moment_bits", (8, 4, 32))
    _check_choice(options, "second_moment", ("factored", "block", *GRADIENT_RULES))
    for key in ("group_size", "block_size", "min_quantized_size"):
        value = options[key]
        if key == "group_size" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} must be an integer of at least 1, not {value!r}.")
    _check_fused(options)
    check_together([options])


def _check_flags(options: Mapping[str, Any]) -> None:
    """Anything else would count as true or false by accident: "no" is true."""
    for key in _FLAGS:
        if not isinstance(options[key], bool):
            raise ValueError(f"{key} must be True or False, not {options[key]!r}.")
    for key in ("foreach", "fused"):
        if options[key] is not None and not isinstance(options[key], bool):
            raise ValueError(f"{key} must be True, False or None, not {options[key]!r}.")


def _check_fused(options: Mapping[str, Any]) -> None:
    if not options["fused"]:
        return
    if options["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")  # torch's words
    for key, values in (("first_moment_bits", (32,)), ("second_moment", GRADIENT_RULES)):
        if options[key] in values:
            raise ValueError(
                f"fused=True is not available with {key}={options[key]!r}; use fused=None."
            )


def check_together(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError when one group asks for what another one forbids."""
    if any(g["skip_nonfinite"] for g in groups) and any(g["capturable"] for g in groups):
        raise ValueError(
            "skip_nonfinite=True reads a flag from the device in every step, which "
            "capturable=True forbids; choose one of them."
        )


def _check_choice(options: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> None:
    if not any(options[key] == value and type(options[key]) is type(value) for value in allowed):
        listed = ", ".join(repr(value) for value in allowed[:-1])
        raise ValueError(f"{key} must be {listed} or {allowed[-1]!r}, not {options[key]!r}.")


def check_parameter(param: Tensor, group: Mapping[str, Any]) -> None:
    """Raise ValueError, in one sentence, when a parameter is of a kind Gefen cannot update."""
    if param.dtype not in _DTYPES or param.layout != torch.strided:
        raise ValueError(
            f"Gefen needs dense float16, bfloat16, float32 or float64 parameters, "
            f"not {param.dtype} with layout {param.layout}."
        )
    if group["fused"] and param.dtype not in _fused_dtypes(param.device.type):
        raise ValueError(
            f"fused=True is not available for {param.dtype} parameters on "
            f"{param.device.type}; use fused=None."
        )
    check_placements(param)
    if is_sharded(param) and group["second_moment"] in GRADIENT_RULES:
        raise ValueError(
            f"second_moment={group['second_moment']!r} chooses blocks from a gradient, which ranks "
            "do not share; use 'factored' or 'block' for DTensor parameters."
        )


def _fused_dtypes(device: str) -> tuple[torch.dtype, ...]:
    """Dtypes that have a fused update on a type of device."""
    if device == "cpu":
        return CPU_DTYPES
    return TRITON_DTYPES if device in ("cuda", "xpu") and find_spec("triton") else ()
