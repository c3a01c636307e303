"""Oracle top-k: the blocks with the most exact attention mass. The ceiling of any selector, at the price of dense."""

from __future__ import annotations

import torch

from ..kernels import KVCache, Stage, StepTensors, Traffic, Unsupported, register
from ..kernels.attention.selection import select_blocks
from ..kernels.config import CHOOSES
from ..kernels.method import dense_traffic
from ..kernels.pipeline import SparseLayer, SparseMethod
from ..kernels.portable import TorchSparseLayer
from ..kernels.workspace import BlockSparseLayer


class _ScoredByMass(BlockSparseLayer):
    """Scores are sums over the group's heads of softmax mass per block, in plain torch."""

    def score_masses(self, step: StepTensors, tokens: int) -> None:
        """Fill `work.scores` for the blocks of the first `tokens` tokens, which every length lies within."""
        shape, config, cache = self.shape, self.config, self.cache
        query = step.q.view(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        logits = (query @ cache.k[:, :, :tokens].transpose(2, 3)).float() * shape.head_dim**-0.5  # [B, Hkv, G, S]
        position = torch.arange(tokens, device=cache.device)
        logits.masked_fill_(position >= cache.lengths[:, None, None, None], float("-inf"))
        mass = torch.softmax(logits, dim=-1).sum(2)  # [B, Hkv, S]
        mass = torch.nn.functional.pad(mass, (0, -tokens % config.block_size))
        scores = mass.view(*mass.shape[:2], -1, config.block_size).sum(3)  # [B, Hkv, blocks]
        index = torch.arange(scores.shape[2], device=cache.device)
        blocks = (cache.lengths + config.block_size - 1) // config.block_size
        always = config.always_selected(index, blocks[:, None, None])
        self.work.scores[:, :, : scores.shape[2]] = scores.masked_fill(always, float("inf"))

    def traffic(self) -> dict[str, Traffic]:
        """Scoring reads every key instead of summaries."""
        parts = super().traffic()
        keys = Traffic(dense_traffic(self.cache, self.shape.q_heads)["attend"].bytes // 2)
        parts["score"] = keys
        parts["total"] = parts["total"] + keys
        return parts


class OracleLayer(_ScoredByMass, SparseLayer):
    """One layer whose selection and attention are kernels."""

    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Scoring and selection."""
        work = self.work
        return (
            Stage("score", lambda: self.score_masses(step, self.cache.capacity)),
            Stage("select", lambda: select_blocks(work.scores, self.cache, work.lists, work.counts, self.config)),
        )


class TorchOracleLayer(_ScoredByMass, TorchSparseLayer):
    """One layer in plain torch."""

    def score(self, step: StepTensors) -> None:
        """Fill `work.scores`, float32 `[B, Hkv, blocks]`."""
        self.score_masses(step, max(int(self.cache.lengths.max()), 1))


@register("oracle")
class Oracle(SparseMethod):
    """Top-k by exact mass, one list per KV head."""

    scored = False
    layer_class = OracleLayer
    torch_layer_class = TorchOracleLayer
    uses = (*CHOOSES, "budget_tokens")
    ranks_by = "mass"
    joins = ("micro",)

    def rows(self) -> int:
        """Lists of a sequence: one a KV head."""
        return self.shape.kv_heads

    def prepare(self, cache: KVCache) -> BlockSparseLayer:
        """One layer, bound to its cache. Raises Unsupported for a paged one."""
        if cache.paged:
            raise Unsupported("cache: the oracle reads contiguous caches only, got a paged one")
        return super().prepare(cache)
