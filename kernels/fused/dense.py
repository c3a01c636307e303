"""Dense decode by the fused step's kernel: every block is attended to, nothing is scored or searched.

Append, attention and merge are one kernel, as in the sparse step. Keys and values in e4m3 go from memory into registers
and are widened there, which Triton's kernel cannot do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..attention.summaries import write_tokens
from ..binding import TORCH_DTYPES, check_cache, check_step
from ..cache import KVCache
from ..config import AttentionShape, SparseConfig
from ..cuda import occupancy
from ..e4m3 import E4M3
from ..method import (
    ChunkTensors,
    DecodeMethod,
    Layer,
    Stage,
    StepTensors,
    Traffic,
    Unsupported,
    dense_traffic,
    register,
)
from .layout import Plan, arrangement, constants, fitting
from .memory import expected_exchange_bytes
from .method import ResaFused
from .served import misaligned, unsupported
from .step import enqueued

EVERY_BLOCK = SparseConfig(block_size=16)  # tokens that a CTA takes at a time; the rest of it is not read


def plan(cache: KVCache, group: int) -> Plan:
    """The layout of dense steps on this cache and device.

    Raises:
        ValueError: needs more shared memory than there is.
    """
    rows, read = cache.batch * cache.kv_heads, row_bytes(cache.capacity, cache.head_dim, cache.k.element_size())
    size, clusters = arrangement(rows, read, 0, lambda cluster: occupancy.clusters_at_once(cache.device, cluster))
    return fitting(cache, group, EVERY_BLOCK, size, clusters, searches=False)


def row_bytes(tokens: int, head_dim: int, kv_element: int) -> int:
    """Bytes of K and V of a row of so many tokens, all of which a step reads."""
    return tokens * 2 * head_dim * kv_element


@dataclass
class CudaDenseLayer(Layer):
    """One layer's dense step as one kernel."""

    cache: KVCache
    shape: AttentionShape

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Append, attention over all tokens and merge, as one stage.

        Raises:
            TypeError, ValueError: a tensor of the step of the wrong dtype, shape, device or strides.
        """
        check_step(step, self.cache, self.shape.q_heads)
        layout = plan(self.cache, self.shape.group)
        settings = constants(self.cache, self.shape.group, EVERY_BLOCK, layout) | {"DENSE": 1}
        return (Stage("append+attend+merge", enqueued(step, self.cache, layout, settings)),)

    def overwrite(self, chunk: ChunkTensors) -> None:
        """Write the chunk's K and V."""
        write_tokens(self.cache, chunk.k, chunk.v)

    def traffic(self) -> dict[str, Traffic]:
        """Floors of a step at the cache's present lengths (synchronises)."""
        total = dense_traffic(self.cache, self.shape.q_heads)["total"]
        return {"append+attend+merge": total, "total": total}


@register("cuda-dense")
class CudaDense(DecodeMethod):
    """Dense split-KV decode with GQA sharing as one CUDA kernel."""

    is_dense = True
    reads_fp8 = True

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run here: no such GPU, or nothing to compile it with. None if it can."""
        return ResaFused.unavailable(shape, dtype, device)

    @classmethod
    def step_bytes(
        cls, shape: AttentionShape, config: SparseConfig, dtype: torch.dtype, tokens: int, in_fp8: bool = False
    ) -> int:
        """What the clusters that share a row exchange: results alone; 0 for settings that are not served."""
        if unsupported(shape, EVERY_BLOCK, dtype, in_fp8):
            return 0
        read = row_bytes(tokens, shape.head_dim, 1 if in_fp8 else dtype.itemsize)
        return expected_exchange_bytes(shape, EVERY_BLOCK, tokens, dtype.itemsize, read, searches=False)

    def prepare(self, cache: KVCache) -> CudaDenseLayer:
        """Bind to a layer's cache.

        Raises:
            Unsupported: settings that the kernel does not serve.
            TypeError, ValueError: not a cache of this method's shape, dtype and device (`check_cache`).
        """
        check_cache(cache, self.shape, self.dtype, self.device, (*TORCH_DTYPES, E4M3))
        reason = unsupported(self.shape, EVERY_BLOCK, cache.dtype, cache.in_fp8)
        reason = reason or misaligned(k_cache=(cache.k, 16), v_cache=(cache.v, 16))
        if not reason and cache.paged and cache.page_size % EVERY_BLOCK.block_size:
            reason = f"page_size: must be a multiple of {EVERY_BLOCK.block_size} tokens, got {cache.page_size}"
        if reason:
            raise Unsupported(reason)
        return CudaDenseLayer(cache, self.shape)
