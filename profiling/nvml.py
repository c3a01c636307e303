"""The NVML handle of a torch device."""

from __future__ import annotations

from typing import Any

import torch


def nvml_handle(device: torch.device) -> tuple[Any, Any] | None:
    """The initialised `pynvml` module and the device's handle, by its UUID; None on a CPU."""
    if device.type != "cuda":
        return None
    import pynvml

    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError:  # a slice of a GPU has a name of its own
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    return pynvml, handle
