"""What stands after a product that cannot fuse it: bias, SwiGLU and residual in one launch, beside its reference."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import silu

from ..checks import check_tensor, kernel_dtypes
from ..launch import await_previous, can_run_on, launch

COLUMNS_A_PROGRAM = 1024


@triton.jit
def _finish_kernel(
    y,  # [rows, N], or [rows, 2 N] with SWIGLU: gate, then up
    bias,  # [N] or [2 N], or None
    residual,  # [rows, N], or None
    out,  # [rows, N]
    N,
    y_stride,
    residual_stride,
    BN: tl.constexpr,
    SWIGLU: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64)
    inside = column < N
    value = tl.load(y + row * y_stride + column, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        up = tl.load(y + row * y_stride + N + column, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            up += tl.load(bias + N + column, mask=inside, other=0.0).to(tl.float32)
        value = value / (1.0 + tl.exp(-value)) * up
    if residual is not None:
        value += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + column, value.to(out.dtype.element_ty), mask=inside)


def finish(y: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, swiglu: bool = False) -> Tensor:
    """`residual + swiglu(y + bias)`, each part only where it is given; y itself where none is.

    Args:
        y: `[rows, N]`, or `[rows, 2 N]` with `swiglu`; 16 bits on a GPU, at most 65,535 rows.
        bias: of y's columns.
        residual: `[rows, N]`.

    Raises:
        TypeError, ValueError: where the kernel runs: a tensor's dtype, shape, device or strides.
    """
    if bias is None and residual is None and not swiglu:
        return y
    if y.dtype not in kernel_dtypes() or can_run_on(y.device):
        return finish_reference(y, bias, residual, swiglu=swiglu)
    rows, width = y.shape
    columns = width // 2 if swiglu else width
    check_tensor("y", y, (None, None), dtypes=kernel_dtypes())
    if bias is not None:
        check_tensor("bias", bias, (width,), dtypes=(y.dtype,), device=y.device)
    if residual is not None:
        check_tensor("residual", residual, (rows, columns), dtypes=(y.dtype,), device=y.device)
    out = torch.empty(rows, columns, dtype=y.dtype, device=y.device)
    launch(
        _finish_kernel,
        (triton.cdiv(columns, COLUMNS_A_PROGRAM), rows),
        y=y,
        bias=bias,
        residual=residual,
        out=out,
        N=columns,
        y_stride=y.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        BN=COLUMNS_A_PROGRAM,
        SWIGLU=swiglu,
        num_warps=4,
    )
    return out


def finish_reference(
    y: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, swiglu: bool = False
) -> Tensor:
    """`finish` in plain torch, in y's dtype."""
    if bias is not None:
        y = y + bias
    if swiglu:
        gate, up = y.chunk(2, dim=-1)
        y = silu(gate) * up
    return y if residual is None else residual + y
