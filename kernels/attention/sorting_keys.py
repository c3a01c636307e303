"""Scores as integers that sort alike, and places of flags: what both selections are made of."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_keys(row, index, blocks):
    """Scores as unsigned integers in the same order; past the last block the key of +inf."""
    bits = (tl.load(row + index, mask=index < blocks, other=float("inf")) + 0.0).to(tl.int32, bitcast=True)  # no -0
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def rank_flags(flag):
    """How many flags of a 2D tile are set before each place, row by row.

    One scan inside the rows, one over their sums: a flat scan would make every thread add up the sums of all warps.
    """
    bit = flag.to(tl.int32)
    in_row = tl.sum(bit, axis=1)
    before = tl.cumsum(in_row, axis=0) - in_row
    return before[:, None] + tl.cumsum(bit, axis=1) - bit
