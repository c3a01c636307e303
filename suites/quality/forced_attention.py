"""Attention of all fed tokens of one layer and sequence at once, each over what it would see if it came by itself.

Token t of T, fed after a prompt of P, sees keys and values of three kinds: the prompt's; *exact* ones, which dense
decoding computes and rectification restores, of the tokens before its own period of f; the method's *own* of the
tokens since. The period of token t begins at f * floor(t / f); without rectification there is one period.

The tokens are taken in tiles. A working copy of keys and values starts with the method's own and is rectified as far
as the tile's first token needs, which is what the engine does between steps; block summaries follow it. Where a tile
holds several periods, the tokens between their beginnings are *mixed*: exact to some of the tile's rows only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels import SparseConfig
from ...kernels.summaries import DTYPES
from .selectors import best, sink_and_window, slots, summarise

LEAST_MASS = 1e-30  # of the selected blocks; below it the softmax is taken over them alone


@dataclass(frozen=True, slots=True)
class Sequence:
    """One layer's tokens of one sequence, of the model's dtype.

    Attributes:
        queries: `[T, Hq, D]` of the tokens fed.
        keys, values: `[Hkv, P + T, D]`, the prompt's and the method's own.
        exact_keys, exact_values: `[Hkv, T, D]`, what dense decoding has for the tokens fed; None if nothing rectifies.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    exact_keys: Tensor | None = None
    exact_values: Tensor | None = None

    @property
    def steps(self) -> int:
        return self.queries.shape[0]

    @property
    def prompt(self) -> int:
        return self.keys.shape[1] - self.steps


def tiles(steps: int, every: int | None, rows: int) -> Iterator[tuple[int, int]]:
    """First token and end of each tile of at most `rows`; periods of at least that many end a tile."""
    first = 0
    while first < steps:
        end = min(first + rows, steps)
        if every is not None and every >= rows:
            end = min(end, (first // every + 1) * every)
        yield first, end
        first = end


class ForcedAttention:
    """The attention of one method."""

    def __init__(self, config: SparseConfig | None, selector: str | None, every: int | None, tile: int = 32) -> None:
        """
        Args:
            config: settings of the selection; None for dense attention.
            selector: what ranks blocks: "summary", "mass" (exact, the oracle's) or "window" (nothing is ranked).
            every: f; None for a method that never rectifies.
            tile: most tokens at a time, which bounds the memory: logits are float32 `[Hq, tile, P + T]`.
        """
        self.config, self.selector, self.every, self.tile = config, selector, every, tile

    def __call__(self, layer: Sequence) -> tuple[Tensor, Tensor]:
        """
        Returns:
            Outputs `[T, Hq, D]` of the model's dtype, and the share of the exact attention mass that lies in the
            blocks read, float32 `[T, Hq]`.
        """
        heads = layer.queries.shape[1]
        out, recall = torch.empty_like(layer.queries), torch.ones(layer.steps, heads, device=layer.queries.device)
        work = _Working(layer, self.config, self.selector == "summary")
        for first, end in tiles(layer.steps, self.every, self.tile):
            work.rectify(self._period(first))
            out[first:end], recall[first:end] = self._tile(work, first, end)
        return out, recall

    def _period(self, token: int) -> int:
        """The first token of the period that a token lies in."""
        return 0 if self.every is None else token // self.every * self.every

    def _tile(self, work: _Working, first: int, end: int) -> tuple[Tensor, Tensor]:
        layer, size = work.layer, work.block_size
        kv_heads, rows = work.keys.shape[0], end - first
        shape = kv_heads, rows, -1, layer.queries.shape[2]  # Hkv, R, G, D
        queries = layer.queries[first:end].float().unflatten(1, (kv_heads, -1)).transpose(0, 1)
        flat = queries.flatten(1, 2)  # [Hkv, R G, D]
        scale = shape[3] ** -0.5
        blocks = -(-(layer.prompt + end) // size)
        width = blocks * size
        device = flat.device
        token = torch.arange(first, end, device=device)
        seen = layer.prompt + token  # the last position that each row sees
        mixed = slice(self._period(first), self._period(end - 1))
        at = slice(layer.prompt + mixed.start, layer.prompt + mixed.stop)
        rectified = torch.empty(rows, 0, dtype=torch.bool, device=device)

        logits = (flat * scale @ work.keys[:, :width].transpose(1, 2)).unflatten(1, (rows, -1))  # [Hkv, R, G, S]
        if mixed.stop > mixed.start:
            begins = torch.tensor([self._period(t) for t in range(first, end)], device=device)
            rectified = torch.arange(mixed.start, mixed.stop, device=device) < begins[:, None]  # [R, n]
            exact = (flat * scale @ work.exact_keys(mixed).transpose(1, 2)).unflatten(1, (rows, -1))
            logits[..., at] = torch.where(rectified[:, None], exact, logits[..., at])
        later = torch.arange(layer.prompt + first, width, device=device) > seen[:, None]
        logits[..., layer.prompt + first :].masked_fill_(later[:, None], float("-inf"))
        weights = logits.softmax(-1)
        share = torch.ones(kv_heads, rows, flat.shape[1] // rows, device=device)
        if self.config is not None:
            parts = weights.unflatten(-1, (blocks, size))
            mass = parts.sum(-1)  # [Hkv, R, G, M]
            chosen = self._choose(work, queries, mass, layer.prompt + torch.arange(first, end) + 1, mixed, rectified)
            share = (mass * chosen).sum(-1)
            if bool((share < LEAST_MASS).any()):
                unread = ~chosen.repeat_interleave(size, -1)
                weights = logits.masked_fill(unread, float("-inf")).softmax(-1)
                norm = torch.ones_like(share)
            else:
                parts.mul_(chosen[..., None])
                norm = share
        exact_part = torch.zeros(())
        if mixed.stop > mixed.start:
            theirs = weights[..., at] * rectified[:, None]
            weights[..., at] -= theirs
            exact_part = (theirs.flatten(1, 2) @ work.exact_values(mixed)).view(shape)
        found = (weights.flatten(1, 2) @ work.values[:, :width]).view(shape) + exact_part
        if self.config is not None:
            found = found / norm[..., None]
        return found.transpose(0, 1).flatten(1, 2).to(layer.queries.dtype), share.transpose(0, 1).flatten(1)

    def _choose(
        self, work: _Working, queries: Tensor, mass: Tensor, lengths: Tensor, mixed: slice, rectified: Tensor
    ) -> Tensor:
        """The blocks that each row reads, a mask that broadcasts to `[Hkv, R, G, M]`."""
        config = self.config
        assert config is not None
        if self.selector == "window":
            return sink_and_window(mass[:1, :, :1], lengths, config)
        if self.selector == "mass":
            return best(mass.sum(2, keepdim=True), lengths, config)
        query = slots(queries, config)  # [Hkv, R, 1 or G, 2 D]
        blocks = mass.shape[-1]
        scores = (query.flatten(1, 2) @ work.table[:, :blocks].transpose(1, 2)).unflatten(1, query.shape[1:3])
        if rectified.shape[1] or not config.local_blocks:  # else the newest block is read whatever its score
            first, own = work.row_summaries(lengths.to(query.device), blocks, mixed, rectified)
            scores[..., first:] = query @ own.transpose(2, 3)
        if config.gqa_policy == "all-heads":
            scores = scores.sum(0, keepdim=True)
        return best(scores, lengths, config)


class _Working:
    """Keys and values as a tile's first row finds them, float32, to a whole number of blocks; and their summaries."""

    def __init__(self, layer: Sequence, config: SparseConfig | None, summarised: bool) -> None:
        self.layer, self.config = layer, config
        self.block_size = 1 if config is None else config.block_size
        extra = -layer.keys.shape[1] % self.block_size
        self.keys, self.values = (pad(x.float(), (0, 0, 0, extra)) for x in (layer.keys, layer.values))
        if self.keys.data_ptr() == layer.keys.data_ptr():
            self.keys, self.values = self.keys.clone(), self.values.clone()
        self._rectified = 0  # tokens since the prompt
        self._element = DTYPES.get(config.summary_dtype or "" if config else "", layer.keys.dtype)
        if summarised:
            self.table = self._summaries(0, self.keys.shape[1] // self.block_size)  # [Hkv, M, 2 D]
        self._summarised = summarised

    def _summaries(self, first: int, end: int) -> Tensor:
        assert self.config is not None
        blocks = self.keys[:, first * self.block_size : end * self.block_size].unflatten(1, (end - first, -1))
        return summarise(blocks, None, self.config.summary_kind, self._element)

    def exact_keys(self, tokens: slice) -> Tensor:
        assert self.layer.exact_keys is not None
        return self.layer.exact_keys[:, tokens].float()

    def exact_values(self, tokens: slice) -> Tensor:
        assert self.layer.exact_values is not None
        return self.layer.exact_values[:, tokens].float()

    def rectify(self, end: int) -> None:
        """Make the tokens before `end` exact, and the summaries of their blocks."""
        tokens = slice(self._rectified, end)
        if tokens.stop <= tokens.start:
            return
        prompt, size = self.layer.prompt, self.block_size
        at = slice(prompt + tokens.start, prompt + tokens.stop)
        self.keys[:, at], self.values[:, at] = self.exact_keys(tokens), self.exact_values(tokens)
        self._rectified = end
        if self._summarised:
            first, last = at.start // size, -(-at.stop // size)
            self.table[:, first:last] = self._summaries(first, last)

    def row_summaries(self, lengths: Tensor, blocks: int, mixed: slice, rectified: Tensor) -> tuple[int, Tensor]:
        """Summaries by row of the last blocks, from the first that is not the same to all rows.

        Returns:
            The first of these blocks, and `[Hkv, R, blocks from there, 2 D]`.
        """
        assert self.config is not None
        size, prompt = self.block_size, self.layer.prompt
        newest = int(lengths[0]) - 1
        first = min(prompt + mixed.start if rectified.shape[1] else newest, newest) // size
        span = slice(first * size, blocks * size)
        keys = self.keys[:, None, span]
        if rectified.shape[1]:
            keys = keys.expand(-1, len(lengths), -1, -1).clone()
            at = slice(prompt + mixed.start - span.start, prompt + mixed.stop - span.start)
            keys[:, :, at] = torch.where(rectified[..., None], self.exact_keys(mixed)[:, None], keys[:, :, at])
        valid = torch.arange(span.start, span.stop, device=keys.device) < lengths[:, None]  # [R, n]
        parts = keys.expand(-1, len(lengths), -1, -1).unflatten(2, (-1, size))
        kept = valid.unflatten(1, (-1, size))[..., None]
        return first, summarise(parts, kept, self.config.summary_kind, self._element)
