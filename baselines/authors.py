"""The authors' own ReSA kernels (microsoft/unilm, folder ReSA), from a checkout that RESA_REFERENCE points to.

Only this adapter is ours. Their selection synchronises with the host each step, so it runs eagerly; their attention
can be captured. Off unless asked for by name.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels import (
    AttentionShape,
    DecodeMethod,
    KVCache,
    Selection,
    SparseConfig,
    Stage,
    StepTensors,
    Traffic,
    Unsupported,
    register,
)
from ..kernels.attention.summaries import write_tokens
from ..kernels.method import Layer
from ..kernels.selectors import selector_of
from ..kernels.workspace import sparse_traffic
from .optional import first, load, needs_cuda

VARIABLE = "RESA_REFERENCE"


def _checkout() -> str | None:
    """Why the checkout cannot be used; None once it is importable."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return f"set {VARIABLE} to a checkout of the authors' ReSA folder (microsoft/unilm, ReSA)"
    if not (Path(folder) / "llm" / "kernel" / "flash_sparse_decoding.py").is_file():
        return f"{VARIABLE}={folder} holds no llm/kernel/flash_sparse_decoding.py"
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        load("llm.kernel.flash_sparse_decoding")
    except Exception as error:  # whatever a foreign checkout raises
        return f"{VARIABLE}={folder} cannot be imported ({type(error).__name__}: {str(error)[:80]})"
    return None


@dataclass
class AuthorsLayer(Layer):
    """One layer on the authors' kernels.

    Attributes:
        manager: their `KVManager`, which keeps the block summaries.
        lists: int32 `[B, Hkv, n]`, the blocks of the newest step; -1 where there is none.
    """

    cache: KVCache
    shape: AttentionShape
    config: SparseConfig
    manager: Any
    lists: Tensor
    _result: Tensor | None = None
    _captured: list[Tensor] = field(default_factory=list)

    def output(self, step: StepTensors) -> Tensor:
        """What the newest step gave, `[B, Hq, D]`: a tensor of theirs."""
        return step.out if self._result is None else self._result

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        """Append and select, which synchronise with the host, then attend and merge."""
        manager, cache = self.manager, self.cache
        decode = load("llm.kernel.flash_sparse_decoding").flash_block_sparse_decoding
        keys, values = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [B, S, Hkv, D]

        def append() -> None:
            write_tokens(cache, step.k, step.v)
            manager.update_centeroids(step.k, cache.lengths)

        def choose() -> None:
            self.lists = manager.get_kv_cache_indices_fast(step.q, cache.lengths)

        def attend() -> None:
            if torch.cuda.is_current_stream_capturing():
                self._captured.append(self.lists)  # a graph keeps the address, not the tensor
            size = self.config.block_size
            self._result = decode(step.q, keys, values, cache.lengths, self.lists, block_size=size)

        return (
            Stage("append", append, graph_safe=False),
            Stage("score+select", choose, graph_safe=False),
            Stage("attend+merge", attend),
        )

    def selection(self) -> Selection:
        """The blocks of the newest step."""
        return Selection(self.lists, self.config.block_size)

    def traffic(self) -> dict[str, Traffic]:
        """Floors by stage, as of our kernels, their two stages each summing up two of ours."""
        parts = sparse_traffic(self.cache, self.shape, self.config, self.lists, selector_of("summary", self.config))
        return {
            "append": parts["append"],
            "score+select": parts["score"],
            "attend+merge": parts["attend"],
            "total": parts["total"],
        }


@register("resa-authors")
class ResaAuthors(DecodeMethod):
    """ReSA as published, Triton path."""

    in_default = False
    uses = ("block_size", "active_ratio", "min_blocks")

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run: no checkout that can be imported, or no GPU of compute capability 8.0."""
        return first(_checkout(), needs_cuda(device))

    def prepare(self, cache: KVCache) -> AuthorsLayer:
        """One layer, bound to its cache and its tokens' summaries.

        Raises:
            Unsupported: a paged cache, or a capacity that is no multiple of the block size.
        """
        if cache.paged:
            raise Unsupported("cache: the authors' kernels take contiguous caches only, got a paged one")
        config = self.config
        if cache.capacity % config.block_size:
            raise Unsupported(f"cache: capacity {cache.capacity} must be a multiple of block_size {config.block_size}")
        manager = load("llm.arch.context_manager").KVManager(
            cache.kv_heads, config.block_size, config.active_ratio, config.local_blocks, config.min_blocks
        )
        manager.init_centeroids(cache.k.transpose(1, 2), cache.lengths)
        chosen = max(config.selected(length) for length in cache.lengths_on_host())
        lists = torch.full((cache.batch, cache.kv_heads, chosen), -1, dtype=torch.int32, device=cache.device)
        return AuthorsLayer(cache, self.shape, config, manager, lists)
