"""FlashAttention 2's decode kernel, `flash_attn_with_kvcache`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import (
    AttentionShape,
    ChunkKernel,
    ChunkTensors,
    DecodeMethod,
    KVCache,
    StepTensors,
    Unsupported,
    register,
    register_chunk_kernel,
)
from ..kernels.method import DenseLayer
from .optional import first, load, missing, needs_cuda


def _pages(cache: KVCache) -> str | None:
    """Why the cache, or its pages, cannot be read; None if they can."""
    if cache.in_fp8:
        return "FlashAttention 2 reads keys and values of 16 bits, got fp8"
    wrong = cache.paged and cache.page_size % 256
    return f"FlashAttention 2 pages are multiples of 256 tokens, got {cache.page_size}" if wrong else None


@register("flash-attn-2")
class FlashAttn2(DecodeMethod):
    """Split-KV decode; lengths on the device. Paged caches need pages of a multiple of 256 tokens."""

    is_dense = True
    libraries = ("flash-attn",)

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run: no GPU of compute capability 8.0, or no flash-attn."""
        return first(needs_cuda(device), missing("flash_attn", "flash-attn"))

    def prepare(self, cache: KVCache) -> DenseLayer:
        """One layer, bound to its cache. Raises Unsupported for pages of another size."""
        flash = load("flash_attn").flash_attn_with_kvcache
        if reason := _pages(cache):
            raise Unsupported(f"cache: {reason}")
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [B or P, S, Hkv, D]

        def attend(step: StepTensors) -> Callable[[], Tensor]:
            query = step.q.unsqueeze(1)
            return lambda: flash(query, keys, values, cache_seqlens=cache.lengths, block_table=cache.block_table)

        return DenseLayer(cache, self.shape.q_heads, attend)


@register_chunk_kernel("flash-attn-2")
class FlashAttn2Chunk(ChunkKernel):
    """The same kernel with f query tokens. Slower than ours on an H100, so it runs only when it is named."""

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device, cache: KVCache) -> str | None:
        """Why it cannot run there or cannot read this cache, or None."""
        return first(FlashAttn2.unavailable(shape, dtype, device), _pages(cache))

    def bind(self, cache: KVCache, shape: AttentionShape, chunk: ChunkTensors) -> Callable[[], Tensor]:
        """The call that attends with the chunk's queries, causally, to the first `cache.lengths` tokens."""
        flash = load("flash_attn").flash_attn_with_kvcache
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [B or P, S, Hkv, D]
        table = cache.block_table
        return lambda: flash(chunk.q, keys, values, cache_seqlens=cache.lengths, block_table=table, causal=True)
