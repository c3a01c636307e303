"""What ran where: the device's name, clocks and throttle reasons."""

from __future__ import annotations

import platform
import re

import pytest
import torch
import triton
from resa_bench.profiling import clocks
from resa_bench.profiling.clocks import ClockReader, ClockState, throttle_names, worst
from resa_bench.profiling.device import COMMIT_VARIABLE, describe, device_name

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_describe_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, f"{COMMIT}-dirty")
    environment = describe(CPU)
    assert (environment.commit, environment.dirty, environment.driver) == (COMMIT, True, None)
    assert (environment.torch, environment.triton, environment.python) == (
        torch.__version__,
        triton.__version__,
        platform.python_version(),
    )
    assert environment.device == device_name(CPU)


def test_a_cpu_is_named_with_its_threads() -> None:
    assert re.fullmatch(rf"CPU \S.* \({torch.get_num_threads()} threads\)", device_name(CPU))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        pytest.param(0x0, None, id="none"),
        pytest.param(0x4, "power cap", id="power-cap"),
        pytest.param(0x8, "hardware slowdown", id="hardware-slowdown"),
        pytest.param(0x20, "thermal (software)", id="software-thermal"),
        pytest.param(0x40, "thermal (hardware)", id="hardware-thermal"),
        pytest.param(0x80, "power brake", id="power-brake"),
        pytest.param(0x4 | 0x40, "power cap, thermal (hardware)", id="two"),
        pytest.param(0x1 | 0x2 | 0x10 | 0x100, None, id="idle-and-settings-are-no-faults"),
        pytest.param(0x1 | 0x80, "power brake", id="a-fault-among-others"),
    ],
)
def test_throttle_names(bits: int, expected: str | None) -> None:
    assert throttle_names(bits) == expected


def test_throttle_bits_are_nvmls() -> None:
    nvml = pytest.importorskip("pynvml")
    names = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    bits = {getattr(nvml, f"nvmlClocksThrottleReason{name}", None) for name in names}
    bits |= {getattr(nvml, f"nvmlClocksEventReason{name}", None) for name in names}
    assert set(clocks.THROTTLES) == bits - {None}


def test_clocks_of_a_cpu_are_unknown() -> None:
    assert ClockReader(CPU).read() == ClockState(None, None, None, None, None)


def test_worst_of_several_readings() -> None:
    """Lowest clocks, highest temperature and power, every reason once."""
    states = [
        ClockState(1980, 2619, 41, 310.0, "power cap"),
        ClockState(1755, None, 63, 295.5, "thermal (software), power cap"),
        ClockState(),
    ]
    assert worst(states) == ClockState(1755, 2619, 63, 310.0, "power cap, thermal (software)")
    assert worst([ClockState(), ClockState()]) == ClockState()
