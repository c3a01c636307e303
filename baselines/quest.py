"""Quest (arXiv 2406.10774): min/max scores per query head, a budget in tokens, the newest page always kept.

Runs on this project's kernels: Quest's own CUDA path is MHA only, batch 1 and hard to build today. How GQA shares a
list is its `gqa_policy`: `per-head` as published (each head attends to its own list), or any policy of the others.
With `budget_tokens` unset the budget is `active_ratio` of the context.
"""

from ..kernels import register
from ..kernels.pipeline import SparseMethod
from ..kernels.portable import SELECTS


@register("quest")
class Quest(SparseMethod):
    """Selection without rectification. (Quest leaves a model's first two layers dense; here a layer stands alone.)"""

    uses = (*SELECTS, "budget_tokens")
