"""Clocks, temperature and throttling around a case, from NVML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .nvml import Nvml

THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
"""NVML's bits for what slows a GPU down; idling, application clocks and sync boost are not faults."""


@dataclass(frozen=True, slots=True)
class ClockState:
    """One reading; None is what the device does not tell. Clocks in MHz, temperature in Celsius, power in watts."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttle_reasons: str | None = None


class ClockReader:
    """Reads the state of one device. A field that it does not tell stays None; on a CPU that is every field."""

    def __init__(self, device: torch.device) -> None:
        self._nvml = Nvml(device)

    def read(self) -> ClockState:
        """The state now."""
        nvml, bits = self._nvml, self._nvml.throttle_bits()
        return ClockState(
            sm_clock_mhz=nvml.sm_clock_mhz(),
            memory_clock_mhz=nvml.memory_clock_mhz(),
            temperature_c=nvml.temperature_c(),
            power_w=nvml.power_w(),
            throttle_reasons=None if bits is None else throttle_names(bits),
        )


def throttle_names(bits: int) -> str | None:
    """Names of the throttle reasons set in NVML's bit field; None if there are none."""
    return ", ".join(name for bit, name in THROTTLES.items() if bits & bit) or None


def worst(states: Sequence[ClockState]) -> ClockState:
    """Lowest clocks, highest temperature and power, all throttle reasons of several readings."""
    reasons = {part for s in states if s.throttle_reasons for part in s.throttle_reasons.split(", ")}
    return ClockState(
        sm_clock_mhz=min((s.sm_clock_mhz for s in states if s.sm_clock_mhz is not None), default=None),
        memory_clock_mhz=min((s.memory_clock_mhz for s in states if s.memory_clock_mhz is not None), default=None),
        temperature_c=max((s.temperature_c for s in states if s.temperature_c is not None), default=None),
        power_w=max((s.power_w for s in states if s.power_w is not None), default=None),
        throttle_reasons=", ".join(sorted(reasons)) or None,
    )
