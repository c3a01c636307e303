"""Blocks ranked by what their summaries say of each head's attention, summed over the heads of a group.

ReSA asks with the mean query of a group, Quest's sum adds unnormalised bounds: both drown the one head that looks for
something far away (docs/notes/selectors.md). Here each head's scores become shares first, a softmax over the blocks, as
its attention would weigh them; then the group's shares are added, as the oracle adds exact masses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.scores import query_slots
from ..config import AttentionShape, SparseConfig
from .base import Blocks, Selector, products, register_selector
from .summary import summaries_of


def pooled(logits: Tensor, blocks: Blocks) -> Tensor:
    """The log of the shares' sum over a group's heads, `[H, R, 1, M]`, of each head's logits of blocks `[H, R, G, M]`.

    The newest blocks, which are read in any case and whose summaries may lag behind, take no part.
    """
    held, _, index = blocks.counts(len(logits))
    logits = logits.masked_fill(index >= held - blocks.config.local_blocks, float("-inf"))
    total = logits.logsumexp(-1, keepdim=True)
    shares = logits - total.masked_fill(total.isinf(), 0.0)
    return torch.logsumexp(shares, 2, keepdim=True)


@register_selector("pooled")
class Pooled(Selector):
    """Of min/max bounds or mean/std estimates, as the settings' summary kind says."""

    summarised = True

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """One a KV head."""
        return shape.kv_heads

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """The summaries."""
        return summaries_of(keys, valid, config)

    def scores(self, blocks: Blocks) -> Tensor:
        """Summed shares, in logarithms."""
        config, queries = blocks.config, blocks.queries
        query = query_slots(queries, config.summary_kind, config.spread_weight)
        return pooled(blocks.compared(query, products) * queries.shape[-1] ** -0.5, blocks)

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """A summary a block and KV head."""
        return config.blocks(tokens) * config.summary_bytes(shape.head_dim, element) * shape.kv_heads
