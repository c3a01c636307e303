"""A few rows of 16-bit x times an e4m3 weight, with RMSNorm, bias, SwiGLU and residual in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_tensor
from .fp8 import Fp8Weight
from .small_linear import check_small, launch_small_linear
from .weights import Norm

MAX_FP8_ROWS = 64
MANY_COLUMNS = 16384
SmallTiles = tuple[int, int, int, int]
"""Weight rows of a program, warps, K of a warp's step, stages."""


def fp8_small_linear(
    x: Tensor,
    weight: Fp8Weight,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    out: Tensor | None = None,
    tiles: SmallTiles | None = None,
) -> Tensor:
    """`linear` of 1 to 64 rows with e4m3 weights in one launch; arguments as there, and `out` to write into.

    Args:
        tiles: in place of those that are taken for this size.

    Raises:
        TypeError, ValueError: a tensor's dtype, shape, device or strides; more than 64 rows.
    """
    check_tensor("weight.values", weight.values, (None, None), device=x.device)
    out = check_small(x, weight.shape, weight.bias, norm, residual, swiglu, out, MAX_FP8_ROWS)
    tiles = tiles or _tiles(x.shape[0], out.shape[1], x.shape[1], swiglu)
    values = weight.values.view(torch.uint8)
    launch_small_linear(x, values, weight.scales, weight.bias, norm, residual, swiglu, out, tiles)
    return out


def one_launch(rows: int, columns: int) -> bool:
    """Whether so few rows are faster by one launch than by a product between its neighbours, as an H200 has it."""
    return rows <= (16 if columns >= MANY_COLUMNS else MAX_FP8_ROWS)


def _tiles(rows: int, columns: int, depth: int, swiglu: bool) -> SmallTiles:
    """The fastest of 7 to 13 on an H200, Qwen2.5-7B's sizes (docs/notes/linear.md); none spills."""
    wide, deep = columns >= (MANY_COLUMNS // 2 if swiglu else MANY_COLUMNS), depth >= 8192
    if rows <= 8:
        return (32, 2, 128, 3) if wide else (16, 4, 128, 4)
    if rows <= 16:
        return (16, 4, 128, 4) if deep else (16, 4, 64, 4) if wide else (32, 4, 64, 4)
    if rows <= 32:
        return (32, 4, 128, 3) if deep else (16, 2, 128, 4)
    return 16, 4, 64, 4
