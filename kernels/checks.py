"""Argument checks: each error names the argument, what came and what is allowed. None touches the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import INTERPRET, can_run_on


def kernel_dtypes() -> tuple[torch.dtype, ...]:
    """Element types the kernels take: bf16 and fp16 on a GPU; the interpreter gets bf16 wrong and takes fp32."""
    return (torch.float16, torch.float32) if INTERPRET else (torch.bfloat16, torch.float16)


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
    last_contiguous: bool = True,
) -> None:
    """Check one tensor. `None` in `shape` leaves that length open.

    Raises:
        TypeError: not a tensor, or of a dtype not in `dtypes`.
        ValueError: wrong shape, device or strides.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor")
    if dtypes is not None and tensor.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name}: got dtype {str(tensor.dtype).removeprefix('torch.')}, allowed: {allowed}")
    if tensor.dim() != len(shape) or any(w is not None and w != g for w, g in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("any" if w is None else str(w) for w in shape)
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected [{wanted}]")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: is on {tensor.device}, expected {device}")
    if last_contiguous and tensor.dim() and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name}: stride of the last dimension is {tensor.stride(-1)}, must be 1")


def check_device(name: str, tensor: Tensor) -> None:
    """Raises ValueError if Triton kernels cannot run where `tensor` lies."""
    reason = can_run_on(tensor.device)
    if reason:
        raise ValueError(f"{name}: {reason}")


def check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Check device values (synchronises). Raises ValueError naming the offending extremes."""
    if tensor.numel() == 0:
        return
    least, most = int(tensor.min()), int(tensor.max())
    if least < low or most > high:
        raise ValueError(f"{name}: values span [{least}, {most}], allowed [{low}, {high}]")
