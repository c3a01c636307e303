"""Rectified Sparse Attention (arXiv 2506.04108) in Triton, and the same step without rectification."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .config import CHOOSES, SELECTS, AttentionShape
from .launch import can_run_on
from .method import register
from .pipeline import SparseMethod


@register("resa-chain")
class ResaChain(SparseMethod):
    """Sparse steps in a chain of kernels, and every `rectify_every` tokens a dense pass that corrects their K/V."""

    rectifies = True
    in_default = False  # default lists time what `resa` does not take (`ways.py`)
    steps_like: ClassVar[str | None] = "resa"
    device_type = "cuda"  # in plain torch it is `resa-torch`
    uses = (*SELECTS, "rectify_every")
    ranks_by: ClassVar[str | None] = "summary"

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return can_run_on(device)


@register("sparse")
class SparseOnly(SparseMethod):
    """ReSA's step without rectification: what drifts. Its step is the same kernels as ReSA's."""

    in_default = False
    uses = SELECTS
    ranks_by = "summary"


@register("resa-plus")
class ResaPlus(SparseMethod):
    """ReSA whose blocks are ranked by the 4-bit means of their pairs of keys: it reads three quarters of the blocks.

    Pairs take the bytes of min/max over 16 tokens, and more time to rank. What they choose is better, so that fewer
    blocks do.
    """

    rectifies = True
    uses = (*CHOOSES, "selector", "rectify_every")
    defaults: ClassVar[Mapping[str, Any]] = {"selector": "pairs", "active_ratio": 0.075, "pinned_blocks": 1}
    ranks_by = "summary"
    joins = ("tasks",)
