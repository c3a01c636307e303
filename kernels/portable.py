"""The portable path: ReSA and a dense rival in plain torch, for machines without a GPU and as an oracle for kernels.

Same method, other means: scores are one batched matrix-vector product of summaries with query slots, attention is a
gather of the selected blocks and SDPA over the packed GQA group, so that K and V are read once there too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .cache import KVCache
from .chunk import ChunkKernel, best_chunk_kernel
from .config import AttentionShape, SparseConfig, ceil_div
from .merge import Partials
from .method import (
    ChunkTensors,
    DecodeMethod,
    DenseLayer,
    Layer,
    Selection,
    Stage,
    StepTensors,
    Traffic,
    Unsupported,
    chunk_traffic,
    register,
)
from .pipeline import Workspace, sparse_traffic
from .scores import query_slots, score_rows
from .summaries import Summaries, summaries_reference


def write_tokens_torch(cache: KVCache, k_new: Tensor, v_new: Tensor) -> None:
    """Write the last T tokens of each sequence; k_new, v_new `[B, T, Hkv, D]` or `[B, Hkv, D]`. Contiguous caches."""
    if k_new.dim() == 3:
        k_new, v_new = k_new.unsqueeze(1), v_new.unsqueeze(1)
    for b, length in enumerate(cache.lengths.tolist()):
        count = min(k_new.shape[1], length)
        cache.k[b, :, length - count : length] = k_new[b, k_new.shape[1] - count :].transpose(0, 1)
        cache.v[b, :, length - count : length] = v_new[b, v_new.shape[1] - count :].transpose(0, 1)


def refresh_torch(cache: KVCache, summaries: Summaries, tokens: int | None = None) -> None:
    """Summarise again the blocks of the last `tokens` tokens (all of them by default). Contiguous caches."""
    size = summaries.block_size
    for b, length in enumerate(cache.lengths.tolist()):
        first = 0 if tokens is None else max(length - tokens, 0) // size
        fresh = summaries_reference(cache.k[b, :, first * size :], length - first * size, size, summaries.kind)
        summaries.data[b, :, first : first + fresh.shape[1]] = fresh


def build_torch(cache: KVCache, summaries: Summaries) -> None:
    """Summarise every block; whole blocks by one reduction."""
    size = summaries.block_size
    whole = cache.capacity // size
    if summaries.kind != "minmax" or not whole or int(cache.lengths.min()) < cache.capacity:
        refresh_torch(cache, summaries)
        return
    blocks = cache.k[:, :, : whole * size].unflatten(2, (whole, size))
    summaries.data[:, :, :whole] = torch.stack((blocks.amin(3), blocks.amax(3)), dim=3)
    refresh_torch(cache, summaries, 1)


def select_torch(scores: Tensor, n: int) -> Tensor:
    """The n best of each row: `[R, M]` to ascending `[R, n]`; ties to the lower index. No full sort."""
    if n >= scores.shape[1]:
        return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    threshold = scores.topk(n, dim=1).values[:, -1:]
    above, equal = scores > threshold, scores == threshold
    keep = above | (equal & (equal.cumsum(1) <= n - above.sum(1, keepdim=True)))
    return keep.nonzero()[:, 1].view(scores.shape[0], n)


@dataclass
class TorchSparseLayer(Layer):
    """One layer of the portable ReSA. Stages hand over through `work` and the fields below."""

    cache: KVCache
    shape: AttentionShape
    config: SparseConfig
    work: Workspace
    summaries: Summaries
    gathered: tuple[
        Tensor, Tensor
    ]  # [R * N, b D] selected blocks of K and V, reused: fresh pages cost more than copies
    kernel: ChunkKernel
    _rectified: Tensor | None = None

    @property
    def chunk_kernel(self) -> str:
        return self.kernel.name

    def _append(self, step: StepTensors) -> None:
        write_tokens_torch(self.cache, step.k, step.v)
        refresh_torch(self.cache, self.summaries, 1)

    def _score(self, step: StepTensors) -> None:
        config, shape, work = self.config, self.shape, self.work
        heads = step.q.float().view(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        if config.gqa_policy == "group-mean":
            heads = heads.mean(2, keepdim=True)
        slots = query_slots(heads, config.summary_kind, config.spread_weight)  # [B, Hkv, 1 or G, 2 D]
        if config.gqa_policy in ("group-sum", "all-heads"):
            slots = slots.sum(2, keepdim=True)
        table = self.summaries.data.flatten(3).float()  # [B, Hkv, M, 2 D]
        scores = slots @ table.transpose(2, 3)  # [B, Hkv, 1 or G, M]
        if config.gqa_policy == "all-heads":
            scores = scores.sum(1, keepdim=True)
        work.scores.copy_(scores.flatten(1, 2))
        for b, length in enumerate(self.cache.lengths.tolist()):
            blocks = config.blocks(length)
            work.scores[b, :, max(blocks - config.local_blocks, 0) : blocks] = float("inf")

    def _select(self) -> None:
        for b, length in enumerate(self.cache.lengths.tolist()):
            n = self.config.selected(length)
            self.work.lists[b, :, :n] = select_torch(self.work.scores[b, :, : self.config.blocks(length)], n)
            self.work.lists[b, :, n:] = -1
            self.work.counts[b] = n

    def _attend(self, step: StepTensors) -> None:
        shape, size, work = self.shape, self.config.block_size, self.work
        rows = work.lists.shape[1]
        for b, length in enumerate(self.cache.lengths.tolist()):
            n = int(work.counts[b, 0])
            lists = work.lists[b, :, :n].long()
            lists = lists.expand(shape.kv_heads, -1) if rows == 1 else lists
            owner = torch.arange(lists.shape[0], device=lists.device) // (lists.shape[0] // shape.kv_heads)
            whole = self.cache.capacity // size * size
            query = step.q[b].view(lists.shape[0], shape.q_heads // lists.shape[0], shape.head_dim)
            if whole == self.cache.capacity and self.cache.k.is_contiguous():  # gather blocks: long, fast copies
                index = (owner[:, None] * (whole // size) + lists).flatten()
                keys, values = (
                    torch.index_select(x[b].view(-1, size * shape.head_dim), 0, index, out=buffer[: len(index)]).view(
                        lists.shape[0], -1, shape.head_dim
                    )
                    for x, buffer in zip((self.cache.k, self.cache.v), self.gathered, strict=True)
                )
            else:
                tokens = (lists[:, :, None] * size + torch.arange(size, device=lists.device)).flatten(1)
                tokens = tokens.clamp(max=self.cache.capacity - 1)
                keys, values = (x[b][owner[:, None], tokens] for x in (self.cache.k, self.cache.v))
            # Only the newest block, always last on the list, can be partly filled.
            last_listed = length > 0 and bool((lists[:, -1] == (length - 1) // size).all())
            missing = -length % size
            if missing and last_listed:
                keys, values = keys[:, :-missing], values[:, :-missing]
                mask = None
            elif missing:
                spots = (lists[:, :, None] * size + torch.arange(size, device=lists.device)).flatten(1)
                mask = (spots < length)[:, None, :]
                # What lies past the end may be NaN, which no mask undoes.
                keys, values = (x.masked_fill(~mask.transpose(1, 2), 0.0) for x in (keys, values))
            else:
                mask = None
            out = scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask)
            step.out[b] = out[0].reshape(shape.q_heads, shape.head_dim)

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        return (
            Stage("append", lambda: self._append(step), graph_safe=False),
            Stage("score", lambda: self._score(step), graph_safe=False),
            Stage("select", self._select, graph_safe=False),
            Stage("attend", lambda: self._attend(step), graph_safe=False),
        )

    def rectify_stages(self, chunk: ChunkTensors) -> tuple[Stage, ...]:
        attend = self.kernel.bind(self.cache, self.shape, chunk)

        def run() -> None:
            self.overwrite(chunk)
            self._rectified = attend()

        return (Stage("rectify", run, graph_safe=False),)

    def rectified(self, chunk: ChunkTensors) -> Tensor:
        return chunk.out if self._rectified is None else self._rectified

    def overwrite(self, chunk: ChunkTensors) -> None:
        write_tokens_torch(self.cache, chunk.k, chunk.v)
        refresh_torch(self.cache, self.summaries, chunk.k.shape[1])

    def selection(self) -> Selection:
        return Selection(self.work.lists, self.config.block_size)

    def traffic(self) -> dict[str, Traffic]:
        return sparse_traffic(self.cache, self.shape, self.config, self.work, True)

    def rectify_traffic(self, tokens: int) -> Traffic:
        touched = 1 + ceil_div(tokens - 1, self.config.block_size)
        refreshed = 2 * self.cache.head_dim * self.cache.k.element_size() * self.cache.kv_heads * self.cache.batch
        return chunk_traffic(self.cache, self.shape.q_heads, tokens) + Traffic(touched * refreshed)


@register("resa-torch")
class ResaTorch(DecodeMethod):
    """ReSA in plain torch (gather + SDPA): the method that is timed where there is no GPU."""

    uses = ("block_size", "active_ratio", "min_blocks", "gqa_policy", "summary_kind", "rectify_every")

    def prepare(self, cache: KVCache) -> TorchSparseLayer:
        if cache.paged:
            raise Unsupported("cache: the portable path takes contiguous caches only, got a paged one")
        summaries = Summaries.allocate(cache, self.config.block_size, self.config.summary_kind)
        summaries.data.zero_()
        build_torch(cache, summaries)
        rows = score_rows(self.shape, self.config.gqa_policy)
        blocks, chosen = self.config.blocks(cache.capacity), self.config.selected(cache.capacity)
        work = Workspace(
            torch.full((cache.batch, rows, blocks), float("-inf"), device=cache.device),
            torch.full((cache.batch, rows, chosen), -1, dtype=torch.int32, device=cache.device),
            torch.zeros(cache.batch, rows, dtype=torch.int32, device=cache.device),
            Partials.allocate(0, 1, cache.head_dim, cache.device),
        )
        lists = max(rows, cache.kv_heads)  # one list for all heads is attended to per KV head
        size = self.config.block_size * cache.head_dim
        keys = torch.empty(lists * chosen, size, dtype=cache.dtype, device=cache.device)
        kernel = best_chunk_kernel(self.shape, cache, self.config.chunk_kernel or "torch")
        return TorchSparseLayer(cache, self.shape, self.config, work, summaries, (keys, torch.empty_like(keys)), kernel)


@register("torch-dense")
class TorchDense(DecodeMethod):
    """SDPA with the GQA group packed as query rows, so that K and V are read once: the dense rival on a CPU."""

    is_dense = True

    @classmethod
    def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return "is the CPU's dense rival; GPUs have better ones" if device.type == "cuda" else None

    def prepare(self, cache: KVCache) -> DenseLayer:
        keys, values = cache.gather()
        batch, group = cache.batch, self.shape.group

        def attend(step: StepTensors):
            query = step.q.view(batch, cache.kv_heads, group, cache.head_dim)
            out = step.out.view_as(query)

            def run() -> None:
                for b, length in enumerate(cache.lengths.tolist()):
                    k, v = keys[b, None, :, :length], values[b, None, :, :length]
                    out[b] = scaled_dot_product_attention(query[b, None], k, v)[0]

            return run

        return DenseLayer(cache, self.shape.q_heads, attend, append=write_tokens_torch)
