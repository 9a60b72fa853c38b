"""Energy of a device, from the counter that it keeps itself.

NVIDIA cards since Volta count the energy that they took, in millijoules since the driver was
loaded (NVML, `nvmlDeviceGetTotalEnergyConsumption`): the whole card, without the host. Where no
such counter is there, nothing was measured, which is not the same as zero.
"""

import importlib
from typing import Any

import torch

NVML = "nvml_total_energy"


def _load_nvml() -> Any:
    """The module of the pip package nvidia-ml-py, initialised; ImportError or its NVMLError."""
    module = importlib.import_module("pynvml")
    module.nvmlInit()
    return module


class EnergyMeter:
    """Joules that a device takes from `start` on.

        meter = EnergyMeter("cuda")
        meter.start()
        ...
        meter.joules()  # None without a counter; `meter.method` is None then too

    `nvml` stands in for the module `pynvml` in tests. Nothing here raises for a missing card,
    driver or permission: the meter then has no method.
    """

    def __init__(self, device: str | torch.device, nvml: Any = None) -> None:
        self.device = torch.device(device)
        self.method: str | None = None
        self._nvml = nvml
        self._handle: Any = None
        self._start: float | None = None
        if self.device.type == "cuda":
            self._open()

    def _open(self) -> None:
        try:
            self._nvml = self._nvml or _load_nvml()
            self._handle = self._find_card()
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except Exception:  # NVMLError is made at run time; no reason for absence stops a run
            return
        self.method = NVML

    def _find_card(self) -> Any:
        """The card by its identifier: torch's and NVML's numbers differ under masks."""
        identifier = torch.cuda.get_device_properties(self.device).uuid
        return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identifier}")

    def _read_joules(self) -> float | None:
        if self.method is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except Exception:  # as above; a counter that stops answering leaves a gap, not a number
            self.method = None
            return None

    def start(self) -> None:
        """Count from here; the caller has waited for the device's queued work."""
        self._start = self._read_joules()

    def metrics(self) -> dict[str, float | str | None]:
        """`energy_joules` since `start` and the method, both None where nothing was measured."""
        joules = self.joules()
        method = None if joules is None else self.method
        return {"energy_joules": joules, "energy_method": method}

    def joules(self) -> float | None:
        """Joules since `start`; None without a counter, or before `start`."""
        now = self._read_joules()
        return None if now is None or self._start is None else now - self._start


def run_meter(device: torch.device) -> EnergyMeter:
    """The meter of a training run (`harness.meters.run_meters`)."""
    return EnergyMeter(device)
