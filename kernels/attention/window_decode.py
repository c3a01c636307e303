"""Block-sparse attention of the newest n tokens against one list, each to what of it is new to it (RetroAttention).

A program serves all n tokens and query heads of a KV head, so that each block is read once, as in a step of one token.
The newest token attends to every listed block; a token of age a only to those that no step since its own has loaded,
whose results it has already, and never to a token newer than itself.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_tensor, kernel_dtypes
from ..config import AttentionShape, ceil_div
from ..exact import Exact, assign, empty_rows, exact_attention
from ..launch import await_previous, launch, plan_splits, release_next
from .addressing import checked_scale, held_tokens, locate, strided, tile_range
from .lists import check_blocks, check_counts, check_entries, list_arguments
from .merge import Partials
from .softmax import attend_tile, store_partial
from .sparse_decode import sparse_tile
from .window import Ring


@triton.jit(do_not_specialize=["token_capacity", "pages", "list_capacity", "kv_heads", "splits"])
def _window_decode_kernel(
    q,  # [B, n, Hq, D]
    cached_q,  # [B, w, Hq, D] contiguous, read with CACHED_QUERY alone: queries by slot
    k_cache,  # [B or P, Hkv, S or page, D]
    v_cache,  # the same strides
    partial,  # float32 [B * n * Hq, splits, D]
    partial_lse,  # float32 [B * n * Hq, splits]
    lists,  # int32 [B, R, N]
    counts,  # int32 [B, R]
    lengths,  # int32 [B]
    starts,  # int32 [B]: tokens before it have no row
    loaded,  # int32 [B, Hkv, M] contiguous, in and out: clock of the last step that loaded a block
    clock,  # int32 [1]
    table,  # int32 [B, pages]
    token_capacity,  # of a sequence
    pages,  # P
    list_capacity,  # N
    kv_heads,
    splits,
    blocks,  # M
    scale_log2,
    q_batch_stride,
    q_token_stride,
    q_head_stride,
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    list_batch_stride,
    list_row_stride,  # 0 when one list serves all heads
    count_batch_stride,
    count_row_stride,
    table_stride,
    D: tl.constexpr,
    G: tl.constexpr,
    TOKENS: tl.constexpr,  # n
    SLOTS: tl.constexpr,  # w
    ROWS: tl.constexpr,  # n * G padded for the matrix unit
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,  # tokens a step, a multiple of BLOCK
    PAGE: tl.constexpr,
    PAGED: tl.constexpr,
    CACHED_QUERY: tl.constexpr,
    CAST_FP32: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    release_next(PDL)
    await_previous(PDL)
    split = tl.program_id(0)
    batch = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads
    length = tl.load(lengths + batch)
    count = tl.load(counts + strided(batch, count_batch_stride) + strided(kv_head, count_row_stride))
    now = tl.load(clock)
    first_fed = tl.load(starts + batch)
    # What is made of loaded numbers waits for them: after the loads, which are all under way by then.
    held = held_tokens(length, token_capacity)
    scale_log2 = checked_scale(scale_log2, length, token_capacity)
    count = tl.minimum(count, list_capacity)

    BLOCKS: tl.constexpr = TILE // BLOCK
    start, end = tile_range(count, split, splits)
    row = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    lane = tl.arange(0, TILE)
    token_row = row // G
    age = TOKENS - 1 - token_row
    head = kv_head * G + row % G
    position = length - 1 - age
    in_tile = row < TOKENS * G
    row_valid = in_tile & (position >= tl.maximum(first_fed, 0))
    # What a row of this age has not seen was loaded before its own step; the newest row has seen nothing.
    before = tl.where(age == 0, 0x7FFFFFFF, now - age)
    m = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, D], dtype=tl.float32)
    entries = lists + strided(batch, list_batch_stride) + strided(kv_head, list_row_stride)
    stamps = loaded + strided(tl.program_id(1), blocks)
    head_offset = strided(kv_head, cache_head_stride)

    if start < end:
        q_rows = strided(batch, q_batch_stride) + strided(token_row, q_token_stride) + strided(head, q_head_stride)
        fresh = row_valid
        if CACHED_QUERY:
            fresh = row_valid & (age == 0)
        query = tl.load(q + q_rows[:, None] + dims[None, :], mask=fresh[:, None], other=0.0)
        if CACHED_QUERY:
            past = row_valid & (age > 0)
            cells = ((strided(batch, SLOTS) + position % SLOTS) * kv_heads * G + head) * D
            older = tl.load(cached_q + cells[:, None] + dims[None, :], mask=past[:, None], other=0.0)
            query = tl.where(past[:, None], older, query)
        if CAST_FP32:
            query = query.to(tl.float32)
        entry = start + lane // BLOCK
        block = tl.load(entries + entry, mask=entry < end, other=-1)
        for first in tl.range(start, end, BLOCKS, num_stages=STAGES):
            token = block * BLOCK + lane % BLOCK
            valid = (block >= 0) & (token < held)
            stamp = tl.load(stamps + block, mask=valid, other=0)
            outer, inside, _ = locate(batch, token, valid, table, table_stride, pages, PAGE, PAGED)
            base = outer * cache_outer_stride + head_offset + strided(inside, cache_token_stride)
            offsets = base[:, None] + dims[None, :]
            k = tl.load(k_cache + offsets, mask=valid[:, None], other=0.0)
            v = tl.load(v_cache + offsets, mask=valid[:, None], other=0.0)
            visible = valid[None, :] & (token[None, :] <= position[:, None]) & (stamp[None, :] < before[:, None])
            visible = visible & row_valid[:, None]
            # The next tile's entries, a step ahead: read in its own step they would hold up its keys and values.
            entry = first + BLOCKS + lane // BLOCK
            block = tl.load(entries + entry, mask=entry < end, other=-1)
            if CAST_FP32:
                k, v = k.to(tl.float32), v.to(tl.float32)
            m, total, acc = attend_tile(query, k, v, visible, scale_log2, m, total, acc, True, CAST_FP32)
        # Each entry is this program's alone; its threads must all have read their stamps.
        tl.debug_barrier()
        for first in tl.range(start, end, TILE, num_stages=1):
            entry = first + lane
            block = tl.load(entries + entry, mask=entry < end, other=-1)
            tl.store(stamps + block, now, mask=(block >= 0) & (block < blocks))

    rows = strided(batch * TOKENS + token_row, kv_heads * G) + head
    store_partial(partial, partial_lse, rows, in_tile, split, splits, m, total, acc, D)


def window_splits(shape: AttentionShape, tokens: int, list_capacity: int, block_size: int, device: torch.device) -> int:
    """Splits for lists of up to `list_capacity` blocks, one a KV head, and n tokens a sequence, on this chip."""
    tile = sparse_tile(block_size)
    few = tile * shape.head_dim <= 8192 and _padded_rows(shape, tokens) <= 16  # more rows take more registers
    tiles = ceil_div(list_capacity * block_size, tile)
    return plan_splits(shape.batch * shape.kv_heads, tiles, device, 3 if few else 2)


def _padded_rows(shape: AttentionShape, tokens: int) -> int:
    return max(16, int(triton.next_power_of_2(tokens * shape.group)))


def window_decode(
    q: Tensor,
    cache: KVCache,
    lists: Tensor,
    counts: Tensor,
    ring: Ring,
    first: Tensor,
    partials: Partials,
    *,
    block_size: int,
    scale: float | None = None,
    check_values: bool = False,
) -> None:
    """Attend to what of the listed blocks is new to each token; leaves split results for `merge_window`.

    Afterwards `ring.loaded` has this step's clock at the listed blocks.

    Args:
        q: `[B, n, Hq, D]` of the cache's dtype, row i at position lengths - n + i; n up to the ring's slots. Where the
            ring has queries, the rows before the newest take theirs from it.
        lists: int32 `[B, R, N]` block indices, R is Hkv or 1 (shared by all); each block at most once, -1 skipped.
        counts: int32 `[B, R]`, entries of each list that count.
        first: int32 `[B]`; tokens before it have no row and see nothing.
        partials: room for `B * n * Hq` rows and any number of splits.
        scale: of the logits, positive; 1 / sqrt(D) by default.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride; a list per query head; with
            `check_values`, entries outside -1 .. M-1 or counts over N.
    """
    check_tensor("cache.k", cache.k, (None, None, None, None), dtypes=kernel_dtypes())
    check_blocks(cache, block_size, scale)
    check_tensor("q", q, (cache.batch, None, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    check_device("q", q)
    tokens = q.shape[1]
    shape = AttentionShape(cache.batch, q.shape[2], cache.kv_heads, cache.head_dim)
    blocks = ceil_div(cache.capacity, block_size)
    ring.check(shape, cache, blocks, tokens)
    check_tensor("first", first, (cache.batch,), dtypes=(torch.int32,), device=cache.device)
    check_tensor("lists", lists, (cache.batch, None, None), dtypes=(torch.int32,), device=cache.device)
    rows = lists.shape[1]
    if rows not in (1, shape.kv_heads):
        raise ValueError(f"lists: {rows} rows, allowed 1 or Hkv = {shape.kv_heads}: the tokens of a KV head share one")
    check_counts(counts, lists)
    partials.check(cache.batch * tokens * shape.q_heads, cache.head_dim, cache.device)
    if check_values:
        check_entries(cache, lists, counts, block_size)
    tile, padded = sparse_tile(block_size), _padded_rows(shape, tokens)
    launch(
        _window_decode_kernel,
        (partials.splits, cache.batch * shape.kv_heads),
        **list_arguments(cache, lists, counts, partials, block_size, scale),
        q=q,
        cached_q=q if ring.query is None else ring.query,
        starts=first,
        loaded=ring.loaded,
        clock=ring.clock,
        kv_heads=shape.kv_heads,
        blocks=blocks,
        q_batch_stride=q.stride(0),
        q_token_stride=q.stride(1),
        q_head_stride=q.stride(2),
        G=shape.group,
        TOKENS=tokens,
        SLOTS=ring.slots,
        ROWS=padded,
        TILE=tile,
        CACHED_QUERY=ring.query is not None,
        num_warps=4 if tile * cache.head_dim <= 16384 and padded * cache.head_dim <= 8192 else 8,
    )


def window_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: int,
    new: Tensor,
    *,
    block_size: int,
    scale: float | None = None,
    had: tuple[Tensor, Tensor] | None = None,
) -> Exact:
    """One token's row in fp64: attention over blocks, merged with the result it had over others.

    With every block that any step since the token's own has loaded, and no earlier result, this is what a repaired
    output is to equal.

    Args:
        q: `[Hq, D]`; k, v: `[Hkv, S, D]`.
        position: of the token, which sees none after it.
        new: bool `[Hkv, M]`, blocks to attend to.
        had: an output `[Hq, D]` and its base-2 log-sum-exp `[Hq]`.

    Returns:
        rows `[Hq, D]`; zeros where nothing is seen.
    """
    q_heads, dim = q.shape
    group, factor = q_heads // k.shape[0], dim**-0.5 if scale is None else scale
    exact = empty_rows(q_heads, dim, device=q.device)
    lse = torch.full((q_heads, 1), float("-inf"), dtype=torch.float64, device=q.device)
    for head in range(k.shape[0]):
        tokens = new[head].repeat_interleave(block_size)[: position + 1].nonzero()[:, 0]
        if len(tokens):
            heads = slice(head * group, (head + 1) * group)
            keys = k[head, tokens]
            exact = assign(exact, heads, exact_attention(q[heads], keys, v[head, tokens], factor))
            logits = q[heads].double() @ keys.double().T * factor
            lse[heads, 0] = logits.logsumexp(-1) * math.log2(math.e)
    if had is None:
        return exact
    old, old_lse = had[0].double(), had[1].double()[:, None]
    both = torch.logaddexp2(lse, old_lse)
    share, rest = ((x - both).exp2().nan_to_num(0.0) for x in (lse, old_lse))
    return exact._replace(
        out=share * exact.out + rest * old, size=share * exact.size + rest * old.abs(), spread=share * exact.spread
    )
