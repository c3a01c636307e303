"""NVML's figures of one torch device. Each may be absent; none stops a run.

Drivers leave queries out (WSL 2, Jetson, vGPU, MIG slices), libraries are older than drivers or newer, and torch
numbers GPUs otherwise than NVML. So the device is found by its UUID alone, and a query that fails gives None.
"""

from __future__ import annotations

from typing import Any

import torch

CLOCK_SM, CLOCK_MEMORY = 1, 2  # nvmlClockType_t
TEMPERATURE_GPU = 0  # nvmlTemperatureSensors_t
NOT_AVAILABLE = (-1, 2**32 - 1, 2**64 - 1)
"""NVML_VALUE_NOT_AVAILABLE, as signed and unsigned integers show it."""


class Nvml:
    """What NVML says about one device.

    Attributes:
        fault: one line that says why every figure of the device is absent, or None. A CPU has no fault and no figures.
    """

    def __init__(self, device: torch.device) -> None:
        self.fault: str | None = None
        self._library: Any = None
        self._handle: Any = None
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # no package, no driver, another driver's library, a sandbox
            self.fault = f"NVML does not start ({type(error).__name__}: {_first_line(error)})"
            return
        self._library = pynvml
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "")) or "unknown"
        # torch gives the bare UUID of a whole GPU and of a slice alike; NVML wants to know which it is.
        names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        handles = (self._ask("nvmlDeviceGetHandleByUUID", name) for name in names)
        self._handle = next((handle for handle in handles if handle is not None), None)
        if self._handle is None:
            self.fault = f"NVML knows no device of UUID {uuid}"

    def driver_version(self) -> str | None:
        """The driver's version, such as "570.86.15"."""
        version = self._ask("nvmlSystemGetDriverVersion")
        return version.decode(errors="replace") if isinstance(version, bytes) else version

    def sm_clock_mhz(self) -> int | None:
        """The multiprocessors' clock now."""
        return self._integer("nvmlDeviceGetClockInfo", CLOCK_SM)

    def memory_clock_mhz(self) -> int | None:
        """The memory's clock now."""
        return self._integer("nvmlDeviceGetClockInfo", CLOCK_MEMORY)

    def max_sm_clock_mhz(self) -> int | None:
        """The multiprocessors' highest clock."""
        return self._integer("nvmlDeviceGetMaxClockInfo", CLOCK_SM)

    def temperature_c(self) -> int | None:
        """The GPU's temperature in Celsius."""
        return self._integer("nvmlDeviceGetTemperature", TEMPERATURE_GPU)

    def power_w(self) -> float | None:
        """The board's power in watts, averaged by the driver over up to a second."""
        return _thousandth(self._integer("nvmlDeviceGetPowerUsage"))

    def power_limit_w(self) -> float | None:
        """The power cap in force, in watts."""
        return _thousandth(self._integer("nvmlDeviceGetEnforcedPowerLimit"))

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded."""
        return _thousandth(self._integer("nvmlDeviceGetTotalEnergyConsumption"))

    def throttle_bits(self) -> int | None:
        """Bit field of what slows the GPU down now (`clocks.THROTTLES`)."""
        bits = self._integer("nvmlDeviceGetCurrentClocksEventReasons")  # its name since 12.535
        return bits if bits is not None else self._integer("nvmlDeviceGetCurrentClocksThrottleReasons")

    def compute_processes(self) -> list[int] | None:
        """Process ids, as the host numbers them, that hold a compute context on the device."""
        processes = self._of_device("nvmlDeviceGetComputeRunningProcesses")
        return None if processes is None else sorted({int(process.pid) for process in processes})

    def process_utilisation(self, since_us: int) -> dict[int, int] | None:
        """The highest share of the multiprocessors' time that each process took, in percent, by process id.

        Args:
            since_us: samples before this time (microseconds since 1970) do not count.
        """
        samples = self._of_device("nvmlDeviceGetProcessUtilization", since_us)
        if samples is None:
            return None
        percent: dict[int, int] = {}
        for sample in samples:
            if sample.timeStamp >= since_us:
                percent[int(sample.pid)] = max(percent.get(int(sample.pid), 0), int(sample.smUtil))
        return percent

    def _integer(self, function: str, *arguments: Any) -> int | None:
        figure = self._of_device(function, *arguments)
        return None if figure is None else int(figure)

    def _of_device(self, function: str, *arguments: Any) -> Any:
        return None if self._handle is None else self._ask(function, self._handle, *arguments)

    def _ask(self, function: str, *arguments: Any) -> Any:
        if self._library is None:
            return None
        try:
            figure = getattr(self._library, function)(*arguments)
        except Exception:  # NVML's own kinds, and AttributeError where the library is older than the query
            return None
        return None if isinstance(figure, int) and figure in NOT_AVAILABLE else figure


def _thousandth(figure: int | None) -> float | None:
    return None if figure is None else figure / 1e3


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")
