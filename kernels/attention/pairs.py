"""Pairs of keys in 4 bits on the kernels: kept beside the cache, scored per head, pooled over a group's heads.

Three kernels. Packing makes the codes of whole blocks from their keys, so that writing a token again changes nothing.
Scoring multiplies codes with the queries of a KV head's group on the matrix unit: q . (low + step code) is a constant
of the head and (q step) . code. The queries go in as two halves of 16 bits, so that products err as fp32 sums do; codes
are exact. It leaves logits of blocks by head, and of each program the log-sum-exp; programs of its own write the step's
token. Pooling turns logits into shares and adds these over the group (selectors/pooled.py says why). Contiguous caches.
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
from ..launch import INTERPRET, await_previous, launch, programs_a_row, release_next, scores_per_sm
from .addressing import held_tokens, strided
from .summaries import check_new

PAIR = 2  # tokens of a mean
STEPS = 15  # between the ends of a range: 4 bits
TILE_TOKENS = 256  # scored together
SPAN = 256  # blocks pooled together
WARPS = 2  # of a program that scores; _row_pairs holds for two alone
PROGRAMS = 6  # that score, a multiprocessor
STAGES = 3  # tiles on their way
EARLY = 512  # scores a multiprocessor: in smaller steps the next kernel's programs take their places from the start
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
def _coded(means, low, step):
    place = tl.minimum(tl.maximum((means - low) / step, 0.0), 15.0)
    return ((place + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 x 2^23: floats there are whole numbers


@triton.jit
def _codes(keys, low, step, even, odd, dims, length):
    """4-bit codes `[pairs, D / 2]` of the means of two tokens each, rounded to nearest even."""
    a = tl.load(keys + even[:, None] + dims[None, :], mask=(length > 0)[:, None], other=0.0).to(tl.float32)
    b = tl.load(keys + odd[:, None] + dims[None, :], mask=(length > 1)[:, None], other=0.0).to(tl.float32)
    return _coded((a + b) * 0.5, low[None, :], step[None, :])


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
def _query_parts(queries, steps, dims, column, head, valid, D: tl.constexpr, GP: tl.constexpr):
    """Queries times steps in 16 bits, `[D / 4, 2 GP]`: of every head the rounded value, then what that leaves out."""
    step = tl.load(steps + dims)
    q = tl.load(queries + head[None, :] * D + dims[:, None], mask=valid[None, :], other=0.0).to(tl.float32)
    x = q * step[:, None]
    rounded = x.to(tl.bfloat16).to(tl.float32)
    return tl.where((column < GP)[None, :], rounded, x - rounded).to(tl.bfloat16)


@triton.jit
def _planes(words, INTERPRETED: tl.constexpr):
    """The four codes of each word of 16 bits, plus 128, lowest bits first.

    A multiprocessor turns 16 integers into floats a clock, too few. A code put below the exponent of 128 in bfloat16 is
    128 more than the code, exactly, for two words at once; what the 128s add to a product is known beforehand.
    """
    if INTERPRETED:  # it multiplies no 16-bit floats and knows no PTX
        a = (words & 15).to(tl.float32) + 128.0
        b = ((words >> 4) & 15).to(tl.float32) + 128.0
        c = ((words >> 8) & 15).to(tl.float32) + 128.0
        d = ((words >> 12) & 15).to(tl.float32) + 128.0
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            """{
            .reg .b32 b, c, d;
            shr.u32 b, $4, 4;
            shr.u32 c, $4, 8;
            shr.u32 d, $4, 12;
            lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $1, b, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $2, c, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $3, d, 0x000F000F, 0x43004300, 0xEA;
            }""",
            "=&r,=&r,=&r,=&r,r",
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return a, b, c, d


@triton.jit
def _exp2(x, INTERPRETED: tl.constexpr):
    """2^x in one instruction; tl.exp2 cares for results below 2^-126, which are nothing here."""
    if INTERPRETED:
        y = tl.exp2(x)
    else:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def _lg2(x, INTERPRETED: tl.constexpr):
    """The logarithm in one instruction, -inf of 0; tl.log2 takes some 13."""
    if INTERPRETED:
        y = _log2(x)
    else:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return y


@triton.jit
def _row_pairs(row, PAIRS: tl.constexpr, LOW: tl.constexpr):
    """Which of a tile's 128 pairs stands in a row of its scores.

    A thread of two warps' matrix products holds rows that differ in bits 6, 5 and 3; lanes differ in bits 0, 1, 2, the
    warps in bit 4. Pairs of a block take these bits in this order, so that few of their sums cross lanes. `LOW`: how
    many of bits 0, 1, 2 they take.
    """
    inside = ((row >> 6) & 1) | ((row >> 5) & 1) << 1
    block = (row >> 4) & 1
    if PAIRS == 4:
        block = block << 1 | (row >> 3) & 1
    else:
        inside |= ((row >> 3) & 1) << 2 | (row & ((1 << LOW) - 1)) << 3
    block = block << (3 - LOW) | (row & 7) >> LOW
    return block * PAIRS + inside


@triton.jit
def _folded(x, PAIRS: tl.constexpr, MAX: tl.constexpr):
    """The largest or the sum over a block's pairs of rows by their bits, `[b6, b5, b4, b3, b2, b1, b0, GP]`."""
    if MAX:
        x = tl.max(tl.max(x, 0, keep_dims=True), 1, keep_dims=True)
        if PAIRS >= 8:
            x = tl.max(x, 3, keep_dims=True)
        if PAIRS >= 16:
            x = tl.max(x, 6, keep_dims=True)
        if PAIRS >= 32:
            x = tl.max(x, 5, keep_dims=True)
        if PAIRS >= 64:
            x = tl.max(x, 4, keep_dims=True)
    else:
        x = tl.sum(tl.sum(x, 0, keep_dims=True), 1, keep_dims=True)
        if PAIRS >= 8:
            x = tl.sum(x, 3, keep_dims=True)
        if PAIRS >= 16:
            x = tl.sum(x, 6, keep_dims=True)
        if PAIRS >= 32:
            x = tl.sum(x, 5, keep_dims=True)
        if PAIRS >= 64:
            x = tl.sum(x, 4, keep_dims=True)
    return x


@triton.jit
def _append_pair(
    k_cache, v_cache, packed, k_new, v_new, ranges, offset, new_offset, token, cache_token_stride, place,
    D: tl.constexpr,
):  # fmt: skip
    """Write the newest token of a head and pack its pair anew; a pair of one token may be anything (`Pairs`)."""
    every = tl.arange(0, D)
    there = offset + strided(token, cache_token_stride) + every
    tl.store(k_cache + there, tl.load(k_new + new_offset + every))
    tl.store(v_cache + there, tl.load(v_new + new_offset + every))
    HALF: tl.constexpr = D // 2
    dims = tl.arange(0, HALF)
    before = k_cache + offset + strided(token - token % 2, cache_token_stride)
    second = token % 2  # of its pair
    low = _newest_codes(before, k_new + new_offset, ranges, dims, second, D)
    high = _newest_codes(before, k_new + new_offset, ranges, dims + HALF, second, D)
    tl.store(packed + place + dims, (low | (high << 4)).to(tl.uint8))


@triton.jit
def _newest_codes(before, new, ranges, dims, second, D: tl.constexpr):
    """Codes of the mean of a token and the one before it; of half the token where there is none, as packing has it."""
    a = tl.load(before + dims, mask=dims < second * D, other=0.0).to(tl.float32)
    b = tl.load(new + dims).to(tl.float32)
    return _coded((a + b) * 0.5, tl.load(ranges + dims), tl.load(ranges + D + dims))


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
    WORDS: tl.constexpr = D // 4  # of 16 bits: byte i holds dims i and i + D / 2
    word = tl.arange(0, WORDS)
    column = tl.arange(0, 2 * GP)
    columns = tl.arange(0, GP)
    head = column % GP
    valid = head < G
    queries = q + strided(row, G * D)
    q0 = _query_parts(queries, ranges + D, 2 * word, column, head, valid, D, GP)
    q1 = _query_parts(queries, ranges + D, 2 * word + HALF, column, head, valid, D, GP)
    q2 = _query_parts(queries, ranges + D, 2 * word + 1, column, head, valid, D, GP)
    q3 = _query_parts(queries, ranges + D, 2 * word + HALF + 1, column, head, valid, D, GP)
    every = tl.arange(0, D)
    rows = tl.load(queries + columns[:, None] * D + every[None, :], mask=(columns < G)[:, None], other=0.0)
    constant = tl.sum(rows.to(tl.float32) * tl.load(ranges + every)[None, :], axis=1)  # [GP]
    parts = tl.sum(q0.to(tl.float32) + q1.to(tl.float32) + q2.to(tl.float32) + q3.to(tl.float32), axis=0)
    constant -= 128.0 * tl.sum(tl.reshape(parts, (2, GP)), axis=0)
    if INTERPRETED:
        q0, q1, q2, q3 = q0.to(tl.float32), q1.to(tl.float32), q2.to(tl.float32), q3.to(tl.float32)
    share = tl.program_id(0)
    shares = tl.num_programs(0)
    if APPEND:
        if share == 0:
            if (length > 0) & (given <= token_capacity):  # else there is no room for the token
                kv_head = row % kv_heads
                offset = strided(batch, cache_outer_stride) + strided(kv_head, cache_head_stride)
                new_offset = strided(batch, new_batch_stride) + strided(kv_head, new_head_stride)
                _append_pair(
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
    pair = _row_pairs(tl.arange(0, TILE * PAIRS), PAIRS, LOW)
    words = codes_of_row.to(tl.pointer_type(tl.uint16)) + pair[:, None] * WORDS + word[None, :]
    index = tl.arange(0, TILE)
    most = tl.full([TILE, GP], float("-inf"), tl.float32)
    total = tl.zeros([TILE, GP], dtype=tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        inside = tile * (TILE * PAIRS) + pair < held * PAIRS
        codes = tl.load(words + strided(tile, TILE * PAIRS * WORDS), mask=inside[:, None], other=0)
        c0, c1, c2, c3 = _planes(codes, INTERPRETED)
        both = tl.dot(c0, q0)
        both = tl.dot(c1, q1, both)
        both = tl.dot(c2, q2, both)
        both = tl.dot(c3, q3, both)  # [TILE PAIRS, 2 GP]
        logit = tl.sum(tl.reshape(both, (TILE * PAIRS, 2, GP)), axis=1) + constant[None, :]
        logit = tl.reshape(logit * scale_log2, (2, 2, 2, 2, 2, 2, 2, GP))
        top = _folded(logit, PAIRS, True)
        mass = _folded(_exp2(logit - top, INTERPRETED), PAIRS, False)
        block = tl.reshape(top, (TILE, GP)) + _lg2(tl.reshape(mass, (TILE, GP)), INTERPRETED)

        at = tile * TILE + index
        block = tl.where((at < held - local_blocks)[:, None], block, float("-inf"))
        out = logits + (strided(row, blocks) + at)[:, None] * GP + columns[None, :]
        tl.store(out, block, mask=(at < held)[:, None])
        before, most = most, tl.maximum(most, block)
        finite = tl.where(most == float("-inf"), 0.0, most)
        total = total * _exp2(before - finite, INTERPRETED) + _exp2(block - finite, INTERPRETED)
    top = tl.max(most, axis=0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(total * tl.exp2(most - finite[None, :]), axis=0)
    tl.store(share_out, top + _log2(total))


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
    total = tl.where(total > 0, most + _log2(total), 0.0)
    inside = index < held
    cells = logits + (strided(row, blocks) + index)[:, None] * GP + columns[None, :]
    part = tl.load(cells, mask=inside[:, None], other=float("-inf")) - total[None, :]
    part = tl.where((columns < G)[None, :], part, float("-inf"))
    top = tl.max(part, axis=1)
    top = tl.where(top == float("-inf"), 0.0, top)
    pooled = (top + _log2(tl.sum(tl.exp2(part - top[:, None]), axis=1))) * 0.6931471805599453
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
    _check(cache, packed, known, config.block_size)
    check_tensor("q", q, (cache.batch, None, cache.head_dim), dtypes=(cache.dtype,), device=cache.device)
    shape = AttentionShape(cache.batch, q.shape[1], cache.kv_heads, cache.head_dim)
    blocks, heads, rows = packed.shape[2], padded_heads(shape.group), cache.batch * cache.kv_heads
    logits, partial = room
    shares = score_shares(rows, blocks, config.block_size, cache.device)
    check_tensor("scores", scores, (*packed.shape[:3],), dtypes=(torch.float32,), device=cache.device)
    check_tensor("logits", logits, (*packed.shape[:3], heads), dtypes=(torch.float32,), device=cache.device)
    check_tensor("partial", partial, (*packed.shape[:2], shares, heads), dtypes=(torch.float32,), device=cache.device)
    if not all(x.is_contiguous() for x in (q, logits, partial, scores)):
        raise ValueError("q, scores, room: must be contiguous")
    k_new, v_new = append if append is not None else (q, q)
    if append is not None:
        check_new(cache, k_new, v_new, (cache.batch, cache.kv_heads, cache.head_dim))
    common = dict(
        lengths=cache.lengths, token_capacity=cache.capacity, kv_heads=cache.kv_heads, blocks=blocks,
        local_blocks=config.local_blocks, G=shape.group, GP=heads, BLOCK=config.block_size,
        EARLY=scores_per_sm(rows * blocks, cache.device) <= EARLY,
    )  # fmt: skip
    launch(
        _score_pairs_kernel,
        (shares + (append is not None), rows),
        q=q,
        packed=packed,
        known=known,
        logits=logits,
        partial=partial,
        k_cache=cache.k,
        v_cache=cache.v,
        k_new=k_new,
        v_new=v_new,
        scale_log2=cache.head_dim**-0.5 * LOG2E,
        cache_outer_stride=cache.k.stride(0),
        cache_head_stride=cache.k.stride(1),
        cache_token_stride=cache.k.stride(2),
        new_batch_stride=k_new.stride(0),
        new_head_stride=k_new.stride(1),
        D=cache.head_dim,
        TILE=tile_blocks(config.block_size),
        LOW=max(config.block_size.bit_length() - 5, 0),
        STAGES=STAGES,
        APPEND=append is not None,
        INTERPRETED=INTERPRET,
        num_warps=WARPS,
        num_stages=1,
        **common,
    )
    launch(
        _pool_kernel,
        (ceil_div(blocks, SPAN), rows),
        logits=logits,
        partial=partial,
        scores=scores,
        shares=shares,
        first_blocks=config.always[1],
        SPAN=SPAN,
        SHARES=triton.next_power_of_2(shares),
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
