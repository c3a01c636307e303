"""Device code shared by the kernels: where a token or block lies, and how many blocks a sequence selects.

Indices (tokens, blocks, heads, rows) fit 32 bits, which the limits of `KVCache` see to. Offsets do not: a cache, its
summaries or split results can have more than 2^31 elements. So every product with a stride goes through `strided`.
"""

import triton
import triton.language as tl


@triton.jit
def strided(index, stride):
    """How many elements `index` steps of `stride` are, in 64 bits; in 32 the product would wrap from 2^31 on."""
    return tl.cast(index, tl.int64) * stride


@triton.jit
def held_tokens(length, capacity):
    """Tokens of a sequence that the cache holds: its length, but no fewer than 0 and no more than the capacity."""
    return tl.minimum(tl.maximum(length, 0), capacity)


@triton.jit
def checked_scale(scale, length, capacity):
    """The scale of the logits, or NaN for a sequence longer than its cache: its output must not look like one."""
    return tl.where(length <= capacity, scale, float("nan"))


@triton.jit
def locate(batch, index, valid, table, table_stride, pages, PAGE: tl.constexpr, PAGED: tl.constexpr):
    """Where `index`, counted in tokens or blocks alike, lies.

    Returns:
        outer: the sequence, or the page, int64. For an entry of the table that is no page of the cache, the nearest
            page: what is read there means nothing, but it lies in the cache.
        inside: the index inside it.
        exists: whether `index` is valid and its page one of the cache's; nothing may be written where it is not.
    """
    if PAGED:
        page = tl.load(table + strided(batch, table_stride) + index // PAGE, mask=valid, other=0)
        outer = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64)
        inside = index % PAGE
        exists = valid & (page >= 0) & (page < pages)
    else:
        outer = batch.to(tl.int64) + tl.zeros_like(index)
        inside = index
        exists = valid
    return outer, inside, exists


@triton.jit
def selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks):
    """n = min(M, max(n_min, ceil(r M))) in integers."""
    share = (blocks * ratio_numerator + ratio_denominator - 1) // ratio_denominator
    return tl.minimum(blocks, tl.maximum(floor_blocks, share))


@triton.jit
def tile_range(tiles, split, splits):
    """The tiles of one split: an even share of however many there are; empty when there are fewer than splits."""
    return (tiles * split) // splits, (tiles * (split + 1)) // splits
