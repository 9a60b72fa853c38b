"""Energy against a counter that the test turns, and its absence."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import meters, registry
from harness.meters.energy import NVML, EnergyMeter

UUID = "11111111-2222-3333-4444-555555555555"


class FakeNvml:
    """The three calls of pynvml that the meter makes; `millijoules` is the counter."""

    def __init__(self, millijoules: int) -> None:
        self.millijoules = millijoules
        self.broken = False

    def nvmlDeviceGetHandleByUUID(self, identifier: str) -> str:
        assert identifier == f"GPU-{UUID}"
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "handle"
        if self.broken:
            raise RuntimeError("NVMLError_GpuIsLost")
        return self.millijoules


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a card of this identifier."""
    found: Any = lambda device: SimpleNamespace(uuid=UUID)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", found)


@pytest.mark.usefixtures("card")
def test_joules_are_what_the_counter_advanced() -> None:
    nvml = FakeNvml(5_000_000)
    meter = EnergyMeter("cuda", nvml)
    assert meter.method == NVML
    assert meter.joules() is None  # not started
    meter.start()
    assert meter.joules() == 0.0
    nvml.millijoules += 123_456
    assert meter.joules() == pytest.approx(123.456)
    nvml.broken = True
    assert meter.joules() is None
    assert meter.method is None


@pytest.mark.usefixtures("card")
def test_a_card_without_a_counter_gives_null_not_zero() -> None:
    nvml = FakeNvml(1)
    nvml.broken = True
    meter = EnergyMeter("cuda", nvml)
    meter.start()
    assert (meter.method, meter.joules()) == (None, None)


def test_a_cpu_has_no_counter() -> None:
    meter = EnergyMeter("cpu", FakeNvml(1))
    meter.start()
    assert (meter.method, meter.joules()) == (None, None)


@pytest.mark.usefixtures("card")
def test_without_the_driver_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("pynvml")

    monkeypatch.setattr("harness.meters.energy._load_nvml", absent)
    meter = EnergyMeter("cuda")
    meter.start()
    assert (meter.method, meter.joules()) == (None, None)


def test_a_file_with_run_meter_is_a_meter_of_every_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "meters"
    folder.mkdir()
    (folder / "apples.py").write_text(
        "class Apples:\n"
        "    def start(self): self.count = 0\n"
        "    def metrics(self): return {'apples_total': self.count + 3, 'device': self.device}\n"
        "def run_meter(device):\n"
        "    meter = Apples()\n"
        "    meter.device = str(device)\n"
        "    return meter\n"
    )
    (folder / "tools.py").write_text("def other(): pass\n")
    monkeypatch.setattr(registry, "_HARNESS", tmp_path)
    monkeypatch.setattr(meters, "__path__", [str(folder)])
    names = [f"harness.meters.{name}" for name in ("apples", "tools")]
    try:
        (apples,) = meters.run_meters(torch.device("cpu"))
    finally:
        for name in names:
            sys.modules.pop(name, None)
    apples.start()
    assert apples.metrics() == {"apples_total": 3, "device": "cpu"}


def test_the_energy_meter_is_found() -> None:
    found = [meter.metrics() for meter in meters.run_meters(torch.device("cpu"))]
    assert {"energy_joules": None, "energy_method": None} in found


def test_parts_of_a_run_add_up_and_what_one_does_not_know_nobody_knows() -> None:
    first = {"joules": 2.0, "method": "old", "tokens": 3, "gap": None}
    second = {"joules": 0.5, "method": "new", "tokens": 4, "gap": 1.0}
    added = {"joules": 2.5, "method": "new", "tokens": 7, "gap": None}
    assert meters.add_up([first, second]) == added
    assert meters.add_up([second]) == second
    assert meters.add_up([]) == {}
    assert meters.add_up([{"joules": 1.0}, {}]) == {"joules": None}
