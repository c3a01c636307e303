"""Rows of x times an e4m3 weight, which is converted in registers (W8A16) or multiplied as it is (W8A8).

A program owns some weight rows and streams them once for a tile of rows of x. Weight rows are the first operand of the
matrix product, as in `small_linear`. Scales are applied to the sums, so that nothing is rounded but the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from ..checks import check_device, check_tensor, kernel_dtypes
from ..launch import INTERPRET, await_previous, launch
from .fp8 import Fp8Weight
from .fp8_widen import widen

Tiles = tuple[int, int, int, int, int]
"""Rows of x and weight rows of a program, K of a step, stages, warps."""
MAX_ROWS = 2**16
LIBRARY_ROWS = 128
ROWS_A_PROGRAM = (16, 32, 64, 128)
PROMOTED = 128
"""Products of two 8-bit floats that Hopper's matrix units sum by themselves, with some 14 bits (DeepSeek-V3, arXiv
2412.19437, section 3.3.2); each such sum is then added in fp32."""


@triton.jit(do_not_specialize=["rows"])
def _fp8_linear_kernel(
    x,  # [rows, K], 16 bits, or e4m3 with A8
    x_scales,  # fp32 [rows] with A8, or None
    weight,  # e4m3 [N, K], as bytes but with A8
    scales,  # fp32 [N]
    out,  # [rows, N]
    rows,
    N,
    K,
    x_stride,
    R: tl.constexpr,  # rows of x
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,  # K is a multiple of BK
    BF16: tl.constexpr,
    PROMOTED: tl.constexpr,  # products of 8 bits that are summed before they are added in fp32; None without A8
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    first = tl.program_id(0) * BN
    lane = tl.minimum(first + tl.arange(0, BN), N - 1) - first  # past the end: the last row again
    weights = weight + first.to(tl.int64) * K
    row = tl.program_id(1) * R + tl.arange(0, R)
    live = row < rows
    at = tl.arange(0, BK)
    w_offsets = lane[:, None] * K + at[None, :]
    x_offsets = row[None, :].to(tl.int64) * x_stride + at[:, None]
    acc = tl.zeros((BN, R), dtype=tl.float32)
    for k in tl.range(0, K, BK, num_stages=STAGES):
        if EVEN:
            w_tile = tl.load(weights + k + w_offsets)
            x_tile = tl.load(x + k + x_offsets, mask=live[None, :], other=0.0)
        else:
            within = k + at < K
            w_tile = tl.load(weights + k + w_offsets, mask=within[None, :], other=0.0)
            x_tile = tl.load(x + k + x_offsets, mask=live[None, :] & within[:, None], other=0.0)
        if x_scales is None:
            w_tile = widen(w_tile, BF16, INTERPRETED)
        if INTERPRETED:
            w_tile, x_tile = w_tile.to(tl.float32), x_tile.to(tl.float32)
        acc = tl.dot(w_tile, x_tile, acc, max_num_imprecise_acc=PROMOTED)
    y = acc * tl.load(scales + first + lane)[:, None]
    if x_scales is not None:
        y = y * tl.load(x_scales + row, mask=live, other=0.0)[None, :]
    inside = first + tl.arange(0, BN) < N
    there = out + row[:, None].to(tl.int64) * N + (first + lane)[None, :]
    tl.store(there, tl.trans(y).to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])


def fp8_linear(
    x: Tensor | Fp8Weight,
    weight: Fp8Weight,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    tiles: Tiles | None = None,
) -> Tensor:
    """`x W^T` of up to 65,536 rows with e4m3 weights.

    Args:
        x: `[rows, K]` of 16 bits, or quantised by rows.
        out: `[rows, N]` to write into.
        dtype: of the result, where x is quantised; else it is x's.
        tiles: in place of those that are taken for this size.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides.
    """
    columns, depth = weight.shape
    quantised = isinstance(x, Fp8Weight)
    values = x.values if isinstance(x, Fp8Weight) else x
    dtype = dtype if quantised else values.dtype
    if isinstance(x, Fp8Weight):
        check_tensor("x.values", values, (None, depth), device=weight.values.device)
    else:
        check_tensor("x", values, (None, depth), dtypes=kernel_dtypes(), device=weight.values.device)
    rows = values.shape[0]
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"x: got {rows} rows, allowed are 1 to {MAX_ROWS}")
    if out is None:
        out = torch.empty(rows, columns, dtype=dtype, device=values.device)
    check_tensor("out", out, (rows, columns), dtypes=(dtype,), device=values.device)
    if not out.is_contiguous():
        raise ValueError("out: must be contiguous")
    check_device("x", values)
    tile, weight_rows, step, stages, warps = tiles or _tiles(rows, columns)
    launch(
        _fp8_linear_kernel,
        (triton.cdiv(columns, weight_rows), triton.cdiv(rows, tile)),
        x=values,
        x_scales=x.scales if isinstance(x, Fp8Weight) else None,
        weight=weight.values if quantised else weight.values.view(torch.uint8),
        scales=weight.scales,
        out=out,
        rows=rows,
        N=columns,
        K=depth,
        x_stride=values.stride(0),
        R=tile,
        BN=weight_rows,
        BK=step,
        STAGES=stages,
        EVEN=depth % step == 0,
        BF16=dtype == torch.bfloat16,
        PROMOTED=min(PROMOTED, step) if quantised else None,
        INTERPRETED=INTERPRET,
        num_warps=warps,
    )
    return out


def fp8_rows(x: Tensor, weight: Fp8Weight) -> Tensor:
    """`x W^T` of many rows of 16 bits, without the bias: ours up to LIBRARY_ROWS rows, then the library's product.

    For that the weight is written out in 16 bits, which is exact, and the sums take the scales afterwards.
    """
    if x.shape[0] <= LIBRARY_ROWS:
        return fp8_linear(x, weight)
    return (torch_linear(x, weight.values.to(x.dtype)) * weight.scales).to(x.dtype)


def _tiles(rows: int, columns: int) -> Tiles:
    """Not tuned on a GPU yet (docs/notes/linear.md)."""
    tile = next((r for r in ROWS_A_PROGRAM if rows <= r), ROWS_A_PROGRAM[-1])
    if tile == 16:
        return tile, (32 if columns <= 8192 else 64), 256, 4, 4
    if tile <= 64:
        return tile, 64, 128, 4, 4
    return tile, 128, 64, 4, 8
