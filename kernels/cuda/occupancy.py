"""How many clusters of CTAs a GPU runs at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .nvrtc import call_driver, compile_cubin, load

PROBE = b'extern "C" __global__ void probe() {}'
PROBE_SHARED_BYTES = 120 * 1024  # over half of a multiprocessor's: one CTA on each
RESERVED_BYTES = 1024  # of a multiprocessor's shared memory, that the system takes for each CTA
MAX_CLUSTER = 16  # CTAs; over 8 not every GPU offers, which the query tells


@cache
def clusters_at_once(device: torch.device, cluster: int) -> int:
    """How many clusters of so many CTAs, one CTA a multiprocessor, run at the same time on `device`; 0 if none can."""
    from cuda.bindings import driver

    config, size = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 256, 1, 1
    config.sharedMemBytes = PROBE_SHARED_BYTES
    size.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = cluster, 1, 1
    config.attrs, config.numAttrs = [size], 1
    try:
        with torch.cuda.device(device):
            return int(call_driver("cuOccupancyMaxActiveClusters", _probe(device), config))
    except RuntimeError:  # clusters of this size are not to be had, or not so much shared memory
        return 0


@cache
def _probe(device: torch.device) -> Any:
    capability = torch.cuda.get_device_capability(device)
    return load(device, compile_cubin(PROBE, {}, capability), "probe", PROBE_SHARED_BYTES)
