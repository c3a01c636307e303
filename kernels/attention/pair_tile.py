"""Device code of a tile of pairs' codes: queries and codes as the matrix unit takes them, sums over a block's pairs."""

from __future__ import annotations

import triton
import triton.language as tl

from .pool import log2_or_inf


@triton.jit
def _nearest(x):
    """The nearest whole number, halves to even; |x| below 2^22."""
    return (x + 12582912.0) - 12582912.0  # 1.5 x 2^23: floats there are whole numbers


@triton.jit
def query_digits(queries, steps, D: tl.constexpr, GP: tl.constexpr, G: tl.constexpr):
    """Queries times steps as whole numbers of two digits of 8 bits, and what one of them is worth.

    A head's largest product becomes 127 x 128 = 16256; the others are rounded on its scale.

    Returns:
        int8 `[D / 2, 2 GP]` of the lower and of the upper channels: of every head the upper digit, then the lower one;
        float32 `[2 GP]`: the worth.
    """
    HALF: tl.constexpr = D // 2
    dims = tl.arange(0, HALF)
    column = tl.arange(0, 2 * GP)
    head = column % GP
    valid = (head < G)[None, :]
    cells = queries + head[None, :] * D + dims[:, None]
    low = tl.load(cells, mask=valid, other=0.0).to(tl.float32) * tl.load(steps + dims)[:, None]
    high = tl.load(cells + HALF, mask=valid, other=0.0).to(tl.float32) * tl.load(steps + HALF + dims)[:, None]
    most = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=0)
    most = tl.where((most > 1e-30) & (most < float("inf")), most, 1.0)  # one over it is finite
    upper = (column < GP)[None, :]
    worth = most / 16256.0
    return _digit(low / worth[None, :], upper), _digit(high / worth[None, :], upper), worth


@triton.jit
def _digit(x, upper):
    first = _nearest(x * 0.0078125)
    return tl.where(upper, first, _nearest(x) - 128.0 * first).to(tl.int8)


@triton.jit
def code_planes(packed, INTERPRETED: tl.constexpr):
    """The two codes of each byte as int8: the matrix unit takes whole numbers of 8 bits, four to a register."""
    if INTERPRETED:  # it knows no PTX
        low = (packed & 15).to(tl.int8)
        high = (packed >> 4).to(tl.int8)
    else:
        low, high = tl.inline_asm_elementwise(
            """{
            .reg .b32 b;
            shr.u32 b, $2, 4;
            and.b32 $0, $2, 0x0F0F0F0F;
            and.b32 $1, b, 0x0F0F0F0F;
            }""",
            "=&r,=r,r",
            [packed],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    return low, high


@triton.jit
def fast_exp2(x, INTERPRETED: tl.constexpr):
    """2^x in one instruction; tl.exp2 cares for results below 2^-126, which are nothing here."""
    if INTERPRETED:
        y = tl.exp2(x)
    else:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def fast_log2(x, INTERPRETED: tl.constexpr):
    """The logarithm in one instruction, -inf of 0; tl.log2 takes some 13."""
    if INTERPRETED:
        y = log2_or_inf(x)
    else:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def row_pairs(row, PAIRS: tl.constexpr, LOW: tl.constexpr):
    """Which of a tile's 128 pairs stands in a row of its scores.

    A thread of two warps' matrix products holds rows that differ in bits 6, 5 and 3; lanes differ in bits 0, 1, 2, the
    warps in bit 4. Pairs of a block take these bits in this order, so that few of their sums cross lanes. `LOW`: how
    many of bits 0, 1, 2 they take.
    """
    inside = ((row >> 6) & 1) | ((row >> 5) & 1) << 1
    block = (row >> 4) & 1
    if PAIRS == 4:
        block = block << 1 | (row >> 3) & 1
    else:
        inside |= ((row >> 3) & 1) << 2 | (row & ((1 << LOW) - 1)) << 3
    block = block << (3 - LOW) | (row & 7) >> LOW
    return block * PAIRS + inside


@triton.jit
def _across(x, AXIS: tl.constexpr, MAX: tl.constexpr):
    """The largest or the sum along an axis, which stays."""
    return tl.max(x, AXIS, keep_dims=True) if MAX else tl.sum(x, AXIS, keep_dims=True)


@triton.jit
def folded(x, PAIRS: tl.constexpr, MAX: tl.constexpr):
    """The largest or the sum over a block's pairs of rows by their bits, `[b6, b5, b4, b3, b2, b1, b0, GP]`."""
    x = _across(_across(x, 0, MAX), 1, MAX)
    if PAIRS >= 8:
        x = _across(x, 3, MAX)
    if PAIRS >= 16:
        x = _across(x, 6, MAX)
    if PAIRS >= 32:
        x = _across(x, 5, MAX)
    if PAIRS >= 64:
        x = _across(x, 4, MAX)
    return x
