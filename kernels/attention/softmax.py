"""Online softmax (base 2) over tiles of keys: the device code that sparse and dense attention share."""

import torch
import triton
import triton.language as tl

LIFT = tl.constexpr(13.0)
"""Keys and values in e4m3 are multiplied in fp16, which they fit: there 2^LIFT stands for a probability of 1, so that
those down to 2^-38 of the largest are not lost. Conversion to bf16 would take as long as the memory."""


@triton.jit
def _halves(x):
    """e4m3 to fp16, four at a time. A cast, or a pure operation, would move behind the change of layout that products
    need; then bytes would change places, one load each."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 low, high;
        mov.b32 {low, high}, $2;
        cvt.rn.f16x2.e4m3x2 $0, low;
        cvt.rn.f16x2.e4m3x2 $1, high;
        }""",
        "=r,=r,r",
        [x],
        dtype=tl.float16,
        is_pure=False,
        pack=4,
    )


@triton.jit
def multipliable(q, IN_FP8: tl.constexpr, CAST_FP32: tl.constexpr):
    """A query as it is multiplied with keys: in fp16 beside e4m3; in fp32 in the interpreter."""
    if CAST_FP32:
        return q.to(tl.float32)
    return q.to(tl.float16) if IN_FP8 else q


@triton.jit
def attend_tile(q, k, v, visible, scale_log2, m, total, acc, MASKED: tl.constexpr, CAST_FP32: tl.constexpr):
    """Fold one tile of keys and values into a running softmax.

    q `[rows, D]`; k, v `[tokens, D]`; visible `[rows, tokens]` (read only when MASKED); m, total `[rows]` the running
    maximum of the scaled logits and the running sum; acc `[rows, D]`. A row that has seen nothing keeps m = -inf.
    Of keys and values in e4m3, total and acc are 2^LIFT times as large.
    The scale is positive, so it can wait until after the maximum, where it costs nothing (one fused multiply-add).
    """
    IN_FP8: tl.constexpr = v.dtype == tl.float8e4nv
    if CAST_FP32:
        k, v = k.to(tl.float32), v.to(tl.float32)
    elif IN_FP8:
        k, v = k.to(tl.float16), _halves(v)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        logits = tl.where(visible, logits, float("-inf"))
    m_next = tl.maximum(m, tl.max(logits, axis=1) * scale_log2)
    base = m_next
    if MASKED:
        base = tl.where(m_next == float("-inf"), 0.0, m_next)  # nothing visible yet: avoid inf - inf
    p = tl.exp2(logits * scale_log2 - (base - LIFT if IN_FP8 else base)[:, None])
    carry = tl.exp2(m - base)
    total = total * carry + tl.sum(p, axis=1)
    if not CAST_FP32:
        p = p.to(v.dtype)
    acc = tl.dot(p, v, acc * carry[:, None], input_precision="ieee")
    return m_next, total, acc


def as_columns(rows: int, head_dim: int, in_fp8: bool) -> bool:
    """Whether a program's queries are the right operand (`attend_columns`): few rows beside keys in e4m3."""
    return in_fp8 and rows <= 16 and head_dim >= 32


def query_parts(dtype: torch.dtype) -> int:
    """In how many parts a query of a type is multiplied with keys in e4m3 (`query_columns`): two hold bf16 exactly."""
    return 1 if dtype == torch.float16 else 2


@triton.jit
def query_columns(
    q, rows, row_valid, PARTS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, CAST_FP32: tl.constexpr
):  # fmt: skip
    """A query as the right operand beside keys in e4m3: `[D, PARTS * ROWS]`, and a factor of its logits, `[ROWS]`.

    In two parts e4m3 holds a query in bf16 exactly: the nearest number, then what is left of it (numbers below 2^-9
    of the row's largest to 2^-17 of that). A row is divided by a power of two, its factor, so that its largest has
    room. One part is fp16, whose factor is 1.

    rows `[ROWS]`: offsets of the rows in `q`.
    """
    dims = tl.arange(0, D)
    query = tl.load(q + rows[None, :] + dims[:, None], mask=row_valid[None, :], other=0.0).to(tl.float32)
    if PARTS == 2:
        power = tl.max(tl.abs(query), axis=0).to(tl.int32, bitcast=True) & 0x7F800000  # its exponent alone
        factor = tl.where(power == 0, 0x3F800000, power).to(tl.float32, bitcast=True) * (1.0 / 128)
        query = query / factor[None, :]
        high = query.to(tl.float8e4nv).to(tl.float32)
        query = tl.reshape(tl.permute(tl.join(high, query - high), (0, 2, 1)), (D, 2 * ROWS))
    else:
        factor = tl.full([ROWS], 1.0, tl.float32)
    if not CAST_FP32:
        query = query.to(tl.float8e4nv if PARTS == 2 else tl.float16)
    return query, factor


@triton.jit
def attend_columns(
    query, k, v, visible, scale_log2, m, total, acc, PARTS: tl.constexpr, MASKED: tl.constexpr, CAST_FP32: tl.constexpr
):  # fmt: skip
    """`attend_tile` the other way round, of keys and values in e4m3: tokens are the left operand's rows.

    So the matrix unit reads keys from shared memory as they are, no query is padded to 16, and values are converted
    once a tile. query `[D, PARTS * rows]` (`query_columns`); visible `[tokens, rows]`; scale_log2, m `[rows]`; total
    `[tokens, rows]`, whose sum over tokens the caller takes at the end: here it would cost a barrier a tile; acc
    `[D, rows]`.
    """
    ROWS: tl.constexpr = m.shape[0]
    TILE: tl.constexpr = k.shape[0]
    if CAST_FP32:
        k, v = k.to(tl.float32), v.to(tl.float32)
    else:
        k, v = k if PARTS == 2 else _halves(k), _halves(v)
    logits = tl.dot(k, query, input_precision="ieee")
    if PARTS == 2:
        logits = tl.sum(tl.reshape(logits, (TILE, 2, ROWS)), axis=1)
    if MASKED:
        logits = tl.where(visible, logits, float("-inf"))
    m_next = tl.maximum(m, tl.max(logits, axis=0) * scale_log2)
    base = m_next
    if MASKED:
        base = tl.where(m_next == float("-inf"), 0.0, m_next)
    p = tl.exp2(logits * scale_log2[None, :] - (base - LIFT)[None, :])
    carry = tl.exp2(m - base)
    total = total * carry[None, :] + p
    if not CAST_FP32:
        p = p.to(v.dtype)
    acc = tl.dot(tl.trans(v), p, acc * carry[None, :], input_precision="ieee")
    return m_next, total, acc


@triton.jit
def store_partial(partial, partial_lse, rows, row_valid, split, splits, m, total, acc, D: tl.constexpr):
    """Write one split's normalised output and its log2-sum-exp; a row that saw no key gets -inf and no output.

    A row whose sum is NaN has seen something: its output is NaN, and so is what it is merged into.
    """
    dims = tl.arange(0, D)
    seen = total != 0.0
    out = acc / tl.where(seen, total, 1.0)[:, None]
    lse = tl.where(seen, m + tl.log2(tl.where(seen, total, 1.0)), float("-inf"))
    cell = rows.to(tl.int64) * splits + split
    tl.store(partial_lse + cell, lse, mask=row_valid)
    tl.store(partial + cell[:, None] * D + dims[None, :], out, mask=(row_valid & seen)[:, None])
