"""A layer of a block-sparse method in plain torch: it writes, ranks, selects, gathers and attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..method import Stage, StepTensors
from ..workspace import BlockSparseLayer
from .ranking import StepBlocks, calibrated, fill_scores, select_torch
from .tokens import refresh_torch, write_tokens_torch


@dataclass
class TorchSparseLayer(BlockSparseLayer):
    """One layer of a block-sparse method, in plain torch. It asks the lengths of the device in every stage."""

    graph_safe: ClassVar[bool] = False

    gathered: tuple[Tensor, Tensor]
    """`[R * N, b D]`: selected blocks of K and V, reused by all layers: fresh pages cost more than copies."""

    def __post_init__(self) -> None:
        cache, size, rows = self.cache, self.config.block_size, self.work.lists.shape[1]
        lists = max(rows, self.shape.kv_heads)  # one list for all heads is attended to per KV head
        self._owner = torch.arange(lists, device=cache.device)[:, None] // (lists // self.shape.kv_heads)
        if self.selector.tabled:
            self.known = calibrated(self.selector, cache)
            known = None if self.known is None else self.known[0]
            some = torch.zeros(self.shape.kv_heads, 1, size, cache.head_dim, device=cache.device)
            width = self.selector.describe(some, None, self.config, known).shape[-1]
            sizes = cache.batch, cache.kv_heads, self.config.blocks(cache.capacity)
            self.table = torch.zeros(*sizes, width, device=cache.device)
            self.describe()
        self._blocks: tuple[Tensor, Tensor] | None = None  # [B, Hkv * blocks, b D]
        if cache.capacity % size == 0 and cache.k.is_contiguous():
            shape = (cache.batch, -1, size * cache.head_dim)
            self._blocks = cache.k.view(shape), cache.v.view(shape)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Write the last T tokens, `[B, T, Hkv, D]` or `[B, Hkv, D]`, and refresh their blocks' summaries."""
        write_tokens_torch(self.cache, k, v)
        self.refresh(k.shape[1] if k.dim() == 4 else 1)

    def refresh(self, tokens: int) -> None:
        """Summarise again the blocks of the last `tokens` tokens."""
        if self.summaries is not None:
            refresh_torch(self.cache, self.summaries, tokens)
        if self.table is not None:
            self.describe(tokens)

    def describe(self, tokens: int | None = None) -> None:
        """Bring what the selector keeps of the blocks of the last `tokens` tokens up to date; of all by default."""
        cache, size = self.cache, self.config.block_size
        assert self.table is not None
        for b, length in enumerate(cache.lengths_on_host()):
            first = 0 if tokens is None else max(length - tokens, 0) // size
            end = self.config.blocks(length)
            keys = pad(cache.k[b, :, first * size : length].float(), (0, 0, 0, -length % size))
            if end > first:
                known = None if self.known is None else self.known[b]
                parts = torch.unflatten(keys, 1, (end - first, size))
                self.table[b, :, first:end] = self.selector.describe(parts, None, self.config, known)

    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Scores and the selection, or the selection alone."""
        if not self.selector.ranked:
            return (Stage("select", lambda: self.choose(step), False),)
        return Stage("score", lambda: self.score(step), False), Stage("select", self.select, False)

    def attend_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Attention over the lists, into `step.out`."""
        return (Stage("attend", lambda: self.attend(step), False),)

    def score(self, step: StepTensors) -> None:
        """Fill `work.scores`, +inf at blocks that are always selected."""
        lengths = self.cache.lengths_on_host()
        fill_scores(self, step, torch.tensor(lengths, device=self.cache.device), max(max(lengths), 1))

    def choose(self, step: StepTensors) -> None:
        """Fill the lists as the selector says."""
        lengths = self.cache.lengths_on_host()
        blocks = StepBlocks.of(self, step, torch.tensor(lengths, device=self.cache.device), max(max(lengths), 1))
        mask = self.selector.choose(blocks)
        for b, rows in enumerate(mask.expand(-1, -1, -1, mask.shape[-1]).view(len(lengths), -1, mask.shape[-1])):
            self.fill_mask(b, rows)

    def select(self) -> None:
        """Fill the lists with the best of `work.scores`."""
        work, config = self.work, self.config
        for b, length in enumerate(self.cache.lengths_on_host()):
            self.fill(b, select_torch(work.scores[b, :, : config.blocks(length)], config.selected(length)))

    def fill(self, sequence: int, chosen: Tensor) -> None:
        """Put `[R, n]` block indices on the lists of a sequence."""
        n = chosen.shape[1]
        self.work.lists[sequence, :, :n] = chosen
        self.work.lists[sequence, :, n:] = -1
        self.work.counts[sequence] = n

    def fill_mask(self, sequence: int, mask: Tensor) -> None:
        """Put the blocks of a mask `[R, M]` on the lists of a sequence; rows may differ in how many."""
        counts, lists = mask.sum(1), self.work.lists[sequence]
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, : lists.shape[1]].to(lists.dtype)
        lists.fill_(-1)
        taken = torch.arange(order.shape[1], device=mask.device) < counts[:, None]
        lists[:, : order.shape[1]] = order.masked_fill(~taken, -1)
        self.work.counts[sequence] = counts.to(self.work.counts.dtype)

    def attend(self, step: StepTensors) -> None:
        """Gather the listed blocks, then SDPA per list."""
        shape, cache, size, work = self.shape, self.cache, self.config.block_size, self.work
        count = len(self._owner)
        lengths, counts = cache.lengths_on_host(), work.counts.amax(1).tolist()
        for b, (length, n) in enumerate(zip(lengths, counts, strict=True)):
            lists = work.lists[b, :, :n].long().expand(count, -1)
            if not self.selector.ranked and bool((lists < 0).any()):
                step.out[b] = self.attend_unequal(step.q[b], b, lists, length)
                continue
            query = step.q[b].reshape(count, shape.q_heads // count, shape.head_dim)
            keys, values = self.gather(b, lists)
            mask = None
            if missing := -length % size:
                if bool((lists[:, -1] == length // size).all()):  # the partly filled block is last on every list
                    keys, values = keys[:, :-missing], values[:, :-missing]
                else:
                    mask = (tokens_of(lists, size) < length)[:, None, :]
                    # What lies past the end may be NaN, which no mask undoes.
                    keys, values = (x.masked_fill(~mask.transpose(1, 2), 0.0) for x in (keys, values))
            out = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask)
            step.out[b] = out.reshape(shape.q_heads, shape.head_dim)

    def attend_unequal(self, q: Tensor, sequence: int, lists: Tensor, length: int) -> Tensor:
        """Attention over lists of unequal lengths, `[lists, n]` with -1 after their ends: `[Hq, D]`."""
        size, count = self.config.block_size, len(lists)
        keys, values = self.gather(sequence, lists.clamp(min=0))
        tokens = tokens_of(lists, size)
        mask = (tokens >= 0) & (tokens < length) & (lists >= 0).repeat_interleave(size, 1)
        keys, values = (x.masked_fill(~mask[..., None], 0.0) for x in (keys, values))
        query = q.reshape(count, -1, q.shape[-1])
        out = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask[None, :, None])
        return out.reshape(q.shape)

    def gather(self, sequence: int, lists: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of the listed blocks, `[lists, n * b, D]` each, in buffers that the next call fills again.

        Args:
            lists: int64 `[lists, n]`, one a KV head or one a query head.
        """
        cache, size, count = self.cache, self.config.block_size, len(lists)
        if self._blocks is None:
            tokens = tokens_of(lists, size).clamp(max=cache.capacity - 1)
            keys, values = (x[sequence][self._owner, tokens] for x in (cache.k, cache.v))
            return keys, values
        index = (self._owner * (cache.capacity // size) + lists).flatten()  # gather blocks: long, fast copies
        keys, values = (
            torch.index_select(x[sequence], 0, index, out=buffer[: len(index)]).view(count, -1, cache.head_dim)
            for x, buffer in zip(self._blocks, self.gathered, strict=True)
        )
        return keys, values


def tokens_of(lists: Tensor, size: int) -> Tensor:
    """`[R, n]` blocks to `[R, n * size]` positions of their tokens."""
    return (lists[:, :, None] * size + torch.arange(size, device=lists.device)).flatten(1)
