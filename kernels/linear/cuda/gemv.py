"""Launching the CUDA product: what it serves, its arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cuda import nvrtc, occupancy
from ...launch import shared_memory, sm_count
from ..int4 import Int4Weight
from ..int4_linear import check_int4
from ..small_linear import check_small
from ..weights import Norm
from .layout import Layout, lay_out

MAX_ROWS = 16  # whose values registers hold
MIN_CAPABILITY = (9, 0)
FOLDER = Path(__file__).parent
MAIN, KERNEL = "gemv.cu", "int4_gemv"
NIBBLES_MASK = 0x000F000F
ALIGNED_BYTES = 16  # that copies take from such an address on


class _Arguments(ctypes.Structure):
    """`Arguments` of layout.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "words", "scales", "bias", "norm", "residual", "out")),
        *((name, ctypes.c_longlong) for name in ("x_stride", "residual_stride")),
        *((name, ctypes.c_int) for name in ("rows", "columns")),
        ("eps", ctypes.c_float),
        ("nibbles", ctypes.c_int),
    ]


@cache
def runs_on(device: torch.device) -> bool:
    """Whether kernels of this kind can be compiled, and run there."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    return nvrtc.unavailable() is None


@cache
def layout_of(rows: int, depth: int, group: int, columns: int, swiglu: bool, device: torch.device) -> Layout | None:
    """Of a product on a device; None: not served."""

    def at_once(cluster: int) -> int:
        return sm_count(device) if cluster == 1 else occupancy.clusters_at_once(device, cluster)

    return lay_out(rows, depth, group, columns, swiglu, at_once, shared_memory(device))


def serves(x: Tensor, weight: Int4Weight, norm: Norm | None, swiglu: bool) -> bool:
    """Whether the kernel runs where `x` lies, with so many rows, and starts of rows at multiples of 16 bytes.

    Arguments as of `int4_gemv`, which need not have been checked.
    """
    if not 1 <= x.shape[0] <= MAX_ROWS or not runs_on(x.device):
        return False
    columns = weight.shape[0] // (2 if swiglu else 1)
    if layout_of(x.shape[0], weight.depth, weight.group, columns, swiglu, x.device) is None:
        return False
    starts = [x.data_ptr(), x.stride(0) * x.element_size(), weight.words.data_ptr(), weight.scales.data_ptr()]
    return not any(start % ALIGNED_BYTES for start in (*starts, 0 if norm is None else norm.weight.data_ptr()))


def int4_gemv(
    x: Tensor,
    weight: Int4Weight,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`linear` of 1 to 16 rows with 4-bit weights in one launch; arguments as there, and `out` to write into.

    Weight and norm are read before the kernel before has ended: none that lets its successor in early may write them.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; more than 16 rows; what it does not serve.
    """
    check_int4(x, weight)
    out = check_small(x, weight.shape, weight.bias, norm, residual, swiglu, out, MAX_ROWS)
    if not serves(x, weight, norm, swiglu):
        raise ValueError("x, weight: not served by the CUDA kernel; take int4_small_linear")
    layout = layout_of(x.shape[0], weight.depth, weight.group, out.shape[1], swiglu, x.device)
    assert layout is not None
    enqueue(layout, x, weight, norm, residual, out)
    return out


def enqueue(
    layout: Layout, x: Tensor, weight: Int4Weight, norm: Norm | None, residual: Tensor | None, out: Tensor
) -> None:
    """The launch alone, into `out` `[rows, N]` (N/2 with two halves); arguments were checked before."""
    arguments = _Arguments(
        x.data_ptr(),
        weight.words.data_ptr(),
        weight.scales.data_ptr(),
        None if weight.bias is None else weight.bias.data_ptr(),
        None if norm is None else norm.weight.data_ptr(),
        None if residual is None else residual.data_ptr(),
        out.data_ptr(),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        x.shape[0],
        out.shape[1],
        0.0 if norm is None else norm.eps,
        NIBBLES_MASK,
    )
    clusters = ctypes.c_int(layout.clusters)
    parameters = nvrtc.addresses(arguments, clusters)
    kernel(x.device, layout, x.dtype == torch.float16).launch(layout.ctas, ctypes.addressof(parameters))


def compiled(constants: Mapping[str, int], capability: tuple[int, int] = MIN_CAPABILITY) -> bytes:
    """Machine code; needs no GPU. Raises RuntimeError."""
    return nvrtc.compile_folder(FOLDER, MAIN, constants, capability)


@cache
def kernel(device: torch.device, layout: Layout, fp16: bool) -> Any:
    """Compiled for a layout, in one to four seconds, and loaded."""
    cubin = compiled(layout.constants(fp16), torch.cuda.get_device_capability(device))
    function = nvrtc.load(device, cubin, KERNEL, layout.launch_bytes, shares_multiprocessors=True)
    return nvrtc.Loaded(function, device, layout.threads, layout.launch_bytes)
