"""Blocks ranked by part of their keys: the channels where the query is largest, or a low rank of the keys.

SparQ (arXiv 2312.04985) reads the channels of the query's largest components; here those of the group's summed
magnitudes, so that a group shares what is read (Double Sparsity, 2408.07092, fixes the channels beforehand).
Loki (2406.02542) reads keys in the basis of their principal components, here those of the keys a sequence begins with.
A block's estimated mass is the sum over its tokens; heads are pooled as shares (pooled.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import AttentionShape, SparseConfig
from .base import Blocks, Selector, products, register_selector
from .pooled import pooled


class _ByTokens(Selector):
    """Estimates from something of every token, kept as a table of blocks."""

    tabled = True

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """One a KV head."""
        return shape.kv_heads

    def check(self, config: SparseConfig) -> None:
        """Raises ValueError without a local block."""
        if config.local_blocks < 1:
            raise ValueError(
                f"local_blocks: got 0, selector {self.name} needs 1: the newest block may be partly filled"
            )

    def estimate(self, blocks: Blocks, query: Tensor) -> Tensor:
        """Shares by products of `query` `[H, R, G, C]` with C values of each token."""
        scale, size = blocks.queries.shape[-1] ** -0.5, blocks.config.block_size

        def mass(query: Tensor, table: Tensor) -> Tensor:
            each = products(query, torch.unflatten(table, -1, (size, -1)).flatten(2, 3))
            return torch.unflatten(each.mul_(scale), -1, (-1, size)).logsumexp(-1)

        return pooled(blocks.compared(query, mass), blocks)


@register_selector("channels16", 16)
@dataclass(eq=False)
class Channels(_ByTokens):
    """The `count` channels in which a group's queries are largest, of every key."""

    count: int

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """The keys themselves: which channels are read depends on the query."""
        return keys.flatten(-2)

    def scores(self, blocks: Blocks) -> Tensor:
        """With the query zero in the channels that are not read."""
        queries = blocks.queries
        size = queries.abs().sum(2, keepdim=True)
        read = torch.zeros_like(size).scatter_(-1, size.topk(min(self.count, size.shape[-1]), dim=-1).indices, 1.0)
        return self.estimate(blocks, queries * read)

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """So many channels of every key."""
        return tokens * shape.kv_heads * min(self.count, shape.head_dim) * element


@register_selector("loki16", 16)
@dataclass(eq=False)
class LowRank(_ByTokens):
    """The first `rank` principal components of every key."""

    rank: int

    def calibrate(self, keys: Tensor) -> Tensor:
        """The basis, `[H, D, rank]`, of the keys' second moments."""
        _, vectors = torch.linalg.eigh(keys.transpose(1, 2) @ keys)
        basis: Tensor = vectors[..., -self.rank :].contiguous()
        return basis

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """Keys in that basis, `[H, ..., b rank]`."""
        assert known is not None
        return (keys.flatten(1, -2) @ known).view(*keys.shape[:-1], -1).flatten(-2)

    def scores(self, blocks: Blocks) -> Tensor:
        """Queries in that basis."""
        assert blocks.known is not None
        queries = blocks.queries
        return self.estimate(blocks, (queries.flatten(1, 2) @ blocks.known).view(*queries.shape[:-1], -1))

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """`rank` elements a key and KV head."""
        return tokens * shape.kv_heads * min(self.rank, shape.head_dim) * element
