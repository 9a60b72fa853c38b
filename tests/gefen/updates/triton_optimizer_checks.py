"""Whole optimizers on the Triton kernels, in Triton's interpreter; run by test_triton.py."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from gefen import Gefen
from gefen.updates import executions, plan
from gefen.updates.device_support import supports
from gefen.updates.entry import Entry
from gefen.updates.executions import TritonUpdate
from gefen.updates.rule import Rule

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton.py"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
SHAPES = ((40, 64), (30,), (3, 20, 32))


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All parameters that the kernels take run on them; the number of tables built."""
    built: list[int] = []

    def execution_of(entry: Entry, rule: Rule) -> type[TritonUpdate] | None:
        return TritonUpdate if entry.group["fused"] is not False and supports(entry) else None

    def uploaded(table: Tensor, device: torch.device) -> Tensor:
        built.append(1)
        return table.clone()

    monkeypatch.setattr(plan, "execution_of", execution_of)
    monkeypatch.setattr(executions, "_uploaded", uploaded)
    return built


def trained(steps: int, dtype: torch.dtype, **options: Any) -> tuple[list[Tensor], Gefen]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in SHAPES]
    optimizer = Gefen(params, lr=0.01, min_quantized_size=1, **options)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["factored", "block"])
@pytest.mark.parametrize("bits", [4, 8])
def test_steps_follow_the_reference(
    on_triton: list[int], bits: int, form: str, dtype: torch.dtype
) -> None:
    options = {"first_moment_bits": bits, "second_moment": form}
    ours, optimizer = trained(3, dtype, **options)
    theirs, _ = trained(3, dtype, fused=False, **options)
    assert on_triton
    assert optimizer._stepper._plan is not None
    assert [type(part.execution) for part in optimizer._stepper._plan.parts] == [TritonUpdate]
    for a, b in zip(ours, theirs, strict=True):
        # A code that falls on the other side moves an element by a part of lr.
        assert ((a - b).abs() > (2e-3 if dtype == torch.float16 else 2e-6)).float().mean() < 0.002
        torch.testing.assert_close(a, b, rtol=0, atol=0.005)


def test_a_kernel_that_does_not_compile_leaves_the_reference(
    on_triton: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gefen.updates.device import DeviceUpdate

    def fail(self: DeviceUpdate, *, sharded: bool = False) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(DeviceUpdate, "compile", fail)
    executions._failed_devices.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"slower reference on cpu.*: no such instruction$"):
        ours, _ = trained(2, torch.float32)
    assert executions._failed_devices() == {"cpu"}
    executions._failed_devices.cache_clear()
    theirs, _ = trained(2, torch.float32, fused=False)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
