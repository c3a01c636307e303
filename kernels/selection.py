"""Selection: the n best blocks of each row of scores, exactly, with n found on the device from the actual length.

One program takes one row. Scores become 32-bit keys in the same order; the n-th largest key is found by narrowing an
interval that holds it, three thresholds (so two bits) a pass, their counts packed into one 64-bit sum; the search ends
as soon as a threshold keeps exactly n. One prefix sum then gives each kept block its place, so lists come out
ascending without sorting. Ties go to the lower block index.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addressing import selected_blocks
from .cache import KVCache
from .checks import check_device, check_tensor
from .config import MAX_BLOCKS, SparseConfig, ceil_div
from .launch import launch


@triton.jit
def _select_kernel(
    scores,  # float32 [B, R, M]
    lists,  # int32 [B, R, N] out: ascending block indices, padded with -1
    counts,  # int32 [B, R] out: n
    lengths,  # int32 [B]
    rows,
    capacity,  # N
    ratio_numerator,
    ratio_denominator,
    floor_blocks,
    score_batch_stride,
    score_row_stride,
    list_batch_stride,
    list_row_stride,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,  # M rounded up to a power of two
):
    batch = tl.program_id(0) // rows
    row = tl.program_id(0) % rows
    blocks = tl.cdiv(tl.load(lengths + batch), BLOCK)
    n = selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks)

    index = tl.arange(0, WIDTH)
    valid = index < blocks
    score = tl.load(scores + batch.to(tl.int64) * score_batch_stride + row * score_row_stride + index, mask=valid)
    # Keys in the order of the floats they come from; + 0.0 makes -0 equal to +0.
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(valid, key, -0x80000000)  # below every score

    INFINITE: tl.constexpr = 0x7F800000
    infinite = tl.sum((key >= INFINITE).to(tl.int32))
    least = tl.min(tl.where(valid, key, INFINITE))
    most = tl.max(tl.where(key < INFINITE, key, -0x80000000))
    # Invariant: at least n keys are >= low, fewer than n are >= high.
    low = tl.where(infinite >= n, INFINITE, least).to(tl.int64)
    high = tl.where(infinite >= n, INFINITE, most).to(tl.int64) + 1
    kept = tl.where(infinite >= n, infinite, blocks)
    while (high - low > 1) & (kept != n):
        step = (high - low + 3) // 4
        t1 = low + step
        t2 = tl.minimum(low + 2 * step, high)
        t3 = tl.minimum(low + 3 * step, high)
        packed = (
            (key >= t1.to(tl.int32)).to(tl.int64)
            + ((key >= t2.to(tl.int32)).to(tl.int64) << 21)
            + ((key >= t3.to(tl.int32)).to(tl.int64) << 42)
        )
        total = tl.sum(packed)
        c1 = (total & 0x1FFFFF).to(tl.int32)
        c2 = ((total >> 21) & 0x1FFFFF).to(tl.int32)
        c3 = (total >> 42).to(tl.int32)
        high = tl.where(c1 < n, t1, tl.where(c2 < n, t2, tl.where(c3 < n, t3, high)))
        low = tl.where(c3 >= n, t3, tl.where(c2 >= n, t2, tl.where(c1 >= n, t1, low)))
        kept = tl.where(c3 >= n, c3, tl.where(c2 >= n, c2, tl.where(c1 >= n, c1, kept)))

    threshold = low.to(tl.int32)
    if kept == n:  # no tie is cut
        keep = valid & (key >= threshold)
        place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    else:  # high = low + 1: of the keys equal to low, the first ones fill up
        above = valid & (key > threshold)
        equal = valid & (key == threshold)
        upto = tl.cumsum(above.to(tl.int64) + (equal.to(tl.int64) << 32), axis=0)
        above_upto = (upto & 0xFFFFFFFF).to(tl.int32)
        equal_upto = (upto >> 32).to(tl.int32)
        missing = n - tl.sum(above.to(tl.int32))
        keep = above | (equal & (equal_upto <= missing))
        place = above_upto + tl.minimum(equal_upto, missing) - 1

    out = lists + batch.to(tl.int64) * list_batch_stride + row * list_row_stride
    tl.store(out + place, index, mask=keep)
    tl.store(out + index, -1, mask=(index >= n) & (index < capacity))
    tl.store(counts + tl.program_id(0), n)


def select_blocks(
    scores: Tensor, cache: KVCache, lists: Tensor, counts: Tensor, config: SparseConfig, *, check_values: bool = False
) -> None:
    """The best n blocks per row, n = min(M, max(n_min, ceil(r M))) from `cache.lengths` (exact integers).

    Args:
        scores: float32 `[B, R, M]` as `score_blocks` leaves them (no NaN; +inf is always taken first).
        lists: int32 `[B, R, N]` out, ascending, padded with -1; N >= `config.selected(cache.capacity)`.
        counts: int32 `[B, R]` out, n.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape, device or stride; more than MAX_BLOCKS blocks;
            with `check_values`, NaN among the valid scores.
    """
    blocks = ceil_div(cache.capacity, config.block_size)
    check_tensor("scores", scores, (cache.batch, None, blocks), dtypes=(torch.float32,), device=cache.device)
    check_device("scores", scores)
    rows, wanted = scores.shape[1], config.selected(cache.capacity)
    check_tensor("lists", lists, (cache.batch, rows, None), dtypes=(torch.int32,), device=cache.device)
    check_tensor("counts", counts, (cache.batch, rows), dtypes=(torch.int32,), device=cache.device)
    if not counts.is_contiguous():
        raise ValueError("counts: must be contiguous")
    if lists.shape[2] < wanted:
        raise ValueError(f"lists: {lists.shape[2]} entries a row, a full cache selects {wanted} blocks")
    if blocks > MAX_BLOCKS:
        raise ValueError(f"scores: {blocks} blocks a row, at most {MAX_BLOCKS}; take a larger block_size")
    if check_values:
        cache.check_values()
        for b, length in enumerate(cache.lengths.tolist()):
            if scores[b, :, : config.blocks(length)].isnan().any():
                raise ValueError(f"scores: NaN in the valid scores of sequence {b}")
    width = max(triton.next_power_of_2(max(blocks, lists.shape[2])), 32)
    launch(
        _select_kernel,
        (cache.batch * rows,),
        scores=scores,
        lists=lists,
        counts=counts,
        lengths=cache.lengths,
        rows=rows,
        capacity=lists.shape[2],
        ratio_numerator=config.ratio.numerator,
        ratio_denominator=config.ratio.denominator,
        floor_blocks=config.floor_blocks,
        score_batch_stride=scores.stride(0),
        score_row_stride=scores.stride(1),
        list_batch_stride=lists.stride(0),
        list_row_stride=lists.stride(1),
        BLOCK=config.block_size,
        WIDTH=width,
        num_warps=select_warps(width),
        num_stages=1,
    )


def select_warps(width: int) -> int:
    """Warps of one row's program: about 16 keys a thread for long rows, few threads (cheap barriers) for short."""
    return max(1, min(32, width // 256))


def selection_reference(scores: Tensor, n: int) -> Tensor:
    """The n best of each row in plain torch: `[R, M]` scores to `[R, n]` ascending indices; ties to the lower."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :n]
    return order.sort(dim=-1).values.to(torch.int32)
