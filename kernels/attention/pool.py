"""Pooling: logits of blocks by head as shares of each head's sum, added over a group (selectors/pooled.py says why).

A launch of its own, since a share needs the sum over all blocks first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_tensor
from ..config import SparseConfig, ceil_div
from ..launch import await_previous, launch, release_next, scores_per_sm
from .addressing import held_tokens, strided

SPAN = 256  # blocks pooled together
EARLY = 512  # scores a multiprocessor: in smaller steps the next kernel's programs take their places from the start


def padded_heads(group: int) -> int:
    """Columns of a group's scores: a power of two, at least 8, so that both halves of its queries fill 16."""
    return max(int(triton.next_power_of_2(group)), 8)


@triton.jit
def log2_or_inf(x):
    """The logarithm, -inf of 0."""
    return tl.where(x > 0, tl.log2(tl.maximum(x, 1e-37)), float("-inf"))


@triton.jit(do_not_specialize=["token_capacity", "kv_heads", "blocks", "shares", "local_blocks", "first_blocks"])
def _pool_kernel(
    logits,  # float32 [B, Hkv, M, GP], base 2
    partial,  # float32 [B, Hkv, shares, GP], base 2
    scores,  # float32 [B, Hkv, M] out: natural logarithm of the shares' sum; +inf at blocks read in any case
    lengths,  # int32 [B]
    token_capacity,
    kv_heads,
    blocks,  # M
    shares,
    local_blocks,
    first_blocks,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    SHARES: tl.constexpr,  # rounded up to a power of two
    EARLY: tl.constexpr,  # let the next kernel's programs in
    PDL: tl.constexpr,
):
    await_previous(PDL)
    release_next(PDL and EARLY)
    row = tl.program_id(1)
    held = tl.cdiv(held_tokens(tl.load(lengths + row // kv_heads), token_capacity), BLOCK)
    index = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    if tl.program_id(0) * SPAN >= held:
        return
    columns = tl.arange(0, GP)
    share = tl.arange(0, SHARES)
    parts = partial + (strided(row, shares) + share)[:, None] * GP + columns[None, :]
    sums = tl.load(parts, mask=(share < shares)[:, None], other=float("-inf"))
    most = tl.max(sums, axis=0)
    most = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(tl.exp2(sums - most[None, :]), axis=0)
    total = tl.where(total > 0, most + log2_or_inf(total), 0.0)
    inside = index < held
    cells = logits + (strided(row, blocks) + index)[:, None] * GP + columns[None, :]
    part = tl.load(cells, mask=inside[:, None], other=float("-inf")) - total[None, :]
    part = tl.where((columns < G)[None, :], part, float("-inf"))
    top = tl.max(part, axis=1)
    top = tl.where(top == float("-inf"), 0.0, top)
    pooled = (top + log2_or_inf(tl.sum(tl.exp2(part - top[:, None]), axis=1))) * 0.6931471805599453
    always = (index >= held - local_blocks) | (index < first_blocks)
    tl.store(scores + strided(row, blocks) + index, tl.where(always, float("inf"), pooled), mask=inside)


def is_small(scores: int, device: torch.device) -> bool:
    """Whether a step over so many block scores lets the next kernel's programs in early."""
    return scores_per_sm(scores, device) <= EARLY


def pool_shares(
    logits: Tensor, partial: Tensor, scores: Tensor, cache: KVCache, group: int, config: SparseConfig
) -> None:
    """Turn logits into the logarithms of summed shares; +inf at blocks that are read in any case.

    Args:
        logits: float32 `[B, Hkv, M, GP]`, base 2, of each head of a group; GP is `padded_heads(group)`.
        partial: float32 `[B, Hkv, shares, GP]`, base 2: log-sum-exps of logits, of all blocks together.
        scores: float32 `[B, Hkv, M]` out. Entries past a sequence's last block are not written.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride.
    """
    heads, blocks, rows = padded_heads(group), config.blocks(cache.capacity), cache.batch * cache.kv_heads
    leading = cache.batch, cache.kv_heads
    check_tensor("scores", scores, (*leading, blocks), dtypes=(torch.float32,), device=cache.device)
    check_tensor("logits", logits, (*leading, blocks, heads), dtypes=(torch.float32,), device=cache.device)
    check_tensor("partial", partial, (*leading, None, heads), dtypes=(torch.float32,), device=cache.device)
    if not all(x.is_contiguous() for x in (logits, partial, scores)):
        raise ValueError("scores, room: must be contiguous")
    shares = partial.shape[2]
    launch(
        _pool_kernel,
        (ceil_div(blocks, SPAN), rows),
        logits=logits,
        partial=partial,
        scores=scores,
        lengths=cache.lengths,
        token_capacity=cache.capacity,
        kv_heads=cache.kv_heads,
        blocks=blocks,
        shares=shares,
        local_blocks=config.local_blocks,
        first_blocks=config.always[1],
        G=group,
        GP=heads,
        BLOCK=config.block_size,
        SPAN=SPAN,
        SHARES=triton.next_power_of_2(shares),
        EARLY=is_small(rows * blocks, cache.device),
        num_warps=4,
        num_stages=1,
    )
