"""On a CUDA device: the same steps as on a CPU, CUDA graphs, and state that changes device."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gefen import Gefen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = [
    {"second_moment": second, "first_moment_bits": bits}
    for second, bits in itertools.product(("factored", "block"), (4, 8, 32))
]
SHAPES = ((96, 100), (5, 20, 64), (64, 8, 3, 3), (300,), (7, 9), ())


def parameters(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in SHAPES
    ]


def set_gradients(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        if param.grad is None:
            param.grad = grad
        else:
            param.grad.copy_(grad)  # a captured graph reads the same memory


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_follows_the_cpu(options: dict[str, Any], dtype: torch.dtype) -> None:
    """One step each from the CPU's state: last bits may differ, and a code where they decide."""
    host, device = parameters("cpu", dtype), parameters("cuda", dtype)
    optimizers = [Gefen(params, lr=0.01, **options) for params in (host, device)]
    for step in range(5):
        for params, optimizer in zip((host, device), optimizers, strict=True):
            set_gradients(params, step)
            optimizer.step()
        for a, b in zip(host, device, strict=True):
            tolerance = {torch.float32: 2e-6, torch.float16: 2e-3}.get(dtype, 1.6e-2)
            torch.testing.assert_close(b.cpu(), a, rtol=tolerance, atol=2e-6)
            ours, theirs = optimizers[1].state[b], optimizers[0].state[a]
            if "index" in ours:
                same = ours["index"].cpu() == theirs["index"]
                assert same.float().mean() > 0.999
            with torch.no_grad():
                b.copy_(a)
        optimizers[1].load_state_dict(optimizers[0].state_dict())


@pytest.mark.parametrize("options", OPTIONS)
def test_cuda_graph(options: dict[str, Any]) -> None:
    """Steps replayed from a graph equal steps taken one by one."""
    plain, captured = parameters("cuda"), parameters("cuda")
    first = Gefen(plain, lr=0.01, capturable=True, **options)
    second = Gefen(captured, lr=0.01, capturable=True, **options)
    for step in range(3):  # the codebook is learned outside the graph
        for params, optimizer in ((plain, first), (captured, second)):
            set_gradients(params, step)
            optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second.step()
    for step in range(3, 8):
        set_gradients(plain, step)
        first.step()
        set_gradients(captured, step)
        graph.replay()
    for a, b in zip(plain, captured, strict=True):
        assert torch.equal(a, b)
        assert first.state[a]["step"] == second.state[b]["step"] == 8


@pytest.mark.parametrize("options", OPTIONS)
def test_state_changes_device_without_losing_a_bit(options: dict[str, Any]) -> None:
    params = parameters("cuda")
    optimizer = Gefen(params, **options)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    other = Gefen(parameters("cpu"), **options)
    other.load_state_dict(optimizer.state_dict())
    back = Gefen(parameters("cuda"), **options)
    back.load_state_dict(copy.deepcopy(other.state_dict()))
    for a, b, c in zip(
        optimizer.state.values(), other.state.values(), back.state.values(), strict=True
    ):
        for name in a:
            assert b[name].device.type == "cpu"
            assert c[name].dtype == a[name].dtype
            assert torch.equal(a[name], c[name])
            assert torch.equal(a[name].cpu(), b[name])
