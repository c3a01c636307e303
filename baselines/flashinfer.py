"""FlashInfer's paged decode on tensor cores. A contiguous head-major cache is read as pages through strides.

Its scales of K and V in e4m3 are one number a tensor. Ours, one a KV head, are multiplied into the query before and the
output after, which is exact: they are powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import AttentionShape, DecodeMethod, KVCache, SparseConfig, StepTensors, Unsupported, register
from ..kernels.config import ceil_div
from ..kernels.method import DenseLayer
from .optional import first, load, missing, needs_cuda

PAGE = 16
WORKSPACE_BYTES = 256 * 2**20


def as_pages(cache: KVCache) -> tuple[Tensor, Tensor, Tensor, int]:
    """K and V as `[pages, Hkv, page, D]`, the page table int32 `[B, pages a sequence]` and the page size; no copy.

    Page p of sequence b of a contiguous `[B, Hkv, S, D]` cache starts (b Hkv S / 16 + p) * 16 D elements in, and its
    heads lie S D apart: a uniform page stride with overlapping pages, which FlashInfer reads as any other.

    Raises:
        Unsupported: the capacity S of a contiguous cache is no multiple of 16.
    """
    if cache.block_table is not None:
        return cache.k, cache.v, cache.block_table, cache.page_size
    batch, heads, tokens, dim = cache.k.shape
    if tokens % PAGE or not cache.k.is_contiguous():
        raise Unsupported(f"cache: FlashInfer needs a contiguous capacity of a multiple of {PAGE}, got {tokens}")
    per_sequence = tokens // PAGE
    shape = (batch * heads * per_sequence - (heads - 1) * per_sequence, heads, PAGE, dim)
    strides = (PAGE * dim, tokens * dim, dim, 1)
    start = torch.arange(batch, dtype=torch.int32, device=cache.device)[:, None] * (heads * per_sequence)
    table = start + torch.arange(per_sequence, dtype=torch.int32, device=cache.device)
    return cache.k.as_strided(shape, strides), cache.v.as_strided(shape, strides), table, PAGE


@dataclass(frozen=True, slots=True)
class _Plan:
    """A planned wrapper and what it was planned for."""

    lengths: list[int]
    page: int
    indices: Tensor  # int32, the sequences' pages in order
    wrapper: Any


@register("flashinfer")
class FlashInfer(DecodeMethod):
    """BatchDecodeWithPagedKVCacheWrapper; planned, outside the timed span, for the lengths it is bound at."""

    is_dense = True
    reads_fp8 = True
    libraries = ("flashinfer-python",)
    fixes_length = True

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run: no GPU of compute capability 8.0, or no flashinfer."""
        return first(needs_cuda(device), missing("flashinfer", "flashinfer"))

    def __init__(
        self, shape: AttentionShape, config: SparseConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, config, dtype=dtype, device=device)
        self._workspace: Tensor | None = None
        self._plan: _Plan | None = None

    def prepare(self, cache: KVCache) -> DenseLayer:
        """One layer, bound to its cache. Layers with the same lengths and pages share one plan.

        Raises:
            Unsupported: a contiguous cache cannot be read as pages (`as_pages`).
        """
        keys, values, table, page = as_pages(cache)
        lengths = cache.lengths_on_host()
        used = [ceil_div(length, page) for length in lengths]
        indices = torch.cat([table[b, :n] for b, n in enumerate(used)]).to(torch.int32)
        plan = self._plan
        if plan is None or (plan.lengths, plan.page) != (lengths, page) or not torch.equal(plan.indices, indices):
            wrapper = self._wrapper(lengths, used, indices, page, keys.dtype)
            plan = self._plan = _Plan(lengths, page, indices, wrapper)
        wrapper = plan.wrapper

        def attend(step: StepTensors) -> Callable[[], Tensor]:
            if cache.scales is None:
                return lambda: wrapper.run(step.q, (keys, values), out=step.out)  # returns `out`
            k_scale, v_scale = cache.scales[:, 0, None, None], cache.scales[:, 1, None, None]
            grouped = (cache.batch, cache.kv_heads, self.shape.group, cache.head_dim)
            query = torch.empty_like(step.q)

            def run() -> Tensor:
                torch.mul(step.q.view(grouped), k_scale, out=query.view(grouped))
                wrapper.run(query, (keys, values), out=step.out)
                step.out.view(grouped).mul_(v_scale)
                return step.out

            return run

        return DenseLayer(cache, self.shape.q_heads, attend)

    def _wrapper(self, lengths: list[int], used: list[int], indices: Tensor, page: int, stored: torch.dtype) -> Any:
        """A wrapper planned for these lengths. Wrappers share their scratch, since they run one after another."""
        device = indices.device
        if self._workspace is None:
            self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        indptr = torch.tensor([0, *used], dtype=torch.int32).cumsum(0).to(torch.int32)
        last = torch.tensor([(n - 1) % page + 1 for n in lengths], dtype=torch.int32)
        wrapper = load("flashinfer").BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=indptr.to(device),
            paged_kv_indices_buffer=indices.clone(),
            paged_kv_last_page_len_buffer=last.to(device),
        )
        wrapper.plan(
            indptr,
            indices,
            last,
            self.shape.q_heads,
            self.shape.kv_heads,
            self.shape.head_dim,
            page,
            q_data_type=self.dtype,
            kv_data_type=stored,
        )
        return wrapper
