"""Which blocks the steps of a stretch read, all of them at once: the selectors of the block-sparse methods as masks.

The same scores, ties and counts as one step at a time has (kernels/portable.py, baselines/), for R steps whose lengths
differ by one each. Shapes: `[Hkv, R, G, M]` for KV heads, steps, query heads of a group, blocks; a dimension is 1 where
its members share a list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import SparseConfig
from ...kernels.attention.scores import query_slots
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


def slots(queries: Tensor, config: SparseConfig) -> Tensor:
    """Query slots `[Hkv, R, 1 or G, 2 D]` of queries `[Hkv, R, G, D]` under the GQA policy (attention/scores.py)."""
    if config.gqa_policy == "group-mean":
        queries = queries.mean(2, keepdim=True)
    query = query_slots(queries.float(), config.summary_kind, config.spread_weight)
    return query.sum(2, keepdim=True) if config.gqa_policy in ("group-sum", "all-heads") else query


def best(scores: Tensor, lengths: Tensor, config: SparseConfig) -> Tensor:
    """The best blocks of each step, bool like `scores`; local and pinned blocks always, ties to the lower index.

    Args:
        scores: float32 `[.., R, .., M]`; those of blocks that a step does not have may be anything.
        lengths: int64 `[R]`, tokens that each step sees; `M` blocks hold the most of them.
    """
    blocks, counts, index = _layout(scores, lengths, config)
    always = config.always_selected(index, blocks)
    scores = scores.masked_fill(always, float("inf")).masked_fill(index >= blocks, float("-inf"))
    ranked = scores.topk(config.selected(scores.shape[-1] * config.block_size), dim=-1).values
    threshold = ranked.gather(-1, (counts - 1).expand(*ranked.shape[:-1], 1))
    above, equal = scores > threshold, scores == threshold
    return above | (equal & (equal.cumsum(-1) <= counts - above.sum(-1, keepdim=True)))


def sink_and_window(scores: Tensor, lengths: Tensor, config: SparseConfig) -> Tensor:
    """The first blocks and the newest ones (baselines/sink_window.py); of `scores` only the shape is looked at."""
    blocks, counts, index = _layout(scores, lengths, config)
    sink = counts.clamp(max=config.sink_blocks)
    return ((index < sink) | ((index >= blocks - (counts - sink)) & (index < blocks))).expand_as(scores)


def _layout(scores: Tensor, lengths: Tensor, config: SparseConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks and blocks to read of each step, `[R, 1, 1]`, and the index of every block, `[M]`.

    `SparseConfig.selected` of all steps at once, on the device: the host need not know the lengths.
    """
    ratio, blocks = config.ratio, -(-lengths[:, None, None] // config.block_size)
    wanted = -(-blocks * ratio.numerator // ratio.denominator)
    counts = torch.minimum(blocks, wanted.clamp(min=config.floor_blocks))
    return blocks, counts, torch.arange(scores.shape[-1], device=scores.device)
