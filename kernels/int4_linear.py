"""Linear layers with 4-bit weights: one to sixteen rows fused as in `small_linear`, and many rows.

Unpacking must cost less than reading. A word's four nibbles are or-ed into the mantissa of 128 (bf16; 1024 in fp16),
which gives 128 + q exactly with two instructions for two values; no conversion from integer, no subtraction. Scale and
zero are applied to a group's product, not to its weights:

    sum_k w x = s sum_k (c + q) x + (z - (c + 8) s) sum_k x,  c = 128 or 1024,

and the last sum is a product with ones on the tensor cores, which leaves it where the scales are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_tensor
from .int4 import NIBBLES, Int4Weight
from .launch import INTERPRET, await_previous, launch, release_next
from .small_linear import MAX_SMALL_ROWS, T, check_small, finish_rows, load_addends, normalise, prefetch_rows
from .weights import Norm

MAX_ROWS = 512


@triton.jit
def _unpack_nibbles(words, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """int16 words to four tensors of c + q, nibble by nibble; c as `_offset` says."""
    if INTERPRETED:
        first = (words & 15).to(tl.float32)
        second = ((words >> 4) & 15).to(tl.float32)
        third = ((words >> 8) & 15).to(tl.float32)
        fourth = ((words >> 12) & 15).to(tl.float32)
        return first, second, third, fourth
    elif BF16:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 t;
            lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 t, $4, 4;
            lop3.b32 $1, t, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 t, $4, 8;
            lop3.b32 $2, t, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 t, $4, 12;
            lop3.b32 $3, t, 0x000F000F, 0x43004300, 0xEA;
            }""",
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 t;
            lop3.b32 $0, $4, 0x000F000F, 0x64006400, 0xEA;
            shr.u32 t, $4, 4;
            lop3.b32 $1, t, 0x000F000F, 0x64006400, 0xEA;
            shr.u32 t, $4, 8;
            lop3.b32 $2, t, 0x000F000F, 0x64006400, 0xEA;
            shr.u32 t, $4, 12;
            lop3.b32 $3, t, 0x000F000F, 0x64006400, 0xEA;
            }""",
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )


@triton.jit
def _load_pair(scales, at, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Scale and zero as stored; the pair is one 32-bit word, except in the interpreter."""
    if INTERPRETED:
        scale, zero = tl.load(scales + 2 * at).to(tl.float32), tl.load(scales + 2 * at + 1).to(tl.float32)
    else:
        pair = tl.load(scales + at)
        HALF: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
        scale = pair.to(tl.int16).to(HALF, bitcast=True)
        zero = (pair >> 16).to(tl.int16).to(HALF, bitcast=True)
    return scale, zero


@triton.jit
def _load_scale(scales, at, OFFSET: tl.constexpr, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Scale, and zero of c + q instead of q - 8, in fp32."""
    scale, zero = _load_pair(scales, at, BF16, INTERPRETED)
    scale = scale.to(tl.float32)
    return scale, zero.to(tl.float32) - (OFFSET + 8.0) * scale


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
    R: tl.constexpr,  # rows rounded up: 8 or 16
    SPLIT: tl.constexpr,  # warps, each with its own words
    BN: tl.constexpr,
    J: tl.constexpr,  # words of a warp and step; divides GROUP
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    EVEN: tl.constexpr,  # no step goes past K or W
    SWIGLU: tl.constexpr,
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
    AHEAD: tl.constexpr,  # bytes of each weight row asked for before waiting: weights are nobody's output
    RELEASE: tl.constexpr,
    PDL: tl.constexpr,
):
    OFFSET: tl.constexpr = 0.0 if INTERPRETED else (128.0 if BF16 else 1024.0)
    HALF: tl.constexpr = tl.float32 if INTERPRETED else x.dtype.element_ty
    total_rows = 2 * N if SWIGLU else N
    first = tl.program_id(0) * BN
    column = tl.minimum(first + tl.arange(0, BN), N - 1)  # past the end: the last row again
    base = words + first.to(tl.int64) * W  # one address a program; the offsets stay the same
    if PDL:
        prefetch_rows(base, (column - first) * (2 * W), AHEAD)
        if SWIGLU:
            prefetch_rows(base + tl.cast(N, tl.int64) * W, (column - first) * (2 * W), AHEAD)
    await_previous(PDL)
    if RELEASE:
        release_next(PDL)
    row = tl.arange(0, R)
    live = row < rows
    mask = live[:, None] & (first + tl.arange(0, BN) < N)[None, :]
    there = row[:, None] * residual_stride + column[None, :]
    added, up_added, kept = load_addends(bias, residual, column, there, mask, N, R, BN, SWIGLU)
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
        mine = start + part  # [SPLIT]
        group = mine // GROUP * 4  # of nibble 0
        k = (group * GROUP + mine % GROUP)[:, None] + word[None, :]  # [SPLIT, J], of nibble 0
        if EVEN:
            quads = tl.load(base + start + w_offsets)
        else:
            within = (mine < W)[:, None, None]
            group = tl.minimum(group, W // GROUP * 4 - 4)
            quads = tl.load(base + start + w_offsets, mask=within, other=0)
        values = _unpack_nibbles(quads, BF16, INTERPRETED)
        if SWIGLU:
            up_at = base + tl.cast(N, tl.int64) * W + start + w_offsets
            up_values = _unpack_nibbles(
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
            sums = tl.dot(ones, x_tile)
            of_group = (group + nibble)[:, None] * total_rows + column[None, :]
            scale, zero = _load_scale(scales, of_group, OFFSET, BF16, INTERPRETED)
            acc += tl.dot(values[nibble], x_tile) * scale[:, :, None]
            acc += sums * zero[:, :, None]
            if SWIGLU:
                scale, zero = _load_scale(scales, of_group + N, OFFSET, BF16, INTERPRETED)
                up_acc += tl.dot(up_values[nibble], x_tile) * scale[:, :, None]
                up_acc += sums * zero[:, :, None]
    y = finish_rows(acc, up_acc, squares, added, up_added, kept, K, eps, norm is not None, SWIGLU)
    tl.store(out + row[:, None] * N + column[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _scaled(values, scale, zero, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    """Weights from c + q: subtract c + 8 (exact), times scale plus zero (rounded once). `[BN, J]` and `[BN, 1]`."""
    if INTERPRETED:
        return (values - 8.0) * scale.to(tl.float32) + zero.to(tl.float32)
    else:
        scale, zero = tl.broadcast_to(scale, values.shape), tl.broadcast_to(zero, values.shape)
        if BF16:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 one, less;
                mov.b32 one, 0x3F803F80;
                mov.b32 less, 0xC308C308;
                fma.rn.bf16x2 $0, $1, one, less;
                fma.rn.bf16x2 $0, $0, $2, $3;
                }""",
                "=&r,r,r,r",
                [values, scale, zero],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        else:
            return tl.inline_asm_elementwise(
                """{
                .reg .b32 one, less;
                mov.b32 one, 0x3C003C00;
                mov.b32 less, 0xE408E408;
                fma.rn.f16x2 $0, $1, one, less;
                fma.rn.f16x2 $0, $0, $2, $3;
                }""",
                "=&r,r,r,r",
                [values, scale, zero],
                dtype=tl.float16,
                is_pure=True,
                pack=2,
            )


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
        values = _unpack_nibbles(tl.load(base + start + w_offsets), BF16, INTERPRETED)
        for nibble in tl.static_range(4):
            at = k + nibble * GROUP
            x_mask = live[None, :] if EVEN else live[None, :] & (at < K)[:, None]
            x_tile = tl.load(x + at[:, None] + x_rows, mask=x_mask, other=0.0)
            if INTERPRETED:
                x_tile = x_tile.to(tl.float32)
            scale, zero = _load_pair(scales, (group + nibble) * N + column, BF16, INTERPRETED)
            weights = _scaled(values[nibble], scale[:, None], zero[:, None], BF16, INTERPRETED)
            acc = tl.dot(weights, x_tile, acc)
    y = tl.trans(acc)
    if bias is not None:
        y += tl.load(bias + column).to(tl.float32)[None, :]
    inside = first + tl.arange(0, BN) < N
    there = out + row[:, None].to(tl.int64) * N + column[None, :]
    tl.store(there, y.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])


def _small_tiles(columns: int, group: int, swiglu: bool) -> tuple[int, int, int, int]:
    """Weight rows of a program, warps, words of a warp's step, stages (docs/notes/linear.md)."""
    if swiglu:
        return 16, 4, 32, 4
    return (32, 4, 32, 4) if columns >= 32768 else (16, 4, 32, 4)


def _row_tiles(rows: int, group: int) -> tuple[int, int, int, int, int]:
    """Rows of x and of the weight of a program, words of a step, warps, stages."""
    if rows <= 32:
        return 32, 64, min(group, 64), 4, 4
    if rows <= 64:
        return 64, 64, min(group, 64), 4, 3
    return 128, 128, 32, 8, 3


def _check_weight(x: Tensor, weight: Int4Weight) -> None:
    if not isinstance(weight, Int4Weight):
        raise TypeError(f"weight: got {type(weight).__name__}, expected an Int4Weight")
    if weight.words.device != x.device:
        raise ValueError(f"weight: is on {weight.words.device}, expected {x.device}")
    check_tensor("weight.scales", weight.scales, (None, None, 2), dtypes=(x.dtype,), device=x.device)


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
    _check_weight(x, weight)
    out = check_small(x, weight.shape, weight.bias, norm, residual, swiglu, out, MAX_SMALL_ROWS)
    rows, depth = x.shape
    width = weight.words.shape[1]
    tile, warps, step, stages = _small_tiles(out.shape[1], weight.group, swiglu)
    launch(
        _int4_small_kernel,
        (triton.cdiv(out.shape[1], tile),),
        x=x,
        words=weight.words,
        scales=weight.scales if INTERPRET else weight.scales.view(torch.int32),
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
        R=8 if rows <= 8 else 16,
        SPLIT=warps,
        BN=tile,
        J=step,
        GROUP=weight.group,
        STAGES=stages,
        EVEN=width % (warps * step) == 0 and depth == NIBBLES * width,
        SWIGLU=swiglu,
        BF16=x.dtype == torch.bfloat16,
        INTERPRETED=INTERPRET,
        AHEAD=T["ahead"],
        RELEASE=T["release"],
        num_warps=warps,
    )
    return out


def int4_linear(x: Tensor, weight: Int4Weight, *, out: Tensor | None = None) -> Tensor:
    """`x W^T + bias` of 1 to 512 rows with 4-bit weights, each program unpacking for up to 128 rows at once.

    Args:
        x: `[rows, K]`.
        out: `[rows, N]` to write into.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; more than 512 rows.
    """
    _check_weight(x, weight)
    out = check_small(x, weight.shape, weight.bias, None, None, False, out, MAX_ROWS)
    rows, depth = x.shape
    width = weight.words.shape[1]
    row_tile, tile, step, warps, stages = _row_tiles(rows, weight.group)
    launch(
        _int4_rows_kernel,
        (triton.cdiv(out.shape[1], tile), triton.cdiv(rows, row_tile)),
        x=x,
        words=weight.words,
        scales=weight.scales if INTERPRET else weight.scales.view(torch.int32),
        bias=weight.bias,
        out=out,
        rows=rows,
        N=out.shape[1],
        K=depth,
        W=width,
        x_stride=x.stride(0),
        BM=row_tile,
        BN=tile,
        J=step,
        GROUP=weight.group,
        STAGES=stages,
        EVEN=depth == NIBBLES * width,
        BF16=x.dtype == torch.bfloat16,
        INTERPRETED=INTERPRET,
        num_warps=warps,
    )
    return out
