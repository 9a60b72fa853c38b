"""Our options, and small things that the tests of this folder share."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gefen import Gefen

SECOND_MOMENTS = ("factored", "block", "paper", "peak")
BITS = (8, 4, 32)
OPTIONS = [(second, bits) for second in SECOND_MOMENTS for bits in BITS]
every_option = pytest.mark.parametrize(
    ("second_moment", "bits"), OPTIONS, ids=[f"{second}-{bits}" for second, bits in OPTIONS]
)


def ours(params: Sequence[Tensor], second_moment: str, bits: int, **options: Any) -> Gefen:
    """Gefen with one of the options offered; no weight decay unless named."""
    chosen = {"weight_decay": 0.0} | options
    return Gefen(params, second_moment=second_moment, first_moment_bits=bits, **chosen)


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter of zeros, on which every movement shows in full precision."""
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def noise(count: int, *shape: int, seed: int = 0) -> Tensor:
    """`count` gradients of that shape, standard normal, float32."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def cycle(bank: Tensor, steps: int) -> Iterator[Tensor]:
    """The gradients of a bank over and over."""
    for step in range(steps):
        yield bank[step % len(bank)]


def advance(optimizer: torch.optim.Optimizer, param: Tensor, gradient: Tensor) -> None:
    """One step of a single parameter."""
    param.grad = gradient
    optimizer.step()
