"""Block summaries: two slots of D values per block and KV head, built from the keys of that block.

`minmax` keeps the element-wise minimum and maximum (Quest, arXiv 2406.10774; ReSA, arXiv 2506.04108), `meanstd` the
mean and the population standard deviation. One kernel serves all four uses: a program takes one block, writes the new
tokens that fall into it, and summarises its valid keys. Since a summary is always made from the keys, writing the
same token again changes nothing, and rectified keys (which can shrink a maximum) need no second path.

In fp8 (e4m3) they take half the bytes of 16-bit ones. Values are rounded to nearest, so that a maximum may come out up
to 1/16 below the largest key, and saturate at 448; what that does to the selection is measured (docs/notes/quality.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache, logical
from ..checks import check_same_strides, check_stored, check_tensor
from ..config import BLOCK_SIZES, MAX_BLOCKS, SUMMARY_DTYPES, SUMMARY_KINDS, ceil_div
from ..e4m3 import E4M3
from ..launch import await_previous, launch, release_next
from .addressing import held_tokens, locate, strided

DTYPES = dict(zip(SUMMARY_DTYPES, (E4M3,), strict=True))


@dataclass(frozen=True, slots=True)
class Summaries:
    """Summaries of one layer's cache.

    Attributes:
        data: `[B or P, Hkv, blocks, 2, D]` of the queries' dtype or fp8; paged as the cache is, so that a shared page
            shares its summaries.
        kind: "minmax" (slots min, max) or "meanstd" (slots mean, std).
        block_size: tokens a block.
    """

    data: Tensor
    kind: str
    block_size: int

    @classmethod
    def allocate(cls, cache: KVCache, block_size: int, kind: str = "minmax", dtype: str | None = None) -> Summaries:
        """Room for every block of `cache`, in its own dtype unless one of SUMMARY_DTYPES is named.

        Raises:
            ValueError: block_size is not an allowed power of two or does not divide the page size, the kind or dtype is
                unknown, or a sequence would have more than MAX_BLOCKS blocks.
        """
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size: got {block_size}, allowed are the powers of two {BLOCK_SIZES}")
        if kind not in SUMMARY_KINDS:
            raise ValueError(f"kind: got {kind!r}, allowed are {', '.join(SUMMARY_KINDS)}")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, allowed are {', '.join(DTYPES)}, or None for the cache's")
        if cache.paged and cache.page_size % block_size:
            raise ValueError(f"block_size: got {block_size}, must divide the cache's page size of {cache.page_size}")
        if ceil_div(cache.capacity, block_size) > MAX_BLOCKS:
            raise ValueError(
                f"cache: a capacity of {cache.capacity} tokens is {ceil_div(cache.capacity, block_size)} blocks of "
                f"{block_size}, allowed are {MAX_BLOCKS}; take a larger block_size"
            )
        blocks = ceil_div(cache.page_size, block_size)
        shape = (cache.k.shape[0], cache.kv_heads, blocks, 2, cache.head_dim)
        element = DTYPES[dtype] if dtype else cache.dtype
        return cls(torch.empty(shape, dtype=element, device=cache.device), kind, block_size)

    @property
    def dtype(self) -> str | None:
        """As `SparseConfig.summary_dtype` names it: None for the cache's own."""
        return next((name for name, dtype in DTYPES.items() if dtype == self.data.dtype), None)

    def logical(self, cache: KVCache) -> Tensor:
        """`[B, Hkv, M, 2, D]` in the order of the sequence."""
        return logical(self.data, cache.block_table)


@triton.jit
def _round(x, dtype: tl.constexpr):
    """fp32 to a stored element type. To e4m3 by hand, saturating, as Triton's interpreter drops the carry:
    to nearest even at the 20th bit, and below 2^-6 at multiples of 2^-9, which is the spacing of floats around 24576.
    """
    if dtype != tl.float8e4nv:
        return x.to(dtype)
    x = tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    normal = tl.where(x == x, normal, x)  # a GPU's NaN, all ones, would be carried over to zero
    return tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, normal).to(dtype)


@triton.jit
def update_block(
    k_cache, v_cache, scales, summaries, k_new, v_new, table, batch, head, block, length, first,
    cache_outer_stride, cache_head_stride, cache_token_stride, summary_outer_stride, summary_head_stride,
    new_batch_stride, new_token_stride, new_head_stride, table_stride, pages,
    D: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, PAGED: tl.constexpr, WRITE: tl.constexpr,
    SUMMARY: tl.constexpr, keep_before=0,
):  # fmt: skip
    """Write a block's new tokens, from `first` on but none before `keep_before`, and summarise its valid keys.

    In e4m3 a token is written over its head's scales, and keys are summarised as they are read back.

    `length` is no more than the cache holds; nothing is written to a page that the cache does not have.
    """
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, D)
    valid = tokens < length
    outer, inside, valid = locate(batch, tokens, valid, table, table_stride, pages, PAGE, PAGED)
    token_offsets = outer * cache_outer_stride + strided(head, cache_head_stride) + strided(inside, cache_token_stride)
    offsets = token_offsets[:, None] + dims[None, :]
    known = valid
    if WRITE:
        written = tl.maximum(first, keep_before)
        fresh = valid & (tokens >= written)
        rows = strided(batch, new_batch_stride) + strided(head, new_head_stride)
        new_offsets = (rows + strided(tokens - first, new_token_stride))[:, None] + dims[None, :]
        fresh_k = tl.load(k_new + new_offsets, mask=fresh[:, None], other=0.0)
        fresh_v = tl.load(v_new + new_offsets, mask=fresh[:, None], other=0.0)
        if k_cache.dtype.element_ty == tl.float8e4nv:
            fresh_k = _round(tl.div_rn(fresh_k.to(tl.float32), tl.load(scales + 2 * head)), tl.float8e4nv)
            fresh_v = _round(tl.div_rn(fresh_v.to(tl.float32), tl.load(scales + 2 * head + 1)), tl.float8e4nv)
        tl.store(k_cache + offsets, fresh_k, mask=fresh[:, None])
        tl.store(v_cache + offsets, fresh_v, mask=fresh[:, None])
        known = valid & (tokens < written)

    if SUMMARY != "none":
        k = tl.load(k_cache + offsets, mask=known[:, None], other=0.0)
        if WRITE:
            k = tl.where(fresh[:, None], fresh_k, k)
        k = k.to(tl.float32)
        if k_cache.dtype.element_ty == tl.float8e4nv:
            k *= tl.load(scales + 2 * head)
        if SUMMARY == "minmax":
            slot0 = tl.min(tl.where(valid[:, None], k, float("inf")), axis=0)
            slot1 = tl.max(tl.where(valid[:, None], k, float("-inf")), axis=0)
        else:
            count = tl.minimum(length - block * BLOCK, BLOCK).to(tl.float32)
            slot0 = tl.sum(k, axis=0) / count
            deviation = tl.where(valid[:, None], k - slot0[None, :], 0.0)
            slot1 = tl.sqrt(tl.sum(deviation * deviation, axis=0) / count)
        index = tl.full([1], block, tl.int32)
        page, row, exists = locate(batch, index, index >= 0, table, table_stride, pages, PAGE // BLOCK, PAGED)
        base = page * summary_outer_stride + strided(head, summary_head_stride) + strided(row, 2 * D)
        tl.store(summaries + base + dims, _round(slot0, summaries.dtype.element_ty), mask=exists)
        tl.store(summaries + base + D + dims, _round(slot1, summaries.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["token_capacity", "pages", "new_tokens", "kv_heads"])
def _update_blocks_kernel(
    k_cache,  # [B or P, Hkv, S or page, D]
    v_cache,  # the same strides
    scales,  # float32 [Hkv, 2], of keys and values in e4m3 alone
    summaries,  # [B or P, Hkv, blocks, 2, D]
    k_new,  # [B, T, Hkv, D]
    v_new,  # the same strides
    lengths,  # int32 [B]
    table,  # int32 [B, pages]
    kept,  # int32 [B], read with KEEPS alone: tokens before it are not written
    token_capacity,  # of a sequence
    pages,  # P
    new_tokens,  # T: the last T tokens of each sequence are touched
    kv_heads,
    cache_outer_stride,
    cache_head_stride,
    cache_token_stride,
    summary_outer_stride,
    summary_head_stride,
    new_batch_stride,
    new_token_stride,
    new_head_stride,
    table_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    PAGED: tl.constexpr,
    ALL_BLOCKS: tl.constexpr,
    WRITE: tl.constexpr,
    SUMMARY: tl.constexpr,  # "minmax", "meanstd" or "none"
    KEEPS: tl.constexpr,
    PDL: tl.constexpr,
):
    if SUMMARY != "none":  # then scoring comes next, not dense attention
        release_next(PDL)
    await_previous(PDL)
    batch = tl.program_id(1) // kv_heads
    head = tl.program_id(1) % kv_heads
    given = tl.load(lengths + batch)
    length = held_tokens(given, token_capacity)
    first = given - new_tokens  # what lies past the capacity has no place and is not written
    block = tl.program_id(0)
    if not ALL_BLOCKS:
        block += tl.maximum(first, 0) // BLOCK
    if block >= tl.cdiv(length, BLOCK):
        return
    keep_before = 0
    if KEEPS:
        keep_before = tl.load(kept + batch)

    update_block(
        k_cache, v_cache, scales, summaries, k_new, v_new, table, batch, head, block, length, first,
        cache_outer_stride, cache_head_stride, cache_token_stride, summary_outer_stride, summary_head_stride,
        new_batch_stride, new_token_stride, new_head_stride, table_stride, pages,
        D, BLOCK, PAGE, PAGED, WRITE, SUMMARY, keep_before,
    )  # fmt: skip


def _check(cache: KVCache, summaries: Summaries | None, check_values: bool) -> None:
    check_stored(cache)
    if summaries is not None:
        blocks = ceil_div(cache.page_size, summaries.block_size)
        shape = (cache.k.shape[0], cache.kv_heads, blocks, 2, cache.head_dim)
        dtypes = (cache.dtype, *DTYPES.values())
        check_tensor("summaries.data", summaries.data, shape, dtypes=dtypes, device=cache.device)
        if not summaries.data.is_contiguous():
            raise ValueError("summaries.data: must be contiguous")
    if check_values:
        cache.check_values()


def _launch(
    cache: KVCache,
    summaries: Summaries | None,
    new: tuple[Tensor, Tensor] | None,
    tokens: int,
    *,
    all_blocks: bool,
    keep_before: Tensor | None = None,
) -> None:
    block = summaries.block_size if summaries is not None else 16
    blocks = ceil_div(cache.capacity, block) if all_blocks else 1 + ceil_div(tokens - 1, block)
    k_new, v_new = new if new is not None else (cache.k, cache.v)  # not read without WRITE
    data = summaries.data if summaries is not None else cache.k
    table = cache.block_table if cache.block_table is not None else cache.lengths
    values = cache.head_dim * block
    launch(
        _update_blocks_kernel,
        (blocks, cache.batch * cache.kv_heads),
        k_cache=cache.k,
        v_cache=cache.v,
        scales=cache.scales_or_any,
        summaries=data,
        k_new=k_new,
        v_new=v_new,
        lengths=cache.lengths,
        table=table,
        token_capacity=cache.capacity,
        pages=cache.k.shape[0],
        kept=cache.lengths if keep_before is None else keep_before,
        new_tokens=tokens,
        kv_heads=cache.kv_heads,
        cache_outer_stride=cache.k.stride(0),
        cache_head_stride=cache.k.stride(1),
        cache_token_stride=cache.k.stride(2),
        summary_outer_stride=data.stride(0),
        summary_head_stride=data.stride(1),
        new_batch_stride=k_new.stride(0),
        new_token_stride=k_new.stride(1),
        new_head_stride=k_new.stride(2),
        table_stride=table.stride(0),
        D=cache.head_dim,
        BLOCK=block,
        PAGE=cache.page_size if cache.paged else block,
        PAGED=cache.paged,
        ALL_BLOCKS=all_blocks,
        WRITE=new is not None,
        SUMMARY=summaries.kind if summaries is not None else "none",
        KEEPS=keep_before is not None,
        num_warps=1 if values <= 1024 else 4 if values <= 16384 else 8,
        num_stages=1,
    )


def check_new(cache: KVCache, k_new: Tensor, v_new: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raises TypeError, ValueError unless new K and V are of this shape, alike, and fit the cache."""
    check_tensor("k_new", k_new, shape, dtypes=(cache.dtype,), device=cache.device)
    check_tensor("v_new", v_new, k_new.shape, dtypes=(cache.dtype,), device=cache.device)
    check_same_strides("v_new", v_new, "k_new", k_new)


def build_summaries(cache: KVCache, summaries: Summaries, *, check_values: bool = False) -> None:
    """Summarise every block that holds a valid token, in place."""
    _check(cache, summaries, check_values)
    _launch(cache, summaries, None, 0, all_blocks=True)


def write_tokens(
    cache: KVCache,
    k_new: Tensor,
    v_new: Tensor,
    summaries: Summaries | None = None,
    *,
    keep_before: Tensor | None = None,
    check_values: bool = False,
) -> None:
    """Write the last T tokens of each sequence and refresh the summaries of the blocks they touch, in one kernel.

    With T = 1 this is a decode step's append; with T = f it is rectification's overwrite. A sequence shorter than T
    takes the last of the given rows.

    Args:
        k_new, v_new: `[B, T, Hkv, D]` (or `[B, Hkv, D]` for one token) of the cache's dtype; row t goes to position
            lengths - T + t.
        summaries: left alone when None (dense methods).
        keep_before: int32 `[B]`; tokens at positions before it stay as they are, whatever is given for them.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride; T over the capacity.
    """
    if isinstance(k_new, Tensor) and isinstance(v_new, Tensor) and k_new.dim() == v_new.dim() == 3:
        k_new, v_new = k_new.unsqueeze(1), v_new.unsqueeze(1)
    shape = (cache.batch, None, cache.kv_heads, cache.head_dim)
    check_new(cache, k_new, v_new, shape)
    if not 1 <= k_new.shape[1] <= cache.capacity:
        raise ValueError(f"k_new: {k_new.shape[1]} tokens, allowed 1 to the cache's capacity of {cache.capacity}")
    if keep_before is not None:
        check_tensor("keep_before", keep_before, (cache.batch,), dtypes=(torch.int32,), device=cache.device)
    _check(cache, summaries, check_values)
    _launch(cache, summaries, (k_new, v_new), k_new.shape[1], all_blocks=False, keep_before=keep_before)


def refresh_summaries(cache: KVCache, summaries: Summaries, tokens: int, *, check_values: bool = False) -> None:
    """Summarise again, from the keys, the blocks that hold the last `tokens` tokens of each sequence; no others.

    Raises:
        ValueError: tokens outside 1 .. capacity.
    """
    if not 1 <= tokens <= cache.capacity:
        raise ValueError(f"tokens: got {tokens}, allowed 1 to the cache's capacity of {cache.capacity}")
    _check(cache, summaries, check_values)
    _launch(cache, summaries, None, tokens, all_blocks=False)


def summaries_reference(k: Tensor, length: int, block_size: int, kind: str = "minmax") -> Tensor:
    """Summaries of one sequence in plain torch.

    Args:
        k: `[Hkv, S, D]` keys; those from `length` on are ignored.

    Returns:
        `[Hkv, M, 2, D]` with M = ceil(length / block_size), in k's dtype (mean and std rounded from fp64).
    """
    parts = torch.split(k[:, :length], block_size, dim=1) if length else ()
    if kind == "minmax":
        pairs = [torch.stack((p.amin(1), p.amax(1)), dim=1) for p in parts]
    else:
        pairs = [
            torch.stack((p.double().mean(1), p.double().var(1, correction=0).sqrt()), dim=1).to(k.dtype) for p in parts
        ]
    return torch.stack(pairs, dim=1) if pairs else k.new_empty(k.shape[0], 0, 2, k.shape[2])
