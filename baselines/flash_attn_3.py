"""FlashAttention 3 for Hopper, from the fa3-fwd wheel (forward only: bf16 or e4m3, contiguous caches).

Beside a cache in e4m3 it takes queries of that type alone, and rounds probabilities to it. Queries are rounded in the
step, without a scale: those over 448 saturate, or become NaN in some versions of torch.
"""

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
from ..kernels.e4m3 import E4M3
from ..kernels.method import DenseLayer
from .optional import first, load, missing, needs_cuda


@register("flash-attn-3")
class FlashAttn3(DecodeMethod):
    """Split-KV decode with packed GQA; lengths on the device."""

    is_dense = True
    reads_fp8 = True
    libraries = ("fa3-fwd",)

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run: no Hopper GPU, another dtype than bf16, or no fa3-fwd."""
        wrong = None if dtype == torch.bfloat16 else f"fa3-fwd takes bf16 only, got {str(dtype).removeprefix('torch.')}"
        hopper = needs_cuda(device, (9, 0))
        if hopper is None and torch.cuda.get_device_capability(device)[0] != 9:
            hopper = "is built for Hopper (compute capability 9.0) alone"
        return first(hopper, wrong, missing("fa3_fwd_interface", "fa3"))

    def prepare(self, cache: KVCache) -> DenseLayer:
        """One layer, bound to its cache. Raises Unsupported for a paged one."""
        flash = load("fa3_fwd_interface").flash_attn_with_kvcache
        if cache.paged:
            raise Unsupported("cache: fa3-fwd takes contiguous caches only, got a paged one")
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [B, S, Hkv, D]

        def attend(step: StepTensors) -> Callable[[], Tensor]:
            query = step.q.unsqueeze(1)
            if cache.scales is None:
                return lambda: flash(query, keys, values, cache_seqlens=cache.lengths)
            k_scale, v_scale = (x.expand(cache.batch, -1) for x in cache.scales.t())  # [B, Hkv]
            rounded = torch.empty_like(query, dtype=E4M3)

            def run() -> Tensor:
                rounded.copy_(query)
                return flash(
                    rounded, keys, values, cache_seqlens=cache.lengths, k_descale=k_scale, v_descale=v_scale
                )  # fmt: skip

            return run

        return DenseLayer(cache, self.shape.q_heads, attend, rounds_to=E4M3 if cache.in_fp8 else None)


@register_chunk_kernel("flash-attn-3")
class FlashAttn3Chunk(ChunkKernel):
    """The same kernel with f query tokens."""

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device, cache: KVCache) -> str | None:
        """Why it cannot run there or cannot read this cache, or None."""
        paged = "takes contiguous caches only, got a paged one" if cache.paged else None
        fp8 = "would round the chunk's queries to fp8, as the cache is" if cache.in_fp8 else None
        return first(FlashAttn3.unavailable(shape, dtype, device), paged, fp8)

    def bind(self, cache: KVCache, shape: AttentionShape, chunk: ChunkTensors) -> Callable[[], Tensor]:
        """The call that attends with the chunk's queries, causally, to the first `cache.lengths` tokens."""
        flash = load("fa3_fwd_interface").flash_attn_with_kvcache
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [B, S, Hkv, D]
        return lambda: flash(chunk.q, keys, values, cache_seqlens=cache.lengths, causal=True)
