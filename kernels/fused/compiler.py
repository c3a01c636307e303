"""The fused step compiled and loaded, and how many of its clusters run at once."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..cuda.nvrtc import Loaded, call_driver, compile_cubin, compile_folder, load, source_hash

FOLDER = Path(__file__).parent
MAIN = "step.cu"  # includes the others
KERNEL = "sparse_step"
PROBE = b'extern "C" __global__ void probe() {}'
PROBE_SHARED_BYTES = 120 * 1024  # over half of a multiprocessor's: one CTA on each, as the step's registers have it
MAX_CLUSTER = 16  # CTAs; over 8 not every GPU offers, which the occupancy query tells


def compile_step(constants: Mapping[str, int], capability: tuple[int, int] = (9, 0)) -> bytes:
    """The step's machine code; needs NVRTC, but no GPU.

    Raises:
        RuntimeError: with the compiler's log, if it does not compile.
    """
    return compile_folder(FOLDER, MAIN, constants, capability)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel. `launch` enqueues it on torch's current stream."""

    loaded: Loaded
    ctas: int  # of a row

    def launch(self, rows: int, parameters: int) -> None:
        """Start it; `parameters` is the address of the array of its arguments' addresses."""
        self.loaded.launch(rows * self.ctas, parameters)


@cache
def clusters_at_once(device: torch.device, cluster: int) -> int:
    """How many clusters of so many CTAs, one CTA a multiprocessor, run at the same time on `device`; 0 if none can."""
    from cuda.bindings import driver

    probe = _probe(device)
    config, size = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 256, 1, 1
    config.sharedMemBytes = PROBE_SHARED_BYTES
    size.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = cluster, 1, 1
    config.attrs, config.numAttrs = [size], 1
    try:
        with torch.cuda.device(device):
            return int(call_driver("cuOccupancyMaxActiveClusters", probe, config))
    except RuntimeError:  # clusters of this size are not to be had
        return 0


@cache
def _probe(device: torch.device) -> Any:
    capability = torch.cuda.get_device_capability(device)
    return load(device, compile_cubin(PROBE, {}, capability), "probe", PROBE_SHARED_BYTES)


_loaded: dict[tuple[Any, ...], Kernel] = {}


def kernel(
    device: torch.device,
    constants: Mapping[str, int],
    ctas: int,
    threads: int,
    shared_bytes: int,
    cooperative: bool = False,
) -> Kernel:
    """The step compiled with `constants` and loaded on `device`; compiled once, in a second or two."""
    key = (device, source_hash(FOLDER), tuple(sorted(constants.items())), shared_bytes)
    if key not in _loaded:
        cubin = compile_step(constants, torch.cuda.get_device_capability(device))
        function = load(device, cubin, KERNEL, shared_bytes)
        _loaded[key] = Kernel(Loaded(function, device, threads, shared_bytes, cooperative), ctas)
    return _loaded[key]


def pointers(structure: ctypes.Structure) -> ctypes.Array[ctypes.c_void_p]:
    """The array that a launch takes, of a kernel whose one argument is `structure`; keep both alive while it runs."""
    return (ctypes.c_void_p * 1)(ctypes.addressof(structure))
