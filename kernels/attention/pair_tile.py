"""Device code of a tile of pairs' codes: queries and codes as the matrix unit takes them, sums over a block's pairs."""

from __future__ import annotations

import triton
import triton.language as tl

from .pool import log2_or_inf


@triton.jit
def query_parts(queries, steps, dims, column, head, valid, D: tl.constexpr, GP: tl.constexpr):
    """Queries times steps in 16 bits, `[D / 4, 2 GP]`: of every head the rounded value, then what that leaves out."""
    step = tl.load(steps + dims)
    q = tl.load(queries + head[None, :] * D + dims[:, None], mask=valid[None, :], other=0.0).to(tl.float32)
    x = q * step[:, None]
    rounded = x.to(tl.bfloat16).to(tl.float32)
    return tl.where((column < GP)[None, :], rounded, x - rounded).to(tl.bfloat16)


@triton.jit
def code_planes(words, INTERPRETED: tl.constexpr):
    """The four codes of each word of 16 bits, plus 128, lowest bits first.

    A multiprocessor turns 16 integers into floats a clock, too few. A code put below the exponent of 128 in bfloat16 is
    128 more than the code, exactly, for two words at once; what the 128s add to a product is known beforehand.
    """
    if INTERPRETED:  # it multiplies no 16-bit floats and knows no PTX
        a = (words & 15).to(tl.float32) + 128.0
        b = ((words >> 4) & 15).to(tl.float32) + 128.0
        c = ((words >> 8) & 15).to(tl.float32) + 128.0
        d = ((words >> 12) & 15).to(tl.float32) + 128.0
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            """{
            .reg .b32 b, c, d;
            shr.u32 b, $4, 4;
            shr.u32 c, $4, 8;
            shr.u32 d, $4, 12;
            lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $1, b, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $2, c, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $3, d, 0x000F000F, 0x43004300, 0xEA;
            }""",
            "=&r,=&r,=&r,=&r,r",
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return a, b, c, d


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
