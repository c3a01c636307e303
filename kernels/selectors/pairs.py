"""Blocks ranked by the means of every two neighbouring keys, kept in 4 bits: as many bytes as min/max of 16 tokens.

An estimate of each head's attention mass: exp(q . mean) of each pair, added over a block's pairs, as shares of all
blocks, summed over the group's heads (pooled.py). Finer than any summary of a whole block, so that a single key that
answers a question is not averaged away. In the spirit of low-precision keys for selection (Double Sparsity, arXiv
2408.07092; Loki, 2406.02542; KIVI's ranges by channel, 2402.02750), with no channel left out.

Each channel of each KV head has a range, that of the pairs a sequence begins with, in 15 equal steps; later values are
clamped to it. The portable path keeps the rounded values as floats, the kernels 4 bits (attention/pair_codes.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.pair_codes import PAIR, STEPS, allocate_pairs, codes_reference, pack_pairs, ranges
from ..attention.pair_scores import score_pairs, score_room
from ..attention.selection import select_blocks
from ..cache import KVCache
from ..config import AttentionShape, SparseConfig
from ..method import Stage, StepTensors
from .base import Blocks, SelectingLayer, Selector, products, register_selector
from .pooled import pooled


@register_selector("pairs")
class Pairs(Selector):
    """Means of two keys in 4 bits; one list a KV head. The newest block is to be read in any case."""

    tabled = True

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """One a KV head."""
        return shape.kv_heads

    def check(self, config: SparseConfig) -> None:
        """Raises ValueError without a local block."""
        if config.local_blocks < 1:
            raise ValueError("local_blocks: got 0, selector pairs needs 1: the newest pair may be half filled")

    def calibrate(self, keys: Tensor) -> Tensor:
        """Least value and step of each channel, `[H, 2, D]`."""
        whole = keys.shape[1] // PAIR * PAIR
        if not whole:
            return keys.new_tensor((-1.0, 2.0 / STEPS))[:, None].expand(len(keys), 2, keys.shape[2]).contiguous()
        means = torch.unflatten(keys[:, :whole], 1, (-1, PAIR)).mean(2)
        low, high = means.amin(1), means.amax(1)
        return torch.stack((low, (high - low).clamp(min=torch.finfo(torch.float32).tiny) / STEPS), 1)

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """Rounded means, `[H, ..., b / 2 x D]`. Where some keys are not valid it may say anything: the newest block."""
        assert known is not None
        codes = codes_reference(keys, known)
        low, step = ranges(known, codes.dim())
        return (codes * step + low).flatten(-2)

    def scores(self, blocks: Blocks) -> Tensor:
        """Estimated masses, as shares summed over the group's heads, in logarithms."""
        queries, pairs = blocks.queries, blocks.config.block_size // PAIR
        scale = queries.shape[-1] ** -0.5

        def mass(query: Tensor, table: Tensor) -> Tensor:
            each = products(query, torch.unflatten(table, -1, (pairs, -1)).flatten(2, 3))  # [H, R, G, m pairs]
            return torch.unflatten(each.mul_(scale), -1, (-1, pairs)).logsumexp(-1)

        return pooled(blocks.compared(queries, mass), blocks)

    def serves(self, shape: AttentionShape) -> bool:
        """From head dim 32 on: the matrix unit takes 16 of a half's channels at least."""
        return shape.head_dim >= 32

    def kernel_table(self, cache: KVCache, config: SparseConfig) -> Tensor:
        """Packed codes."""
        return allocate_pairs(cache, config.block_size)

    def kernel_describe(self, layer: SelectingLayer, tokens: int | None) -> None:
        """Pack the touched blocks."""
        assert layer.table is not None
        assert layer.known is not None
        pack_pairs(layer.cache, layer.table, layer.known, layer.config.block_size, tokens)

    def appends(self, config: SparseConfig) -> bool:
        """Always: the newest block is read whatever its score."""
        return True

    def kernel_stages(self, layer: SelectingLayer, step: StepTensors) -> tuple[Stage, ...]:
        """The append and scores by two launches, and the selection."""
        cache, config, work, table, known = layer.cache, layer.config, layer.work, layer.table, layer.known
        assert table is not None
        assert known is not None
        names = f"logits of {table.shape[2]} blocks", f"sums of {table.shape[2]} blocks"
        if names[0] not in layer.handed:  # layers run one after another, and share the room
            made = score_room(layer.shape, table.shape[2], config.block_size, table.device)
            layer.handed.update(zip(names, made, strict=True))
        room, append = (layer.handed[names[0]], layer.handed[names[1]]), (step.k, step.v)

        def score() -> None:
            score_pairs(step.q, cache, table, known, room, work.scores, config, append=append)

        return (
            Stage("append+score", score),
            Stage("select", lambda: select_blocks(work.scores, cache, work.lists, work.counts, config)),
        )

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """4 bits a channel and pair."""
        return config.blocks(tokens) * config.block_size // PAIR * shape.kv_heads * shape.head_dim // 2
