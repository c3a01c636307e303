"""The energy a GPU takes, from NVML's counter."""

from __future__ import annotations

import time

import torch

from .nvml import Nvml


class EnergyCounter:
    """A device's energy and power; None for what it does not count."""

    def __init__(self, device: torch.device) -> None:
        self._nvml = Nvml(device)

    def joules(self) -> float | None:
        """Joules since some start; None on a device that does not count them."""
        return self._nvml.energy_j()

    def idle_watts(self, seconds: float = 0.5) -> float | None:
        """Mean power in watts over `seconds` in which the caller runs nothing; None where power is not told."""
        readings: list[float] = []
        end = time.monotonic() + seconds
        while not readings or time.monotonic() < end:
            watts = self._nvml.power_w()
            if watts is None:
                break
            readings.append(watts)
            time.sleep(0.05)
        return sum(readings) / len(readings) if readings else None
