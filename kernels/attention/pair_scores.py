"""Blocks scored by the 4-bit codes of their pairs of keys (pair_codes.py), per head, then pooled (pool.py).

Scoring multiplies codes with the queries of a KV head's group on the matrix unit: q . (low + step code) is a constant
of the head and (q step) . code. Both are whole numbers there: codes of 4 bits, and q step in two digits of 8 bits, so
that sums are exact. A head's q step is rounded to its largest over 16256. That changes a logit by a few thousandths of
what the rounding of the codes does. The kernel leaves logits of blocks by head, and of each program the log-sum-exp;
programs of its own write the step's token. Contiguous caches.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_tensor
from ..config import AttentionShape, SparseConfig, ceil_div
from ..launch import INTERPRET, await_previous, launch, programs_a_row, release_next
from .addressing import held_tokens, strided
from .pair_codes import append_pair, check_pairs
from .pair_tile import code_planes, fast_exp2, fast_log2, folded, query_digits, row_pairs
from .pool import is_small, log2_or_inf, padded_heads, pool_shares
from .summaries import check_new

TILE_TOKENS = 256  # scored together
WARPS = 2  # of a program that scores; `row_pairs` holds for two alone
PROGRAMS = 6  # that score, a multiprocessor
STAGES = 3  # tiles on their way
LOG2E = math.log2(math.e)


def tile_blocks(block_size: int) -> int:
    """Blocks of a tile, 128 pairs whatever their size."""
    return TILE_TOKENS // block_size


@triton.jit(do_not_specialize=["token_capacity", "kv_heads", "blocks", "local_blocks"])
def _score_pairs_kernel(
    q,  # [B, Hq, D], contiguous
    packed,  # uint8 [B, Hkv, M, P, D / 2]
    known,  # float32 [B, Hkv, 2, D]
    logits,  # float32 [B, Hkv, M, GP] out, base 2
    partial,  # float32 [B, Hkv, shares, GP] out: log-sum-exp of each program's blocks, base 2
    lengths,  # int32 [B]
    k_cache,  # [B, Hkv, S, D]
    v_cache,  # the same strides
    k_new,  # [B, Hkv, D]
    v_new,  # the same strides
    token_capacity,
    kv_heads,
    blocks,  # M
    local_blocks,
    scale_log2,
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    new_batch_stride,
    new_head_stride,
    D: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    LOW: tl.constexpr,  # of a block's pairs, how many bits lie among lanes
    STAGES: tl.constexpr,
    APPEND: tl.constexpr,  # write the newest token and pack its pair, in a program of its own
    EARLY: tl.constexpr,  # let the next kernel's programs in
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    release_next(PDL and EARLY)
    row = tl.program_id(1)
    batch = row // kv_heads
    given = tl.load(lengths + batch)
    length = held_tokens(given, token_capacity)
    held = tl.cdiv(length, BLOCK)
    PAIRS: tl.constexpr = BLOCK // 2
    HALF: tl.constexpr = D // 2
    ranges = known + strided(row, 2 * D)
    codes_of_row = packed + strided(row, blocks) * (PAIRS * HALF)
    # Before anything that waits for the length: their loads are on their way together.
    columns = tl.arange(0, GP)
    queries = q + strided(row, G * D)
    low_query, high_query, worth = query_digits(queries, ranges + D, D, GP, G)
    every = tl.arange(0, D)
    rows = tl.load(queries + columns[:, None] * D + every[None, :], mask=(columns < G)[:, None], other=0.0)
    constant = tl.sum(rows.to(tl.float32) * tl.load(ranges + every)[None, :], axis=1) * scale_log2  # [GP]
    worth = tl.max(tl.reshape(worth, (2, GP)), axis=0) * scale_log2
    share = tl.program_id(0)
    shares = tl.num_programs(0)
    if APPEND:
        if share == 0:
            if (length > 0) & (given <= token_capacity):  # else there is no room for the token
                kv_head = row % kv_heads
                offset = strided(batch, cache_outer_stride) + strided(kv_head, cache_head_stride)
                new_offset = strided(batch, new_batch_stride) + strided(kv_head, new_head_stride)
                append_pair(
                    k_cache, v_cache, codes_of_row, k_new, v_new, ranges, offset, new_offset, length - 1,
                    cache_token_stride, strided((length - 1) // 2, HALF), D,
                )  # fmt: skip
            return
        share -= 1
        shares -= 1
    share_out = partial + (strided(row, shares) + share) * GP + columns
    tiles = tl.cdiv(held, TILE)
    each = tl.cdiv(tiles, shares)
    first = share * each
    last = tl.minimum(first + each, tiles)
    if first >= last:
        tl.store(share_out, tl.full([GP], float("-inf"), tl.float32))
        return
    pair = row_pairs(tl.arange(0, TILE * PAIRS), PAIRS, LOW)
    cells = codes_of_row + pair[:, None] * HALF + tl.arange(0, HALF)[None, :]
    index = tl.arange(0, TILE)
    most = tl.full([TILE, GP], float("-inf"), tl.float32)
    total = tl.zeros([TILE, GP], dtype=tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        inside = tile * (TILE * PAIRS) + pair < held * PAIRS
        codes = tl.load(cells + strided(tile, TILE * PAIRS * HALF), mask=inside[:, None], other=0)
        low, high = code_planes(codes, INTERPRETED)
        digits = tl.dot(low, low_query, out_dtype=tl.int32)
        digits = tl.dot(high, high_query, digits, out_dtype=tl.int32)  # [TILE PAIRS, 2 GP]
        upper, lower = tl.split(tl.permute(tl.reshape(digits, (TILE * PAIRS, 2, GP)), (0, 2, 1)))
        logit = (upper * 128 + lower).to(tl.float32) * worth[None, :] + constant[None, :]
        logit = tl.reshape(logit, (2, 2, 2, 2, 2, 2, 2, GP))
        top = folded(logit, PAIRS, True)
        mass = folded(fast_exp2(logit - top, INTERPRETED), PAIRS, False)
        block = tl.reshape(top, (TILE, GP)) + fast_log2(tl.reshape(mass, (TILE, GP)), INTERPRETED)

        at = tile * TILE + index
        block = tl.where((at < held - local_blocks)[:, None], block, float("-inf"))
        out = logits + (strided(row, blocks) + at)[:, None] * GP + columns[None, :]
        tl.store(out, block, mask=(at < held)[:, None])
        before, most = most, tl.maximum(most, block)
        finite = tl.where(most == float("-inf"), 0.0, most)
        total = total * fast_exp2(before - finite, INTERPRETED) + fast_exp2(block - finite, INTERPRETED)
    top = tl.max(most, axis=0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(total * tl.exp2(most - finite[None, :]), axis=0)
    tl.store(share_out, top + log2_or_inf(total))


def score_room(shape: AttentionShape, blocks: int, block_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for logits `[B, Hkv, M, GP]` and programs' sums `[B, Hkv, shares, GP]`, which layers can share."""
    rows, heads = (shape.batch, shape.kv_heads), padded_heads(shape.group)
    sizes = (
        (*rows, blocks, heads),
        (*rows, score_shares(shape.batch * shape.kv_heads, blocks, block_size, device), heads),
    )
    first, second = (torch.empty(size, dtype=torch.float32, device=device) for size in sizes)
    return first, second


def score_shares(rows: int, blocks: int, block_size: int, device: torch.device) -> int:
    """Programs that share a row's tiles."""
    shares = programs_a_row(rows, PROGRAMS, device) - 1  # one appends
    return min(ceil_div(blocks, tile_blocks(block_size)), max(shares, 1))


def score_pairs(
    q: Tensor, cache: KVCache, packed: Tensor, known: Tensor, room: tuple[Tensor, Tensor], scores: Tensor,
    config: SparseConfig, *, append: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Rank every block of every sequence by the summed shares of a group's heads; +inf where it is read in any case.

    Args:
        q: `[B, Hq, D]` of the cache's dtype, contiguous.
        room: of `score_room`.
        scores: float32 `[B, Hkv, M]` out. Entries past a sequence's last block are not written.
        append: K and V of each sequence's newest token, `[B, Hkv, D]`, written in the same kernel and its pair packed.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device; a paged cache.
    """
    check_pairs(cache, packed, known, config.block_size)
    check_tensor("q", q, (cache.batch, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    shape = AttentionShape(cache.batch, q.shape[1], cache.kv_heads, cache.head_dim)
    blocks, heads, rows = packed.shape[2], padded_heads(shape.group), cache.batch * cache.kv_heads
    logits, partial = room
    shares = score_shares(rows, blocks, config.block_size, cache.device)
    check_tensor("logits", logits, (*packed.shape[:3], heads), dtypes=(torch.float32,), device=cache.device)
    check_tensor("partial", partial, (*packed.shape[:2], shares, heads), dtypes=(torch.float32,), device=cache.device)
    if not q.is_contiguous():
        raise ValueError("q: must be contiguous")
    k_new, v_new = append if append is not None else (q, q)
    if append is not None:
        check_new(cache, k_new, v_new, (cache.batch, cache.kv_heads, cache.head_dim))
    launch(
        _score_pairs_kernel,
        (shares + (append is not None), rows),
        q=q,
        packed=packed,
        known=known,
        logits=logits,
        partial=partial,
        lengths=cache.lengths,
        k_cache=cache.k,
        v_cache=cache.v,
        k_new=k_new,
        v_new=v_new,
        token_capacity=cache.capacity,
        kv_heads=cache.kv_heads,
        blocks=blocks,
        local_blocks=config.local_blocks,
        scale_log2=cache.head_dim**-0.5 * LOG2E,
        cache_outer_stride=cache.k.stride(0),
        cache_head_stride=cache.k.stride(1),
        cache_token_stride=cache.k.stride(2),
        new_batch_stride=k_new.stride(0),
        new_head_stride=k_new.stride(1),
        D=cache.head_dim,
        G=shape.group,
        GP=heads,
        BLOCK=config.block_size,
        TILE=tile_blocks(config.block_size),
        LOW=max(config.block_size.bit_length() - 5, 0),
        STAGES=STAGES,
        APPEND=append is not None,
        EARLY=is_small(rows * blocks, cache.device),
        INTERPRETED=INTERPRET,
        num_warps=WARPS,
        num_stages=1,
    )
    pool_shares(logits, partial, scores, cache, shape.group, config)
