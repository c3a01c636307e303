"""Many rows times an e4m3 weight: in registers up to some rows, beyond them by the library, the weight in 16 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_device, check_tensor, kernel_dtypes
from ..launch import INTERPRET, await_previous, launch
from .fp8 import Fp8Weight
from .fp8_linear import fp8_linear
from .fp8_widen import widen

MOST_IN_REGISTERS = 128
"""Rows of x; beyond them writing the weight out once costs less (docs/notes/linear.md)."""


@triton.jit
def _widen_kernel(
    weight,  # e4m3 [N, K], as bytes
    scales,  # fp32 [N]
    out,  # [N, K], 16 bits
    K,
    BK: tl.constexpr,
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BK + tl.arange(0, BK)
    inside = column < K
    values = widen(tl.load(weight + row * K + column, mask=inside, other=0), BF16, INTERPRETED)
    scaled = values.to(tl.float32) * tl.load(scales + row)
    tl.store(out + row * K + column, scaled.to(out.dtype.element_ty), mask=inside)


def widen_fp8(weight: Fp8Weight, dtype: torch.dtype) -> Tensor:
    """The weight `[N, K]` in 16 bits, each value rounded once.

    Raises:
        TypeError, ValueError: `dtype` is not one of the kernels'; kernels cannot run where the weight lies.
    """
    if dtype not in kernel_dtypes():
        raise TypeError(f"dtype: got {dtype}, allowed are {', '.join(map(str, kernel_dtypes()))}")
    check_device("weight.values", weight.values)
    rows, depth = weight.shape
    out = torch.empty(rows, depth, dtype=dtype, device=weight.values.device)
    step = min(4096, triton.next_power_of_2(depth))
    launch(
        _widen_kernel,
        (triton.cdiv(depth, step), rows),
        weight=weight.values.view(torch.uint8),
        scales=weight.scales,
        out=out,
        K=depth,
        BK=step,
        BF16=dtype == torch.bfloat16,
        INTERPRETED=INTERPRET,
        num_warps=4,
    )
    return out


def fp8_many_linear(x: Tensor, weight: Fp8Weight) -> Tensor:
    """`x W^T`, `[rows, N]`, without the bias; beyond 128 rows it takes a scratch tensor `[N, K]`.

    Args:
        x: `[rows, K]` of 16 bits.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides.
    """
    if x.shape[0] <= MOST_IN_REGISTERS:
        return fp8_linear(x, weight)
    check_tensor("x", x, (None, weight.shape[1]), dtypes=kernel_dtypes(), device=weight.values.device)
    return torch.mm(x, widen_fp8(weight, x.dtype).T)
