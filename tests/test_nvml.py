"""NVML by a stub: queries that a device lacks, MIG slices, several GPUs, a driver that does not answer."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from resa_bench.profiling.clocks import ClockReader, ClockState
from resa_bench.profiling.device import describe, driver_version
from resa_bench.profiling.energy import EnergyCounter
from resa_bench.profiling.nvml import Nvml

SECOND_GPU = torch.device("cuda", 1)
FIGURES: dict[str, Any] = {
    "nvmlDeviceGetClockInfo": 1500,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetTemperature": 40,
    "nvmlDeviceGetPowerUsage": 90_000,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7), SimpleNamespace(pid=3)],
    "nvmlDeviceGetProcessUtilization": [
        SimpleNamespace(pid=3, timeStamp=50, smUtil=90),
        SimpleNamespace(pid=3, timeStamp=200, smUtil=10),
        SimpleNamespace(pid=3, timeStamp=300, smUtil=30),
        SimpleNamespace(pid=7, timeStamp=300, smUtil=0),
    ],
}
ALL_THERE = ClockState(1500, 1500, 40, 90.0, "power cap")


class NVMLError(Exception):
    """As pynvml's."""


class Stub(ModuleType):
    """`pynvml` of a machine with these devices; notes what was asked of which handle."""

    NVMLError = NVMLError

    def __init__(self, uuids: list[str], unsupported: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.uuids, self.asked = uuids, []  # type: ignore[var-annotated]
        for name, figure in FIGURES.items():
            if name not in absent:
                setattr(self, name, self._query(name, figure, name in unsupported))
        self.nvmlSystemGetDriverVersion = lambda: "570.86.15"

    def _query(self, name: str, figure: object, unsupported: bool) -> Any:
        def query(handle: str, *arguments: object) -> object:
            self.asked.append((name, handle))
            if unsupported:
                raise NVMLError("Not Supported")
            return figure

        return query

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.uuids:
            raise NVMLError("Not Found")
        return f"handle of {uuid}"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        raise AssertionError(f"physical GPU {index} was asked, which need not be the device")


@pytest.fixture
def uuid(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch's properties of the device, whose UUID a test may change."""
    properties = SimpleNamespace(uuid="1111-2222")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "stub")
    return properties


def install(monkeypatch: pytest.MonkeyPatch, stub: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stub)  # None: it cannot be imported


@pytest.mark.parametrize(
    ("query", "lost"),
    [
        ("nvmlDeviceGetClockInfo", {"sm_clock_mhz", "memory_clock_mhz"}),
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
        ("nvmlDeviceGetPowerUsage", {"power_w"}),
        ("nvmlDeviceGetCurrentClocksEventReasons", {"throttle_reasons"}),
    ],
)
@pytest.mark.parametrize("how", ["unsupported", "absent"])
def test_a_query_that_fails_costs_its_own_figures_alone(
    monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace, query: str, lost: set[str], how: str
) -> None:
    install(monkeypatch, Stub(["GPU-1111-2222"], **{how: (query,)}))
    state = ClockReader(SECOND_GPU).read()
    for field in ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "throttle_reasons"):
        assert getattr(state, field) == (None if field in lost else getattr(ALL_THERE, field)), field


def test_throttle_reasons_by_their_name_before_12_535(monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace) -> None:
    stub = Stub(["GPU-1111-2222"], absent=("nvmlDeviceGetCurrentClocksEventReasons",))
    stub.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x40  # type: ignore[attr-defined]
    install(monkeypatch, stub)
    assert ClockReader(SECOND_GPU).read().throttle_reasons == "thermal (hardware)"


def test_power_without_an_energy_counter_and_the_other_way(
    monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace
) -> None:
    install(monkeypatch, Stub(["GPU-1111-2222"], unsupported=("nvmlDeviceGetTotalEnergyConsumption",)))
    counter = EnergyCounter(SECOND_GPU)
    assert (counter.joules(), counter.idle_watts(0.0)) == (None, 90.0)
    install(monkeypatch, Stub(["GPU-1111-2222"], unsupported=("nvmlDeviceGetPowerUsage",)))
    counter = EnergyCounter(SECOND_GPU)
    assert (counter.joules(), counter.idle_watts(0.05)) == (5.0, None)


@pytest.mark.parametrize(
    ("torch_uuid", "known", "asked"),
    [
        pytest.param("1111", ["GPU-0000", "GPU-1111"], "handle of GPU-1111", id="bare"),
        pytest.param("GPU-1111", ["GPU-0000", "GPU-1111"], "handle of GPU-1111", id="prefixed"),
        pytest.param("3333", ["GPU-0000", "MIG-3333"], "handle of MIG-3333", id="slice-bare"),
        pytest.param("MIG-3333", ["GPU-0000", "MIG-3333"], "handle of MIG-3333", id="slice-prefixed"),
    ],
)
def test_the_device_is_asked_by_its_uuid(
    monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace, torch_uuid: str, known: list[str], asked: str
) -> None:
    uuid.uuid = torch_uuid
    stub = Stub(known)
    install(monkeypatch, stub)
    assert ClockReader(SECOND_GPU).read() == ALL_THERE
    assert {handle for _, handle in stub.asked} == {asked}


@pytest.mark.parametrize("torch_uuid", ["MIG-3333", "3333", ""], ids=["slice", "unknown", "none"])
def test_a_device_that_nvml_does_not_know_has_no_figures(
    monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace, torch_uuid: str
) -> None:
    """Rather none than those of physical GPU 0. The driver's version is no figure of a device."""
    uuid.uuid = torch_uuid
    stub = Stub(["GPU-0000"])
    install(monkeypatch, stub)
    assert ClockReader(SECOND_GPU).read() == ClockState()
    assert stub.asked == []
    assert EnergyCounter(SECOND_GPU).joules() is None
    assert driver_version(SECOND_GPU) == "570.86.15"
    assert Nvml(SECOND_GPU).fault == f"NVML knows no device of UUID {torch_uuid or 'unknown'}"


def test_a_driver_of_another_version(monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace) -> None:
    stub = Stub(["GPU-1111-2222"])

    def refuse() -> None:
        raise NVMLError("Driver/library version mismatch")

    stub.nvmlInit = refuse  # type: ignore[method-assign]
    install(monkeypatch, stub)
    assert describe(SECOND_GPU).driver is None
    assert EnergyCounter(SECOND_GPU).joules() is None
    assert Nvml(SECOND_GPU).fault == "NVML does not start (NVMLError: Driver/library version mismatch)"


def test_no_package(monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace) -> None:
    install(monkeypatch, None)
    assert ClockReader(SECOND_GPU).read() == ClockState()
    assert "NVML does not start (ModuleNotFoundError" in str(Nvml(SECOND_GPU).fault)


def test_a_cpu_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    cpu = Nvml(torch.device("cpu"))
    assert (cpu.fault, cpu.power_w(), cpu.driver_version()) == (None,) * 3


@pytest.mark.parametrize("value", [-1, 2**32 - 1, 2**64 - 1])
def test_the_value_that_says_not_available(monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace, value: int) -> None:
    stub = Stub(["GPU-1111-2222"])
    stub.nvmlDeviceGetPowerUsage = lambda handle: value  # type: ignore[attr-defined]
    install(monkeypatch, stub)
    assert Nvml(SECOND_GPU).power_w() is None


def test_processes_and_what_they_take(monkeypatch: pytest.MonkeyPatch, uuid: SimpleNamespace) -> None:
    install(monkeypatch, Stub(["GPU-1111-2222"]))
    nvml = Nvml(SECOND_GPU)
    assert nvml.compute_processes() == [3, 7]
    assert nvml.process_utilisation(100) == {3: 30, 7: 0}
    assert (nvml.power_limit_w(), nvml.max_sm_clock_mhz()) == (700.0, 1980)
