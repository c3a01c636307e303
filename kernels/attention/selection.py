"""Selection: the n best blocks of each row of scores, exactly, with n found on the device from the actual length.

Several programs share a row. Each holds the whole row and searches it, bit by bit from the top: scores become 32-bit
keys in the same order, as distances from the least, and every thread transposes its 32 keys into words that hold the
same bit of each. A bit of the n-th largest key is then settled by counting, among the keys that share the bits settled
so far, those that have it: a few instructions and a sum over the program. The search ends as soon as exactly n keys are
above or tied. Then each program writes the list's entries of its own span of blocks; it counts what earlier spans keep,
so lists come out ascending without sorting. Ties go to the lower block index.

Rows of more than HELD_BLOCKS do not fit a program's registers: long_selection.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache import KVCache
from ..checks import check_device, check_tensor
from ..config import MAX_BLOCKS, SparseConfig, ceil_div
from ..launch import await_previous, launch, release_next, scores_per_sm
from .addressing import held_tokens, selected_blocks, strided
from .long_selection import select_long
from .sorting_keys import load_keys, rank_flags

EARLY = 64  # scores a multiprocessor: in smaller steps attention's programs take their places from the start
HELD_BLOCKS = 32768  # of a row, that one program holds in registers
BITS = 2  # settled in one pass, 1 or 2: two count three sets of keys and exchange two sums


@triton.jit
def _write_kept(key, index, threshold, cuts_tie, missing, written, out):
    """Write the indices of a span's kept keys in order, `written` of them being before it; `missing` ties are kept."""
    keep = key >= threshold
    if cuts_tie:
        keep = (key > threshold) | (keep & (rank_flags(key == threshold) < missing))
    place = tl.where(keep, written + rank_flags(keep), -1)
    tl.store(out + place.to(tl.int64), index, mask=place >= 0)


@triton.jit
def _by_warps(x):
    """A word of each thread, one row a warp: sums along a row need no barrier."""
    return tl.reshape(x, (x.shape[0] // 32, 32))


@triton.jit
def _extremes(least, most, other_least, other_most):
    return tl.minimum(least, other_least), tl.maximum(most, other_most)


@triton.jit
def _sums(a, b, other_a, other_b):
    return a + other_a, b + other_b


@triton.jit
def _ones(x):
    """How many bits of each word are set; compiled to one instruction."""
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _two_counts(a, b):
    """How many bits of a or b are set, with those of b in the upper 16 bits; no bit is set in both.

    A product, as a shift by 16 keeps the compiler from making one instruction of `_ones`.
    """
    return _ones(a) + _ones(b) * 0x10001


@triton.jit
def _halves(rows):
    """The first and the second half of a tile's rows."""
    HALF: tl.constexpr = rows.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(rows, (2, HALF, rows.shape[1])), (1, 2, 0)))


@triton.jit
def _exchange(rows, SHIFT: tl.constexpr):
    """A step of transposing: of every 2 SHIFT bits, the upper ones in the first half's rows for the second's lower."""
    a, b = _halves(rows)
    swap = ((a >> SHIFT) ^ b) & (0xFFFFFFFF // ((1 << SHIFT) + 1))
    return a ^ (swap << SHIFT), b ^ swap


@triton.jit
def _planes(rows):
    """16 rows of words to 16 words a thread: bits i and 16 + i of the j-th are bits j and 16 + j of row i."""
    planes = (rows,)
    for step in tl.static_range(4):
        finer = _exchange(planes[0], 8 >> step)
        for j in tl.static_range(1, 1 << step):
            finer += _exchange(planes[j], 8 >> step)
        planes = finer
    return planes


@triton.jit
def _places_before(limit, THREADS: tl.constexpr):
    """A word a thread, bit i set where key i * THREADS + thread is before limit."""
    places = (limit - tl.arange(0, THREADS) + THREADS - 1) // THREADS
    return ((tl.full([THREADS], 1, tl.int64) << places) - 1).to(tl.uint32)


@triton.jit
def _settle(count, ones, bit, n, threshold, above, tied, sure, kept):
    """Settle one bit: `ones` are the tied keys that have it, `count` these and the `sure` ones."""
    if count >= n:
        threshold |= bit
        tied = ones
        kept = count
    else:
        above |= ones
        tied ^= ones
        sure = count
    return threshold, above, tied, sure, kept


@triton.jit
def _narrow(planes, TOP: tl.constexpr, last, n, threshold, above, tied, sure, kept, BITS: tl.constexpr):
    """Settle bits TOP to TOP - 15 of the threshold, but none below `last`, until exactly n keys are kept.

    `tied` marks the keys that share the threshold's settled bits, `above` those over them, `sure` in number; these are
    fewer than n, and with the tied ones `kept`, at least n, before as after.
    """
    for j in tl.static_range(0, 16, BITS):
        if (kept != n) & (last <= TOP - j):
            bit = tl.full([], 1 << (TOP - j), tl.uint32)
            ones = tied & tl.reshape(planes[15 - j], tied.shape)
            if BITS == 1:
                count = sure + tl.sum(_ones(ones))
                threshold, above, tied, sure, kept = _settle(count, ones, bit, n, threshold, above, tied, sure, kept)
            else:
                # Two counts fit one 32-bit sum: they are below 2^15, as the least key has no bit set.
                plane = tl.reshape(planes[14 - j], tied.shape)
                a = tl.sum(_by_warps(_two_counts(ones & (plane ^ 0xFFFFFFFF), ones & plane)), axis=1)
                b = tl.sum(_by_warps(_ones((tied ^ ones) & plane)), axis=1)
                a, b = tl.reduce((a, b), 0, _sums)
                count = sure + (a & 0xFFFF)
                next_count = tl.where(count >= n, sure + (a >> 16), count + b)
                threshold, above, tied, sure, kept = _settle(count, ones, bit, n, threshold, above, tied, sure, kept)
                ones = tied & plane
                threshold, above, tied, sure, kept = _settle(
                    next_count, ones, bit >> 1, n, threshold, above, tied, sure, kept
                )
    return threshold, above, tied, sure, kept


@triton.jit(
    do_not_specialize=["token_capacity", "rows", "capacity", "ratio_numerator", "ratio_denominator", "floor_blocks"]
)
def _select_kernel(
    scores,  # float32 [B, R, M]
    lists,  # int32 [B, R, N] out: ascending block indices, padded with -1
    counts,  # int32 [B, R] out: n
    lengths,  # int32 [B]
    token_capacity,  # of a sequence
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
    THREADS: tl.constexpr,  # with 32 keys each
    SPAN: tl.constexpr,  # blocks whose entries a program writes
    PART: tl.constexpr,  # scans run over rows of PART blocks, then over the rows
    BITS: tl.constexpr,
    EARLY: tl.constexpr,  # let the next kernel's programs in
    PDL: tl.constexpr,
):
    part = tl.program_id(0)
    row_id = tl.program_id(1)
    batch = row_id // rows
    row = row_id % rows
    blocks = tl.cdiv(held_tokens(tl.load(lengths + batch), token_capacity), BLOCK)
    await_previous(PDL)
    release_next(PDL and EARLY)
    n = selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks)
    scores += strided(batch, score_batch_stride) + strided(row, score_row_stride)
    out = lists + strided(batch, list_batch_stride) + strided(row, list_row_stride)

    # Rows of one key a thread. Of addresses known to be aligned, the compiler would have each thread load 4 neighbours
    # and exchange them through shared memory.
    thread = tl.arange(0, THREADS)[None, :]
    columns = tl.multiple_of(scores + thread, [1, 1])
    key = load_keys(columns, tl.arange(0, 32)[:, None] * THREADS, blocks - thread)
    first = part * SPAN
    span = first + tl.arange(0, SPAN // PART)[:, None] * PART + tl.arange(0, PART)[None, :]
    own = load_keys(scores, span, blocks)

    # From the least key to one over the largest finite one, where +inf goes (with 0x00800000 added its key wraps to 0).
    least = tl.min(_by_warps(tl.min(key, axis=0)), axis=1)
    most = tl.max(_by_warps(tl.max(key + 0x00800000, axis=0)), axis=1)
    least, most = tl.reduce((least, most), 0, _extremes)
    most -= 0x007FFFFF
    # Distances are shifted so that the top bit is used; the lowest bits are 0 then.
    unused = tl.maximum(158 - ((most - least).to(tl.float32).to(tl.int32, bitcast=True) >> 23), 0).to(tl.uint32)
    scale = tl.full([], 1, tl.uint32) << unused
    a, b = _halves(tl.minimum(key, most) * scale - least * scale)
    upper = (a >> 16) | (b & 0xFFFF0000)
    lower = (a & 0xFFFF) | (b << 16)

    threshold = tl.full([], 0, tl.uint32)
    above = tl.full([THREADS], 0, tl.uint32)
    tied = _places_before(blocks, THREADS)
    sure = tl.full([], 0, tl.int32)
    kept = blocks
    if kept != n:
        threshold, above, tied, sure, kept = _narrow(
            _planes(upper), 31, unused, n, threshold, above, tied, sure, kept, BITS
        )
    if (kept != n) & (unused < 16):
        threshold, above, tied, sure, kept = _narrow(
            _planes(lower), 15, unused, n, threshold, above, tied, sure, kept, BITS
        )
    threshold = least + (threshold >> unused)

    # Where a tie is cut, all bits are settled: of the keys equal to the threshold, the first ones fill up.
    before = _places_before(first, THREADS)
    earlier = tl.sum(_two_counts(above & before, tied & before))
    missing = n - sure
    ties = earlier >> 16
    written = (earlier & 0xFFFF) - ties + tl.minimum(ties, missing)
    own = tl.where(span < blocks, tl.minimum(own, most), 0)
    _write_kept(own, span, threshold, kept != n, missing - ties, written, out)
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
        for b, length in enumerate(cache.lengths_on_host()):
            if scores[b, :, : config.blocks(length)].isnan().any():
                raise ValueError(f"scores: NaN in the valid scores of sequence {b}")
    arguments = dict(
        scores=scores,
        lists=lists,
        counts=counts,
        lengths=cache.lengths,
        token_capacity=cache.capacity,
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
    )
    width = max(triton.next_power_of_2(blocks), 32)
    if width > HELD_BLOCKS:
        select_long(arguments, blocks, cache.batch * rows, cache.device)
        return
    parts = select_parts(width, cache.batch * rows)
    launch(
        _select_kernel,
        (parts, cache.batch * rows),
        **arguments,
        THREADS=32 * select_warps(width),
        SPAN=width // parts,
        PART=32,
        BITS=BITS,
        EARLY=scores_per_sm(cache.batch * rows * blocks, cache.device) <= EARLY,
        num_warps=select_warps(width),
        num_stages=1,
    )


def select_parts(width: int, rows: int) -> int:
    """Programs of a row: 2^n up to 16 with spans of at least 128 blocks, not over 128 programs in all."""
    parts = 1
    while 2 * parts <= min(width // 128, 16, 128 // rows):
        parts *= 2
    return parts


def select_warps(width: int) -> int:
    """Warps of a program: 32 keys a thread."""
    return max(1, width // 1024)


def selection_reference(scores: Tensor, n: int) -> Tensor:
    """The n best of each row in plain torch: `[R, M]` scores to `[R, n]` ascending indices; ties to the lower."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :n]
    return order.sort(dim=-1).values.to(torch.int32)
