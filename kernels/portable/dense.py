"""The dense rival of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..binding import check_cache, check_step
from ..cache import KVCache
from ..config import AttentionShape
from ..method import DecodeMethod, DenseLayer, StepTensors, Unsupported, register
from .tokens import PAGED, write_tokens_torch


@register("torch-dense")
class TorchDense(DecodeMethod):
    """SDPA with the GQA group packed as query rows, so that K and V are read once: the dense rival on a CPU."""

    is_dense = True
    device_type = "cpu"

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the method does not run here: on a GPU others are faster. None if it does."""
        return "is the CPU's dense rival; GPUs have better ones" if device.type == "cuda" else None

    def prepare(self, cache: KVCache) -> DenseLayer:
        """Bind to a layer's cache. Waits for the device.

        Raises:
            Unsupported: a paged cache.
            TypeError, ValueError: as `check_cache` says.
        """
        check_cache(cache, self.shape, self.dtype, self.device)
        if cache.paged:
            raise Unsupported(PAGED)
        batch, group = cache.batch, self.shape.group

        def attend(step: StepTensors) -> Callable[[], None]:
            check_step(step, cache, self.shape.q_heads)
            query = step.q.reshape(batch, cache.kv_heads, group, cache.head_dim)
            out = step.out.view_as(query)

            def run() -> None:
                for b, length in enumerate(cache.lengths_on_host()):
                    k, v = cache.k[b, None, :, :length], cache.v[b, None, :, :length]
                    out[b] = scaled_dot_product_attention(query[b, None], k, v)[0]

            return run

        return DenseLayer(cache, self.shape.q_heads, attend, append=write_tokens_torch)
