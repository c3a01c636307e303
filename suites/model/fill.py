"""How a decoder's tensors are filled, and in what groups of columns they become 4 bits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Fill = Callable[[str, Tensor], None]
"""Writes the tensor of that name into the one given, `[N, K]` or `[N]`."""


def int4_group(columns: int) -> int:
    """Weights that share a 4-bit scale: 128 as is usual, fewer where the rows ask for it (SmolLM2's 576 columns)."""
    return next((group for group in (128, 64) if columns % group == 0), 32)
