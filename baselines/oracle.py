"""Oracle top-k: the blocks with the most exact attention mass. The ceiling of any selector, at the price of dense."""

from __future__ import annotations

from ..kernels import register
from ..kernels.config import CHOOSES
from ..kernels.pipeline import SparseMethod


@register("oracle")
class Oracle(SparseMethod):
    """Top-k by exact mass, one list per KV head."""

    uses = (*CHOOSES, "budget_tokens")
    ranks_by = "mass"
    joins = ("micro",)
