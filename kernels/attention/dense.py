"""Dense attention of the last T tokens over the whole cache, causal among themselves, split over the keys.

T = 1 is a dense decode step; T = f is rectification's chunk. Rows are (token, query head of the group), so a KV head's
keys and values are read once for all f * G rows of a tile.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_stored, check_tensor
from ..config import AttentionShape, ceil_div
from ..exact import Exact, assign, empty_rows, exact_attention
from ..launch import INTERPRET, await_previous, launch, plan_splits, shared_memory
from .addressing import checked_scale, held_tokens, locate, strided, tile_range
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


@triton.jit
def _attend_tiles(
    query, k_cache, v_cache, table, batch, head_offset, position, start, end, length, scale_log2, m, total, acc,
    cache_outer_stride, cache_token_stride, table_stride, pages,
    D: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr, PAGED: tl.constexpr, MASKED: tl.constexpr,
    PARTS: tl.constexpr, CAST_FP32: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, TILE)
    dims = tl.arange(0, D)
    sequence_offset = strided(batch, cache_outer_stride) + head_offset
    tile_stride = strided(TILE, cache_token_stride)
    for tile in tl.range(start, end, num_stages=STAGES):
        token = tile * TILE + lane
        valid = token < length
        if PAGED:
            page, inside, _ = locate(batch, token, valid, table, table_stride, pages, PAGE, PAGED)
            base = head_offset
            offsets = (page * cache_outer_stride + strided(inside, cache_token_stride))[:, None] + dims[None, :]
        else:  # one address a tile; the offsets inside it stay the same
            base = sequence_offset + tile * tile_stride
            offsets = strided(lane, cache_token_stride)[:, None] + dims[None, :]
        if MASKED:
            k = tl.load(k_cache + base + offsets, mask=valid[:, None], other=0.0)
            v = tl.load(v_cache + base + offsets, mask=valid[:, None], other=0.0)
        else:
            k = tl.load(k_cache + base + offsets)
            v = tl.load(v_cache + base + offsets)
        if PARTS:
            visible = valid[:, None] & (token[:, None] <= position[None, :])
            m, total, acc = attend_columns(query, k, v, visible, scale_log2, m, total, acc, PARTS, MASKED, CAST_FP32)
        else:
            visible = valid[None, :] & (token[None, :] <= position[:, None])
            m, total, acc = attend_tile(query, k, v, visible, scale_log2, m, total, acc, MASKED, CAST_FP32)
    return m, total, acc


@triton.jit(do_not_specialize=["token_capacity", "pages", "kv_heads", "splits"])
def _dense_kernel(
    q,  # [B, T, Hq, D]
    k_cache,  # [B or P, Hkv, S or page, D]
    v_cache,  # the same strides
    scales,  # float32 [Hkv, 2], of keys and values in e4m3 alone
    partial,  # float32 [B * T * Hq, splits, D]
    partial_lse,  # float32 [B * T * Hq, splits]
    lengths,  # int32 [B]
    table,  # int32 [B, pages]
    token_capacity,  # of a sequence
    pages,  # P
    kv_heads,
    q_tokens,  # T
    splits,
    scale_log2,
    q_batch_stride,
    q_token_stride,
    q_head_stride,
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    table_stride,
    D: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,  # rows a program takes, of T * G
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    PAGED: tl.constexpr,
    PARTS: tl.constexpr,  # of a query as the right operand beside keys in e4m3; 0: it is the left one
    CAST_FP32: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    split = tl.program_id(0)
    batch = tl.program_id(2) // kv_heads
    kv_head = tl.program_id(2) % kv_heads
    length = tl.load(lengths + batch)

    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    row_valid = row < q_tokens * G
    q_token = row // G
    head = kv_head * G + row % G
    position = length - q_tokens + q_token  # negative for rows before the start: they see nothing
    q_rows = strided(batch, q_batch_stride) + strided(q_token, q_token_stride) + strided(head, q_head_stride)
    if PARTS:
        query, factor = query_columns(q, q_rows, row_valid, PARTS, ROWS, D, CAST_FP32)
    else:
        query = tl.load(q + q_rows[:, None] + dims[None, :], mask=row_valid[:, None], other=0.0)
        query = multipliable(query, k_cache.dtype.element_ty == tl.float8e4nv, CAST_FP32)
    held = held_tokens(length, token_capacity)
    scale_log2 = checked_scale(scale_log2, length, token_capacity)

    if k_cache.dtype.element_ty == tl.float8e4nv:
        scale_log2 *= tl.load(scales + 2 * kv_head)
    if PARTS:
        scale_log2 *= factor

    first_token = tl.program_id(1) * ROWS // G
    last_token = tl.minimum((tl.program_id(1) * ROWS + ROWS - 1) // G, q_tokens - 1)
    keys = tl.minimum(tl.maximum(length - q_tokens + last_token + 1, 0), held)  # that the tile's last row sees
    keys_of_all = tl.minimum(tl.maximum(length - q_tokens + first_token + 1, 0), held)  # that its every row sees
    start, end = tile_range(tl.cdiv(keys, TILE), split, splits)
    whole = tl.minimum(tl.maximum(keys_of_all // TILE, start), end)

    m = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE, ROWS] if PARTS else [ROWS], dtype=tl.float32)
    acc = tl.zeros([D, ROWS] if PARTS else [ROWS, D], dtype=tl.float32)
    head_offset = strided(kv_head, cache_head_stride)
    m, total, acc = _attend_tiles(
        query, k_cache, v_cache, table, batch, head_offset, position, start, whole, held, scale_log2, m, total, acc,
        cache_outer_stride, cache_token_stride, table_stride, pages,
        D, TILE, PAGE, PAGED, False, PARTS, CAST_FP32, STAGES,
    )  # fmt: skip
    m, total, acc = _attend_tiles(
        query, k_cache, v_cache, table, batch, head_offset, position, whole, end, held, scale_log2, m, total, acc,
        cache_outer_stride, cache_token_stride, table_stride, pages,
        D, TILE, PAGE, PAGED, True, PARTS, CAST_FP32, 1,
    )  # fmt: skip
    if PARTS:
        total, acc = tl.sum(total, axis=0), tl.trans(acc)

    if k_cache.dtype.element_ty == tl.float8e4nv:
        m, acc = m - LIFT, acc * tl.load(scales + 2 * kv_head + 1)
    first_row = (strided(batch, q_tokens) * kv_heads + kv_head) * G  # of 64 bits, one for all rows: no spill
    out_row = first_row + strided(q_token, kv_heads * G) + row % G
    store_partial(partial, partial_lse, out_row, row_valid, split, splits, m, total, acc, D)


def _tiles(rows: int, head_dim: int, in_fp8: bool = False) -> tuple[int, int, int, int, int]:
    """Rows and tokens of a tile, warps, pipeline stages, programs per multiprocessor for `rows` = T * G rows."""
    if INTERPRET:
        return 8 if rows <= 8 and as_columns(rows, head_dim, in_fp8) else 16, 32, 4, 1, 1
    wide = head_dim > 128
    if as_columns(rows, head_dim, in_fp8):
        return 8 if rows <= 8 else 16, 64, 4, 2 if wide else 3, 2 if wide else 3
    if rows <= 16:
        return 16, 64, 4, 2 if wide else 3, 2
    if rows <= 64:
        return 64, 64, 8 if wide else 4, 2 if wide else 3, 1
    if wide:
        return 128, 32, 8, 2, 1
    # A third stage takes 224 KiB at D = 128 and is worth a quarter of the time.
    return 128, 128, 8, 3 if shared_memory() >= 224 * 1024 else 2, 1


def dense_splits(
    shape: AttentionShape, q_tokens: int, capacity: int, device: torch.device, in_fp8: bool = False
) -> int:
    """Splits for T query tokens against up to `capacity` keys, in e4m3 or not, on this chip."""
    count = q_tokens * shape.group
    rows, tile, _, _, per_sm = _tiles(count, shape.head_dim, in_fp8)
    programs = shape.batch * shape.kv_heads * ceil_div(count, rows)
    return plan_splits(programs, ceil_div(capacity, tile), device, per_sm)


def dense_attention(
    q: Tensor, cache: KVCache, partials: Partials, *, scale: float | None = None, check_values: bool = False
) -> None:
    """Attend densely with the last T tokens of each sequence; leaves split results for `merge_partials`.

    Row t of a sequence stands at position lengths - T + t and sees every position up to its own, so its K/V must be in
    the cache already. Rows before position 0 see nothing and merge to zeros.

    Args:
        q: `[B, T, Hq, D]` (or `[B, Hq, D]` for one token) of the cache's dtype.
        partials: room for `B * T * Hq` rows and any number of splits (`dense_splits` gives a good one).
        scale: of the logits, positive; 1 / sqrt(D) by default.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride; a scale that is not positive.
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: got {scale}, must be positive")
    if isinstance(q, Tensor) and q.dim() == 3:
        q = q.unsqueeze(1)
    check_tensor("q", q, (cache.batch, None, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    check_stored(cache)
    check_device("q", q)
    _, tokens, heads, dim = q.shape
    shape = AttentionShape(cache.batch, heads, cache.kv_heads, dim)
    partials.check(cache.batch * tokens * heads, dim, cache.device)
    if check_values:
        cache.check_values()
    count = tokens * shape.group
    rows, tile, warps, stages, _ = _tiles(count, dim, cache.in_fp8)
    columns = as_columns(count, dim, cache.in_fp8)
    table = cache.block_table if cache.block_table is not None else cache.lengths
    launch(
        _dense_kernel,
        (partials.splits, ceil_div(tokens * shape.group, rows), cache.batch * cache.kv_heads),
        q=q,
        k_cache=cache.k,
        v_cache=cache.v,
        scales=cache.scales_or_any,
        partial=partials.out,
        partial_lse=partials.lse,
        lengths=cache.lengths,
        table=table,
        kv_heads=cache.kv_heads,
        q_tokens=tokens,
        splits=partials.splits,
        scale_log2=(dim**-0.5 if scale is None else scale) * math.log2(math.e),
        q_batch_stride=q.stride(0),
        q_token_stride=q.stride(1),
        q_head_stride=q.stride(2),
        cache_outer_stride=cache.k.stride(0),
        cache_head_stride=cache.k.stride(1),
        cache_token_stride=cache.k.stride(2),
        table_stride=table.stride(0),
        token_capacity=cache.capacity,
        pages=cache.k.shape[0],
        D=dim,
        G=shape.group,
        ROWS=rows,
        TILE=tile,
        PAGE=cache.page_size if cache.paged else tile,
        PAGED=cache.paged,
        PARTS=query_parts(cache.dtype) if columns else 0,
        CAST_FP32=INTERPRET,
        STAGES=stages,
        num_warps=warps,
    )


def dense_reference(q: Tensor, k: Tensor, v: Tensor, length: int, *, scale: float | None = None) -> Exact:
    """Dense attention of one sequence's last T tokens, in fp64.

    Args:
        q: `[T, Hq, D]`; k, v: `[Hkv, S, D]`.

    Returns:
        rows `[T, Hq, D]`; tokens before position 0 get zeros.
    """
    tokens, q_heads, dim = q.shape
    group = q_heads // k.shape[0]
    exact = empty_rows(tokens, q_heads, dim, device=q.device)
    for t in range(tokens):
        keys = length - tokens + t + 1
        for kv in range(k.shape[0] if keys > 0 else 0):
            heads = slice(kv * group, (kv + 1) * group)
            part = exact_attention(q[t, heads], k[kv, :keys], v[kv, :keys], dim**-0.5 if scale is None else scale)
            exact = assign(exact, (t, heads), part)
    return exact
