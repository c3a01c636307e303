"""What ran where: device, software, and the state of the source tree."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from .nvml import Nvml

COMMIT_VARIABLE = "RESA_BENCH_COMMIT"


@dataclass(frozen=True, slots=True)
class Environment:
    """Columns of a row that are the same for a whole run."""

    device: str
    driver: str | None
    torch: str
    triton: str
    python: str
    commit: str | None
    dirty: bool | None


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = model.group(1) if model else platform.processor() or platform.machine()
    return f"CPU {name} ({torch.get_num_threads()} threads)"


def driver_version(device: torch.device) -> str | None:
    """NVIDIA's driver; None on a CPU, or where NVML does not tell."""
    return Nvml(device).driver_version()


def source_state() -> tuple[str | None, bool | None]:
    """Commit of the tree this package runs from and whether it was changed since.

    Where there is only an exported tree (a container, a remote machine), RESA_BENCH_COMMIT says which commit it is.
    """
    folder = Path(__file__).resolve().parent
    told = os.environ.get(COMMIT_VARIABLE)
    if told:
        return told.removesuffix("-dirty"), told.endswith("-dirty")

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=all").splitlines()
        # A new Python file may be a new method; other new files (results, notes) change nothing.
        return git("rev-parse", "HEAD"), any(c.endswith(".py") or not c.startswith("??") for c in changes)
    except (OSError, subprocess.SubprocessError):
        return None, None


def describe(device: torch.device) -> Environment:
    """Everything a result row says about where it came from."""
    commit, dirty = source_state()
    return Environment(
        device=device_name(device),
        driver=driver_version(device),
        torch=torch.__version__,
        triton=triton.__version__,
        python=platform.python_version(),
        commit=commit,
        dirty=dirty,
    )
