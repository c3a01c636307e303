"""The block-sparse decode step in Triton: append, score, select, attend, merge. ReSA and its kin are its cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .cache import KVCache
from .chunk import ChunkKernel, best_chunk_kernel
from .config import AttentionShape, SparseConfig, ceil_div
from .launch import can_run_on
from .merge import Partials, merge_partials
from .method import ChunkTensors, DecodeMethod, Layer, Selection, Stage, StepTensors, Traffic, chunk_traffic
from .scores import score_blocks, score_rows
from .selection import select_blocks
from .sparse_decode import sparse_decode, sparse_splits
from .summaries import Summaries, build_summaries, write_tokens


@dataclass(frozen=True, slots=True)
class Workspace:
    """Buffers of a sparse step, shared by all layers of a model."""

    scores: Tensor  # float32 [B, R, M]
    lists: Tensor  # int32 [B, R, N]
    counts: Tensor  # int32 [B, R]
    partials: Partials

    @classmethod
    def allocate(cls, shape: AttentionShape, config: SparseConfig, rows: int, cache: KVCache) -> Workspace:
        blocks, chosen = config.blocks(cache.capacity), config.selected(cache.capacity)
        splits = sparse_splits(shape, rows, chosen, config.block_size, cache.device)
        return cls(
            torch.empty(shape.batch, rows, blocks, dtype=torch.float32, device=cache.device),
            torch.full((shape.batch, rows, chosen), -1, dtype=torch.int32, device=cache.device),
            torch.zeros(shape.batch, rows, dtype=torch.int32, device=cache.device),
            Partials.allocate(shape.batch * shape.q_heads, splits, shape.head_dim, cache.device),
        )


@dataclass
class SparseLayer(Layer):
    """One layer of a block-sparse method."""

    scores_blocks: ClassVar[bool] = True
    """False if `work.scores` plays no part in the selection."""

    cache: KVCache
    shape: AttentionShape
    config: SparseConfig
    work: Workspace
    summaries: Summaries | None = None
    kernel: ChunkKernel | None = None  # of rectification
    _rectified: Tensor | None = None

    @property
    def chunk_kernel(self) -> str | None:
        return self.kernel.name if self.kernel is not None else None

    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The stages that fill `work.lists`; methods with another selector replace these."""
        work, config = self.work, self.config
        assert self.summaries is not None
        summaries = self.summaries
        return (
            Stage("score", lambda: score_blocks(step.q, self.cache, summaries, work.scores, config)),
            Stage("select", lambda: select_blocks(work.scores, self.cache, work.lists, work.counts, config)),
        )

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        work, block_size = self.work, self.config.block_size
        return (
            Stage("append", lambda: write_tokens(self.cache, step.k, step.v, self.summaries)),
            *self.choose_stages(step),
            Stage(
                "attend",
                lambda: sparse_decode(
                    step.q, self.cache, work.lists, work.counts, work.partials, block_size=block_size
                ),
            ),
            Stage("merge", lambda: merge_partials(work.partials, step.out)),
        )

    def rectify_stages(self, chunk: ChunkTensors) -> tuple[Stage, ...]:
        if self.kernel is None:
            return ()
        attend = self.kernel.bind(self.cache, self.shape, chunk)

        def run() -> None:
            self.overwrite(chunk)
            self._rectified = attend()

        return (Stage("rectify", run, graph_safe=self.kernel.graph_safe),)

    def rectified(self, chunk: ChunkTensors) -> Tensor:
        return chunk.out if self._rectified is None else self._rectified

    def overwrite(self, chunk: ChunkTensors) -> None:
        write_tokens(self.cache, chunk.k, chunk.v, self.summaries)

    def selection(self) -> Selection:
        return Selection(self.work.lists, self.config.block_size)

    def traffic(self) -> dict[str, Traffic]:
        return sparse_traffic(self.cache, self.shape, self.config, self.work, self.summaries is not None)

    def rectify_traffic(self, tokens: int) -> Traffic:
        if self.kernel is None:
            return Traffic(0)
        touched = 1 + ceil_div(tokens - 1, self.config.block_size)
        refreshed = 2 * self.cache.head_dim * self.cache.k.element_size() * self.cache.kv_heads * self.cache.batch
        return chunk_traffic(self.cache, self.shape.q_heads, tokens) + Traffic(touched * refreshed)


def unique_tokens(lists: Tensor, lengths: Tensor, kv_heads: int, block_size: int) -> int:
    """Distinct tokens read, summed over sequences and KV heads: the union of the lists of each KV head's group."""
    batch, rows, _ = lists.shape
    blocks = max(1, int(lists.max()) + 1)
    hit = torch.zeros(batch, rows, blocks + 1, dtype=torch.bool, device=lists.device)
    hit.scatter_(2, torch.where(lists < 0, blocks, lists).long(), True)
    hit = hit[:, :, :blocks]
    hit = hit.expand(-1, kv_heads, -1) if rows == 1 else hit.view(batch, kv_heads, rows // kv_heads, blocks).any(2)
    size = (lengths.long()[:, None] - torch.arange(blocks, device=lists.device) * block_size).clamp(0, block_size)
    return int((hit * size[:, None, :]).sum())


def sparse_traffic(
    cache: KVCache, shape: AttentionShape, config: SparseConfig, work: Workspace, scored: bool
) -> dict[str, Traffic]:
    """Floors of a sparse step: summaries, lists, query and output, and the *unique* selected tokens per KV head.

    In `total` the scores and split results are intermediate and cost nothing; the lists count once.
    """
    size, dim = cache.k.element_size(), cache.head_dim
    query = shape.batch * shape.q_heads * dim * size
    new_token = 2 * shape.batch * shape.kv_heads * dim * size
    one_summary = 2 * shape.batch * shape.kv_heads * dim * size if scored else 0
    blocks = sum(config.blocks(length) for length in cache.lengths.tolist())
    summary = 2 * blocks * shape.kv_heads * dim * size if scored else 0
    score_rows_bytes = 4 * blocks * work.lists.shape[1] if scored else 0
    entries = 4 * int((work.lists >= 0).sum())
    tokens = unique_tokens(work.lists, cache.lengths, shape.kv_heads, config.block_size)
    read = 2 * tokens * dim * size
    attended = (
        sum(int((work.lists[b] >= 0).sum()) * config.block_size for b in range(shape.batch))
        * shape.q_heads
        // work.lists.shape[1]
    )
    append = Traffic(2 * new_token + one_summary)
    flops = 4 * attended * dim
    parts = {"append": append}
    if scored:
        parts["score"] = Traffic(summary + query + score_rows_bytes, 4 * blocks * work.lists.shape[1] * dim)
        parts["select"] = Traffic(score_rows_bytes + entries)
    else:
        parts["select"] = Traffic(entries)
    parts["attend"] = Traffic(entries + query + read + query, flops)
    parts["total"] = append + Traffic(summary + entries + 2 * query + read, flops)
    return parts


class SparseMethod(DecodeMethod):
    """Base of the methods that score summaries and select blocks."""

    rectifies = False
    scored = True
    layer_class: type[SparseLayer] = SparseLayer

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, config, dtype=dtype, device=device)
        self._work: Workspace | None = None
        self._kernels: dict[str, ChunkKernel] = {}

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return can_run_on(device)

    def rows(self) -> int:
        """Lists a sequence."""
        return score_rows(self.shape, self.config.gqa_policy)

    def prepare(self, cache: KVCache) -> SparseLayer:
        if self._work is None or self._work.scores.shape[2] != self.config.blocks(cache.capacity):
            self._work = Workspace.allocate(self.shape, self.config, self.rows(), cache)
        summaries = None
        if self.scored:
            summaries = Summaries.allocate(cache, self.config.block_size, self.config.summary_kind)
            build_summaries(cache, summaries)
        kernel = None
        if self.rectifies:
            kernel = best_chunk_kernel(self.shape, cache, self.config.chunk_kernel)
            kernel = self._kernels.setdefault(kernel.name, kernel)  # one for all layers: they share its scratch
        return self.layer_class(cache, self.shape, self.config, self._work, summaries, kernel)
