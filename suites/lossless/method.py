"""The name `resa-lossless`: ReSA's steps as drafts. Whole models decode so; a step of attention alone does not."""

from __future__ import annotations

import torch

from ...kernels import AttentionShape, DecodeMethod, KVCache, Layer, Unsupported, get_method, register
from ...kernels.portable import SELECTS
from ..decode.cases import ModelCase
from ..micro.cases import MethodSpec

NAME = "resa-lossless"


def steps_of(device: torch.device) -> str:
    """The registered method whose steps draft and whose rectification verifies."""
    return "resa" if device.type == "cuda" else "resa-torch"


@register(NAME)
class ResaLossless(DecodeMethod):
    """Sparse steps draft, a dense pass verifies (suites/decode/lossless.py)."""

    in_default = False
    uses = SELECTS

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return get_method(steps_of(device)).unavailable(shape, dtype, device)

    def prepare(self, cache: KVCache) -> Layer:
        raise Unsupported("drafts and verifies tokens of a whole model: run `resa-bench lossless`")


def bare(case: ModelCase, spec: MethodSpec, device: torch.device) -> DecodeMethod:
    """The method that drafts and verifies for `spec`, bound to no cache yet."""
    return get_method(steps_of(device))(case.shape, spec.config, dtype=case.torch_dtype, device=device)
