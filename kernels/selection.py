"""Selection: the n best blocks of each row of scores, exactly, with n found on the device from the actual length.

Several programs share a row. Each holds the whole row and searches it: scores become 32-bit keys in the same order;
the n-th largest is found by narrowing an interval that holds it to a third in each pass, two thresholds with both
counts packed into one sum, or in long rows to a half; the search ends as soon as a threshold keeps exactly n. Then
each program writes the list's entries of its own span of blocks; it counts what earlier spans keep, so lists come out
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
from .launch import INTERPRET, await_previous, has_dpx, is_small_step, launch, release_next

INFINITE = tl.constexpr(0xFF800000)  # the key of +inf


@triton.jit
def _load_keys(row, index, blocks):
    """Scores as unsigned integers in the same order; past the last block 0, which is below every score's."""
    valid = index < blocks
    bits = (tl.load(row + index, mask=valid, other=0.0) + 0.0).to(tl.int32, bitcast=True)  # + 0.0: -0 becomes +0
    key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    return tl.where(valid, key, 0)


@triton.jit
def _rank(flag):
    """How many flags of a 2D tile are set before each place, row by row.

    One scan inside the rows, one over their sums: a flat scan would make every thread add up the sums of all warps.
    """
    one = flag.to(tl.int32)
    in_row = tl.sum(one, axis=1)
    before = tl.cumsum(in_row, axis=0) - in_row
    return before[:, None] + tl.cumsum(one, axis=1) - one


@triton.jit
def _write_kept(key, index, threshold, cuts_tie, missing, written, out):
    """Write the indices of a span's kept keys in order, `written` of them being before it; `missing` ties are kept."""
    keep = key >= threshold
    if cuts_tie:
        keep = (key > threshold) | (keep & (_rank(key == threshold) < missing))
    place = tl.where(keep, written + _rank(keep), -1)
    tl.store(out + place.to(tl.int64), index, mask=place >= 0)


@triton.jit
def _narrow_by_thirds(key, n, low, high, kept):
    """Narrow [low, high) until exactly n keys are >= low, or to the key whose ties the n-th cuts (high = low + 1).

    At least n keys are >= low, `kept` of them, and fewer than n are >= high, before as after.
    """
    while (high > low + 1) & (kept != n):
        step = tl.maximum((high - low) // 3, 1)
        t1 = low + step
        t2 = t1 + step
        # Counts are at most 2^15: two fit one 32-bit sum.
        total = tl.sum((key >= t1).to(tl.int32) + tl.where(key >= t2, 0x10000, 0))
        c1 = total & 0xFFFF
        c2 = (total >> 16) & 0xFFFF
        high = tl.where(c1 < n, t1, tl.where(c2 < n, t2, high))
        low = tl.where(c2 >= n, t2, tl.where(c1 >= n, t1, low))
        kept = tl.where(c2 >= n, c2, tl.where(c1 >= n, c1, kept))
    return low, high, kept


@triton.jit
def _reaches(near, least, INTERPRETED: tl.constexpr):
    """1 where near >= least, else 0: one instruction of compute capability 9, where compare and select are two."""
    if INTERPRETED:
        return (near >= least).to(tl.int32)
    return tl.inline_asm_elementwise(
        "{ .reg .s32 t; add.s32 t, $1, $2; min.relu.s32 $0, t, 1; }", "=r,r,r", [near, 1 - least],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _narrow_by_halves(key, n, low, high, kept, INTERPRETED: tl.constexpr):
    """The same, one threshold a pass, on the keys' distances from low as soon as these fit a signed integer."""
    while (high - low > 0x3FFFFFFF) & (kept != n):
        middle = low + (high - low) // 2
        count = tl.sum((key >= middle).to(tl.int32))
        low, high = tl.where(count >= n, middle, low), tl.where(count >= n, high, middle)
        kept = tl.where(count >= n, count, kept)
    near = (tl.minimum(tl.maximum(key, low - 1), high) - low).to(tl.int32, bitcast=True)  # -1 .. high - low
    bottom = tl.full([], 0, tl.int32)
    top = (high - low).to(tl.int32, bitcast=True)
    while (top > bottom + 1) & (kept != n):
        middle = bottom + (top - bottom) // 2
        count = tl.sum(_reaches(near, middle, INTERPRETED))
        bottom, top = tl.where(count >= n, middle, bottom), tl.where(count >= n, top, middle)
        kept = tl.where(count >= n, count, kept)
    return low + bottom.to(tl.uint32), low + top.to(tl.uint32), kept


@triton.jit(do_not_specialize=["rows", "capacity", "ratio_numerator", "ratio_denominator", "floor_blocks"])
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
    SPAN: tl.constexpr,  # blocks whose entries a program writes
    PART: tl.constexpr,  # scans run over rows of PART blocks, then over the rows
    HALVES: tl.constexpr,  # search by halves instead of thirds
    INTERPRETED: tl.constexpr,
    EARLY: tl.constexpr,  # let the next kernel's programs in
    PDL: tl.constexpr,
):
    await_previous(PDL)
    release_next(PDL and EARLY)
    part = tl.program_id(0)
    row_id = tl.program_id(1)
    batch = row_id // rows
    row = row_id % rows
    blocks = tl.cdiv(tl.load(lengths + batch), BLOCK)
    n = selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks)
    scores += batch.to(tl.int64) * score_batch_stride + row * score_row_stride
    out = lists + batch.to(tl.int64) * list_batch_stride + row * list_row_stride

    index = tl.arange(0, WIDTH)
    key = _load_keys(scores, index, blocks)
    first = part * SPAN
    span = first + tl.arange(0, SPAN // PART)[:, None] * PART + tl.arange(0, PART)[None, :]
    own = _load_keys(scores, span, blocks)
    infinite = tl.sum((key >= INFINITE).to(tl.int32))
    least = tl.min(tl.where(index < blocks, key, INFINITE))
    most = tl.max(tl.where(key < INFINITE, key, 0))
    low = tl.where(infinite >= n, INFINITE, least).to(tl.uint32)
    high = tl.where(infinite >= n, INFINITE, most).to(tl.uint32) + 1
    kept = tl.where(infinite >= n, infinite, blocks)
    if HALVES:
        low, high, kept = _narrow_by_halves(key, n, low, high, kept, INTERPRETED)
    else:
        low, high, kept = _narrow_by_thirds(key, n, low, high, kept)

    # Where a tie is cut, high = low + 1: of the keys equal to low, the first ones fill up.
    cuts_tie = kept != n
    earlier = tl.sum(tl.where(index < first, (key > low).to(tl.int32) + tl.where(key == low, 0x10000, 0), 0))
    missing = blocks
    if cuts_tie:
        missing = n - tl.sum((key > low).to(tl.int32))
    ties = tl.minimum((earlier >> 16) & 0xFFFF, missing)
    _write_kept(own, span, low, cuts_tie, missing - ties, (earlier & 0xFFFF) + ties, out)
    TAIL: tl.constexpr = 256
    tail = tl.arange(0, TAIL)
    for start in range(n + part * TAIL, capacity, tl.num_programs(0) * TAIL):
        tl.store(out + start + tail, -1, mask=start + tail < capacity)
    if part == 0:
        tl.store(counts + row_id, n)


def select_blocks(
    scores: Tensor,
    cache: KVCache,
    lists: Tensor,
    counts: Tensor,
    config: SparseConfig,
    *,
    check_values: bool = False,
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
    width = max(triton.next_power_of_2(blocks), 32)
    parts = select_parts(width, cache.batch * rows)
    launch(
        _select_kernel,
        (parts, cache.batch * rows),
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
        SPAN=width // parts,
        PART=32,
        HALVES=HALVES_FROM <= width <= HALVES_TO and (INTERPRET or has_dpx()),
        INTERPRETED=INTERPRET,
        EARLY=is_small_step(cache.batch * rows * blocks, cache.device),
        num_warps=select_warps(width),
        num_stages=1,
    )


HALVES_FROM = 16384  # keys a row; below that the sums of a pass take longer than its comparisons
HALVES_TO = 16384  # above that there are not enough registers


def select_parts(width: int, rows: int) -> int:
    """Programs of a row: 2^n up to 16 with spans of at least 128 blocks, not over 128 programs in all."""
    parts = 1
    while 2 * parts <= min(width // 128, 16, 128 // rows):
        parts *= 2
    return parts


def select_warps(width: int) -> int:
    """Warps of a program: 32 keys a thread for long rows, few threads (cheap barriers) for short."""
    return max(1, min(32 if width > 16384 else 16 if width > 8192 else 8, width // 512))


def selection_reference(scores: Tensor, n: int) -> Tensor:
    """The n best of each row in plain torch: `[R, M]` scores to `[R, n]` ascending indices; ties to the lower."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :n]
    return order.sort(dim=-1).values.to(torch.int32)
