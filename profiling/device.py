"""What ran where: device, software, and the state of the source tree."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from .nvml import Nvml
from .source import COMMIT_VARIABLE, package_version, source_hash, source_state, source_tag

__all__ = [
    "COMMIT_VARIABLE",
    "Environment",
    "describe",
    "device_name",
    "driver_version",
    "package_version",
    "source_hash",
    "source_state",
    "source_tag",
]


@dataclass(frozen=True, slots=True)
class Environment:
    """Columns of a row that are the same for a whole run.

    Attributes:
        device: its name.
        driver: NVIDIA's version; None on a CPU or where it is not known.
        torch, triton, python: versions.
        version: of this package.
        commit, dirty: `source_state`.
        source: a hash of the package's source files.
    """

    device: str
    driver: str | None
    torch: str
    triton: str
    python: str
    version: str | None
    commit: str | None
    dirty: bool | None
    source: str


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = model.group(1) if model else platform.processor() or platform.machine()
    return f"CPU {name} ({torch.get_num_threads()} threads)"


def driver_version(device: torch.device) -> str | None:
    """NVIDIA's driver; None on a CPU, or where NVML does not tell."""
    return Nvml(device).driver_version()


def describe(device: torch.device) -> Environment:
    """Everything a result row says about where it came from."""
    commit, dirty = source_state()
    return Environment(
        device=device_name(device),
        driver=driver_version(device),
        torch=torch.__version__,
        triton=triton.__version__,
        python=platform.python_version(),
        version=package_version(),
        commit=commit,
        dirty=dirty,
        source=source_hash(),
    )
