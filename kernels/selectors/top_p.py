"""Budgets by mass (Twilight, arXiv 2502.02770): as many of the best blocks as hold a share p of the estimated mass.

Counts differ by list; n of the settings is the most, so that a step never reads more than without. The estimate is that
of `pooled`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Blocks, register_selector
from .pooled import Pooled


@register_selector("top-p95", 0.95)
@register_selector("top-p90", 0.9)
@dataclass(eq=False)
class TopP(Pooled):
    """The least number of blocks whose shares reach `share` of what all but the newest are estimated to hold."""

    share: float

    ranked = False

    def choose(self, blocks: Blocks) -> Tensor:
        """Of the best n, those before which less than the share was reached; local and pinned blocks in any case."""
        scores = self.scores(blocks)
        chosen = blocks.best(scores)
        held, _, index = blocks.counts(len(scores))
        weights, order = scores.exp().sort(dim=-1, descending=True, stable=True)
        reached = weights.cumsum(-1) - weights >= self.share * weights.sum(-1, keepdim=True)
        enough = torch.zeros_like(reached).scatter_(-1, order, reached)
        return chosen & (~enough | blocks.config.always_selected(index, held))
