"""Attention of all fed tokens of one layer at once, each over what it would see if it came by itself.

Token t of T, fed after a prompt of P, sees keys and values of three kinds: the prompt's; *exact* ones, which dense
decoding computes and rectification restores, of the tokens before its own period of f; the method's *own* of the
tokens since. The period of token t begins at f * floor(t / f); without rectification there is one period.

The tokens are taken in tiles. A working copy of keys and values starts with the method's own and is rectified as far
as the tile's first token needs, which is what the engine does between steps; block summaries follow it. Where a tile
holds several periods, the tokens between their beginnings are *mixed*: exact to some of the tile's rows only.

Nothing here waits for the device but one look at the masses of a layer, so that a GPU always has work ahead of it.
Sequences go together: to attention they are further heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels import SparseConfig
from ...kernels.selectors import Blocks, Compare, Selector

LEAST_MASS = 1e-30  # of the selected blocks; below it the softmax is taken over them alone


@dataclass(frozen=True, slots=True)
class Sequences:
    """One layer's tokens of B sequences, of the model's dtype; the heads of one sequence, then those of the next.

    Attributes:
        queries: `[T, B Hq, D]` of the tokens fed.
        keys, values: `[B Hkv, P + T, D]`, the prompt's and the method's own.
        exact_keys, exact_values: `[B Hkv, T, D]`, dense decoding's of the tokens fed; None if nothing rectifies.
        count: B.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    exact_keys: Tensor | None = None
    exact_values: Tensor | None = None
    count: int = 1

    @property
    def steps(self) -> int:
        """T."""
        return self.queries.shape[0]

    @property
    def prompt(self) -> int:
        """P."""
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


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens `first` to `end` of those fed, R rows that are computed together.

    Attributes:
        mixed: tokens that are exact to some of the rows only.
        lengths: int64 `[R]`, tokens that each row sees, the prompt's included.
        rectified: bool `[R, n]`, whether a mixed token is exact to a row.
    """

    first: int
    end: int
    mixed: slice
    lengths: Tensor
    rectified: Tensor

    @property
    def rows(self) -> int:
        """R."""
        return self.end - self.first


class ForcedAttention:
    """The attention of one method."""

    def __init__(
        self, config: SparseConfig | None, selector: Selector | None, every: int | None, tile: int = 32
    ) -> None:
        """
        Args:
            config: settings of the selection; None for dense attention.
            selector: what chooses the blocks; None for dense attention.
            every: f; None for a method that never rectifies.
            tile: most tokens of each sequence at a time, which bounds the memory: logits are float32
                `[B Hq, tile, P + T]`.
        """
        self.config, self.selector, self.every, self.tile = config, selector, every, tile
        self._layer = -1  # of those that came so far
        self._read: list[Tensor] = []  # blocks a step and KV head, a mean of each tile
        self._handed: dict[int, dict[str, Tensor]] = {}  # by the tile's first token, from one layer to the next

    @property
    def tokens_read(self) -> float | None:
        """Tokens that a step read for each KV head, mean over layers, steps and heads; None where all were read.

        What several query heads of a group choose counts once. A last block that is not full counts whole.
        """
        if self.config is None or not self._read:
            return None
        return float(torch.cat(self._read).mean()) * self.config.block_size

    def __call__(self, layer: Sequences) -> tuple[Tensor, Tensor]:
        """
        Returns:
            Outputs `[T, B Hq, D]` of the model's dtype, and the share of the exact attention mass that lies in the
            blocks read, float32 `[T, B Hq]`.
        """
        self._layer += 1
        out, recall = self._attend(layer, alone=False)
        if self.config is not None and bool((recall < LEAST_MASS).any()):
            out, recall = self._attend(layer, alone=True)
        return out, recall

    def _attend(self, layer: Sequences, *, alone: bool) -> tuple[Tensor, Tensor]:
        """As `__call__`; with `alone` the softmax is over the selected blocks, else over all and then divided."""
        heads = layer.queries.shape[1]
        out, recall = torch.empty_like(layer.queries), torch.ones(layer.steps, heads, device=layer.queries.device)
        own = None
        if self.selector is not None and self.config is not None:
            own = self.selector.of_layer(self._layer, self.config)
        work = _Working(layer, self.config, own)
        for first, end in tiles(layer.steps, self.every, self.tile):
            work.rectify(self._period(first))
            tile = self._tile(layer, first, end)
            out[first:end], recall[first:end] = self._attend_tile(work, tile, alone)
        return out, recall

    def _period(self, token: int) -> int:
        """The first token of the period that a token lies in."""
        return 0 if self.every is None else token // self.every * self.every

    def _tile(self, layer: Sequences, first: int, end: int) -> Tile:
        token = torch.arange(first, end, device=layer.queries.device)
        begins = token // (self.every or layer.steps) * (self.every or 0)
        mixed = slice(self._period(first), self._period(end - 1))
        rectified = torch.arange(mixed.start, mixed.stop, device=token.device) < begins[:, None]
        return Tile(first, end, mixed, layer.prompt + token + 1, rectified)

    def _choose(self, blocks: TileBlocks) -> Tensor:
        """The blocks that each row reads, a mask that broadcasts to `[H, R, G, M]`."""
        assert self.selector is not None
        chosen = self.selector.of_layer(self._layer, blocks.config).choose(blocks)
        if len(self.selector.choosing) > 1:
            blocks.handed["chosen"] = chosen
        each = len(blocks.queries) // len(chosen)
        return chosen.repeat_interleave(each, 0) if len(chosen) > 1 and each > 1 else chosen

    def _attend_tile(self, work: _Working, tile: Tile, alone: bool) -> tuple[Tensor, Tensor]:
        """Outputs `[R, B Hq, D]` and shares `[R, B Hq]`. Below H is B Hkv and G the query heads of each."""
        layer, size, rows, mixed = work.layer, work.block_size, tile.rows, tile.mixed
        blocks = -(-(layer.prompt + tile.end) // size)
        width = blocks * size
        queries = layer.queries[tile.first : tile.end].float().unflatten(1, (len(work.keys), -1)).transpose(0, 1)
        shape = queries.shape  # H, R, G, D
        flat = queries.flatten(1, 2) * shape[3] ** -0.5  # [H, R G, D]
        at = slice(layer.prompt + mixed.start, layer.prompt + mixed.stop)
        several = mixed.stop > mixed.start

        logits = (flat @ work.keys[:, :width].transpose(1, 2)).unflatten(1, (rows, -1))  # [H, R, G, S]
        if several:
            exact = (flat @ work.exact_keys(mixed).transpose(1, 2)).unflatten(1, (rows, -1))
            logits[..., at] = torch.where(tile.rectified[:, None], exact, logits[..., at])
        newest = layer.prompt + tile.first
        later = torch.arange(newest, width, device=flat.device) >= tile.lengths[:, None]
        logits[..., newest:].masked_fill_(later[:, None], float("-inf"))
        weights = logits.softmax(-1)
        share = weights.new_ones(shape[:3])
        if self.config is not None:
            parts = weights.unflatten(-1, (blocks, size))
            mass = parts.sum(-1)  # [H, R, G, M]
            chosen = self._choose(TileBlocks(
                self.config, queries, tile.lengths[None], layer.prompt + tile.end, layer.count,
                layer=self._layer, handed=self._handed.setdefault(tile.first, {}), known=work.known,
                work=work, tile=tile, exact_masses=mass,
            ))  # fmt: skip
            share = (mass * chosen).sum(-1)
            self._read.append(chosen.any(2).sum(-1).float().mean(0).expand(rows))
            if alone:
                weights = logits.masked_fill(~chosen.repeat_interleave(size, -1), float("-inf")).softmax(-1)
            else:
                parts.mul_(chosen[..., None])
        out = weights.new_zeros(shape)
        if several:
            rectified = weights[..., at] * tile.rectified[:, None]
            weights[..., at] -= rectified
            out = (rectified.flatten(1, 2) @ work.exact_values(mixed)).view(shape)
        out = out + (weights.flatten(1, 2) @ work.values[:, :width]).view(shape)
        if self.config is not None and not alone:
            out = out / share[..., None]
        return out.transpose(0, 1).flatten(1, 2).to(layer.queries.dtype), share.transpose(0, 1).flatten(1)


@dataclass
class TileBlocks(Blocks):
    """What a selector sees of a tile: R rows at once."""

    work: _Working | None = None
    tile: Tile | None = None
    exact_masses: Tensor | None = None

    def compared(self, query: Tensor, compare: Compare) -> Tensor:
        """With the table of all blocks; with those of its own for blocks that are not the same to all rows."""
        assert self.work is not None
        assert self.tile is not None
        blocks = self.config.blocks(self.tokens)
        scores = compare(query, self.work.table[:, None, :blocks])
        if self.tile.rectified.shape[1] or not self.config.local_blocks:  # else the newest is read whatever its score
            first, own = self.work.row_table(self.tile, blocks)
            scores[..., first:] = compare(query, own)
        return scores

    def masses(self) -> Tensor:
        """Attention computes them anyway."""
        assert self.exact_masses is not None
        return self.exact_masses


class _Working:
    """Keys and values as a tile's first row finds them, float32, to a whole number of blocks; and their summaries."""

    def __init__(self, layer: Sequences, config: SparseConfig | None, selector: Selector | None) -> None:
        self.layer, self.config = layer, config
        self.block_size = 1 if config is None else config.block_size
        extra = -layer.keys.shape[1] % self.block_size
        self.keys, self.values = (pad(x.float(), (0, 0, 0, extra)) for x in (layer.keys, layer.values))
        if self.keys.data_ptr() == layer.keys.data_ptr():
            self.keys, self.values = self.keys.clone(), self.values.clone()
        self._rectified = 0  # tokens since the prompt
        self.known: Tensor | None = None
        self._selector = selector if selector is not None and (selector.summarised or selector.tabled) else None
        if self._selector is not None:
            self.known = self._selector.calibrate(self.keys[:, : layer.prompt])
            self.table = self._describe(self._blocks(0, self.keys.shape[1] // self.block_size))  # [H, M, W]

    def _blocks(self, first: int, end: int) -> Tensor:
        return self.keys[:, first * self.block_size : end * self.block_size].unflatten(1, (end - first, -1))

    def _describe(self, keys: Tensor, valid: Tensor | None = None) -> Tensor:
        assert self._selector is not None
        assert self.config is not None
        table = self._selector.describe(keys, valid, self.config, self.known)
        own = self._selector.summarised and self.config.summary_dtype is None  # as the cache's elements hold them
        return table.to(self.layer.keys.dtype).float() if own else table

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
        if self._selector is not None:
            first, last = at.start // size, -(-at.stop // size)
            self.table[:, first:last] = self._describe(self._blocks(first, last))

    def row_table(self, tile: Tile, blocks: int) -> tuple[int, Tensor]:
        """What is kept by row of the last blocks, from the first that is not the same to all rows.

        Returns:
            The first of these blocks, and `[H, R, blocks from there, W]`.
        """
        assert self.config is not None
        size, prompt, mixed = self.block_size, self.layer.prompt, tile.mixed
        several = mixed.stop > mixed.start
        first = (prompt + (mixed.start if several else tile.first)) // size
        span = slice(first * size, blocks * size)
        keys = self.keys[:, None, span].expand(-1, tile.rows, -1, -1)
        if several:
            before = prompt + mixed.start - span.start
            exact = pad(self.exact_keys(mixed), (0, 0, before, span.stop - prompt - mixed.stop))
            rectified = pad(tile.rectified, (before, span.stop - prompt - mixed.stop))
            keys = torch.where(rectified[..., None], exact[:, None], keys)
        valid = torch.arange(span.start, span.stop, device=keys.device) < tile.lengths[:, None]  # [R, n]
        parts, kept = keys.unflatten(2, (-1, size)), valid.unflatten(1, (-1, size))[..., None]
        return first, self._describe(parts, kept)
