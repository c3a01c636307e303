"""Selection in rows that no program can hold: several programs share a row, a digit of four bits a launch.

The n-th largest key is found from its top digit down. In each pass every program counts, among the keys of its span
that share the digits settled so far, how many have each value of the next one, and writes these 16 tallies. The next
launch adds up the tallies of all spans, settles the digit, and counts the next. In the end each program writes its
span's entries; how many earlier spans keep is known from their tallies. Exact as `selection.py`; ties go to the lower
index. A row takes nine launches; each reads its keys from the L2 (docs/notes/speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..config import ceil_div
from ..launch import await_previous, launch
from .addressing import held_tokens, selected_blocks, strided
from .sorting_keys import load_keys, rank_flags

SPAN = 4096  # keys of a program: 32 a thread of four warps, since a byte counts them
DIGIT_BITS = 4
PASSES = 32 // DIGIT_BITS

_UNSPECIALIZED = [
    "token_capacity",
    "rows",
    "capacity",
    "ratio_numerator",
    "ratio_denominator",
    "floor_blocks",
    "settled",
]


@triton.jit
def _settled(tallies, row_id, row_count, parts, settled, part, blocks, n, PASSES: tl.constexpr, PARTS: tl.constexpr):
    """The threshold's settled digits, and what they say of all keys and of the spans before `part`.

    Returns:
        threshold (its lower digits 0), keys over all that share its settled digits (`sure`), keys over or sharing them
        (`kept`), settled digits that were needed, and of the earlier spans: keys over, and keys that share the digits.
    """
    digit = tl.arange(0, 16)
    span = tl.arange(0, PARTS)
    threshold = tl.full([], 0, tl.uint32)
    sure = tl.full([], 0, tl.int32)
    kept = blocks
    needed = tl.full([], 0, tl.int32)
    earlier_over = tl.full([], 0, tl.int32)
    earlier_tied = tl.full([], 0, tl.int32)
    for number in tl.static_range(PASSES):
        of_row = tallies + strided(strided(row_count, number) + row_id, parts) * 16
        reached = number < settled
        inside = (span < parts) & (span * 0 + number < settled)
        tally = tl.load(of_row + span[:, None] * 16 + digit[None, :], mask=inside[:, None], other=0)
        if reached and kept != n:
            of_digit = tl.sum(tally, axis=0)
            at_least = tl.cumsum(of_digit, axis=0, reverse=True)
            value = tl.max(tl.where(sure + at_least >= n, digit, 0))
            earlier = tl.sum(tl.where(span[:, None] < part, tally, 0), axis=0)
            earlier_over += tl.sum(tl.where(digit > value, earlier, 0))
            earlier_tied = tl.sum(tl.where(digit == value, earlier, 0))
            kept = sure + tl.sum(tl.where(digit >= value, of_digit, 0))
            sure += tl.sum(tl.where(digit > value, of_digit, 0))
            threshold |= value.to(tl.uint32) << (28 - 4 * number)
            needed = tl.full([], number + 1, tl.int32)
    return threshold, sure, kept, needed, earlier_over, earlier_tied


@triton.jit
def _add_eight(a, b, c, d, e, f, g, h, a2, b2, c2, d2, e2, f2, g2, h2):
    return a + a2, b + b2, c + c2, d + d2, e + e2, f + f2, g + g2, h + h2


@triton.jit
def _count_digit(digit, counted, WORD: tl.constexpr):
    """How many of a column's keys have each of four digits, a byte each."""
    unit = (counted & ((digit >> 2) == WORD)).to(tl.uint32)
    packed = tl.sum(unit << ((digit & 3) * 8), axis=0)
    return (packed & 0x00FF00FF).to(tl.int32), ((packed >> 8) & 0x00FF00FF).to(tl.int32)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _tally_kernel(
    scores,  # float32 [B, R, M]
    tallies,  # int32 [PASSES, B * R, parts, 16]
    lengths,  # int32 [B]
    token_capacity,  # of a sequence
    rows,
    ratio_numerator,
    ratio_denominator,
    floor_blocks,
    settled,  # digits settled by the launches before: this one tallies the next
    score_batch_stride,
    score_row_stride,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    PASSES: tl.constexpr,
    PDL: tl.constexpr,
):
    part = tl.program_id(0)
    row_id = tl.program_id(1)
    batch = row_id // rows
    row = row_id % rows
    blocks = tl.cdiv(held_tokens(tl.load(lengths + batch), token_capacity), BLOCK)
    await_previous(PDL)
    n = selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks)
    scores += strided(batch, score_batch_stride) + strided(row, score_row_stride)
    THREADS: tl.constexpr = SPAN // 32
    index = part * SPAN + tl.arange(0, 32)[:, None] * THREADS + tl.arange(0, THREADS)[None, :]
    key = load_keys(scores, index, blocks)
    parts, row_count = tl.num_programs(0), tl.num_programs(1)
    threshold, _, kept, _, _, _ = _settled(tallies, row_id, row_count, parts, settled, part, blocks, n, PASSES, PARTS)
    if kept != n:
        shift = tl.full([], 28, tl.uint32) - settled * 4
        # Settled digits are equal where nothing is left above the next one. In two shifts: one by 32 is not defined.
        counted = (index < blocks) & ((((key ^ threshold) >> shift) >> 4) == 0)
        digit = (key >> shift) & 15
        a, b = _count_digit(digit, counted, 0)
        c, d = _count_digit(digit, counted, 1)
        e, f = _count_digit(digit, counted, 2)
        g, h = _count_digit(digit, counted, 3)
        a, b, c, d, e, f, g, h = tl.reduce((a, b, c, d, e, f, g, h), 0, _add_eight)
        value = tl.arange(0, 16)
        even = tl.where(value < 4, a, tl.where(value < 8, c, tl.where(value < 12, e, g)))
        odd = tl.where(value < 4, b, tl.where(value < 8, d, tl.where(value < 12, f, h)))
        both = tl.where(value % 2 == 0, even, odd)
        tally = tl.where(value % 4 < 2, both & 0xFFFF, both >> 16)
        own = tallies + (strided(strided(settled, row_count) + row_id, parts) + part) * 16
        tl.store(own + value, tally)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _write_long_kernel(
    scores,  # float32 [B, R, M]
    tallies,  # int32 [PASSES, B * R, parts, 16]
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
    SPAN: tl.constexpr,
    PART: tl.constexpr,  # scans run over rows of PART blocks, then over the rows
    PARTS: tl.constexpr,
    PASSES: tl.constexpr,
    PDL: tl.constexpr,
):
    part = tl.program_id(0)
    row_id = tl.program_id(1)
    batch = row_id // rows
    row = row_id % rows
    blocks = tl.cdiv(held_tokens(tl.load(lengths + batch), token_capacity), BLOCK)
    await_previous(PDL)
    n = selected_blocks(blocks, ratio_numerator, ratio_denominator, floor_blocks)
    scores += strided(batch, score_batch_stride) + strided(row, score_row_stride)
    out = lists + strided(batch, list_batch_stride) + strided(row, list_row_stride)
    index = part * SPAN + tl.arange(0, SPAN // PART)[:, None] * PART + tl.arange(0, PART)[None, :]
    key = load_keys(scores, index, blocks)
    threshold, sure, kept, needed, earlier_over, earlier_tied = _settled(
        tallies, row_id, tl.num_programs(1), tl.num_programs(0), PASSES, part, blocks, n, PASSES, PARTS
    )
    missing = n - sure  # of the keys that share the settled digits; all of them where no tie is cut
    if needed == 0:
        earlier_tied = tl.minimum(part * SPAN, blocks)
    tied = (index < blocks) & (key >= threshold)
    over = tied & (key > (threshold | _below(needed)))
    tied = tied & (over == 0)
    if kept != n:
        tied = tied & (rank_flags(tied) < missing - earlier_tied)
    keep = over | tied
    written = earlier_over + tl.minimum(earlier_tied, missing)
    place = tl.where(keep, written + rank_flags(keep), -1)
    tl.store(out + place.to(tl.int64), index, mask=place >= 0)
    TAIL: tl.constexpr = 256
    tail = tl.arange(0, TAIL)
    for start in range(n + part * TAIL, capacity, tl.num_programs(0) * TAIL):
        tl.store(out + start + tail, -1, mask=start + tail < capacity)
    if part == 0:
        tl.store(counts + row_id, n)


@triton.jit
def _below(needed):
    """The bits under the settled digits; a shift by 32 is not defined, and 0 digits leave all."""
    return tl.where(needed == 0, 0xFFFFFFFF, (tl.full([], 1, tl.uint32) << ((8 - needed) * 4).to(tl.uint32)) - 1)


def select_long(arguments: dict[str, Any], blocks: int, row_count: int, device: torch.device) -> None:
    """Launch the passes and the writing.

    Args:
        arguments: what both kernels take, by name, as `select_blocks` gives them.
        blocks: of a row at the cache's capacity.
        row_count: rows of all sequences.
    """
    parts = ceil_div(blocks, SPAN)
    tallies = torch.empty(PASSES, row_count, parts, 1 << DIGIT_BITS, dtype=torch.int32, device=device)
    sizes = {"SPAN": SPAN, "PARTS": triton.next_power_of_2(parts), "PASSES": PASSES}
    of_lists = ("lists", "counts", "capacity", "list_batch_stride", "list_row_stride")
    counting = {name: value for name, value in arguments.items() if name not in of_lists}
    for settled in range(PASSES):
        launch(
            _tally_kernel, (parts, row_count), tallies=tallies, settled=settled, **counting, **sizes,
            num_warps=4, num_stages=1,
        )  # fmt: skip
    launch(
        _write_long_kernel,
        (parts, row_count),
        tallies=tallies,
        PART=32,
        **arguments,
        **sizes,
        num_warps=8,
        num_stages=1,
    )
