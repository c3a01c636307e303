"""Blocks ranked by their exact attention mass: the ceiling of any selector, at the price of reading every key."""

from __future__ import annotations

from torch import Tensor

from ..config import AttentionShape, SparseConfig
from .base import Blocks, Selector, register_selector


@register_selector("mass")
class Mass(Selector):
    """The mass summed over a group's heads; one list a KV head."""

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """One a KV head."""
        return shape.kv_heads

    def scores(self, blocks: Blocks) -> Tensor:
        """Masses summed over the group."""
        return blocks.masses().sum(2, keepdim=True)

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """Every key."""
        return tokens * shape.kv_heads * shape.head_dim * element
