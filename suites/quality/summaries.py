"""Block summaries of many blocks or rows at once, as one step at a time keeps them (kernels/portable.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.attention.summaries import rounded


def summarise(keys: Tensor, valid: Tensor | None, kind: str, dtype: torch.dtype) -> Tensor:
    """Summaries of blocks as they are kept in `dtype`.

    Args:
        keys: float32 `[..., b, D]`.
        valid: bool, broadcast to `[..., b, 1]`: keys that count; None for all. A block without any is left undefined.

    Returns:
        float32 `[..., 2 D]`.
    """
    if kind == "minmax":
        low = keys if valid is None else keys.masked_fill(~valid, float("inf"))
        high = keys if valid is None else keys.masked_fill(~valid, float("-inf"))
        pair = low.amin(-2), high.amax(-2)
    elif valid is None:
        variance, mean = torch.var_mean(keys, -2, correction=0)
        pair = mean, variance.sqrt()
    else:
        count = valid.sum(-2)
        mean = keys.masked_fill(~valid, 0.0).sum(-2) / count
        deviation = (keys - mean[..., None, :]).masked_fill(~valid, 0.0)
        pair = mean, (deviation.square().sum(-2) / count).sqrt()
    return rounded(torch.cat(pair, -1), dtype).float()
