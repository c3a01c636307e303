"""The name `resa-lossless`: ReSA's steps as drafts. Whole models decode so; a step of attention alone does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...kernels import AttentionShape, DecodeMethod, KVCache, Layer, Unsupported, get_method, register
from ...kernels.config import SELECTS
from ..core.spec import resa_here

NAME = "resa-lossless"


@register(NAME)
class ResaLossless(DecodeMethod):
    """Sparse steps draft, a dense pass verifies (suites/engine/rounds.py)."""

    in_default = False
    joins = ()
    uses = SELECTS
    defaults: ClassVar[Mapping[str, Any]] = {"draft_length": 8}
    named = ("block_size", "draft_length")

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why ReSA cannot run here, or None."""
        return get_method(resa_here(device)).unavailable(shape, dtype, device)

    def prepare(self, cache: KVCache) -> Layer:
        """Raises Unsupported: ReSA's layers draft and verify in its place."""
        raise Unsupported("drafts and verifies tokens of a whole model: run `resa-bench lossless`")
