"""Online softmax (base 2) over tiles of keys: the device code that sparse and dense attention share."""

import triton
import triton.language as tl


@triton.jit
def attend_tile(q, k, v, visible, scale_log2, m, total, acc, MASKED: tl.constexpr, CAST_FP32: tl.constexpr):
    """Fold one tile of keys and values into a running softmax.

    q `[rows, D]`; k, v `[tokens, D]`; visible `[rows, tokens]` (read only when MASKED); m, total `[rows]` the running
    maximum of the scaled logits and the running sum; acc `[rows, D]`. A row that has seen nothing keeps m = -inf.
    The scale is positive, so it can wait until after the maximum, where it costs nothing (one fused multiply-add).
    """
    logits = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        logits = tl.where(visible, logits, float("-inf"))
    m_next = tl.maximum(m, tl.max(logits, axis=1) * scale_log2)
    base = m_next
    if MASKED:
        base = tl.where(m_next == float("-inf"), 0.0, m_next)  # nothing visible yet: avoid inf - inf
    p = tl.exp2(logits * scale_log2 - base[:, None])
    carry = tl.exp2(m - base)
    total = total * carry + tl.sum(p, axis=1)
    if not CAST_FP32:
        p = p.to(v.dtype)
    acc = tl.dot(p, v, acc * carry[:, None], input_precision="ieee")
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
