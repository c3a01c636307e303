"""The block-sparse decode step in Triton: append, score, select, attend, merge. ReSA and its kin are its cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .attention.merge import Partials, merge_partials
from .attention.selection import select_blocks
from .attention.sparse_decode import sparse_decode, sparse_splits
from .attention.summaries import build_summaries, refresh_summaries, write_tokens
from .binding import check_cache
from .cache import KVCache
from .checks import stored_dtypes
from .config import AttentionShape, SparseConfig
from .launch import can_run_on
from .method import Stage, StepTensors, Unsupported, check_readable
from .portable import TorchSparseLayer, TorchSparseMethod, calibrated, fill_scores
from .selectors import Following
from .workspace import BlockSparseLayer


@dataclass
class SparseLayer(BlockSparseLayer):
    """One layer of a block-sparse method, on the kernels."""

    partials: Partials
    way = "chain"

    @property
    def appends_apart(self) -> bool:
        """Not where scoring writes the token, too, or attention does."""
        return not self.selector.appends(self.config)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Write the last T tokens, `[B, T, Hkv, D]` or `[B, Hkv, D]`, and refresh their blocks' summaries."""
        write_tokens(self.cache, k, v, self.summaries)
        if self.table is not None:
            self.selector.kernel_describe(self, k.shape[1] if k.dim() == 4 else 1)

    def refresh(self, tokens: int) -> None:
        """Summarise again the blocks of the last `tokens` tokens."""
        if self.summaries is not None:
            refresh_summaries(self.cache, self.summaries, tokens)
        if self.table is not None:
            self.selector.kernel_describe(self, tokens)

    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """The selector's own stages; without them its scores in plain torch, and the selection."""
        own = self.selector.kernel_stages(self, step)
        if own is not None:
            return own
        cache, config, work = self.cache, self.config, self.work

        def score() -> None:
            fill_scores(self, step, cache.lengths.long(), cache.capacity)

        return (
            Stage("score", score),
            Stage("select", lambda: select_blocks(work.scores, cache, work.lists, work.counts, config)),
        )

    def attend_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Attention split over the lists, and the merge into `step.out`."""
        cache, work, partials, size = self.cache, self.work, self.partials, self.config.block_size
        # How many blocks our own selection takes is known beforehand; another selector's counts are read.
        own = type(self).choose_stages is SparseLayer.choose_stages and self.selector.ranked
        counts = self.config if own else work.counts
        follows = isinstance(self.selector, Following) and not self.appends_apart
        append = (step.k, step.v) if follows else None

        def attend() -> None:
            sparse_decode(step.q, cache, work.lists, counts, partials, block_size=size, append=append)

        return (
            Stage("append+attend" if append else "attend", attend),
            Stage("merge", lambda: merge_partials(partials, step.out)),
        )


class SparseMethod(TorchSparseMethod):
    """Base of the block-sparse methods: on the kernels where they can run, else in plain torch.

    A method with another selector brings `layer_class`, and `torch_layer_class` if it is to run without the kernels.
    """

    layer_class: ClassVar[type[SparseLayer]] = SparseLayer
    reads_fp8 = True

    @property
    def step_tokens(self) -> int:
        """Tokens a sequence that a step attends with."""
        return 1

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, config, dtype=dtype, device=device)
        self._partials: dict[int, Partials] = {}  # by splits

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the method cannot run here: it has kernels alone, and they cannot. None if it can."""
        only_kernels = cls.layer_class is not SparseLayer and cls.torch_layer_class is TorchSparseLayer
        return can_run_on(device) if only_kernels else None

    def on_kernels(self, cache: KVCache) -> bool:
        """Whether this cache's layer runs on them: they can, and have the selector, or its scores need nothing kept."""
        selector = self.selector.chooser(self.config)
        by_scores = selector.ranked and not selector.tabled and not selector.summarised
        return can_run_on(cache.device) is None and (selector.serves(self.shape) or by_scores)

    def layer_kind(self, cache: KVCache) -> type[SparseLayer]:
        """The class of this cache's layer, where it runs on the kernels."""
        return self.layer_class

    def splits(self, cache: KVCache) -> int:
        """Ways to split a list of a full cache."""
        chosen = self.config.selected(cache.capacity)
        return sparse_splits(self.shape, self.rows(), chosen, self.config.block_size, cache.device)

    def prepare(self, cache: KVCache) -> BlockSparseLayer:
        """Bind to a layer's cache: summaries built, work space allocated. Waits for the device.

        Raises:
            TypeError, ValueError: not a cache of this method's shape, dtype and device, or one whose lengths or block
                table are out of range (`check_cache`).
            Unsupported: a paged cache, or one in fp8, that the method or its selector does not read.
        """
        if isinstance(cache, KVCache) and not self.on_kernels(cache):
            return super().prepare(cache)
        check_cache(cache, self.shape, self.dtype, self.device, stored_dtypes())
        check_readable(cache)
        selector = self.chosen_by(cache)
        if cache.in_fp8 and not (self.reads_fp8 and selector.reads_fp8):
            raise Unsupported(f"cache: {self.name} by {selector.name} reads 16-bit keys and values alone, got fp8")
        if cache.paged and (selector.tabled or not selector.has_kernels):
            raise Unsupported(f"cache: {selector.name} reads contiguous caches only, got a paged one")
        summaries = self.summaries(cache, selector)
        if summaries is not None:
            build_summaries(cache, summaries)
        splits = self.splits(cache)
        if splits not in self._partials:
            rows = self.shape.batch * self.step_tokens * self.shape.q_heads
            self._partials[splits] = Partials.allocate(rows, splits, self.shape.head_dim, cache.device)
        layer = self.layer_kind(cache)(
            cache,
            self.shape,
            self.config,
            selector,
            self.workspace(cache),
            summaries,
            self.kernel(cache, self.config.chunk_kernel),
            self._partials[splits],
        )
        self.number(layer)
        if selector.tabled:
            layer.known = calibrated(selector, cache)
            layer.table = selector.kernel_table(cache, self.config)
            selector.kernel_describe(layer, None)
        return layer
