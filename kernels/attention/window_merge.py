"""Merging a window's split results with what its older tokens had already: the outputs a step of n tokens leaves."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_tensor
from ..config import AttentionShape
from ..launch import await_previous, launch
from .merge import Partials
from .window import PIECE, Ring


@triton.jit(do_not_specialize=["splits", "q_heads"])
def _window_merge_kernel(
    partial,  # float32 [B * n * Hq, splits, D]
    partial_lse,  # float32 [B * n * Hq, splits]
    q,  # [B, n, Hq, D] contiguous, read with KEEP_QUERY alone
    out,  # [B, n, Hq, D]
    ring_out,  # float32 [B, w, Hq, D], in and out
    ring_lse,  # float32 [B, w, Hq, D / SLICE], in and out
    ring_query,  # [B, w, Hq, D] out, with KEEP_QUERY alone
    lengths,  # int32 [B]
    starts,  # int32 [B]
    clock,  # int32 [1], in and out
    splits,
    q_heads,
    D: tl.constexpr,
    SLICE: tl.constexpr,  # dims a program takes
    WIDTH: tl.constexpr,  # splits rounded up to a power of two
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    KEEP_QUERY: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    batch = row // (TOKENS * q_heads)
    token = (row // q_heads) % TOKENS
    position = tl.load(lengths + batch) - TOKENS + token
    valid = (position >= 0) & (position >= tl.load(starts + batch))
    past = valid & (token < TOKENS - 1)
    slot = tl.where(valid, position % SLOTS, 0)
    index = tl.arange(0, WIDTH)
    dims = piece * SLICE + tl.arange(0, SLICE)
    cell = (batch * SLOTS + slot) * q_heads + row % q_heads
    lse = tl.load(partial_lse + row * splits + index, mask=index < splits, other=float("-inf"))
    # Not masked by what was seen: all loads are under way at once, and what an empty split left there is dropped.
    cells = partial + (row * splits + index)[:, None] * D + dims[None, :]
    parts = tl.load(cells, mask=(index < splits)[:, None], other=0.0)
    had_lse = tl.where(past, tl.load(ring_lse + cell * (D // SLICE) + piece), float("-inf"))
    had = tl.where(past & (had_lse != float("-inf")), tl.load(ring_out + cell * D + dims), 0.0)

    seen = lse != float("-inf")  # NaN counts: it must show
    top = tl.maximum(tl.max(lse, axis=0), had_lse)
    base = tl.where(top > float("-inf"), top, 0.0)
    weight = tl.where(seen, tl.exp2(lse - base), 0.0)
    had_weight = tl.exp2(had_lse - base)
    total = tl.sum(weight, axis=0) + had_weight
    merged = tl.sum(tl.where(seen[:, None], parts * weight[:, None], 0.0), axis=0) + had * had_weight
    merged /= tl.where(total > 0.0, total, 1.0)
    tl.store(out + row * D + dims, merged.to(out.dtype.element_ty))
    if valid:
        left = tl.where(total > 0.0, base + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))
        tl.store(ring_out + cell * D + dims, merged)
        tl.store(ring_lse + cell * (D // SLICE) + piece, left)
    if KEEP_QUERY:
        fed = tl.where(valid & (token == TOKENS - 1), dims, D)
        tl.store(ring_query + cell * D + dims, tl.load(q + row * D + dims), mask=fed < D)
    if (tl.program_id(0) == 0) & (piece == 0):
        tl.store(clock, tl.load(clock) + 1)  # no other program of this kernel reads it


def merge_window(q: Tensor, cache: KVCache, ring: Ring, first: Tensor, partials: Partials, out: Tensor) -> None:
    """Merge split results into `out`, those of the tokens before the newest with what the ring has of them.

    The ring then has the merged results, the newest token's query where it keeps queries, and the next step's clock.

    Args:
        q: `[B, n, Hq, D]` as `window_decode` had it, contiguous.
        first: int32 `[B]`; rows of tokens before it become zeros and leave the ring alone.
        out: `[B, n, Hq, D]`, contiguous.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride.
    """
    check_tensor("q", q, (cache.batch, None, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    check_tensor("out", out, q.shape, device=cache.device)
    check_device("out", out)
    if not (out.is_contiguous() and q.is_contiguous()):
        raise ValueError("q, out: must be contiguous")
    _, tokens, heads, dim = q.shape
    shape = AttentionShape(cache.batch, heads, cache.kv_heads, dim)
    ring.check(shape, cache, ring.loaded.shape[2], tokens)
    check_tensor("first", first, (cache.batch,), dtypes=(torch.int32,), device=cache.device)
    partials.check(q.numel() // dim, dim, cache.device)
    launch(
        _window_merge_kernel,
        (partials.lse.shape[0], ring.lse.shape[3]),
        partial=partials.out,
        partial_lse=partials.lse,
        q=q,
        out=out,
        ring_out=ring.out,
        ring_lse=ring.lse,
        ring_query=out if ring.query is None else ring.query,
        lengths=cache.lengths,
        starts=first,
        clock=ring.clock,
        splits=partials.splits,
        q_heads=heads,
        D=dim,
        SLICE=min(dim, PIECE),
        WIDTH=max(triton.next_power_of_2(partials.splits), 2),
        TOKENS=tokens,
        SLOTS=ring.slots,
        KEEP_QUERY=ring.query is not None,
        num_warps=4,
        num_stages=1,
    )
