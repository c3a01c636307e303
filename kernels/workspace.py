"""What block-sparse layers have in common, with kernels or in plain torch: work space, rectification, floors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .attention.chunk import ChunkKernel
from .attention.summaries import Summaries
from .binding import check_chunk, check_step
from .cache import KVCache
from .config import AttentionShape, SparseConfig, ceil_div
from .method import ChunkTensors, Layer, Selection, Stage, StepTensors, Traffic, chunk_traffic
from .selectors import Following, Selector


@dataclass(frozen=True, slots=True)
class Workspace:
    """Scores and lists of a sparse step, shared by all layers of a model, which run one after another."""

    scores: Tensor  # float32 [B, R, M]
    lists: Tensor  # int32 [B, R, N]
    counts: Tensor  # int32 [B, R]

    @classmethod
    def allocate(cls, config: SparseConfig, rows: int, cache: KVCache) -> Workspace:
        """Room for `rows` lists a sequence at the cache's capacity; lists empty."""
        blocks, chosen = config.blocks(cache.capacity), config.selected(cache.capacity)
        return cls(
            torch.empty(cache.batch, rows, blocks, dtype=torch.float32, device=cache.device),
            torch.full((cache.batch, rows, chosen), -1, dtype=torch.int32, device=cache.device),
            torch.zeros(cache.batch, rows, dtype=torch.int32, device=cache.device),
        )


@dataclass
class BlockSparseLayer(Layer):
    """One layer of a block-sparse method."""

    graph_safe: ClassVar[bool] = True

    cache: KVCache
    shape: AttentionShape
    config: SparseConfig
    selector: Selector
    work: Workspace
    summaries: Summaries | None  # None where nothing is scored by them
    kernel: ChunkKernel | None  # None for methods without rectification
    table: Tensor | None = field(default=None, init=False)  # [B, Hkv, M, W], what the selector keeps of blocks
    known: Tensor | None = field(default=None, init=False)  # [B, Hkv, ..], of the selector's `calibrate`
    index: int = field(default=0, init=False)  # among the layers of the method
    handed: dict[str, Tensor] = field(default_factory=dict, init=False)  # by the method's layers, to the next one
    _rectified: Tensor | None = field(default=None, init=False)

    @abstractmethod
    def write(self, k: Tensor, v: Tensor) -> None:
        """Write the last T tokens, `[B, T, Hkv, D]` or `[B, Hkv, D]`, and refresh their blocks' summaries."""

    @abstractmethod
    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The stages that fill `work.lists` and `work.counts`; methods with another selector replace these."""

    @abstractmethod
    def attend_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The stages that attend over the listed blocks into `step.out`."""

    @property
    def scores_blocks(self) -> bool:
        """Whether lists are the best blocks of `work.scores`."""
        return self.selector.ranked

    @property
    def appends_apart(self) -> bool:
        """Whether a stage of its own writes the step's token, before all others."""
        return True

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Append, the choosing stages unless another layer chose, the attending ones.

        Raises:
            TypeError, ValueError: a tensor of the step of the wrong dtype, shape, device or strides (`check_step`).
        """
        check_step(step, self.cache, self.shape.q_heads)
        append = Stage("append", lambda: self.write(step.k, step.v), self.graph_safe)
        first = (append,) if self.appends_apart else ()
        choose = () if isinstance(self.selector, Following) else self.choose_stages(step)
        return (*first, *self.counted(*choose, *self.attend_stages(step)))

    def counted(self, *stages: Stage) -> tuple[Stage, ...]:
        """These stages; those that select or read blocks say how many (`Stage.blocks`)."""
        parts = {"select", "attend"}
        return tuple(replace(s, blocks=self.config.selected) if parts & {*s.name.split("+")} else s for s in stages)

    @property
    def chunk_kernel(self) -> str | None:
        """Name of the kernel that attends in rectification; None where nothing is rectified."""
        return self.kernel.name if self.kernel is not None else None

    def rectify_stages(self, chunk: ChunkTensors) -> tuple[Stage, ...]:
        """One stage: the chunk's K and V overwritten, then dense attention; none without a chunk kernel.

        Raises:
            TypeError, ValueError: a tensor of the chunk of the wrong dtype, shape, device or strides (`check_chunk`).
        """
        if self.kernel is None:
            return ()
        check_chunk(chunk, self.cache, self.shape.q_heads)
        attend = self.kernel.bind(self.cache, self.shape, chunk)

        def run() -> None:
            self.overwrite(chunk)
            self._rectified = attend()

        return (Stage("rectify", run, self.graph_safe and self.kernel.graph_safe),)

    def rectified(self, chunk: ChunkTensors) -> Tensor:
        """The latest rectification's result, `[B, f, Hq, D]`: `chunk.out`, or the kernel's own tensor."""
        return chunk.out if self._rectified is None else self._rectified

    def overwrite(self, chunk: ChunkTensors) -> None:
        """Write the chunk's K and V, and refresh the summaries of their blocks."""
        self.write(chunk.k, chunk.v)

    def selection(self) -> Selection:
        """The lists of the last step."""
        return Selection(self.work.lists, self.config.block_size)

    def traffic(self) -> dict[str, Traffic]:
        """Floors of a step at the cache's present lengths and lists (synchronises)."""
        return sparse_traffic(self.cache, self.shape, self.config, self.work.lists, self.selector)

    def rectify_traffic(self, tokens: int) -> Traffic:
        """Floor of rectifying `tokens` tokens (synchronises)."""
        if self.kernel is None:
            return Traffic(0)
        attended = chunk_traffic(self.cache, self.shape.q_heads, tokens)
        if not (self.selector.summarised or self.selector.tabled):
            return attended
        touched = self.config.block_size * (1 + ceil_div(tokens - 1, self.config.block_size))
        refreshed = self.selector.score_bytes(self.shape, self.config, self.cache.dtype.itemsize, touched)
        return attended + Traffic(self.shape.batch * refreshed)


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
    cache: KVCache, shape: AttentionShape, config: SparseConfig, lists: Tensor, selector: Selector
) -> dict[str, Traffic]:
    """Floors of a sparse step: what ranks blocks, lists, query, output, and the *unique* selected tokens per KV head.

    In `total` the scores and split results are intermediate and cost nothing; the lists count once.
    """
    size, stored, dim = cache.dtype.itemsize, cache.k.element_size(), cache.head_dim
    query = shape.batch * shape.q_heads * dim * size
    new_token = shape.batch * shape.kv_heads * dim * (size + stored)  # read and written, as key or value
    lengths = cache.lengths_on_host()
    summary_bytes = config.summary_bytes(dim, size) * shape.kv_heads if selector.summarised else 0
    blocks = sum(config.blocks(length) for length in lengths)
    ranking = sum(selector.score_bytes(shape, config, size, length) for length in lengths)
    score_rows_bytes = 4 * blocks * lists.shape[1] if selector.summarised else 0
    entries = 4 * int((lists >= 0).sum())
    tokens = unique_tokens(lists, cache.lengths, shape.kv_heads, config.block_size)
    read = 2 * tokens * dim * stored
    attended = (
        sum(int((lists[b] >= 0).sum()) * config.block_size for b in range(shape.batch))
        * shape.q_heads
        // lists.shape[1]
    )
    append = Traffic(2 * new_token + shape.batch * summary_bytes)
    flops = 4 * attended * dim
    parts = {"append": append}
    parts["select"] = Traffic(score_rows_bytes + entries)
    if selector.summarised:
        parts["score"] = Traffic(ranking + query + score_rows_bytes, 4 * blocks * lists.shape[1] * dim)
    elif ranking:
        parts["score"] = Traffic(ranking + query)
    if "score" in parts:
        parts["append+score"] = append + parts["score"]
    parts["attend"] = Traffic(entries + query + read + query, flops)
    parts["append+attend"] = append + parts["attend"]
    parts["total"] = append + Traffic(ranking + entries + 2 * query + read, flops)
    return parts
