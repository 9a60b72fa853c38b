"""Bytes against known tensors, real files and a known allocation in a fresh process."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
from harness.meters.limits import EXACT
from harness.meters.memory import (
    MemoryMeter,
    optimizer_held_bytes,
    optimizer_state_bytes,
    serialized_bytes,
    tensors_bytes,
)

ROOT = Path(harness.__file__).resolve().parents[1]


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    for parameter in made:
        parameter.grad = torch.ones_like(parameter)
    return made


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 8), (torch.bfloat16, 4)])
def test_adamw_state_in_closed_form(dtype: torch.dtype, width: int) -> None:
    tensors = parameters((64, 32), (7,), (3, 5, 2), dtype=dtype)
    optimizer = torch.optim.AdamW(tensors)
    assert optimizer_state_bytes(optimizer) == 0
    elements = 64 * 32 + 7 + 30
    assert optimizer_state_bytes(stepped(optimizer)) == width * elements + 3 * 4


class Holder:
    """A plain object with tensors, like a low-rank projector kept in the state."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.matrix = tensor
        self.me = self
        self.rank = 4


class SlotHolder:
    __slots__ = ("empty", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Custom(torch.optim.Optimizer):
    """State is whatever `fill` returns for a parameter."""

    def __init__(self, params: Iterable[Any], fill: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        self.fill = fill

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].update(self.fill(parameter))


def test_views_of_one_storage_count_once_and_wholly() -> None:
    pool = torch.zeros(1000)
    views = iter([pool[:10], pool[10:500]])
    optimizer = stepped(Custom(parameters((4,), (5,)), lambda p: {"m": next(views)}))
    assert optimizer_state_bytes(optimizer) == 4000
    assert tensors_bytes([pool[1:2], pool[3:4], pool.view(10, 100)]) == 4000
    assert tensors_bytes([torch.zeros(3), torch.zeros(3)]) == 24


def test_parameters_and_gradients_are_not_state() -> None:
    optimizer = stepped(
        Custom(
            parameters((6,)),
            lambda p: {"itself": p.data, "part": p.data[:2], "grad": p.grad, "own": p.data.clone()},
        )
    )
    assert optimizer_state_bytes(optimizer) == 24


def test_nested_containers_objects_and_tables_beside_the_state() -> None:
    def fill(p: torch.Tensor) -> dict[str, Any]:
        shared = torch.zeros(8, dtype=torch.uint8)
        return {
            "lists": [torch.zeros(2), (torch.zeros(3, dtype=torch.int16), {"deep": shared})],
            "projector": Holder(torch.zeros(5, dtype=torch.float64)),
            "slots": SlotHolder(shared),
            "words": "text",
            "module": torch.nn.Linear(50, 50),
        }

    optimizer = stepped(Custom(parameters((4,)), fill))
    optimizer.table = torch.zeros(256)  # type: ignore[attr-defined]
    assert optimizer_state_bytes(optimizer) == 8 + 6 + 8 + 40
    assert optimizer_held_bytes(optimizer) == 8 + 6 + 8 + 40 + 1024


class TwoPart(torch.Tensor):
    """A subclass that shows float32 values and keeps int8 codes and scales."""

    @staticmethod
    def __new__(cls: Any, codes: torch.Tensor, scale: torch.Tensor) -> "TwoPart":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(
        cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(func)


def test_tensor_subclass_counts_what_it_holds() -> None:
    wrapped = TwoPart(torch.zeros(1000, dtype=torch.int8), torch.zeros(2))
    assert wrapped.numel() * wrapped.element_size() == 4000
    assert tensors_bytes([wrapped]) == 1008
    optimizer = stepped(Custom(parameters((1000,)), lambda p: {"m": wrapped}))
    assert optimizer_state_bytes(optimizer) == 1008


def test_meta_tensors_have_sizes_too() -> None:
    tensors = [torch.empty(10, device="meta"), torch.empty(20, device="meta")]
    assert tensors_bytes(tensors) == 120
    assert tensors_bytes(tensors * 2) == 120


def test_galore_projector_is_counted() -> None:
    package = pytest.importorskip("pytorch_optimizer")
    weight = parameters((64, 32))[0]
    group = {"params": [weight], "rank": 4, "update_proj_gap": 10, "scale": 1.0}
    group["projection_type"] = "std"
    optimizer = stepped(package.GaLore([group], lr=1e-3))
    state = optimizer.state[weight]
    projector = state["projector"]
    moments = 2 * 4 * 64 * 4  # two moments of the (64, 4) projected gradient, float32
    matrix = 4 * 32 * 4  # the (4, 32) projection
    held = optimizer_state_bytes(optimizer)
    assert isinstance(projector.ortho_matrix, torch.Tensor)
    # The projection may keep the whole factor that it is a slice of: storages tell.
    factor = projector.ortho_matrix.untyped_storage().nbytes()
    assert factor >= matrix
    assert held - moments - factor in range(0, 9)


def test_bitsandbytes_8bit_state() -> None:
    package = pytest.importorskip("bitsandbytes")
    weight = parameters((256, 128))[0]
    try:
        optimizer = stepped(package.optim.AdamW8bit([weight], lr=1e-3))
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"this build has no 8-bit AdamW on CPU: {error}")
    elements, blocks = 256 * 128, 256 * 128 // 256
    tables = 2 * 256 * 4
    expected = 2 * elements + 2 * blocks * 4 + tables
    assert optimizer_state_bytes(optimizer) == pytest.approx(expected, abs=64)


@pytest.mark.parametrize("elements", [1, 1000, 300_000])
def test_serialized_bytes_equal_the_file(elements: int, tmp_path: Path) -> None:
    optimizer = stepped(torch.optim.AdamW(parameters((elements,), (3,))))
    path = tmp_path / "archive.pt"  # torch names the archive's folder after the file
    torch.save(optimizer.state_dict(), path)
    assert serialized_bytes(optimizer.state_dict()) == path.stat().st_size


def in_fresh_process(code: str, **variables: str) -> Any:
    prelude = "import json, torch\nfrom harness.meters.memory import MemoryMeter\nMB = 1 << 20\n"
    process = subprocess.run(
        [sys.executable, "-c", prelude + code],
        cwd=ROOT, capture_output=True, text=True, timeout=90, env=os.environ | variables,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_known_allocation_is_measured_and_phases_are_independent() -> None:
    """512 MiB kept, then 256 MiB that come and go, then nothing new: within 2 %."""
    got = in_fresh_process("""
meter = MemoryMeter("cpu")
with meter.phase("keep"):
    kept = torch.ones(512 * MB // 4)
with meter.phase("transient"):
    passing = torch.ones(256 * MB // 4)
    del passing
with meter.phase("quiet"):
    kept.sum()
del kept
with meter.phase("after"):
    small = [torch.ones(1024) for _ in range(64 * 256)]
print(json.dumps({"peaks": meter.peaks, "method": meter.method, "base": meter.baseline_bytes}))
""")
    mib = 1 << 20
    assert got["method"] == "vmhwm"
    assert 50 * mib < got["base"] < 2000 * mib
    expected = {"keep": 512 * mib, "transient": 768 * mib, "quiet": 512 * mib}
    for name, size in expected.items():
        assert got["peaks"][name] == pytest.approx(size, rel=0.02), name
    assert got["peaks"]["after"] == pytest.approx(64 * mib, rel=0.2)


def test_without_proc_the_process_maximum_is_used_and_said(monkeypatch: Any) -> None:
    from harness.meters import memory

    def absent() -> None:
        raise PermissionError("clear_refs")

    monkeypatch.setattr(memory, "_reset_high_water_mark", absent)
    meter = MemoryMeter("cpu")
    assert "ru_maxrss" in meter.method
    assert "not separated" in meter.method
    base = meter.baseline_bytes
    with meter.phase("x"):
        # The maximum may lie above what is resident now: allocate past it.
        torch.ones(base // 4 + (64 << 20) // 4)
    assert meter.peaks["x"] > 0


def test_failed_phase_leaves_its_peak_and_phases_do_not_nest() -> None:
    meter = MemoryMeter("cpu")

    def exhaust() -> None:
        torch.ones(64 << 18)
        raise MemoryError

    with pytest.raises(MemoryError), meter.phase("failing"):
        exhaust()
    assert meter.peaks["failing"] >= 0.9 * (64 << 20)
    with (
        meter.phase("outer"),
        pytest.raises(RuntimeError, match="inside phase 'outer'"),
        meter.phase("inner"),
    ):
        pass
    assert set(meter.peaks) == {"failing", "outer"}


def test_phase_entered_again_keeps_the_larger_peak() -> None:
    meter = MemoryMeter("cpu")
    for megabytes in (96, 8):
        with meter.phase("step"):
            torch.ones(megabytes << 18)
    assert meter.peaks["step"] >= 0.9 * (96 << 20)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_exact_peaks_have_no_holes_of_the_heap() -> None:
    """Of 64 blocks of 8 MiB every second is freed: 21 of 12 MiB do not fit into the holes."""
    code = """
warm = torch.ones(31 * MB // 4)
del warm  # from here on glibc takes blocks of up to 31 MiB from its heap
meter = MemoryMeter("cpu")
with meter.phase("blocks"):
    blocks = [torch.ones(8 * MB // 4) for _ in range(64)]
    del blocks[::2]
    larger = [torch.ones(12 * MB // 4) for _ in range(21)]
print(json.dumps({"peak": meter.peaks["blocks"], "method": meter.method}))
"""
    mib = 1 << 20
    kept = in_fresh_process(code)
    assert kept["method"] == "vmhwm"
    assert kept["peak"] > 700 * mib  # 64 x 8 + 21 x 12 = 764
    exact = in_fresh_process(code, **EXACT)
    assert exact["method"] == "vmhwm, freed blocks given back"
    assert abs(exact["peak"] / (512 * mib) - 1) < 0.02  # 32 x 8 + 21 x 12 = 508 at the end
