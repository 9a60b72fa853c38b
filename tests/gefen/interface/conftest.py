"""The configurations of Gefen that the interface tests run over, in the manner of OptimizerInfo.

The shapes of these tests are tiny, so the table lowers `min_quantized_size` to 1: every matrix
with rows of 16 elements or more is quantised, and biases keep AdamW's state.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from gefen import Gefen

Build = Callable[..., Gefen]

# What decides the shape and the precision of the state: training is tested over these.
FORMS: dict[str, dict[str, Any]] = {
    "factored-8": {"second_moment": "factored", "first_moment_bits": 8},
    "factored-4": {"second_moment": "factored", "first_moment_bits": 4},
    "factored-32": {"second_moment": "factored", "first_moment_bits": 32},
    "block-8": {"second_moment": "block", "first_moment_bits": 8},
    "block-4": {"second_moment": "block", "first_moment_bits": 4},
    "block-32": {"second_moment": "block", "first_moment_bits": 32},
    "paper": {"second_moment": "paper"},
    "peak": {"second_moment": "peak"},
    "short groups": {"group_size": 7, "block_size": 5},
    "short groups-4": {"group_size": 6, "second_moment": "block", "first_moment_bits": 4},
}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    **FORMS,
    "never quantised": {"min_quantized_size": 1 << 30},
    "weight decay": {"weight_decay": 0.1},
    "no weight decay": {"weight_decay": 0.0},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "lr tensor": {"lr": torch.tensor(1e-3)},
    "betas tensors": {
        "lr": torch.tensor(1e-3),
        "betas": (torch.tensor([[[0.9]]]), torch.tensor([[0.99]])),
    },
    "capturable": {"lr": torch.tensor(1e-3), "capturable": True},
    "foreach": {"foreach": True},
    "reference": {"fused": False},
    "skip_nonfinite": {"skip_nonfinite": True},
}


@pytest.fixture(params=CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Keyword arguments of one configuration, never shared between tests: tensors are copied."""
    return deepcopy(request.param)


@pytest.fixture
def build(options: dict[str, Any]) -> Build:
    """A constructor of one configuration: `build(params, **overrides)`."""
    return constructor(options)


def constructor(options: dict[str, Any]) -> Build:
    def construct(params: Any, **overrides: Any) -> Gefen:
        return Gefen(params, **{"min_quantized_size": 1, **deepcopy(options), **overrides})

    return construct


@pytest.fixture(params=FORMS.values(), ids=list(FORMS))
def form(request: pytest.FixtureRequest) -> Build:
    """As `build`, over the forms of the state alone; all other options are AdamW's defaults."""
    return constructor(request.param)


@pytest.fixture(params=("factored-8", "block-4", "peak"))
def main_form(request: pytest.FixtureRequest) -> Build:
    """As `form`, over one of each kind, for what takes its time outside the optimizer."""
    return constructor(FORMS[request.param])


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """A matrix that the table quantises and a bias that it does not, both leaves.

    Fewer elements than codes, so that learning the 8-bit codebook costs nothing.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 24, generator=generator).requires_grad_()
    return weight, torch.randn(8, generator=generator).requires_grad_()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are too small for more, and results must not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
