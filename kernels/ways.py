"""`resa`: ReSA's step by the faster of its two ways. The rule stands here and nowhere else."""

from __future__ import annotations

import torch

from .cache import KVCache
from .config import AttentionShape, SparseConfig
from .fused.method import FusedLayer, ResaFused, refused
from .method import register
from .pipeline import SparseLayer
from .resa import ResaChain


def way(cache: KVCache, shape: AttentionShape, config: SparseConfig) -> str:
    """How `resa` runs a step on this cache: `fused` (one kernel) or `chain` (a kernel a stage).

    Fused where all of these hold, else the chain; nothing is timed to find out:

    1. The device has thread-block clusters, and something to compile with (`ResaFused.unavailable`).
    2. The fused step serves head dim, block size, the cache's dtype, group, selector and policy (`served.unsupported`),
       and the cache's rows start at multiples of 16 bytes (`served.misaligned`).
    3. A row of this capacity fits the shared memory of its cluster (`layout.plan`).
    """
    if ResaFused.unavailable(shape, cache.dtype, cache.device):
        return ResaChain.layer_class.way
    return ResaChain.layer_class.way if refused(cache, shape, config) else FusedLayer.way


@register("resa")
class Resa(ResaChain):
    """ReSA by the faster way for the case (`way`): as `resa-fused` or as `resa-chain`. Its layers say which."""

    in_default = True
    steps_like = None

    @classmethod
    def step_bytes(
        cls, shape: AttentionShape, config: SparseConfig, dtype: torch.dtype, tokens: int, in_fp8: bool = False
    ) -> int:
        """Of the fused step, wherever its settings serve: the larger of both ways."""
        return ResaFused.step_bytes(shape, config, dtype, tokens, in_fp8)

    def layer_kind(self, cache: KVCache) -> type[SparseLayer]:
        """The layer of the way that the rule gives."""
        return FusedLayer if way(cache, self.shape, self.config) == FusedLayer.way else super().layer_kind(cache)
