"""A few rows times a 4-bit weight, with RMSNorm, bias, SwiGLU and residual in one launch: `small_linear` for 4 bits.

As there, a program owns a few weight rows, its warps share K, and x is the second operand of the matrix products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_tensor
from ..launch import INTERPRET, await_previous, launch
from .int4 import NIBBLES, Int4Weight
from .int4_unpack import load_scale, scaled_group, unpack_nibbles
from .small_linear import MAX_SMALL_ROWS, check_small, finish_rows, load_addends, normalise
from .weights import Norm


@triton.jit(do_not_specialize=["rows"])
def _int4_small_kernel(
    x,  # [rows, K]
    words,  # int16 [N, W], or [2 N, W] with SWIGLU: gate rows, then up rows
    scales,  # int32 [groups, N or 2 N]: pairs of scale and zero; in the interpreter [groups, N or 2 N, 2]
    bias,  # [N] or [2 N], or None
    norm,  # [K], or None
    residual,  # [rows, N], or None
    out,  # [rows, N]
    rows,
    N,
    K,
    W,
    x_stride,
    residual_stride,
    eps,
    R: tl.constexpr,  # rows rounded up: 8, 16 or 32
    SPLIT: tl.constexpr,  # warps, each with its own words
    BN: tl.constexpr,
    J: tl.constexpr,  # words of a warp and step; divides GROUP
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,  # no step goes past K or W
    SWIGLU: tl.constexpr,
    SCALED: tl.constexpr,  # scale the weights, not the groups' products
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    OFFSET: tl.constexpr = 0.0 if INTERPRETED else (128.0 if BF16 else 1024.0)
    HALF: tl.constexpr = tl.float32 if INTERPRETED else x.dtype.element_ty
    total_rows = 2 * N if SWIGLU else N
    first = tl.program_id(0) * BN
    column = tl.minimum(first + tl.arange(0, BN), N - 1)  # past the end: the last row again
    base = words + first.to(tl.int64) * W  # one address a program; the offsets stay the same
    row = tl.arange(0, R)
    live = row < rows
    added, up_added, kept = load_addends(bias, residual, column, row, live, N, residual_stride, R, BN, SWIGLU)
    word = tl.arange(0, J)
    part = tl.arange(0, SPLIT) * J
    w_offsets = (column - first)[None, :, None] * W + part[:, None, None] + word[None, None, :]
    x_rows = row[None, None, :] * x_stride
    ones = tl.full((SPLIT, BN, J), 1.0, HALF)
    acc = tl.zeros((SPLIT, BN, R), dtype=tl.float32)
    up_acc = tl.zeros((SPLIT, BN, R), dtype=tl.float32)
    squares = tl.zeros((SPLIT, 16, R), dtype=tl.float32)
    square_ones = tl.full((SPLIT, 16, J), 1.0, tl.float32 if INTERPRETED else tl.bfloat16)
    for start in tl.range(0, W, SPLIT * J, num_stages=STAGES):
        place = start + part  # [SPLIT], each warp's first word
        group = place // GROUP * 4  # of nibble 0
        k = (group * GROUP + place % GROUP)[:, None] + word[None, :]  # [SPLIT, J], of nibble 0
        if EVEN:
            quads = tl.load(base + start + w_offsets)
        else:
            within = (place < W)[:, None, None]
            group = tl.minimum(group, W // GROUP * 4 - 4)
            quads = tl.load(base + start + w_offsets, mask=within, other=0)
        values = unpack_nibbles(quads, BF16, INTERPRETED)
        if SWIGLU:
            up_at = base + tl.cast(N, tl.int64) * W + start + w_offsets
            up_values = unpack_nibbles(
                tl.load(up_at) if EVEN else tl.load(up_at, mask=within, other=0), BF16, INTERPRETED
            )
        for nibble in tl.static_range(4):
            at = k + nibble * GROUP
            x_mask = live[None, None, :] if EVEN else live[None, None, :] & (at < K)[:, :, None]
            x_tile = tl.load(x + at[:, :, None] + x_rows, mask=x_mask, other=0.0)
            if INTERPRETED:
                x_tile = x_tile.to(tl.float32)
            if norm is not None:
                factor = tl.load(norm + at) if EVEN else tl.load(norm + at, mask=at < K, other=0.0)
                x_tile, squares = normalise(x_tile, factor, squares, square_ones, INTERPRETED)
            of_group = (group + nibble)[:, None] * total_rows + column[None, :]
            if SCALED:
                weights = scaled_group(values[nibble], scales, of_group, BF16, INTERPRETED)
                acc = tl.dot(weights, x_tile, acc)
                if SWIGLU:
                    weights = scaled_group(up_values[nibble], scales, of_group + N, BF16, INTERPRETED)
                    up_acc = tl.dot(weights, x_tile, up_acc)
            else:
                sums = tl.dot(ones, x_tile)
                scale, zero = load_scale(scales, of_group, OFFSET, BF16, INTERPRETED)
                acc += tl.dot(values[nibble], x_tile) * scale[:, :, None]
                acc += sums * zero[:, :, None]
                if SWIGLU:
                    scale, zero = load_scale(scales, of_group + N, OFFSET, BF16, INTERPRETED)
                    up_acc += tl.dot(up_values[nibble], x_tile) * scale[:, :, None]
                    up_acc += sums * zero[:, :, None]
    y = finish_rows(acc, up_acc, squares, added, up_added, kept, K, eps, norm is not None, SWIGLU)
    mask = live[:, None] & (first + tl.arange(0, BN) < N)[None, :]
    tl.store(out + row[:, None] * N + column[None, :], y.to(out.dtype.element_ty), mask=mask)


def _tiles(rows: int, columns: int, depth: int, swiglu: bool) -> tuple[int, int, int, int]:
    """Weight rows of a program, warps, words of a warp's step, stages (docs/notes/linear.md)."""
    if rows > MAX_SMALL_ROWS:
        return 32, 4, 32, 3
    if swiglu:
        return (32 if rows <= 8 else 16), 2, 64, 3
    if depth >= 8192:
        return (16, 4, 128, 3) if rows <= 8 else (32, 4, 64, 3)
    if rows > 8 or columns < 4096:
        return 16, 2, 64, 3
    return (64 if columns >= 32768 else 32), 2, 64, 3


def check_int4(x: Tensor, weight: Int4Weight) -> None:
    """Raises TypeError, ValueError unless `weight` is a 4-bit weight for x's dtype on its device."""
    if not isinstance(weight, Int4Weight):
        raise TypeError(f"weight: got {type(weight).__name__}, expected an Int4Weight")
    check_tensor("weight.words", weight.words, (None, None), device=x.device)
    check_tensor("weight.scales", weight.scales, (None, None, 2), dtypes=(x.dtype,), device=x.device)


def paired(scales: Tensor) -> Tensor:
    """Scales `[groups, N, 2]` as the kernels read them: pairs of 16 bits as one word, int32 `[groups, N, 1]`.

    The interpreter reads them as they are.
    """
    return scales if INTERPRET else scales.view(torch.int32)


def int4_small_linear(
    x: Tensor,
    weight: Int4Weight,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`linear` of 1 to 16 rows with 4-bit weights in one launch; arguments as there, and `out` to write into.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; more than 16 rows.
    """
    check_int4(x, weight)
    out = check_small(x, weight.shape, weight.bias, norm, residual, swiglu, out, MAX_SMALL_ROWS)
    launch_small(x, weight, norm, residual, swiglu, out)
    return out


def launch_small(
    x: Tensor, weight: Int4Weight, norm: Norm | None, residual: Tensor | None, swiglu: bool, out: Tensor
) -> None:
    """The launch alone, of up to 32 rows, into `out` `[rows, N]` (N/2 with `swiglu`); arguments as `linear` has them.

    They were checked before. Above 16 rows the weights are scaled, not the products.
    """
    rows, depth = x.shape
    width = weight.words.shape[1]
    tile, warps, step, stages = _tiles(rows, out.shape[1], depth, swiglu)
    step = min(step, weight.group)
    launch(
        _int4_small_kernel,
        (triton.cdiv(out.shape[1], tile),),
        x=x,
        words=weight.words,
        scales=paired(weight.scales),
        bias=weight.bias,
        norm=None if norm is None else norm.weight,
        residual=residual,
        out=out,
        rows=rows,
        N=out.shape[1],
        K=depth,
        W=width,
        x_stride=x.stride(0),
        residual_stride=0 if residual is None else residual.stride(0),
        eps=0.0 if norm is None else norm.eps,
        R=max(8, triton.next_power_of_2(rows)),
        SPLIT=warps,
        BN=tile,
        J=step,
        GROUP=weight.group,
        STAGES=stages,
        EVEN=width % (warps * step) == 0 and depth == NIBBLES * width,
        SWIGLU=swiglu,
        SCALED=rows > MAX_SMALL_ROWS,
        BF16=x.dtype == torch.bfloat16,
        INTERPRETED=INTERPRET,
        num_warps=warps,
    )
