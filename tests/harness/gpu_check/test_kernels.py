"""Gefen and the meters on a CUDA device against the CPU; the CPU rows keep this file honest."""

from typing import Any

import pytest
import torch

import gefen
from harness.meters.memory import MemoryMeter, optimizer_state_bytes
from harness.meters.timing import Stopwatch

SHAPES = [(256, 384), (64, 2049), (64,), (3, 50), (4, 64, 96), (130, 17)]
LR, STEPS = 1e-2, 6


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def random_tensors(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same values whatever the device: rows of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in SHAPES:
        scale = 10.0 ** torch.randn((*shape[:-1], 1), generator=generator)
        made.append((torch.randn(shape, generator=generator) * scale).to(dtype))
    return made


def run(device: str, dtype: torch.dtype, kind: Any = gefen.Gefen, **options: Any) -> Any:
    start = random_tensors(0, dtype)
    parameters = [torch.nn.Parameter(t.to(device, copy=True)) for t in start]
    optimizer = kind(parameters, lr=LR, weight_decay=0.1, **options)
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, random_tensors(1 + step, dtype), strict=True):
            parameter.grad = gradient.to(device)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_equals_the_one_on_cpu(device: str, dtype: torch.dtype) -> None:
    """Rounding differs by an ulp, which moves an index only where it lies on a threshold."""
    expected, oracle = run("cpu", dtype)
    found, optimizer = run(device, dtype)
    for want, got in zip(expected, found, strict=True):
        states = oracle.state[want], optimizer.state[got]
        assert got.device.type == device
        assert set(states[0]) == set(states[1])
        rtol = 1e-5 if dtype == torch.float32 else 2**-6
        # An index on the other side of its threshold is a code's width times the block's scale.
        torch.testing.assert_close(got.cpu(), want, rtol=rtol, atol=0.3 * LR)
        difference = (got.cpu().float() - want.float()).abs().mean()
        assert difference <= 1e-3 * LR + (0 if dtype == torch.float32 else 1e-3) * want.abs().mean()
        for name in states[0]:
            compare_state(name, states[0][name], states[1][name].cpu())


def compare_state(name: str, want: torch.Tensor, got: torch.Tensor) -> None:
    assert want.dtype == got.dtype, name
    if name in ("codebook", "step"):
        assert torch.equal(want, got), name
    elif want.dtype == torch.uint8:
        moved = (want.int() - got.int()).abs()
        assert float((moved > 0).double().mean()) <= 1e-3
        assert float((moved > 1).double().mean()) <= 1e-4
    else:
        # One index on the other side of a threshold changes the next moment by a code's width.
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-7, msg=lambda m: f"{name}: {m}")


def test_equals_adamw_in_float64_without_blocks_and_quantisation(device: str) -> None:
    options = {
        "first_moment_bits": 32,
        "block_size": 1,
        "second_moment": "block",
        "min_quantized_size": 1,
    }
    found, _ = run(device, torch.float32, **options)
    reference = [torch.nn.Parameter(t.double()) for t in random_tensors(0, torch.float32)]
    adamw = torch.optim.AdamW(reference, lr=LR, weight_decay=0.1)
    for step in range(STEPS):
        gradients = random_tensors(1 + step, torch.float32)
        for parameter, gradient in zip(reference, gradients, strict=True):
            parameter.grad = gradient.double()
        adamw.step()
    for want, got in zip(reference, found, strict=True):
        torch.testing.assert_close(got.cpu().double(), want.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_equal_the_closed_form(device: str, dtype: torch.dtype) -> None:
    _, optimizer = run(device, dtype)
    assert optimizer_state_bytes(optimizer) == gefen.state_bytes(SHAPES)


def test_two_runs_are_equal_bit_for_bit(device: str) -> None:
    first, _ = run(device, torch.float32)
    second, _ = run(device, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_state_travels_between_devices(device: str) -> None:
    """A state saved on the device goes on elsewhere as it would have there."""
    parameters, optimizer = run(device, torch.float32)
    moved = [torch.nn.Parameter(p.detach().cpu()) for p in parameters]
    other = gefen.Gefen(moved, lr=LR, weight_decay=0.1)
    other.load_state_dict(optimizer.state_dict())
    for here, there, gradient in zip(
        parameters, moved, random_tensors(99, torch.float32), strict=True
    ):
        here.grad, there.grad = gradient.to(device), gradient
    optimizer.step()
    other.step()
    for here, there in zip(parameters, moved, strict=True):
        torch.testing.assert_close(here.detach().cpu(), there.detach(), rtol=1e-5, atol=0.3 * LR)


@pytest.mark.gpu
def test_cuda_meter_sees_a_known_allocation() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    mib = 1 << 20
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    meter = MemoryMeter("cuda")
    with meter.phase("keep"):
        kept = torch.ones(512 * mib // 4, device="cuda")
    with meter.phase("transient"):
        torch.ones(256 * mib // 4, device="cuda")
    with meter.phase("quiet"):
        kept.add_(1)
    assert meter.method == "cuda_allocated"
    for name, size in {"keep": 512, "transient": 768, "quiet": 512}.items():
        assert meter.peaks[name] - before == pytest.approx(size * mib, rel=0.02)
        assert meter.reserved[name] >= meter.peaks[name]


@pytest.mark.gpu
def test_stopwatch_waits_for_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    matrix = torch.randn(4096, 4096, device="cuda")
    (matrix @ matrix).sum().item()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with Stopwatch("cuda") as watch:
        begin.record()
        for _ in range(20):
            matrix @ matrix
        end.record()
    assert watch.seconds >= begin.elapsed_time(end) / 1000
