"""Argument checks: each error names the argument, what came and what is allowed. None touches the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .e4m3 import E4M3
from .launch import INTERPRET, can_run_on

if TYPE_CHECKING:
    from .cache import KVCache


def kernel_dtypes() -> tuple[torch.dtype, ...]:
    """Element types the kernels take: bf16 and fp16 on a GPU; the interpreter gets bf16 wrong and takes fp32."""
    return (torch.float16, torch.float32) if INTERPRET else (torch.bfloat16, torch.float16)


def stored_dtypes() -> tuple[torch.dtype, ...]:
    """Element types that keys and values may be stored in, for the kernels."""
    return (*kernel_dtypes(), E4M3)


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
        TypeError: not a dense tensor, or of a dtype not in `dtypes`.
        ValueError: wrong shape, device or strides.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: got layout {str(tensor.layout).removeprefix('torch.')}, expected a dense tensor")
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


def check_stored(cache: KVCache) -> None:
    """Raises TypeError, ValueError unless keys and values lie where kernels run, of a type that they read."""
    check_tensor("cache.k", cache.k, (None, None, None, None), dtypes=stored_dtypes())
    if cache.dtype not in kernel_dtypes():
        allowed = ", ".join(str(d).removeprefix("torch.") for d in kernel_dtypes())
        raise TypeError(f"cache: read as {str(cache.dtype).removeprefix('torch.')}, allowed: {allowed}")
    check_device("cache.k", cache.k)


def check_no_grad(name: str, tensor: Tensor) -> None:
    """Raises ValueError for a tensor that asks for a gradient: a decode step has no backward pass."""
    if tensor.requires_grad:
        raise ValueError(f"{name}: requires grad, but a decode step has no backward pass; pass {name}.detach()")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Check a whole number.

    Raises:
        TypeError: not an int.
        ValueError: outside `low` .. `high`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, allowed {low} to {high}")


def check_device(name: str, tensor: Tensor) -> None:
    """Raises ValueError if Triton kernels cannot run where `tensor` lies."""
    reason = can_run_on(tensor.device)
    if reason:
        raise ValueError(f"{name}: {reason}")


def check_same_strides(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError if two tensors of one shape lie differently; the stride of a single entry says nothing."""
    given, wanted = tensor.stride(), other.stride()
    if any(a != b for a, b, length in zip(given, wanted, tensor.shape, strict=True) if length > 1):
        raise ValueError(f"{name}: strides {given} differ from {other_name}'s {wanted}")


def usable_device(device: torch.device | str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: torch knows no such device, or has none here.
    """
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: got {device!r}, expected a torch.device or a name such as cuda:0") from None
    if named.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {named}, but torch sees no CUDA device here")
    return named


def check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Check device values (synchronises). Raises ValueError naming the offending extremes.

    Tensors without storage have no values to check.
    """
    if tensor.numel() == 0 or tensor.is_meta:
        return
    least, most = int(tensor.min()), int(tensor.max())
    if least < low or most > high:
        raise ValueError(f"{name}: values span [{least}, {most}], allowed [{low}, {high}]")
