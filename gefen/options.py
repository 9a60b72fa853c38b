"""Checks of what a user passes to the optimizer."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError, in one sentence, when options of a group are not allowed."""
    for key in ("amsgrad", "differentiable", "capturable", "fused"):
        if options[key]:
            raise ValueError(f"{key}={options[key]} is not available in Gefen; use {key}=False.")
    lr, betas = options["lr"], options["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not options["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {options['eps']}")
    for number, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{number}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {number}: {beta}")
    if not options["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {options['weight_decay']}")
    if options["first_moment_bits"] not in (8, 32):
        raise ValueError(
            f"first_moment_bits must be 8 or 32, not {options['first_moment_bits']!r}."
        )
    for key in ("block_size", "min_quantized_size"):
        value = options[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} must be an integer of at least 1, not {value!r}.")


def check_parameter(param: Tensor) -> None:
    """Raise ValueError, in one sentence, when a parameter is of a kind Gefen cannot update."""
    if param.dtype not in _DTYPES or param.layout != torch.strided:
        raise ValueError(
            f"Gefen needs dense float16, bfloat16, float32 or float64 parameters, "
            f"not {param.dtype} with layout {param.layout}."
        )
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(param, distributed.DTensor):
        raise ValueError("Gefen does not support DTensor parameters in this version.")
