"""NVIDIA's profilers on this machine: where they are, whether they start, and whether they may read counters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
"""What the folders of tools lie under."""

LIBRARIES = "install that library (Debian: apt-get install libdw1 libelf1 libdebuginfod1)"
VERSION = re.compile(r"\d+(?:\.\d+)+|\d{6,}")  # an importer has a build number alone


@dataclass(frozen=True, slots=True)
class Tool:
    """A command-line tool of NVIDIA's.

    Attributes:
        name: of its executable.
        variable: environment variable that names its path and is believed first.
        folders: where installers put it, as glob patterns under `ROOT`; of several versions the newest counts.
        remedy: what to do where it is not here.
    """

    name: str
    variable: str
    folders: tuple[str, ...]
    remedy: str

    def find(self) -> Path | None:
        """The variable's path, else what is on PATH, else the newest in `folders`; None if it is nowhere.

        Raises:
            FileNotFoundError: the variable names a file that is not there.
        """
        named = os.environ.get(self.variable)
        if named:
            if not Path(named).is_file():
                raise FileNotFoundError(f"{self.variable}: no file at {named}")
            return Path(named)
        on_path = shutil.which(self.name)
        if on_path:
            return Path(on_path)
        installed = [path for pattern in self.folders for path in ROOT.glob(pattern) if os.access(path, os.X_OK)]
        return max(installed, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], default=None)


NSYS = Tool(
    "nsys",
    "NSYS",
    (
        "opt/nvidia/nsight-systems/*/bin/nsys",
        "opt/nvidia/nsight-systems/*/target-linux-x64/nsys",
        "usr/local/cuda*/bin/nsys",
        "opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",
    ),
    "install Nsight Systems (https://developer.nvidia.com/nsight-systems) or set NSYS to its path",
)
NCU = Tool(
    "ncu",
    "NCU",
    ("usr/local/cuda*/bin/ncu", "opt/nvidia/nsight-compute/*/ncu"),
    "install Nsight Compute (https://developer.nvidia.com/nsight-compute) or set NCU to its path",
)
SANITIZER = Tool(
    "compute-sanitizer",
    "COMPUTE_SANITIZER",
    ("usr/local/cuda*/bin/compute-sanitizer", "usr/local/cuda*/compute-sanitizer/compute-sanitizer"),
    "install the CUDA toolkit's compute-sanitizer or set COMPUTE_SANITIZER to its path",
)
TOOLS = (NSYS, NCU, SANITIZER)


def version(path: Path) -> str:
    """What `path --version` says.

    Raises:
        OSError: it does not start, with the last line it left (a missing library, mostly).
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{path} --version did not end within {error.timeout:.0f} s") from error
    numbers: list[str] = VERSION.findall(done.stdout)
    if done.returncode or not numbers:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(lines[-1] if lines else f"{path} --version ended with {done.returncode}")
    return numbers[0]


def importer_fault(nsys: Path) -> str | None:
    """Why this nsys can record but not make a report of it, or None.

    Its importer lies in a folder beside it and needs libraries that nsys itself does not.
    """
    for importer in nsys.resolve().parent.parent.glob("*/QdstrmImporter"):
        try:
            version(importer)
        except OSError as error:
            return str(error)
    return None


def counters_denied(params: Path = Path("/proc/driver/nvidia/params")) -> str | None:
    """Why this user may not read the GPU's performance counters (ncu needs them), or None."""
    if not params.exists():
        return None
    restricted = re.search(r"RmProfilingAdminOnly:\s*1", params.read_text())
    if restricted and os.geteuid() != 0:
        return "the driver gives counters to administrators only (RmProfilingAdminOnly: 1)"
    return None
