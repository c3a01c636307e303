"""Clocks, temperature and throttling around a case, from NVML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .nvml import nvml_handle

# NVML's bits for what slows a GPU down; idling, application clocks and sync boost are not faults.
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class ClockState:
    """One reading. Clocks in MHz, temperature in Celsius, power in watts."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttle_reasons: str | None = None


class ClockReader:
    """Reads the state of one device; on a CPU every field stays None."""

    def __init__(self, device: torch.device) -> None:
        self._found = nvml_handle(device)

    def read(self) -> ClockState:
        if self._found is None:
            return ClockState()
        nvml, handle = self._found
        bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        return ClockState(
            sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            throttle_reasons=throttle_names(bits),
        )


def throttle_names(bits: int) -> str | None:
    """Names of the throttle reasons set in NVML's bit field; None if there are none."""
    return ", ".join(name for bit, name in THROTTLES.items() if bits & bit) or None


def worst(states: list[ClockState]) -> ClockState:
    """Lowest clocks, highest temperature and power, all throttle reasons of several readings."""

    def pick(name: str, choose: Callable[[list], Any]) -> Any:
        values = [getattr(s, name) for s in states if getattr(s, name) is not None]
        return choose(values) if values else None

    reasons = {part for s in states if s.throttle_reasons for part in s.throttle_reasons.split(", ")}
    return ClockState(
        pick("sm_clock_mhz", min),
        pick("memory_clock_mhz", min),
        pick("temperature_c", max),
        pick("power_w", max),
        ", ".join(sorted(reasons)) or None,
    )
