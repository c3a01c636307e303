"""Block-sparse decode attention: one query token against the blocks on its list, split over the list (flash decoding).

With one list per KV head (or one in all) a program attends for the whole GQA group, so that each block is read once;
with a list per query head (Quest) it attends for that head alone. The kernel shares the valid entries evenly among the
splits. How many there are it reads, or finds itself from the length and the settings of the selection: then it is ready
for its list, its query loaded, by the time the selection ends (docs/notes/speed.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_stored, check_tensor
from ..config import MAX_BLOCKS, AttentionShape, SparseConfig, ceil_div
from ..exact import Exact, assign, empty_rows, exact_attention
from ..launch import MAX_SPLITS, await_previous, launch, plan_splits, release_next
from .addressing import checked_scale, held_tokens, locate, selected_blocks, strided, tile_range
from .lists import check_blocks, check_counts, check_entries, list_arguments
from .merge import Partials
from .softmax import (
    LIFT,
    as_columns,
    attend_columns,
    attend_tile,
    multipliable,
    query_columns,
    query_parts,
    store_partial,
)
from .summaries import check_new


@triton.jit(
    do_not_specialize=[
        "token_capacity", "pages", "list_capacity", "programs", "splits", "ratio_numerator", "ratio_denominator",
        "floor_blocks",
    ]
)  # fmt: skip
def _sparse_decode_kernel(
    q,  # [B, Hq, D]
    k_cache,  # [B or P, Hkv, S or page, D]
    v_cache,  # the same strides
    scales,  # float32 [Hkv, 2], of keys and values in e4m3 alone
    partial,  # float32 [B * Hq, splits, D]
    partial_lse,  # float32 [B * Hq, splits]
    lists,  # int32 [B, R, N]
    counts,  # int32 [B, R]; with COUNTED alone, else the next three
    ratio_numerator,
    ratio_denominator,
    floor_blocks,
    lengths,  # int32 [B]
    table,  # int32 [B, pages]
    k_new,  # [B, Hkv, D], read with APPEND alone
    v_new,  # the same strides
    token_capacity,  # of a sequence
    pages,  # P
    list_capacity,  # N
    programs,  # programs a sequence: Hkv, or Hq with a list per query head
    splits,
    scale_log2,
    q_batch_stride,
    q_head_stride,
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    list_batch_stride,
    list_row_stride,  # 0 when one list serves all heads
    count_batch_stride,
    count_row_stride,
    table_stride,
    new_batch_stride,
    new_head_stride,
    D: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,  # query heads a program serves
    ROWS: tl.constexpr,  # HEADS padded for the matrix unit
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,  # tokens a step, a multiple of BLOCK
    PAGE: tl.constexpr,
    PAGED: tl.constexpr,
    PARTS: tl.constexpr,  # of a query as the right operand beside keys in e4m3; 0: it is the left one
    CAST_FP32: tl.constexpr,
    STAGES: tl.constexpr,
    COUNTED: tl.constexpr,  # read the counts, rather than find them from the length
    APPEND: tl.constexpr,  # write the newest token, in the programs that read its block: the last of their list
    PDL: tl.constexpr,
):
    release_next(PDL)
    if COUNTED:
        await_previous(PDL)
    split = tl.program_id(0)
    batch = tl.program_id(1) // programs
    program = tl.program_id(1) % programs
    first_head = program * HEADS
    kv_head = first_head // G
    given = tl.load(lengths + batch)
    row = tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    row_valid = row < HEADS
    q_rows = strided(batch, q_batch_stride) + strided(first_head + row, q_head_stride)
    if PARTS:
        query, factor = query_columns(q, q_rows, row_valid, PARTS, ROWS, D, CAST_FP32)
    else:
        query = tl.load(q + q_rows[:, None] + dims[None, :], mask=row_valid[:, None], other=0.0)
        query = multipliable(query, k_cache.dtype.element_ty == tl.float8e4nv, CAST_FP32)
    if COUNTED:
        counted = tl.load(counts + strided(batch, count_batch_stride) + strided(program, count_row_stride))
    if k_cache.dtype.element_ty == tl.float8e4nv:
        k_scale, v_scale = tl.load(scales + 2 * kv_head), tl.load(scales + 2 * kv_head + 1)
    if APPEND:
        new = strided(batch, new_batch_stride) + strided(kv_head, new_head_stride) + dims
        newest_k, newest_v = tl.load(k_new + new), tl.load(v_new + new)
    # What is made of loaded numbers waits for them: after the loads, which are all under way by then.
    length = held_tokens(given, token_capacity)
    scale_log2 = checked_scale(scale_log2, given, token_capacity)
    if k_cache.dtype.element_ty == tl.float8e4nv:
        scale_log2 *= k_scale
    if PARTS:
        scale_log2 *= factor
    if COUNTED:
        count = tl.minimum(counted, list_capacity)
    else:
        count = selected_blocks(tl.cdiv(length, BLOCK), ratio_numerator, ratio_denominator, floor_blocks)
        await_previous(PDL)

    BLOCKS: tl.constexpr = TILE // BLOCK
    start, end = tile_range(count, split, splits)
    lane = tl.arange(0, TILE)
    m = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE, ROWS] if PARTS else [ROWS], dtype=tl.float32)
    acc = tl.zeros([D, ROWS] if PARTS else [ROWS, D], dtype=tl.float32)

    if APPEND:
        # Programs of one KV head that each have a list write the same. No other program reads this token.
        if (start < end) & (end == count) & (given <= token_capacity):  # else there is no room for it
            newest = tl.full([1], length - 1, tl.int32)
            outer, inside, there = locate(batch, newest, newest >= 0, table, table_stride, pages, PAGE, PAGED)
            row_of_token = outer * cache_outer_stride + strided(kv_head, cache_head_stride)
            place = (row_of_token + strided(inside, cache_token_stride))[:, None] + dims[None, :]
            tl.store(k_cache + place, newest_k[None, :], mask=there[:, None])
            tl.store(v_cache + place, newest_v[None, :], mask=there[:, None])
        tl.debug_barrier()  # other threads read it below

    if start < end:
        entries = lists + strided(batch, list_batch_stride) + strided(program, list_row_stride)
        head_offset = strided(kv_head, cache_head_stride)
        entry = start + lane // BLOCK
        block = tl.load(entries + entry, mask=entry < end, other=-1)
        for first in tl.range(start, end, BLOCKS, num_stages=STAGES):
            token = block * BLOCK + lane % BLOCK
            valid = (block >= 0) & (token < length)
            outer, inside, _ = locate(batch, token, valid, table, table_stride, pages, PAGE, PAGED)
            base = outer * cache_outer_stride + head_offset + strided(inside, cache_token_stride)
            offsets = base[:, None] + dims[None, :]
            k = tl.load(k_cache + offsets, mask=valid[:, None], other=0.0)
            v = tl.load(v_cache + offsets, mask=valid[:, None], other=0.0)
            # The next tile's entries, a step ahead: read in its own step they would hold up its keys and values.
            entry = first + BLOCKS + lane // BLOCK
            block = tl.load(entries + entry, mask=entry < end, other=-1)
            if PARTS:
                m, total, acc = attend_columns(
                    query, k, v, valid[:, None], scale_log2, m, total, acc, PARTS, True, CAST_FP32
                )  # fmt: skip
            else:
                m, total, acc = attend_tile(query, k, v, valid[None, :], scale_log2, m, total, acc, True, CAST_FP32)

    if k_cache.dtype.element_ty == tl.float8e4nv:
        m, acc = m - LIFT, acc * v_scale
    if PARTS:
        total, acc = tl.sum(total, axis=0), tl.trans(acc)
    rows = strided(batch, programs * HEADS) + first_head + row
    store_partial(partial, partial_lse, rows, row_valid, split, splits, m, total, acc, D)


def sparse_tile(block_size: int) -> int:
    """Tokens a step of the kernel."""
    return max(64, block_size)


def sparse_splits(shape: AttentionShape, rows: int, list_capacity: int, block_size: int, device: torch.device) -> int:
    """Splits for lists of up to `list_capacity` blocks, `rows` lists a sequence, on this chip."""
    programs = shape.batch * (shape.q_heads if rows == shape.q_heads else shape.kv_heads)
    tile = sparse_tile(block_size)
    per_sm, tiles = 3 if tile * shape.head_dim <= 8192 else 2, ceil_div(list_capacity * block_size, tile)
    splits = plan_splits(programs, tiles, device, per_sm)
    if tile == block_size or tiles <= splits:
        return splits
    # A few shares more, if none is then a little over a whole number of tiles (docs/notes/speed.md).
    even = ceil_div(tiles, tiles // splits)
    return even if even <= min(splits + splits // 16, MAX_SPLITS) else splits


def sparse_decode(
    q: Tensor,
    cache: KVCache,
    lists: Tensor,
    counts: Tensor | SparseConfig,
    partials: Partials,
    *,
    block_size: int,
    scale: float | None = None,
    append: tuple[Tensor, Tensor] | None = None,
    check_values: bool = False,
) -> None:
    """Attend over exactly the tokens of the listed blocks; leaves split results for `merge_partials`.

    Args:
        q: `[B, Hq, D]` of the cache's dtype.
        lists: int32 `[B, R, N]` block indices; R is Hkv, Hq (each query head its own) or 1 (shared by all). -1 entries
            are skipped.
        counts: int32 `[B, R]`, entries of each list that count; or the settings by which they were selected, where
            lists hold `config.selected(length)` blocks. Then the kernel before must have waited for those before it
            (`launch.await_previous`).
        partials: room for `B * Hq` rows and any number of splits (`sparse_splits` gives a good one).
        scale: of the logits, positive; 1 / sqrt(D) by default.
        append: K and V of each sequence's newest token, `[B, Hkv, D]`, written first, in the same kernel. The last
            entry that counts of every list must be the newest block, and `counts` a tensor.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride; a scale that is not positive;
            tokens to append and settings in place of counts; with `check_values`, entries outside -1 .. M-1 or counts
            over N.
    """
    check_stored(cache)
    check_blocks(cache, block_size, scale)
    check_tensor("q", q, (cache.batch, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    check_device("q", q)
    shape = AttentionShape(cache.batch, q.shape[1], cache.kv_heads, cache.head_dim)
    check_tensor("lists", lists, (cache.batch, None, None), dtypes=(torch.int32,), device=cache.device)
    rows = lists.shape[1]
    if rows not in (1, shape.kv_heads, shape.q_heads):
        raise ValueError(f"lists: {rows} rows, allowed 1, Hkv = {shape.kv_heads} or Hq = {shape.q_heads}")
    counted = not isinstance(counts, SparseConfig)
    k_new, v_new = append if append is not None else (q, q)
    if append is not None:
        check_new(cache, k_new, v_new, (cache.batch, cache.kv_heads, cache.head_dim))
        if not counted:  # the kernel before may not have written k_new and v_new yet
            raise ValueError("counts: got settings, expected a tensor where a token is appended")
        if cache.in_fp8:
            raise ValueError("append: is not done here to a cache in fp8; write_tokens does it")
    if isinstance(counts, SparseConfig):
        config, counts = counts, cache.lengths[:, None]  # which is not read
        if config.block_size != block_size:
            raise ValueError(f"block_size: got {block_size}, the lists were selected by blocks of {config.block_size}")
        full = config.selected(cache.capacity)
        if lists.shape[2] < full:
            raise ValueError(f"lists: {lists.shape[2]} entries a row, a full cache selects {full} blocks")
        blocks = config.blocks(cache.capacity)
        if blocks > MAX_BLOCKS:
            raise ValueError(f"cache: {blocks} blocks a sequence, at most {MAX_BLOCKS}; take a larger block_size")
    else:
        config = SparseConfig(block_size)
        check_counts(counts, lists)
    partials.check(cache.batch * shape.q_heads, cache.head_dim, cache.device)
    if check_values:
        check_entries(cache, lists, counts if counted else None, block_size)
    per_head = rows == shape.q_heads and shape.group > 1
    programs = shape.q_heads if per_head else shape.kv_heads
    heads, tile = 1 if per_head else shape.group, sparse_tile(block_size)
    columns = as_columns(heads, cache.head_dim, cache.in_fp8)
    launch(
        _sparse_decode_kernel,
        (partials.splits, cache.batch * programs),
        **list_arguments(cache, lists, counts, partials, block_size, scale),
        q=q,
        scales=cache.scales_or_any,
        k_new=k_new,
        v_new=v_new,
        ratio_numerator=config.ratio.numerator,
        ratio_denominator=config.ratio.denominator,
        floor_blocks=config.floor_blocks,
        programs=programs,
        q_batch_stride=q.stride(0),
        q_head_stride=q.stride(1),
        new_batch_stride=k_new.stride(0),
        new_head_stride=k_new.stride(1),
        G=shape.group,
        HEADS=heads,
        ROWS=max(8 if columns else 16, triton.next_power_of_2(heads)),
        PARTS=query_parts(cache.dtype) if columns else 0,
        TILE=tile,
        COUNTED=counted,
        APPEND=append is not None,
        num_warps=4 if tile * cache.head_dim <= 16384 else 8,
    )


def sparse_reference(
    q: Tensor, k: Tensor, v: Tensor, length: int, lists: Tensor, *, block_size: int, scale: float | None = None
) -> Exact:
    """Attention of one sequence over its listed blocks, in fp64.

    Args:
        q: `[Hq, D]`; k, v: `[Hkv, S, D]`; lists: `[R, N]` block indices, -1 ignored.

    Returns:
        rows `[Hq, D]`; a head whose list is empty gets zeros.
    """
    q_heads, dim = q.shape
    group, per_list = q_heads // k.shape[0], q_heads // lists.shape[0]
    shared = min(group, per_list)  # heads with the same keys
    exact = empty_rows(q_heads, dim, device=q.device)
    for head in range(0, q_heads, shared):
        row = lists[head // per_list].long()
        tokens = (row[row >= 0, None] * block_size + torch.arange(block_size, device=q.device)).flatten()
        tokens = tokens[tokens < length]
        if len(tokens):
            heads, kv = slice(head, head + shared), head // group
            part = exact_attention(q[heads], k[kv, tokens], v[kv, tokens], dim**-0.5 if scale is None else scale)
            exact = assign(exact, heads, part)
    return exact
