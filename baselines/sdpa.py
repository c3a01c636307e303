"""Dense rivals inside torch: SDPA's flash (FlashAttention 2) and cuDNN back ends.

SDPA takes the length from the tensor's shape, so a captured step serves the length it was bound at. cuDNN likes its
query heads apart (`enable_gqa`): it falls to a fraction of its speed when the GQA group is packed as query length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..kernels import AttentionShape, DecodeMethod, KVCache, StepTensors, Unsupported, register
from ..kernels.method import DenseLayer
from .optional import needs_cuda


class _Sdpa(DecodeMethod):
    """One step through SDPA. `packs_group`: the GQA group stands as query rows instead of heads."""

    is_dense = True
    fixes_length = True
    backend: SDPBackend
    packs_group = False

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run: no GPU of compute capability 8.0."""
        return needs_cuda(device)

    def prepare(self, cache: KVCache) -> DenseLayer:
        """One layer, bound to its cache's length. Raises Unsupported for a paged or ragged cache."""
        lengths = set(cache.lengths_on_host())
        if cache.paged or len(lengths) != 1:
            raise Unsupported("cache: SDPA takes one contiguous length; this cache is paged or ragged")
        length = lengths.pop()
        keys, values = cache.k[:, :, :length], cache.v[:, :, :length]

        def attend(step: StepTensors) -> Callable[[], Tensor]:
            shape = (
                (cache.batch, cache.kv_heads, self.shape.group, cache.head_dim)
                if self.packs_group
                else (cache.batch, self.shape.q_heads, 1, cache.head_dim)
            )
            query = step.q.view(shape)

            def run() -> Tensor:
                with sdpa_kernel(self.backend):
                    return scaled_dot_product_attention(query, keys, values, enable_gqa=not self.packs_group)

            return run

        return DenseLayer(cache, self.shape.q_heads, attend)


@register("sdpa-cudnn")
class SdpaCudnn(_Sdpa):
    """cuDNN through SDPA."""

    backend = SDPBackend.CUDNN_ATTENTION


@register("sdpa-flash")
class SdpaFlash(_Sdpa):
    """FlashAttention 2 through SDPA, the GQA group packed as query rows (it does not mind, and splits the keys)."""

    backend = SDPBackend.FLASH_ATTENTION
    packs_group = True
