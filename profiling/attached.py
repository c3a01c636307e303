"""Whether one of NVIDIA's tools watches this process. CUPTI has one subscriber: then our own tracing stays off."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from .nvtx_ranges import NvtxRanges
from .ranges import listening

SIGNS = {
    "nsys": ("NSYS_PROFILING_SESSION_ID",),
    "ncu": ("NV_COMPUTE_PROFILER_PERFWORKS_DIR", "NV_NSIGHT_INJECTION_PORT_BASE"),
    "compute-sanitizer": ("NV_SANITIZER_INJECTION_PORT_BASE",),
}
"""Environment variables that each tool sets for the program it starts (seen with the 2025.3 releases)."""


def attached(environment: Mapping[str, str] | None = None) -> str | None:
    """Name of the tool that this process was started under, or None."""
    environment = os.environ if environment is None else environment
    return next((tool for tool, signs in SIGNS.items() if any(sign in environment for sign in signs)), None)


def ranges_for_tool() -> AbstractContextManager[None]:
    """NVTX ranges within this if a tool that shows them is attached (and `nvtx` is here); else nothing."""
    if attached() not in ("nsys", "ncu"):
        return nullcontext()
    try:
        return listening(NvtxRanges())
    except ImportError:
        return nullcontext()
