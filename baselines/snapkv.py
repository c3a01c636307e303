"""SnapKV (arXiv 2404.14469): of the prompt a KV head keeps what its last queries attend to; dense from there on.

The whole step is one dense kernel over the compact cache, which grows by every token that is decoded.
"""

from __future__ import annotations

from ..kernels import KVCache, register
from .compact import CompactLayer, Evicting, attention_of, best_places


@register("snapkv")
class SnapKV(Evicting):
    """Keeps the tokens of the most attention by the observed queries, and the observed tokens themselves."""

    joins = ("quality", "tasks")
    device_type = "cuda"

    def prepare(self, cache: KVCache) -> CompactLayer:
        """Bind to a layer's cache, whose tokens are the prompt. Waits for the device. Raises Unsupported."""
        queries = self.observed(cache)
        kept = []
        for b, length in enumerate(cache.lengths.tolist()):
            newest = min(queries.shape[1], length)
            scores = attention_of(queries[b, -newest:], cache.k[b], length)
            kept.append(best_places(scores, self.kept_tokens(length), newest))
        return self.bound(cache, kept, cache.capacity - int(cache.lengths.min()))
