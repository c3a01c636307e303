"""Block scores: how much a query could attend to each block, bounded from its summary.

Every score here is one dot product of a block's two slots with two slots made of the query:

    minmax   sum_d max(q_d lo_d, q_d hi_d)  =  [lo, hi] . [min(q, 0), max(q, 0)]
    meanstd  q . mean + c |q| . std         =  [mean, std] . [q, c |q|]

so both summary kinds share one kernel, and summing over a group's heads is summing their query slots first. The
policies say which query heads share a list: `group-mean` (ReSA: the mean query of a KV head's group), `group-sum`
(sum of the group's bounds), `per-head` (Quest: each query head its own), `all-heads` (one list for all).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_stored, check_tensor
from ..config import AttentionShape, SparseConfig, ceil_div
from ..launch import await_previous, launch, release_next, scores_per_sm
from .addressing import held_tokens, locate, strided
from .summaries import Summaries, check_new, update_block


def score_rows(shape: AttentionShape, policy: str) -> int:
    """Rows of scores, and so lists, per sequence: one per KV head, per query head, or one in all."""
    return {"per-head": shape.q_heads, "all-heads": 1}.get(policy, shape.kv_heads)


@triton.jit
def _query_slots(q, spread_weight, MINMAX: tl.constexpr):
    if MINMAX:
        return tl.minimum(q, 0.0), tl.maximum(q, 0.0)
    return q, spread_weight * tl.abs(q)


@triton.jit
def _load_slots(rows, valid, D: tl.constexpr):
    first = tl.load(rows, mask=valid[:, None], other=0.0).to(tl.float32)
    second = tl.load(rows + D, mask=valid[:, None], other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _dot_slots(first, second, q_first, q_second):
    return tl.sum(first * q_first[None, :] + second * q_second[None, :], axis=1)


@triton.jit(do_not_specialize=["token_capacity", "pages", "kv_heads", "local_blocks", "first_blocks"])
def _score_kernel(
    q,  # [B, Hq, D]
    summaries,  # [B or P, Hkv, blocks, 2, D]
    scores,  # float32 [B, R, M]
    lengths,  # int32 [B]
    table,  # int32 [B, pages]
    k_cache,  # [B or P, Hkv, S or page, D]; with APPEND alone, as the next four
    v_cache,  # the same strides
    scales,  # float32 [Hkv, 2], of keys and values in e4m3 alone
    k_new,  # [B, Hkv, D]
    v_new,  # the same strides
    token_capacity,  # of a sequence
    pages,  # P
    kv_heads,
    local_blocks,
    first_blocks,
    spread_weight,
    q_batch_stride,
    q_head_stride,
    summary_outer_stride,
    summary_head_stride,
    score_batch_stride,
    score_row_stride,
    table_stride,
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    new_batch_stride,
    new_head_stride,
    D: tl.constexpr,
    G: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PAGE_BLOCKS: tl.constexpr,
    PAGED: tl.constexpr,
    MINMAX: tl.constexpr,
    POLICY: tl.constexpr,
    APPEND: tl.constexpr,  # write the newest token and summarise its block, in a program of its own
    EARLY: tl.constexpr,  # let the next kernel's programs in
    PDL: tl.constexpr,
):
    await_previous(PDL)
    release_next(PDL and EARLY)
    groups = 1 if POLICY == "all-heads" else kv_heads
    batch = tl.program_id(1) // groups
    group = tl.program_id(1) % groups
    given = tl.load(lengths + batch)
    length = held_tokens(given, token_capacity)
    blocks = tl.cdiv(length, BLOCK)
    tile = tl.program_id(0)
    if APPEND:
        if tile == 0:
            if (length > 0) & (given <= token_capacity):  # else there is no room for the token
                for kv_head in range(group, kv_heads if POLICY == "all-heads" else group + 1):
                    update_block(
                        k_cache, v_cache, scales, summaries, k_new, v_new, table, batch, kv_head, blocks - 1, length,
                        length - 1, cache_outer_stride, cache_head_stride, cache_token_stride, summary_outer_stride,
                        summary_head_stride, new_batch_stride, 0, new_head_stride, table_stride, pages,
                        D, BLOCK, PAGE_BLOCKS * BLOCK, PAGED, True, "minmax" if MINMAX else "meanstd",
                    )  # fmt: skip
            return
        tile -= 1
    start = tile * TILE
    if start >= blocks:
        return

    index = start + tl.arange(0, TILE)
    valid = index < blocks
    always = (index >= blocks - local_blocks) | (index < first_blocks)
    dims = tl.arange(0, D)
    outer, inside, _ = locate(batch, index, valid, table, table_stride, pages, PAGE_BLOCKS, PAGED)
    rows = summaries + (outer * summary_outer_stride + strided(inside, 2 * D))[:, None] + dims[None, :]
    q_rows = q + strided(batch, q_batch_stride) + dims
    out = scores + strided(batch, score_batch_stride) + index

    if POLICY == "per-head":
        first, second = _load_slots(rows + strided(group, summary_head_stride), valid, D)
        for g in tl.static_range(G):
            head = group * G + g
            query = tl.load(q_rows + strided(head, q_head_stride)).to(tl.float32)
            q_first, q_second = _query_slots(query, spread_weight, MINMAX)
            score = _dot_slots(first, second, q_first, q_second)
            tl.store(out + strided(head, score_row_stride), tl.where(always, float("inf"), score), mask=valid)
    else:
        # One list for the group's heads, or for the heads of all groups: sum what the heads ask before multiplying.
        score = tl.zeros([TILE], dtype=tl.float32)
        for kv_head in range(group, kv_heads if POLICY == "all-heads" else group + 1):
            first, second = _load_slots(rows + strided(kv_head, summary_head_stride), valid, D)
            q_first = tl.zeros([D], dtype=tl.float32)
            q_second = tl.zeros([D], dtype=tl.float32)
            for g in tl.static_range(G):
                query = tl.load(q_rows + strided(kv_head * G + g, q_head_stride)).to(tl.float32)
                if POLICY == "group-mean":
                    q_first += query
                else:
                    head_first, head_second = _query_slots(query, spread_weight, MINMAX)
                    q_first += head_first
                    q_second += head_second
            if POLICY == "group-mean":
                q_first, q_second = _query_slots(q_first / G, spread_weight, MINMAX)
            score += _dot_slots(first, second, q_first, q_second)
        tl.store(out + strided(group, score_row_stride), tl.where(always, float("inf"), score), mask=valid)


TILE = 32  # blocks scored together
EARLY = 512  # scores a multiprocessor: in smaller steps selection's programs take their places from the start


def score_blocks(
    q: Tensor,
    cache: KVCache,
    summaries: Summaries,
    scores: Tensor,
    config: SparseConfig,
    *,
    append: tuple[Tensor, Tensor] | None = None,
    check_values: bool = False,
) -> None:
    """Score every valid block of every sequence; those that are always selected get +inf.

    Args:
        q: `[B, Hq, D]` queries of the cache's dtype.
        scores: float32 `[B, R, M]` out, R = `score_rows(...)`, M = blocks at the cache's capacity. Entries past a
            sequence's last block are not written.
        append: K and V of each sequence's newest token, `[B, Hkv, D]`, written to the cache in the same kernel and
            its block's summary refreshed, as `write_tokens` does. Needs `config.local_blocks`: the newest block's
            score must not wait for its summary.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride; an append without local
            blocks.
    """
    check_tensor("q", q, (cache.batch, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    check_stored(cache)
    check_device("q", q)
    shape = AttentionShape(cache.batch, q.shape[1], cache.kv_heads, cache.head_dim)
    held = summaries.kind, summaries.block_size, summaries.dtype
    asked = config.summary_kind, config.block_size, config.summary_dtype
    if held != asked:
        held_words, asked_words = (
            f"{kind} of blocks of {size}{f' in {d}' if d else ''}" for kind, size, d in (held, asked)
        )
        raise ValueError(f"summaries: are {held_words}, config asks for {asked_words}")
    blocks = ceil_div(cache.capacity, config.block_size)
    wanted = (cache.batch, score_rows(shape, config.gqa_policy), blocks)
    check_tensor("scores", scores, wanted, dtypes=(torch.float32,), device=cache.device)
    if check_values:
        cache.check_values()
    groups = 1 if config.gqa_policy == "all-heads" else cache.kv_heads
    k_new, v_new = append if append is not None else (q, q)
    if append is not None:
        check_new(cache, k_new, v_new, (cache.batch, cache.kv_heads, cache.head_dim))
        if not config.local_blocks:
            raise ValueError("append: needs local_blocks of at least 1, for the newest block is scored meanwhile")
    rows, tiles = cache.batch * groups, ceil_div(blocks, TILE)
    table = cache.block_table if cache.block_table is not None else cache.lengths
    launch(
        _score_kernel,
        (tiles + (append is not None), rows),
        q=q,
        summaries=summaries.data,
        scores=scores,
        lengths=cache.lengths,
        table=table,
        k_cache=cache.k,
        v_cache=cache.v,
        scales=cache.scales_or_any,
        k_new=k_new,
        v_new=v_new,
        token_capacity=cache.capacity,
        pages=cache.k.shape[0],
        kv_heads=cache.kv_heads,
        local_blocks=config.local_blocks,
        first_blocks=config.always[1],
        spread_weight=float(config.spread_weight),
        q_batch_stride=q.stride(0),
        q_head_stride=q.stride(1),
        summary_outer_stride=summaries.data.stride(0),
        summary_head_stride=summaries.data.stride(1),
        score_batch_stride=scores.stride(0),
        score_row_stride=scores.stride(1),
        table_stride=table.stride(0),
        cache_outer_stride=cache.k.stride(0),
        cache_head_stride=cache.k.stride(1),
        cache_token_stride=cache.k.stride(2),
        new_batch_stride=k_new.stride(0),
        new_head_stride=k_new.stride(1),
        D=cache.head_dim,
        G=shape.group,
        BLOCK=config.block_size,
        TILE=TILE,
        PAGE_BLOCKS=cache.page_size // config.block_size if cache.paged else 1,
        PAGED=cache.paged,
        MINMAX=config.summary_kind == "minmax",
        POLICY=config.gqa_policy,
        APPEND=append is not None,
        EARLY=scores_per_sm(rows * blocks, cache.device) <= EARLY,
        num_warps=4,
        num_stages=1,
    )


def query_slots(q: Tensor, kind: str, spread_weight: float = 1.0) -> Tensor:
    """The two query slots `[..., 2 D]` whose dot product with a block's slots is its score."""
    pair = (q.clamp(max=0), q.clamp(min=0)) if kind == "minmax" else (q, spread_weight * q.abs())
    return torch.cat(pair, dim=-1)


def scores_reference(q: Tensor, summaries: Tensor, config: SparseConfig) -> tuple[Tensor, Tensor]:
    """Scores of one sequence as the papers write them, in fp64, and the error budget of an fp32 evaluation.

    Args:
        q: `[Hq, D]`; summaries: `[Hkv, M, 2, D]` of the M valid blocks.

    Returns:
        scores `[R, M]` with +inf at local blocks, and `[R, M]` bounds on |fp32 - fp64|: a sum of n products has an
        error of at most (n + 2) u sum |terms| in any order (Higham, Accuracy and Stability, section 3.1), with G more
        roundings in the mean query and u = 2^-24.
    """
    kv_heads, blocks, _, dim = summaries.shape
    group = q.shape[0] // kv_heads
    first, second = summaries.double().unbind(2)  # [Hkv, M, D]
    heads = q.double().view(kv_heads, group, 1, dim)
    magnitude = torch.maximum(first.abs(), second.abs())  # [Hkv, M, D]
    if config.gqa_policy == "group-mean":
        heads_used, weight = heads.mean(1, keepdim=True), heads.abs().mean(1, keepdim=True)
    else:
        heads_used, weight = heads, heads.abs()
    a, b = first.unsqueeze(1), second.unsqueeze(1)
    if config.summary_kind == "minmax":
        terms = torch.maximum(heads_used * a, heads_used * b).sum(-1)  # [Hkv, 1 or G, M]
        sizes = (weight * magnitude.unsqueeze(1)).sum(-1)
    else:
        terms = (heads_used * a + config.spread_weight * heads_used.abs() * b).sum(-1)
        sizes = (weight * (a.abs() + config.spread_weight * b.abs())).sum(-1)
    if config.gqa_policy == "group-sum":
        terms, sizes = terms.sum(1, keepdim=True), sizes.sum(1, keepdim=True)
    elif config.gqa_policy == "all-heads":
        terms, sizes = terms.sum((0, 1), keepdim=True), sizes.sum((0, 1), keepdim=True)
    scores, sizes = terms.flatten(0, 1).clone(), sizes.flatten(0, 1)
    index = torch.arange(blocks, device=scores.device)
    scores.masked_fill_(config.always_selected(index, blocks), float("inf"))
    additions = 2 * dim + group + (kv_heads if config.gqa_policy == "all-heads" else 0) + 4
    return scores, additions * 2.0**-24 * sizes
