"""Caches of candidates that share a prompt, and the part of them that is still at work.

With pages, the tables of all candidates name the same pages for the prompt: one copy of its K and V, and of its
summaries, which are paged as the cache is. Where the prompt ends inside a page, that page is each candidate's own,
since its first tokens go there. Contiguous caches hold a copy of the prompt each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...kernels import KVCache, Layer
from ...kernels.config import ceil_div
from ...kernels.workspace import BlockSparseLayer
from ..engine.engine import State
from ..model.decoder import Decoder


def allocate(decoder: Decoder, batch: int, prompt: int, capacity: int, history: int, page_size: int | None) -> State:
    """Empty caches for `capacity` tokens a candidate, of which whole pages of the first `prompt` exist once.

    Pages lie in shuffled order, as they do in a server that has run for a while.
    """
    if page_size is None:
        return State.allocate(decoder, batch, capacity, history)
    config, device = decoder.config, decoder.device
    once, pages = prompt // page_size, ceil_div(capacity, page_size)
    own = pages - once
    order = torch.randperm(once + batch * own, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    table = torch.cat((order[:once].expand(batch, -1), order[once:].view(batch, own)), dim=1).to(device)
    lengths = torch.zeros(batch, dtype=torch.int32, device=device)
    shape = (len(order), config.kv_heads, page_size, config.head_dim)

    def cache() -> KVCache:
        k = torch.zeros(shape, dtype=decoder.dtype, device=device)
        return KVCache(k, torch.zeros_like(k), lengths, table)

    return State.over(tuple(cache() for _ in range(config.layers)), history)


def spread_prompt(state: State, prompt: int) -> None:
    """Give every candidate the prompt that the first one holds: what is not shared already is copied."""
    for cache in state.caches:
        for data in (cache.k, cache.v):
            if cache.block_table is None:
                data[1:, :, :prompt] = data[:1, :, :prompt]
            elif prompt % cache.page_size:
                pages = cache.block_table[:, prompt // cache.page_size].long()
                data[pages[1:]] = data[pages[0]].clone()


def share_summaries(layers: Sequence[Layer], whole: Sequence[Layer]) -> None:
    """Make layers of the candidates at work use the summaries of all candidates' layers (before stages are bound)."""
    for layer, whole_layer in zip(layers, whole, strict=True):
        if isinstance(layer, BlockSparseLayer) and layer.summaries is not None:
            assert isinstance(whole_layer, BlockSparseLayer)
            assert whole_layer.summaries is not None
            summaries = whole_layer.summaries
            data = summaries.data if layer.cache.paged else summaries.data[: layer.cache.batch]
            layer.summaries = replace(summaries, data=data)
