"""Energy against a counter that the test turns, and its absence."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
