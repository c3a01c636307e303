"""Blocks ranked by a product of their summary with the query: min/max (Quest, ReSA) and mean/std.

Quest: arXiv 2406.10774. ReSA, whose mean query of a group shares one list: arXiv 2506.04108. How a group's heads share
lists is `gqa_policy`; both kinds, all policies and fp8 are one kernel (attention/scores.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.scores import query_slots, score_blocks
from ..attention.selection import select_blocks
from ..attention.summaries import DTYPES
from ..config import AttentionShape, SparseConfig
from ..e4m3 import rounded
from ..method import Stage, StepTensors
from .base import Blocks, SelectingLayer, Selector, products, register_selector


def summaries_of(keys: Tensor, valid: Tensor | None, config: SparseConfig) -> Tensor:
    """Summaries of the settings' kind, float32 `[..., 2 D]`, of many blocks or rows at once (`Selector.describe`).

    In fp8 as that holds them; the caller rounds to a cache's own element type.
    """
    if config.summary_kind == "minmax":
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
    table = torch.cat(pair, -1)
    return rounded(table, DTYPES[config.summary_dtype]).float() if config.summary_dtype else table


def summary_scores(blocks: Blocks) -> Tensor:
    """Scores under the settings' summary kind and GQA policy, float32 `[H or sequences, R, 1 or G, M]`."""
    config, queries = blocks.config, blocks.queries
    if config.gqa_policy == "group-mean":
        queries = queries.mean(2, keepdim=True)
    query = query_slots(queries, config.summary_kind, config.spread_weight)
    if config.gqa_policy in ("group-sum", "all-heads"):
        query = query.sum(2, keepdim=True)
    scores = blocks.compared(query, products)
    if config.gqa_policy == "all-heads":
        scores = torch.unflatten(scores, 0, (blocks.sequences, -1)).sum(1)
    return scores


@register_selector("minmax")
@register_selector("meanstd")
class Summary(Selector):
    """The kind of summary that the settings name."""

    summarised = True
    reads_fp8 = True

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """The summaries."""
        return summaries_of(keys, valid, config)

    def scores(self, blocks: Blocks) -> Tensor:
        """Products of query slots and summaries."""
        return summary_scores(blocks)

    def appends(self, config: SparseConfig) -> bool:
        """True where the newest block is selected whatever its score, which need not wait for its summary."""
        return config.local_blocks > 0

    def kernel_stages(self, layer: SelectingLayer, step: StepTensors) -> tuple[Stage, ...]:
        """Scores, which take the append along where they can, and the selection."""
        cache, config, work, summaries = layer.cache, layer.config, layer.work, layer.summaries
        assert summaries is not None
        append = (step.k, step.v) if self.appends(config) else None
        return (
            Stage(
                "append+score" if append else "score",
                lambda: score_blocks(step.q, cache, summaries, work.scores, config, append=append),
            ),
            Stage("select", lambda: select_blocks(work.scores, cache, work.lists, work.counts, config)),
        )

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """A summary a block and KV head."""
        return config.blocks(tokens) * config.summary_bytes(shape.head_dim, element) * shape.kv_heads
