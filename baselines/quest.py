"""Quest (arXiv 2406.10774): min/max scores per query head, a budget in tokens, the newest page always kept.

Runs on this project's kernels: Quest's own CUDA path is MHA only, batch 1 and hard to build today. How GQA shares a
list is its `gqa_policy`: `per-head` as published (each head attends to its own list), or any policy of the others.
With `budget_tokens` unset the budget is `active_ratio` of the context.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..kernels import register
from ..kernels.config import SELECTS
from ..kernels.pipeline import SparseMethod


@register("quest")
class Quest(SparseMethod):
    """Selection without rectification; of a whole model the first two layers stay dense (section 4.1)."""

    uses = (*SELECTS, "budget_tokens")
    defaults: ClassVar[Mapping[str, Any]] = {"gqa_policy": "per-head", "dense_layers": 2}
    named = ("block_size", "gqa_policy")
    ranks_by = "summary"
    joins = ("micro",)
