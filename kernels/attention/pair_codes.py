"""Pairs of keys in 4 bits: the codes of a sequence's blocks, made from its keys, kept beside its cache.

Whole blocks are packed from their keys, so that writing a token again changes nothing. A step packs the newest token's
pair while blocks are scored (pair_scores.py). Contiguous caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_tensor, kernel_dtypes
from ..config import ceil_div
from ..launch import await_previous, launch
from .addressing import held_tokens, strided

PAIR = 2  # tokens of a mean
STEPS = 15  # between the ends of a range: 4 bits


def allocate_pairs(cache: KVCache, block_size: int) -> Tensor:
    """Room for every block's codes, uint8 `[B, Hkv, M, b / 2, D / 2]`: channel d in the low bits, d + D / 2 above."""
    shape = cache.batch, cache.kv_heads, ceil_div(cache.capacity, block_size), block_size // PAIR, cache.head_dim // 2
    return torch.zeros(shape, dtype=torch.uint8, device=cache.device)


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
def append_pair(
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


def check_pairs(cache: KVCache, packed: Tensor, known: Tensor, block_size: int) -> None:
    """Raises TypeError, ValueError unless codes and ranges are such as a contiguous cache has."""
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
    check_pairs(cache, packed, known, block_size)
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
