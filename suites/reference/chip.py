"""What a manifest says of the machine: the chip, without what identifies the very card, and the versions."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from typing import Any

import torch
import triton

from ...kernels.cuda import nvrtc, occupancy
from ...profiling.device import device_name, driver_version

CLUSTERS = (8, 16)
"""Sizes of thread-block clusters, in CTAs, whose number at once tells chips of one kind apart."""
PACKAGES = (
    "flash-attn", "fa3-fwd", "flashinfer-python", "cuda-bindings", "nvidia-ml-py", "math-verify", "wonderwords",
    "numpy", "pandas",
)  # fmt: skip
MAKERS = ("nvidia", "geforce", "tesla", "quadro", "amd", "instinct")


def describe_chip(device: torch.device) -> dict[str, Any]:
    """Name, multiprocessors, memory in bytes, and how many clusters of 8 and of 16 CTAs run at once; cores of a CPU.

    `clusters` is absent where the chip has none, or where nothing can ask for them.
    """
    if device.type != "cuda":
        return {"name": device_name(device), "type": "cpu", "cores": os.cpu_count()}
    properties = torch.cuda.get_device_properties(device)
    chip = {
        "name": device_name(device),
        "type": "cuda",
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }
    clusters = _clusters(device)
    return chip | {"clusters": clusters} if clusters else chip


def _clusters(device: torch.device) -> dict[str, int] | None:
    if torch.cuda.get_device_capability(device) < (9, 0) or nvrtc.unavailable():
        return None
    return {str(size): occupancy.clusters_at_once(device, size) for size in CLUSTERS}


def describe_versions(device: torch.device) -> dict[str, str]:
    """Of Python, torch, Triton, CUDA, cuDNN, the driver and the rivals' packages, as far as they are here."""
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "driver": driver_version(device),
    }
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {name: str(value) for name, value in facts.items() if value is not None}


def folder_name(device: torch.device) -> str:
    """The folder in results/: `cpu`, or the chip's own name, such as `h100` or `rtx-4090`."""
    if device.type != "cuda":
        return "cpu"
    words = [word for word in re.split(r"[^a-z0-9]+", device_name(device).lower()) if word and word not in MAKERS]
    numbered = next((i for i, word in enumerate(words) if re.search(r"\d", word)), len(words) - 1)
    return "-".join(words[: numbered + 1])
