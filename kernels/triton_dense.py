"""Our Triton dense decode as a method: the same code family as the sparse kernels, so that methods are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention.dense import dense_attention, dense_splits
from .attention.merge import Partials, merge_partials
from .attention.summaries import write_tokens
from .binding import check_cache, check_step
from .cache import KVCache
from .checks import stored_dtypes
from .config import AttentionShape, SparseConfig
from .launch import can_run_on
from .method import (
    ChunkTensors,
    DecodeMethod,
    Layer,
    Stage,
    StepTensors,
    Traffic,
    check_readable,
    dense_traffic,
    register,
)


@dataclass
class TritonDenseLayer(Layer):
    """One layer's dense step on the kernels."""

    cache: KVCache
    shape: AttentionShape
    partials: Partials

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Append, attention split over the keys, the merge.

        Raises:
            TypeError, ValueError: a tensor of the step of the wrong dtype, shape, device or strides (`check_step`).
        """
        check_step(step, self.cache, self.shape.q_heads)
        return (
            Stage("append", lambda: write_tokens(self.cache, step.k, step.v)),
            Stage("attend", lambda: dense_attention(step.q, self.cache, self.partials)),
            Stage("merge", lambda: merge_partials(self.partials, step.out)),
        )

    def overwrite(self, chunk: ChunkTensors) -> None:
        """Write the chunk's K and V."""
        write_tokens(self.cache, chunk.k, chunk.v)

    def traffic(self) -> dict[str, Traffic]:
        """Floors of a step at the cache's present lengths (synchronises)."""
        return dense_traffic(self.cache, self.shape.q_heads)


@register("triton-dense")
class TritonDense(DecodeMethod):
    """Dense split-KV decode with GQA sharing."""

    is_dense = True
    reads_fp8 = True

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why Triton kernels cannot run here, or None if they can."""
        return can_run_on(device)

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, config, dtype=dtype, device=device)
        self._partials: dict[int, Partials] = {}  # by splits, shared by the layers

    def prepare(self, cache: KVCache) -> TritonDenseLayer:
        """Bind to a layer's cache: room for split results allocated. Waits for the device.

        Raises:
            TypeError, ValueError: as `check_cache` says.
            Unsupported: as `check_readable` says.
        """
        check_cache(cache, self.shape, self.dtype, self.device, stored_dtypes())
        check_readable(cache)
        splits = dense_splits(self.shape, 1, cache.capacity, cache.device, cache.in_fp8)
        if splits not in self._partials:
            rows = self.shape.batch * self.shape.q_heads
            self._partials[splits] = Partials.allocate(rows, splits, self.shape.head_dim, cache.device)
        return TritonDenseLayer(cache, self.shape, self._partials[splits])
