"""One to sixteen rows times a 16-bit weight, with RMSNorm, bias, SwiGLU and residual in the same launch.

The weight is read once and nothing else matters, so every program owns a few rows of it and streams them through
shared memory. Its warps share K, not rows: a warp's products are summed with the other warps' at the end. That keeps
programs small enough (16 weight rows) for narrow layers to fill the chip, and lets no warp repeat another's work on x.
Weight rows are the first operand of the matrix product (16 of them), rows of x the second (8 or 16).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_device, check_tensor, kernel_dtypes
from ..launch import INTERPRET, await_previous, launch
from .fp8_widen import widen
from .weights import DenseWeight, Norm

MAX_SMALL_ROWS = 16


@triton.jit
def load_addends(
    bias, residual, column, row, live, N, residual_stride, R: tl.constexpr, BN: tl.constexpr, SWIGLU: tl.constexpr
):  # fmt: skip
    """What is added at the end, asked for at the beginning: bias `[BN]`, bias of the up rows, residual `[R, BN]`."""
    first = tl.zeros((BN,), dtype=tl.float32)
    second = first
    last = tl.zeros((R, BN), dtype=tl.float32)
    if bias is not None:
        first = tl.load(bias + column).to(tl.float32)
        if SWIGLU:
            second = tl.load(bias + N + column).to(tl.float32)
    if residual is not None:
        there = row[:, None] * residual_stride + column[None, :]
        last = tl.load(residual + there, mask=live[:, None], other=0.0).to(tl.float32)
    return first, second, last


@triton.jit
def finish_rows(acc, up_acc, squares, bias, up_bias, residual, K, eps, NORM: tl.constexpr, SWIGLU: tl.constexpr):
    """Sum the warps' products `[SPLIT, BN, R]` and apply what follows the product: `[R, BN]`."""
    y = tl.trans(tl.sum(acc, axis=0))
    if NORM:
        rstd = tl.rsqrt(tl.sum(tl.max(squares, axis=1), axis=0) / K + eps)  # `squares` has 16 equal rows
        y = y * rstd[:, None]
    y += bias[None, :]
    if SWIGLU:
        up = tl.trans(tl.sum(up_acc, axis=0))
        if NORM:
            up = up * rstd[:, None]
        y = y / (1.0 + tl.exp(-y)) * (up + up_bias[None, :])
    return y + residual


@triton.jit
def normalise(x, weight, squares, ones, FP32: tl.constexpr):
    """x times the norm's weight, in x's dtype, and the sum of x^2 (1 / rms is a factor of the whole row).

    Squares are rounded to bf16 and summed by the tensor cores: all that reads the tile is then a matrix product, and
    only so is it laid out in shared memory without bank conflicts. Rounding them moves 1 / rms by 2^-10 at the worst.
    """
    wide = x.to(tl.float32)
    square = wide * wide
    squares = tl.dot(ones, square if FP32 else square.to(tl.bfloat16), squares)
    return (wide * weight.to(tl.float32)[:, :, None]).to(x.dtype), squares


@triton.jit(do_not_specialize=["rows"])
def _small_linear_kernel(
    x,  # [rows, K]
    weight,  # [N, K], or [2 N, K] with SWIGLU: gate rows, then up rows; 16 bits, or e4m3 as bytes
    scales,  # fp32 [N] or [2 N] of e4m3, or None
    bias,  # [N] or [2 N], or None
    norm,  # [K], or None
    residual,  # [rows, N], or None
    out,  # [rows, N]
    rows,
    N,
    K,
    x_stride,
    residual_stride,
    eps,
    R: tl.constexpr,  # rows rounded up: 8 or 16
    SPLIT: tl.constexpr,  # warps, each with its own part of K
    BN: tl.constexpr,
    BK: tl.constexpr,  # of K, a warp and step
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,  # K is a multiple of SPLIT * BK
    SWIGLU: tl.constexpr,
    BF16: tl.constexpr,
    CAST_FP32: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    first = tl.program_id(0) * BN
    column = first + tl.arange(0, BN)
    lane = tl.minimum(column, N - 1) - first  # past the end: the last row again
    weights = weight + first.to(tl.int64) * K  # one address a program; the offsets stay the same
    row = tl.arange(0, R)
    live = row < rows
    added, up_added, kept = load_addends(bias, residual, first + lane, row, live, N, residual_stride, R, BN, SWIGLU)
    at = tl.arange(0, SPLIT)[:, None] * BK + tl.arange(0, BK)[None, :]  # [SPLIT, BK]
    w_offsets = lane[None, :, None] * K + at[:, None, :]
    x_offsets = row[None, None, :] * x_stride + at[:, :, None]
    acc = tl.zeros((SPLIT, BN, R), dtype=tl.float32)
    up_acc = tl.zeros((SPLIT, BN, R), dtype=tl.float32)
    squares = tl.zeros((SPLIT, 16, R), dtype=tl.float32)
    ones = tl.full((SPLIT, 16, BK), 1.0, tl.float32 if CAST_FP32 else tl.bfloat16)
    for k in tl.range(0, K, SPLIT * BK, num_stages=STAGES):
        if EVEN:
            w_tile = tl.load(weights + k + w_offsets)
            x_tile = tl.load(x + k + x_offsets, mask=live[None, None, :], other=0.0)
        else:
            within = k + at < K
            w_tile = tl.load(weights + k + w_offsets, mask=within[:, None, :], other=0.0)
            x_tile = tl.load(x + k + x_offsets, mask=live[None, None, :] & within[:, :, None], other=0.0)
        if scales is not None:
            w_tile = widen(w_tile, BF16, CAST_FP32)
        if CAST_FP32:
            w_tile, x_tile = w_tile.to(tl.float32), x_tile.to(tl.float32)
        if norm is not None:
            factor = tl.load(norm + k + at) if EVEN else tl.load(norm + k + at, mask=within, other=0.0)
            x_tile, squares = normalise(x_tile, factor, squares, ones, CAST_FP32)
        acc = tl.dot(w_tile, x_tile, acc)
        if SWIGLU:
            ups = weights + tl.cast(N, tl.int64) * K + k + w_offsets
            up_tile = tl.load(ups) if EVEN else tl.load(ups, mask=within[:, None, :], other=0.0)
            if scales is not None:
                up_tile = widen(up_tile, BF16, CAST_FP32)
            if CAST_FP32:
                up_tile = up_tile.to(tl.float32)
            up_acc = tl.dot(up_tile, x_tile, up_acc)
    if scales is not None:
        acc = acc * tl.load(scales + first + lane)[None, :, None]
        if SWIGLU:
            up_acc = up_acc * tl.load(scales + N + first + lane)[None, :, None]
    y = finish_rows(acc, up_acc, squares, added, up_added, kept, K, eps, norm is not None, SWIGLU)
    mask = live[:, None] & (column < N)[None, :]
    tl.store(out + row[:, None] * N + column[None, :], y.to(out.dtype.element_ty), mask=mask)


def _tiles(rows: int, columns: int, depth: int, swiglu: bool) -> tuple[int, int, int, int]:
    """Weight rows of a program, warps, K of a warp's step, stages (docs/notes/linear.md)."""
    if columns >= 32768 and not swiglu:
        return 32, 4, 128, 3
    if depth >= 8192:
        return 16, 4, 128, 3
    return 16, (1 if swiglu and rows > 8 else 2), 128, 4  # two warps of the former spill a register in Triton 3.9


def check_small(
    x: Tensor,
    shape: tuple[int, int],
    bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None,
    swiglu: bool,
    out: Tensor | None,
    max_rows: int,
) -> Tensor:
    """Check everything but the weight itself.

    Args:
        shape: of the weight, (N, K).
        out: `[rows, N]` (N/2 with `swiglu`), or None.

    Returns:
        `out`, or a new tensor for it.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; more than `max_rows` rows; kernels cannot
            run where x lies.
    """
    total, depth = shape
    check_tensor("x", x, (None, depth), dtypes=kernel_dtypes())
    if not 1 <= x.shape[0] <= max_rows:
        raise ValueError(f"x: got {x.shape[0]} rows, allowed are 1 to {max_rows}")
    if swiglu and total % 2:
        raise ValueError(f"weight: got {total} rows, swiglu needs an even number")
    columns = total // 2 if swiglu else total
    same: dict[str, Any] = dict(dtypes=(x.dtype,), device=x.device)
    if bias is not None:
        check_tensor("bias", bias, (total,), **same)
    if norm is not None:
        check_tensor("norm.weight", norm.weight, (depth,), **same)
    if residual is not None:
        check_tensor("residual", residual, (x.shape[0], columns), **same)
    if out is None:
        out = torch.empty(x.shape[0], columns, dtype=x.dtype, device=x.device)
    else:
        check_tensor("out", out, (x.shape[0], columns), **same)
        if not out.is_contiguous():
            raise ValueError("out: must be contiguous")
    check_device("x", x)
    return out


def small_linear(
    x: Tensor,
    weight: DenseWeight,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`linear` of 1 to 16 rows in one launch; arguments as there, and `out` to write into.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; more than 16 rows.
    """
    check_tensor("weight", weight.weight, (None, None), dtypes=(x.dtype,), device=x.device)
    if not weight.weight.is_contiguous():
        raise ValueError("weight: must be contiguous")
    out = check_small(x, weight.shape, weight.bias, norm, residual, swiglu, out, MAX_SMALL_ROWS)
    tiles = _tiles(x.shape[0], out.shape[1], x.shape[1], swiglu)
    launch_small_linear(x, weight.weight, None, weight.bias, norm, residual, swiglu, out, tiles)
    return out


def launch_small_linear(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, norm: Norm | None, residual: Tensor | None,
    swiglu: bool, out: Tensor, tiles: tuple[int, int, int, int],
) -> None:  # fmt: skip
    """The launch alone, into `out` `[rows, N]` (N/2 with `swiglu`); arguments were checked before.

    Args:
        weight: `[N, K]` of x's dtype, or e4m3 as bytes with `scales`, fp32 `[N]`.
        tiles: weight rows of a program, warps, K of a warp's step, stages.
    """
    rows, depth = x.shape
    tile, warps, step, stages = tiles
    launch(
        _small_linear_kernel,
        (triton.cdiv(out.shape[1], tile),),
        x=x,
        weight=weight,
        scales=scales,
        bias=bias,
        norm=None if norm is None else norm.weight,
        residual=residual,
        out=out,
        rows=rows,
        N=out.shape[1],
        K=depth,
        x_stride=x.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        eps=0.0 if norm is None else norm.eps,
        R=max(8, triton.next_power_of_2(rows)),
        SPLIT=warps,
        BN=tile,
        BK=step,
        STAGES=stages,
        EVEN=depth % (warps * step) == 0,
        SWIGLU=swiglu,
        BF16=x.dtype == torch.bfloat16,
        CAST_FP32=INTERPRET,
        num_warps=warps,
    )
