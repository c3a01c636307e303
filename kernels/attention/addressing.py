"""Device code shared by the kernels: where a token or block lies, and how many blocks a sequence selects."""

import triton
import triton.language as tl


@triton.jit
def locate(batch, index, valid, table, table_stride, PAGE: tl.constexpr, PAGED: tl.constexpr):
    """Outer index (sequence or page) and the index inside it of `index`, counted in tokens or blocks alike."""
    if PAGED:
        outer = tl.load(table + batch * table_stride + index // PAGE, mask=valid, other=0).to(tl.int64)
        inside = index % PAGE
    else:
        outer = batch.to(tl.int64) + tl.zeros_like(index)
        inside = index
    return outer, inside


@triton.jit
def selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks):
    """n = min(M, max(n_min, ceil(r M))) in integers."""
    share = (blocks * ratio_numerator + ratio_denominator - 1) // ratio_denominator
    return tl.minimum(blocks, tl.maximum(floor_blocks, share))


@triton.jit
def tile_range(tiles, split, splits):
    """The tiles of one split: an even share of however many there are; empty when there are fewer than splits."""
    return (tiles * split) // splits, (tiles * (split + 1)) // splits
