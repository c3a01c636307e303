"""Asking whether an optional library is here, without importing it in vain."""

from importlib import import_module
from types import ModuleType

import torch


def missing(module: str, extra: str) -> str | None:
    """Why `module` cannot be imported, with the command that brings it; None if it can.

    Args:
        extra: of this project's optional dependencies, that installs it.
    """
    try:
        import_module(module)
    except Exception as error:  # a broken extension raises anything at all
        cause = f"{type(error).__name__}: {str(error)[:80]}"
        return f"{module} cannot be imported ({cause}); pip install -e '.[{extra}]'"
    return None


def load(module: str) -> ModuleType:
    """The module, imported. Raises whatever its import does."""
    return import_module(module)


def needs_16_bits(dtype: torch.dtype) -> str | None:
    """Why a library of products cannot take activations of a dtype, or None if it can."""
    return None if dtype in (torch.bfloat16, torch.float16) else f"takes 16-bit activations, got {dtype}"


def needs_cuda(device: torch.device, least: tuple[int, int] = (8, 0)) -> str | None:
    """Why a CUDA library cannot run on `device`, or None.

    Args:
        least: compute capability that it needs, major and minor.
    """
    if device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    have = torch.cuda.get_device_capability(device)
    if have < least:
        return f"needs compute capability {least[0]}.{least[1]}, got {have[0]}.{have[1]}"
    return None


def first(*reasons: str | None) -> str | None:
    """The first reason there is."""
    return next((reason for reason in reasons if reason), None)
