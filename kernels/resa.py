"""Rectified Sparse Attention (arXiv 2506.04108) in Triton, and the same step without rectification."""

from .method import register
from .pipeline import SparseMethod

USES = ("block_size", "active_ratio", "min_blocks", "gqa_policy", "summary_kind")


@register("resa")
class Resa(SparseMethod):
    """Sparse steps, and every `rectify_every` tokens a dense pass over those tokens that corrects their K/V."""

    rectifies = True
    uses = (*USES, "rectify_every")


@register("sparse")
class SparseOnly(SparseMethod):
    """ReSA's step without rectification: what drifts. Its step is the same kernels as ReSA's."""

    in_default = False
    uses = USES
