"""Pairs of keys in 4 bits on the kernels: kept beside the cache, scored per head, pooled over a group's heads.

Three kernels. Packing makes the codes of whole blocks from their keys, so that writing a token again changes nothing.
Scoring multiplies codes with the queries of a KV head's group on the matrix unit: q . (low + step code) is a constant
of the head and (q step) . code. The queries go in as two halves of 16 bits, so that products err as fp32 sums do; codes
are exact. It leaves logits of blocks by head, and of each tile the log-sum-exp. Pooling turns them into shares and adds
these over the group (selectors/pooled.py says why). Contiguous caches.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_tensor, kernel_dtypes
from ..config import AttentionShape, SparseConfig, ceil_div
from ..launch import INTERPRET, await_previous, launch
from .addressing import held_tokens, strided

PAIR = 2  # tokens of a mean
STEPS = 15  # between the ends of a range: 4 bits
TILE_TOKENS = 256  # scored together
SPAN = 256  # blocks pooled together
LOG2E = math.log2(math.e)


def padded_heads(group: int) -> int:
    """Columns of a group's scores: a power of two, at least 8, so that both halves of its queries fill 16."""
    return max(int(triton.next_power_of_2(group)), 8)


def tile_blocks(block_size: int) -> int:
    """Blocks of a tile, 128 pairs whatever their size."""
    return TILE_TOKENS // block_size


def allocate_pairs(cache: KVCache, block_size: int) -> Tensor:
    """Room for every block's codes, uint8 `[B, Hkv, M, b / 2, D / 2]`: channel d in the low bits, d + D / 2 above."""
    shape = cache.batch, cache.kv_heads, ceil_div(cache.capacity, block_size), block_size // PAIR, cache.head_dim // 2
    return torch.zeros(shape, dtype=torch.uint8, device=cache.device)


@triton.jit
def _log2(x):
    """The logarithm, -inf of 0."""
    return tl.where(x > 0, tl.log2(tl.maximum(x, 1e-37)), float("-inf"))


@triton.jit
def _codes(keys, low, step, even, odd, dims, length):
    """4-bit codes `[pairs, D / 2]` of the means of two tokens each, rounded to nearest even."""
    a = tl.load(keys + even[:, None] + dims[None, :], mask=(length > 0)[:, None], other=0.0).to(tl.float32)
    b = tl.load(keys + odd[:, None] + dims[None, :], mask=(length > 1)[:, None], other=0.0).to(tl.float32)
    place = ((a + b) * 0.5 - low[None, :]) / step[None, :]
    place = tl.minimum(tl.maximum(place, 0.0), 15.0)
    return ((place + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 x 2^23: floats there are whole numbers


@triton.jit(do_not_specialize=["token_capacity", "new_tokens", "kv_heads", "blocks"])
def _pack_pairs_kernel(
    k_cache,  # [B, Hkv, S, D]
    packed,  # uint8 [B, Hkv, M, P, D / 2]
    known,  # float32 [B, Hkv, 2, D]: least value and step of each channel
    lengths,  # int32 [B]
    token_capacity,
    new_tokens,  # blocks of the last so many tokens are packed
    kv_heads,
    blocks,  # M
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ALL_BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(1)
    batch = row // kv_heads
    given = tl.load(lengths + batch)
    length = held_tokens(given, token_capacity)
    block = tl.program_id(0)
    if not ALL_BLOCKS:
        block += tl.maximum(given - new_tokens, 0) // BLOCK
    if block >= tl.cdiv(length, BLOCK):
        return
    PAIRS: tl.constexpr = BLOCK // 2
    HALF: tl.constexpr = D // 2
    dims = tl.arange(0, HALF)
    pair = tl.arange(0, PAIRS)
    token = block * BLOCK + 2 * pair
    keys = k_cache + strided(batch, cache_outer_stride) + strided(row % kv_heads, cache_head_stride)
    even, odd = strided(token, cache_token_stride), strided(token + 1, cache_token_stride)
    ranges = known + strided(row, 2 * D)
    left = length - token
    low = _codes(keys, tl.load(ranges + dims), tl.load(ranges + D + dims), even, odd, dims, left)
    upper = dims + HALF
    high = _codes(keys, tl.load(ranges + upper), tl.load(ranges + D + upper), even, odd, upper, left)
    place = (strided(row, blocks) + block) * (PAIRS * HALF)
    tl.store(packed + place + pair[:, None] * HALF + dims[None, :], (low | (high << 4)).to(tl.uint8))


@triton.jit
def _query_parts(queries, step, dims, column, head, valid, D: tl.constexpr, GP: tl.constexpr):
    """Queries times steps in 16 bits, `[D / 2, 2 GP]`: of every head the rounded value, then what that leaves out."""
    q = tl.load(queries + head[None, :] * D + dims[:, None], mask=valid[None, :], other=0.0).to(tl.float32)
    x = q * step[:, None]
    rounded = x.to(tl.bfloat16).to(tl.float32)
    return tl.where((column < GP)[None, :], rounded, x - rounded).to(tl.bfloat16)


@triton.jit(do_not_specialize=["token_capacity", "kv_heads", "blocks", "tiles", "local_blocks"])
def _score_pairs_kernel(
    q,  # [B, Hq, D], contiguous
    packed,  # uint8 [B, Hkv, M, P, D / 2]
    known,  # float32 [B, Hkv, 2, D]
    logits,  # float32 [B, Hkv, M, GP] out, base 2
    partial,  # float32 [B, Hkv, tiles, GP] out: log-sum-exp of each tile, base 2
    lengths,  # int32 [B]
    token_capacity,
    kv_heads,
    blocks,  # M
    tiles,
    local_blocks,
    scale_log2,
    D: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    CAST_FP32: tl.constexpr,
    PDL: tl.constexpr,
):
    await_previous(PDL)
    tile = tl.program_id(0)
    row = tl.program_id(1)
    length = held_tokens(tl.load(lengths + row // kv_heads), token_capacity)
    held = tl.cdiv(length, BLOCK)
    columns = tl.arange(0, GP)
    tile_out = partial + (strided(row, tiles) + tile) * GP + columns
    if tile * TILE >= held:
        tl.store(tile_out, tl.full([GP], float("-inf"), tl.float32))
        return
    PAIRS: tl.constexpr = BLOCK // 2
    HALF: tl.constexpr = D // 2
    dims = tl.arange(0, HALF)
    column = tl.arange(0, 2 * GP)
    head = column % GP
    valid = head < G
    queries = q + strided(row, G * D)
    ranges = known + strided(row, 2 * D)
    low = _query_parts(queries, tl.load(ranges + D + dims), dims, column, head, valid, D, GP)
    high = _query_parts(queries, tl.load(ranges + D + HALF + dims), dims + HALF, column, head, valid, D, GP)
    every = tl.arange(0, D)
    rows = tl.load(queries + columns[:, None] * D + every[None, :], mask=(columns < G)[:, None], other=0.0)
    constant = tl.sum(rows.to(tl.float32) * tl.load(ranges + every)[None, :], axis=1)  # [GP]

    pair = tl.arange(0, TILE * PAIRS)
    inside = tile * (TILE * PAIRS) + pair < held * PAIRS
    start = packed + strided(row, blocks) * (PAIRS * HALF) + strided(tile, TILE * PAIRS * HALF)
    codes = tl.load(start + pair[:, None] * HALF + dims[None, :], mask=inside[:, None], other=0).to(tl.int32)
    lower, higher = (codes & 15).to(tl.float32).to(tl.bfloat16), (codes >> 4).to(tl.float32).to(tl.bfloat16)
    if CAST_FP32:  # the interpreter multiplies no 16-bit floats
        lower, higher, low, high = lower.to(tl.float32), higher.to(tl.float32), low.to(tl.float32), high.to(tl.float32)
    both = tl.dot(lower, low)
    both = tl.dot(higher, high, both)  # [TILE PAIRS, 2 GP]
    each = tl.sum(tl.reshape(both, (TILE * PAIRS, 2, GP)), axis=1) + constant[None, :]
    each = tl.reshape(each * scale_log2, (TILE, PAIRS, GP))
    top = tl.max(each, axis=1)
    block = top + tl.log2(tl.sum(tl.exp2(each - top[:, None, :]), axis=1))  # [TILE, GP]

    index = tile * TILE + tl.arange(0, TILE)
    block = tl.where((index < held - local_blocks)[:, None], block, float("-inf"))
    out = logits + (strided(row, blocks) + index)[:, None] * GP + columns[None, :]
    tl.store(out, block, mask=(index < held)[:, None])
    most = tl.max(block, axis=0)
    most = tl.where(most == float("-inf"), 0.0, most)
    tl.store(tile_out, most + _log2(tl.sum(tl.exp2(block - most[None, :]), axis=0)))


@triton.jit(do_not_specialize=["token_capacity", "kv_heads", "blocks", "tiles", "local_blocks", "first_blocks"])
def _pool_kernel(
    logits,  # float32 [B, Hkv, M, GP], base 2
    partial,  # float32 [B, Hkv, tiles, GP], base 2
    scores,  # float32 [B, Hkv, M] out: natural logarithm of the shares' sum; +inf at blocks read in any case
    lengths,  # int32 [B]
    token_capacity,
    kv_heads,
    blocks,  # M
    tiles,
    local_blocks,
    first_blocks,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    TILES: tl.constexpr,  # rounded up to a power of two
    PDL: tl.constexpr,
):
    await_previous(PDL)
    row = tl.program_id(1)
    held = tl.cdiv(held_tokens(tl.load(lengths + row // kv_heads), token_capacity), BLOCK)
    index = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    if tl.program_id(0) * SPAN >= held:
        return
    columns = tl.arange(0, GP)
    tile = tl.arange(0, TILES)
    parts = partial + (strided(row, tiles) + tile)[:, None] * GP + columns[None, :]
    sums = tl.load(parts, mask=(tile < tiles)[:, None], other=float("-inf"))
    most = tl.max(sums, axis=0)
    most = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(tl.exp2(sums - most[None, :]), axis=0)
    total = tl.where(total > 0, most + _log2(total), 0.0)
    inside = index < held
    cells = logits + (strided(row, blocks) + index)[:, None] * GP + columns[None, :]
    share = tl.load(cells, mask=inside[:, None], other=float("-inf")) - total[None, :]
    share = tl.where((columns < G)[None, :], share, float("-inf"))
    top = tl.max(share, axis=1)
    top = tl.where(top == float("-inf"), 0.0, top)
    pooled = (top + _log2(tl.sum(tl.exp2(share - top[:, None]), axis=1))) * 0.6931471805599453
    always = (index >= held - local_blocks) | (index < first_blocks)
    tl.store(scores + strided(row, blocks) + index, tl.where(always, float("inf"), pooled), mask=inside)


def _check(cache: KVCache, packed: Tensor, known: Tensor, block_size: int) -> None:
    if cache.paged:
        raise ValueError("cache: pairs are kept beside contiguous caches only, got a paged one")
    check_tensor("cache.k", cache.k, (None, None, None, None), dtypes=kernel_dtypes())
    check_device("cache.k", cache.k)
    rows = cache.batch, cache.kv_heads
    wanted = (*rows, ceil_div(cache.capacity, block_size), block_size // PAIR, cache.head_dim // 2)
    check_tensor("packed", packed, wanted, dtypes=(torch.uint8,), device=cache.device)
    check_tensor("known", known, (*rows, 2, cache.head_dim), dtypes=(torch.float32,), device=cache.device)
    if not (packed.is_contiguous() and known.is_contiguous()):
        raise ValueError("packed, known: must be contiguous")


def pack_pairs(cache: KVCache, packed: Tensor, known: Tensor, block_size: int, tokens: int | None = None) -> None:
    """Make the codes of the blocks of the last `tokens` tokens of each sequence from their keys; of all by default.

    Args:
        packed: of `allocate_pairs`.
        known: float32 `[B, Hkv, 2, D]`, least value and step of each channel.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device; a paged cache.
    """
    _check(cache, packed, known, block_size)
    touched = packed.shape[2] if tokens is None else 1 + ceil_div(tokens - 1, block_size)
    launch(
        _pack_pairs_kernel,
        (touched, cache.batch * cache.kv_heads),
        k_cache=cache.k,
        packed=packed,
        known=known,
        lengths=cache.lengths,
        token_capacity=cache.capacity,
        new_tokens=tokens or 0,
        kv_heads=cache.kv_heads,
        blocks=packed.shape[2],
        cache_outer_stride=cache.k.stride(0),
        cache_head_stride=cache.k.stride(1),
        cache_token_stride=cache.k.stride(2),
        D=cache.head_dim,
        BLOCK=block_size,
        ALL_BLOCKS=tokens is None,
        num_warps=1,
        num_stages=1,
    )


def score_room(shape: AttentionShape, blocks: int, block_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for logits `[B, Hkv, M, GP]` and tiles' sums `[B, Hkv, tiles, GP]`, which layers can share."""
    rows, heads = (shape.batch, shape.kv_heads), padded_heads(shape.group)
    sizes = ((*rows, blocks, heads), (*rows, ceil_div(blocks, tile_blocks(block_size)), heads))
    first, second = (torch.empty(size, dtype=torch.float32, device=device) for size in sizes)
    return first, second


def score_pairs(
    q: Tensor, cache: KVCache, packed: Tensor, known: Tensor, room: tuple[Tensor, Tensor], scores: Tensor,
    config: SparseConfig,
) -> None:  # fmt: skip
    """Rank every block of every sequence by the summed shares of a group's heads; +inf where it is read in any case.

    Args:
        q: `[B, Hq, D]` of the cache's dtype, contiguous.
        room: of `score_room`.
        scores: float32 `[B, Hkv, M]` out. Entries past a sequence's last block are not written.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device; a paged cache.
    """
    _check(cache, packed, known, config.block_size)
    check_tensor("q", q, (cache.batch, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    shape = AttentionShape(cache.batch, q.shape[1], cache.kv_heads, cache.head_dim)
    blocks, heads, rows = packed.shape[2], padded_heads(shape.group), cache.batch * cache.kv_heads
    logits, partial = room
    tiles = ceil_div(blocks, tile_blocks(config.block_size))
    check_tensor("scores", scores, (*packed.shape[:3],), dtypes=(torch.float32,), device=cache.device)
    check_tensor("logits", logits, (*packed.shape[:3], heads), dtypes=(torch.float32,), device=cache.device)
    check_tensor("partial", partial, (*packed.shape[:2], tiles, heads), dtypes=(torch.float32,), device=cache.device)
    if not all(x.is_contiguous() for x in (q, logits, partial, scores)):
        raise ValueError("q, scores, room: must be contiguous")
    common = dict(
        lengths=cache.lengths, token_capacity=cache.capacity, kv_heads=cache.kv_heads, blocks=blocks, tiles=tiles,
        local_blocks=config.local_blocks, G=shape.group, GP=heads, BLOCK=config.block_size,
    )  # fmt: skip
    launch(
        _score_pairs_kernel,
        (tiles, rows),
        q=q,
        packed=packed,
        known=known,
        logits=logits,
        partial=partial,
        scale_log2=cache.head_dim**-0.5 * LOG2E,
        D=cache.head_dim,
        TILE=tile_blocks(config.block_size),
        CAST_FP32=INTERPRET,
        num_warps=4,
        num_stages=1,
        **common,
    )
    launch(
        _pool_kernel,
        (ceil_div(blocks, SPAN), rows),
        logits=logits,
        partial=partial,
        scores=scores,
        first_blocks=config.always[1],
        SPAN=SPAN,
        TILES=triton.next_power_of_2(tiles),
        num_warps=4,
        num_stages=1,
        **common,
    )


def codes_reference(keys: Tensor, known: Tensor) -> Tensor:
    """Codes of pairs in plain torch, float32 whole numbers `[H, ..., b / 2, D]`.

    Args:
        keys: float32 `[H, ..., b, D]`. known: `[H, 2, D]`.
    """
    means = torch.unflatten(keys, -2, (-1, PAIR)).mean(-2)
    low, step = ranges(known, means.dim())
    return ((means - low) / step).round().clamp(0, STEPS)


def ranges(known: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Least value and step, broadcast to `dims` dimensions `[H, ..., D]`."""
    low, step = (x.view(len(x), *[1] * (dims - 2), -1) for x in known.unbind(1))
    return low, step
