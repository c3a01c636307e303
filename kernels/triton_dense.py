"""Our Triton dense decode as a method: the same code family as the sparse kernels, so that methods are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cache import KVCache
from .config import AttentionShape
from .dense import dense_attention, dense_splits
from .launch import can_run_on
from .merge import Partials, merge_partials
from .method import ChunkTensors, DecodeMethod, Layer, Stage, StepTensors, Traffic, dense_traffic, register
from .summaries import write_tokens


@dataclass
class TritonDenseLayer(Layer):
    cache: KVCache
    shape: AttentionShape
    partials: Partials

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        return (
            Stage("append", lambda: write_tokens(self.cache, step.k, step.v)),
            Stage("attend", lambda: dense_attention(step.q, self.cache, self.partials)),
            Stage("merge", lambda: merge_partials(self.partials, step.out)),
        )

    def overwrite(self, chunk: ChunkTensors) -> None:
        write_tokens(self.cache, chunk.k, chunk.v)

    def traffic(self) -> dict[str, Traffic]:
        return dense_traffic(self.cache, self.shape.q_heads)


@register("triton-dense")
class TritonDense(DecodeMethod):
    """Dense split-KV decode with GQA sharing."""

    is_dense = True

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return can_run_on(device)

    def prepare(self, cache: KVCache) -> TritonDenseLayer:
        splits = dense_splits(self.shape, 1, cache.capacity, cache.device)
        rows = self.shape.batch * self.shape.q_heads
        return TritonDenseLayer(cache, self.shape, Partials.allocate(rows, splits, self.shape.head_dim, cache.device))
