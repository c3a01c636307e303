"""Chunk kernels: dense attention of the last f tokens of each sequence, causal among themselves, against the cache.

Rectification attends so, and so do the verification of drafts and prefill in chunks. `triton` is ours, `torch` runs
anywhere; a library's kernel is registered beside the dense method that it comes with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..cache import KVCache
from ..checks import kernel_dtypes
from ..config import AttentionShape
from ..launch import can_run_on
from ..method import ChunkTensors, Unsupported
from ..registry import entry
from .dense import dense_attention, dense_splits
from .merge import Partials, merge_partials

PREFERRED = ("flash-attn-3", "triton", "torch")
"""Fastest first, as measured on an H100 (docs/notes/kernels.md); others run only when they are named."""


class ChunkKernel(ABC):
    """One way to attend with a chunk. An instance serves all layers of a model, which run one after another."""

    name: ClassVar[str]
    graph_safe: ClassVar[bool] = True  # False: synchronises, so it cannot be captured

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device, cache: KVCache) -> str | None:
        """Why the kernel cannot attend here, or None if it can."""
        return None

    @abstractmethod
    def bind(self, cache: KVCache, shape: AttentionShape, chunk: ChunkTensors) -> Callable[[], Tensor | None]:
        """The call that attends with `chunk.q`, whose K and V are in the cache by then.

        It returns the library's own result, `[B, f, Hq, D]`, or None if it fills `chunk.out`. Rows before a sequence's
        start see nothing and are zeros.
        """


_registry: dict[str, type[ChunkKernel]] = {}
C = TypeVar("C", bound=type[ChunkKernel])


def register_chunk_kernel(name: str) -> Callable[[C], C]:
    """Class decorator: make a chunk kernel known by `name`. Raises ValueError for a taken one."""
    return entry(_registry, "chunk kernel", name)  # type: ignore[return-value]


def chunk_kernels() -> dict[str, type[ChunkKernel]]:
    """Every known chunk kernel by name, in order of registration."""
    return dict(_registry)


def best_chunk_kernel(shape: AttentionShape, cache: KVCache, name: str | None = None) -> ChunkKernel:
    """The kernel of that name, or the first of `PREFERRED` that is registered and can run.

    Raises:
        ValueError: no kernel has that name (the known ones are listed).
        Unsupported: it cannot attend here, with the reason.
    """
    if name is not None and name not in _registry:
        raise ValueError(f"chunk_kernel: got {name!r}, known are {', '.join(_registry)}")
    reasons = []
    for candidate in PREFERRED if name is None else (name,):
        if candidate in _registry:
            kernel = _registry[candidate]
            reason = kernel.unavailable(shape, cache.dtype, cache.device, cache)
            if reason is None:
                return kernel()
            reasons.append(f"{candidate}: {reason}")
    raise Unsupported(f"chunk_kernel: {'; '.join(reasons)}")


@register_chunk_kernel("triton")
class TritonChunk(ChunkKernel):
    """The dense kernel of this package, which reads K and V once for the whole GQA group, and its merge."""

    def __init__(self) -> None:
        self._partials: dict[tuple[int, int], Partials] = {}  # kept: captured graphs hold their addresses

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device, cache: KVCache) -> str | None:
        """Why Triton kernels cannot run here or take this dtype, or None."""
        takes = kernel_dtypes()
        named = [str(x).removeprefix("torch.") for x in (dtype, *takes)]
        return can_run_on(device) or (None if dtype in takes else f"got {named[0]}, takes {', '.join(named[1:])}")

    def bind(self, cache: KVCache, shape: AttentionShape, chunk: ChunkTensors) -> Callable[[], None]:
        """The call that fills `chunk.out`; its room for split results is made now and kept."""
        batch, tokens, heads, dim = chunk.q.shape
        key = batch * tokens * heads, dense_splits(shape, tokens, cache.capacity, cache.device, cache.in_fp8)
        if key not in self._partials:
            self._partials[key] = Partials.allocate(*key, dim, cache.device)
        partials = self._partials[key]

        def run() -> None:
            dense_attention(chunk.q, cache, partials)
            merge_partials(partials, chunk.out)

        return run


@register_chunk_kernel("torch")
class TorchChunk(ChunkKernel):
    """SDPA under a mask, in plain torch."""

    graph_safe = False

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device, cache: KVCache) -> str | None:
        """A paged cache is not taken; None for others."""
        return "takes contiguous caches only, got a paged one" if cache.paged else None

    def bind(self, cache: KVCache, shape: AttentionShape, chunk: ChunkTensors) -> Callable[[], None]:
        """The call that fills `chunk.out`."""
        return lambda: dense_chunk_torch(cache, chunk)


def dense_chunk_torch(cache: KVCache, chunk: ChunkTensors) -> None:
    """Dense attention of the last f tokens, causal among themselves; the GQA group packed as rows.

    Raises:
        ValueError: a sequence longer than the capacity.
    """
    _, tokens, heads, dim = chunk.q.shape
    group = heads // cache.kv_heads
    for b, length in enumerate(cache.lengths_on_host()):
        grouped = chunk.q[b].reshape(tokens, cache.kv_heads, group, dim)
        query = grouped.permute(1, 0, 2, 3).flatten(1, 2)  # [Hkv, f G, D]
        position = length - tokens + torch.arange(tokens, device=cache.device).repeat_interleave(group)
        visible = torch.arange(length, device=cache.device)[None, :] <= position[:, None]
        out = scaled_dot_product_attention(query[None], *cache.read(b, length), attn_mask=visible)[0].masked_fill(
            position[None, :, None] < 0, 0.0
        )  # rows that see nothing: NaN or anything, by the backend
        chunk.out[b] = out.view(cache.kv_heads, tokens, group, dim).permute(1, 0, 2, 3).reshape(tokens, heads, dim)
