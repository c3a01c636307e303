"""Many rows times a 4-bit weight: unpacked in registers for the tensor cores, or once into a scratch weight.

A program unpacks its weight rows once per 32 rows of x, as the first operand of the matrix product, from registers.
That is one read of the weight, but an instruction stream that the tensor cores wait for: from some number of rows on
it pays to write the weight out in 16 bits and leave the product to the library (docs/notes/linear.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_device, check_tensor, kernel_dtypes
from ..launch import INTERPRET, await_previous, launch
from .int4 import NIBBLES, Int4Weight
from .int4_linear import check_int4, launch_small, paired
from .int4_unpack import load_pair, scaled_weights, unpack_nibbles
from .small_linear import check_small

MAX_ROWS = 2**16
NARROW = 8192  # columns up to which programs of 64 weight rows are needed to fill the chip
SCRATCH_BYTES = 40 * 2**20  # a weight whose 16 bits stay in the L2 of an H100


@triton.jit(do_not_specialize=["rows"])
def _int4_rows_kernel(
    x,  # [rows, K]
    words,  # int16 [N, W]
    scales,  # int32 [groups, N]: pairs of scale and zero; in the interpreter [groups, N, 2]
    bias,  # [N], or None
    out,  # [rows, N]
    rows,
    N,
    K,
    W,
    x_stride,
    BM: tl.constexpr,  # rows of x
    BN: tl.constexpr,
    J: tl.constexpr,  # words of a step; divides GROUP
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,  # no step goes past K
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    first = tl.program_id(0) * BN
    column = tl.minimum(first + tl.arange(0, BN), N - 1)  # past the end: the last row again
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    live = row < rows
    word = tl.arange(0, J)
    base = words + first.to(tl.int64) * W
    w_offsets = (column - first)[:, None] * W + word[None, :]
    x_rows = row[None, :] * x_stride
    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for start in tl.range(0, W, J, num_stages=STAGES):
        group = start // GROUP * 4  # of nibble 0
        k = tl.multiple_of(group * GROUP + start % GROUP, J) + word
        values = unpack_nibbles(tl.load(base + start + w_offsets), BF16, INTERPRETED)
        for nibble in tl.static_range(4):
            at = k + nibble * GROUP
            x_mask = live[None, :] if EVEN else live[None, :] & (at < K)[:, None]
            x_tile = tl.load(x + at[:, None] + x_rows, mask=x_mask, other=0.0)
            if INTERPRETED:
                x_tile = x_tile.to(tl.float32)
            scale, zero = load_pair(scales, (group + nibble) * N + column, BF16, INTERPRETED)
            weights = scaled_weights(values[nibble], scale[:, None], zero[:, None], BF16, INTERPRETED)
            acc = tl.dot(weights, x_tile, acc)
    y = tl.trans(acc)
    if bias is not None:
        y += tl.load(bias + column).to(tl.float32)[None, :]
    inside = first + tl.arange(0, BN) < N
    there = out + row[:, None].to(tl.int64) * N + column[None, :]
    tl.store(there, y.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit
def _dequantise_kernel(
    words,  # int16 [N, W]
    scales,  # int32 [groups, N]: pairs of scale and zero; in the interpreter [groups, N, 2]
    out,  # [N, K]
    N,
    K,
    W,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    block = tl.program_id(1)
    inside = row < N
    word = tl.arange(0, GROUP)
    at = row[:, None].to(tl.int64) * W + (block * GROUP + word)[None, :]
    values = unpack_nibbles(tl.load(words + at, mask=inside[:, None], other=0), BF16, INTERPRETED)
    for nibble in tl.static_range(4):
        group = block * 4 + nibble
        scale, zero = load_pair(scales, group * N + tl.minimum(row, N - 1), BF16, INTERPRETED)
        weights = scaled_weights(values[nibble], scale[:, None], zero[:, None], BF16, INTERPRETED)
        k = group * GROUP + word
        there = out + row[:, None].to(tl.int64) * K + k[None, :]
        tl.store(there, weights.to(out.dtype.element_ty), mask=inside[:, None] & (k < K)[None, :])


def dequantise_kernel(weight: Int4Weight, out: Tensor | None = None) -> Tensor:
    """`dequantise` by a kernel, into `out` `[N, K]` of the scales' dtype, each weight rounded once.

    Raises:
        TypeError, ValueError: `out` does not match, or kernels cannot run there.
    """
    rows, depth = weight.shape
    check_tensor("weight.scales", weight.scales, (None, rows, 2), dtypes=kernel_dtypes())
    check_device("weight.words", weight.words)
    if out is None:
        out = torch.empty(rows, depth, dtype=weight.scales.dtype, device=weight.words.device)
    check_tensor("out", out, (rows, depth), dtypes=(weight.scales.dtype,), device=weight.words.device)
    if not out.is_contiguous():
        raise ValueError("out: must be contiguous")
    width = weight.words.shape[1]
    launch(
        _dequantise_kernel,
        (triton.cdiv(rows, 16), width // weight.group),
        words=weight.words,
        scales=paired(weight.scales),
        out=out,
        N=rows,
        K=depth,
        W=width,
        BN=16,
        GROUP=weight.group,
        BF16=weight.scales.dtype == torch.bfloat16,
        INTERPRETED=INTERPRET,
        num_warps=4,
    )
    return out


def int4_linear(x: Tensor, weight: Int4Weight, *, out: Tensor | None = None) -> Tensor:
    """`x W^T + bias` of up to 65,536 rows with 4-bit weights. Some row counts take a scratch tensor `[N, K]`.

    Args:
        x: `[rows, K]` of the scales' dtype.
        out: `[rows, N]` to write into.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides.
    """
    check_int4(x, weight)
    out = check_small(x, weight.shape, weight.bias, None, None, False, out, MAX_ROWS)
    rows, (columns, depth) = x.shape[0], weight.shape
    fits = 2 * columns * depth <= SCRATCH_BYTES
    if rows <= 32 and columns <= NARROW:
        launch_small(x, weight, None, None, False, out)
    elif rows <= (32 if fits else 128):
        _launch_rows(x, weight, out)
    elif weight.bias is None:
        torch.mm(x, dequantise_kernel(weight).T, out=out)
    else:
        torch.addmm(weight.bias, x, dequantise_kernel(weight).T, out=out)
    return out


def _launch_rows(x: Tensor, weight: Int4Weight, out: Tensor) -> None:
    rows, (columns, depth) = x.shape[0], weight.shape
    width = weight.words.shape[1]
    few = columns <= NARROW and rows <= 64
    tile, step, stages = (64, min(128, weight.group), 3) if few else (128, 32, 4)
    launch(
        _int4_rows_kernel,
        (triton.cdiv(columns, tile), triton.cdiv(rows, 32)),
        x=x,
        words=weight.words,
        scales=paired(weight.scales),
        bias=weight.bias,
        out=out,
        rows=rows,
        N=columns,
        K=depth,
        W=width,
        x_stride=x.stride(0),
        BM=32,
        BN=tile,
        J=step,
        GROUP=weight.group,
        STAGES=stages,
        EVEN=depth == NIBBLES * width,
        BF16=x.dtype == torch.bfloat16,
        INTERPRETED=INTERPRET,
        num_warps=4,
    )
