"""The energy a GPU takes, from NVML's counter."""

from __future__ import annotations

import time

import torch

from .nvml import nvml_handle


class EnergyCounter:
    """Joules since some start; None on a device that does not count them."""

    def __init__(self, device: torch.device) -> None:
        self._found = nvml_handle(device)
        if self._found is not None:
            nvml, handle = self._found
            try:
                nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except nvml.NVMLError:
                self._found = None

    def joules(self) -> float | None:
        if self._found is None:
            return None
        nvml, handle = self._found
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    def idle_watts(self, seconds: float = 0.5) -> float | None:
        """Mean power while nothing runs."""
        if self._found is None:
            return None
        nvml, handle = self._found
        readings = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            readings.append(nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
            time.sleep(0.05)
        return sum(readings) / len(readings)
