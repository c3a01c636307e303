"""FlashAttention 2's decode kernel, `flash_attn_with_kvcache`."""

from __future__ import annotations

import torch

from ..kernels import AttentionShape, DecodeMethod, KVCache, StepTensors, Unsupported, register
from ..kernels.method import DenseLayer
from .optional import first, load, missing, needs_cuda


@register("flash-attn-2")
class FlashAttn2(DecodeMethod):
    """Split-KV decode; lengths on the device. Paged caches need pages of a multiple of 256 tokens."""

    is_dense = True

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return first(needs_cuda(device), missing("flash_attn", "flash-attn"))

    def prepare(self, cache: KVCache) -> DenseLayer:
        flash = load("flash_attn").flash_attn_with_kvcache
        if cache.paged and cache.page_size % 256:
            raise Unsupported(f"cache: FlashAttention 2 pages are multiples of 256 tokens, got {cache.page_size}")
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [B or P, S, Hkv, D]

        def attend(step: StepTensors):
            query = step.q.unsqueeze(1)
            return lambda: flash(query, keys, values, cache_seqlens=cache.lengths, block_table=cache.block_table)

        return DenseLayer(cache, self.shape.q_heads, attend)
