"""R-KV style (arXiv 2505.24133): the cache is compressed again each time that decoding fills a buffer.

A token's score is its share of the newest queries' attention, less its likeness to other keys: reasoning repeats
itself, and what is said twice needs to be kept once. Steps ask the device for lengths, so they are no graphs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..kernels import KVCache, Layer, Stage, StepTensors, register
from .compact import CompactLayer, Evicting, attention_of, best_places

BUFFER = 128  # tokens that are decoded between two compressions
OBSERVED = 8  # newest queries whose attention counts
IMPORTANCE = 0.1  # weight of attention beside likeness, lambda of the paper


def redundancy(keys: Tensor) -> Tensor:
    """How much each key is like the others: the mean cosine, as a softmax over the tokens.

    Args:
        keys: `[Hkv, n, D]`.

    Returns:
        float32 `[Hkv, n]`, 1 in sum over a head.
    """
    units = normalize(keys.float(), dim=-1)
    likeness = (units @ units.sum(1)[:, :, None])[:, :, 0] - 1.0  # without itself
    return (likeness / max(keys.shape[1] - 1, 1)).softmax(-1)


def scores_of(queries: Tensor, keys: Tensor, length: int) -> Tensor:
    """What each token is worth, float32 `[Hkv, length]`; `queries` `[w, Hq, D]`, `keys` `[Hkv, S, D]`."""
    rows = len(queries) * queries.shape[1] // len(keys)  # whose attention sums to 1 each
    attention = attention_of(queries, keys, length) / rows
    return IMPORTANCE * attention - (1 - IMPORTANCE) * redundancy(keys[:, :length])


class RKVLayer(CompactLayer):
    """One layer; `_places` are the positions of the tokens that it holds, of the whole cache."""

    def __init__(self, whole: KVCache, kept: list[Tensor], room: int, dense: Callable[[KVCache], Layer]) -> None:
        super().__init__(whole, kept, room, dense)
        self._budget = [places.shape[1] for places in kept]
        self._begun = whole.lengths.tolist()
        self._history = [[(length, places)] for length, places in zip(self._begun, kept, strict=True)]
        self._seen = list(self._begun)
        assert whole.queries is not None
        observed = whole.queries[:, -OBSERVED:]
        after = observed.new_zeros(whole.batch, room + 1, *observed.shape[2:])
        self._queries = torch.cat((observed, after), 1)  # of the prompt's newest tokens, then of those decoded

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Eviction where the buffer is full, then the dense method's stages."""
        return (Stage("evict", lambda: self.evict(step), graph_safe=False), *super().stages(step))

    def evict(self, step: StepTensors) -> None:
        """Make room for the new token, which the lengths count already; go back where they were set back."""
        for b, length in enumerate(self.whole.lengths.tolist()):
            before = length - 1
            if before < self._seen[b]:
                self._return(b, before)
            self._seen[b] = length
            since, places = self._history[b][-1]
            if before - since >= BUFFER:
                self._compress(b, before, self._held(places, since, before))
            self._queries[b, OBSERVED + max(before - self._begun[b], 0)] = step.q[b]

    def _held(self, places: Tensor, since: int, length: int) -> Tensor:
        """Positions of what is held at a length, int64 `[Hkv, n]`."""
        new = torch.arange(since, length, device=places.device).expand(len(places), -1)
        return torch.cat((places, new), 1)

    def _compress(self, sequence: int, length: int, held: Tensor) -> None:
        keys = self.cache.k[sequence, :, : held.shape[1]]
        first = length - self._begun[sequence]
        scores = scores_of(self._queries[sequence, first : first + OBSERVED], keys, held.shape[1])
        places = held.gather(1, best_places(scores, self._budget[sequence], OBSERVED))
        self._keep(sequence, length, places)
        self._history[sequence].append((length, places))

    def _keep(self, sequence: int, length: int, places: Tensor) -> None:
        """Have the compact cache hold these places as it stands at a length."""
        self.put(sequence, places)
        self._left_out[sequence] = length - places.shape[1]

    def _return(self, sequence: int, length: int) -> None:
        """What was held at an earlier length, of which the whole cache still has everything."""
        history = self._history[sequence]
        while len(history) > 1 and history[-1][0] > length:
            history.pop()
        since, places = history[-1]
        self._keep(sequence, max(length, since), self._held(places, since, length) if length > since else places)
        if length < since:  # a synthetic context ends where it began: its newest tokens are written again
            self._left_out[sequence] = since - places.shape[1]


@register("r-kv")
class RKV(Evicting):
    """Compresses after the prompt, then after every BUFFER tokens, to the same number of tokens."""

    joins = ("quality", "tasks")
    device_type = "cuda"
    layer_class = RKVLayer

    def prepare(self, cache: KVCache) -> CompactLayer:
        """Bind to a layer's cache, whose tokens are the prompt. Waits for the device. Raises Unsupported."""
        queries = self.observed(cache)[:, -OBSERVED:]
        kept = []
        for b, length in enumerate(cache.lengths.tolist()):
            newest = min(queries.shape[1], length)
            scores = scores_of(queries[b, -newest:], cache.k[b], length)
            kept.append(best_places(scores, self.kept_tokens(length), newest))
        return self.bound(cache, kept, cache.capacity - int(cache.lengths.min()))
