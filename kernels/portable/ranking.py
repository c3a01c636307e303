"""How blocks are ranked in plain torch: what a selector sees of a step, its scores, and the best of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cache import KVCache
from ..method import StepTensors
from ..selectors import Blocks, Compare, Selector
from ..workspace import BlockSparseLayer


@dataclass
class StepBlocks(Blocks):
    """What a selector sees of one step of a layer: R = 1. It asks nothing of the device."""

    bound: BlockSparseLayer | None = None

    @classmethod
    def of(cls, layer: BlockSparseLayer, step: StepTensors, lengths: Tensor, tokens: int) -> StepBlocks:
        """Of the first `tokens` tokens of the cache; `lengths` int64 `[B]`."""
        shape = layer.shape
        queries = step.q.float().reshape(-1, 1, shape.group, shape.head_dim)
        lengths = lengths.repeat_interleave(shape.kv_heads)[:, None]
        known = None if layer.known is None else layer.known.flatten(0, 1)
        return cls(
            layer.config, queries, lengths, tokens, shape.batch,
            layer=layer.index, handed=layer.handed, known=known, bound=layer,
        )  # fmt: skip

    def compared(self, query: Tensor, compare: Compare) -> Tensor:
        """With the table of summaries, or the layer's own."""
        assert self.bound is not None
        kept = self.bound.summaries.data if self.bound.summaries is not None else self.bound.table
        assert kept is not None
        table = kept[:, :, : self.config.blocks(self.tokens)]  # [B, Hkv, M, ...]
        return compare(query, table.flatten(0, 1).flatten(2).float()[:, None])

    def masses(self) -> Tensor:
        """From every key of the cache, by its own element type's product."""
        assert self.bound is not None
        cache, size = self.bound.cache, self.config.block_size
        keys = cache.k[:, :, : self.tokens].flatten(0, 1)  # [H, S, D]
        logits = (self.queries[:, 0].to(keys.dtype) @ keys.transpose(1, 2)).float() * cache.head_dim**-0.5
        position = torch.arange(self.tokens, device=keys.device)
        logits.masked_fill_(position >= self.lengths[:, :, None], float("-inf"))
        mass = pad(logits.softmax(-1), (0, -self.tokens % size))
        return torch.unflatten(mass, -1, (-1, size)).sum(-1)[:, None]  # [H, 1, G, M]


def calibrated(selector: Selector, cache: KVCache) -> Tensor | None:
    """What a selector learns of each sequence from the tokens it has now, `[B, Hkv, ..]`. Contiguous caches."""
    starts = enumerate(cache.lengths_on_host())
    known = [selector.calibrate(cache.k[b, :, :length].float()) for b, length in starts]
    return None if known[0] is None else torch.stack([x for x in known if x is not None])


def fill_scores(layer: BlockSparseLayer, step: StepTensors, lengths: Tensor, tokens: int) -> None:
    """Fill the layer's `work.scores` as its selector ranks blocks, +inf at those that are always selected.

    Args:
        lengths: int64 `[B]`, on the device of the layer's cache. tokens: no sequence has more.
    """
    config, table = layer.config, layer.work.scores
    blocks = StepBlocks.of(layer, step, lengths, tokens)
    scores = layer.selector.scores(blocks)  # [H or B, 1, X, M]
    scores = scores.view(layer.shape.batch, -1, scores.shape[-1])  # [B, rows, M]
    index = torch.arange(scores.shape[-1], device=scores.device)
    held = -(-lengths[:, None, None] // config.block_size)
    filled = table[:, :, : scores.shape[-1]].copy_(scores)
    filled.masked_fill_(config.always_selected(index, held), float("inf"))


def select_torch(scores: Tensor, n: int) -> Tensor:
    """The n best of each row: `[R, M]` to ascending `[R, n]`; ties to the lower index. No full sort."""
    if n >= scores.shape[1]:
        return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    threshold = scores.topk(n, dim=1).values[:, -1:]
    above, equal = scores > threshold, scores == threshold
    keep = above | (equal & (equal.cumsum(1) <= n - above.sum(1, keepdim=True)))
    return keep.nonzero()[:, 1].view(scores.shape[0], n)
