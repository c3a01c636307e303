"""What the caches hold before decoding: a real prompt, prefilled in chunks, or a synthetic context of any length.

A synthetic cache stands for a prompt too long to prefill for a speed measurement. Its keys are a random direction per
stretch of 64 tokens plus noise of the same size per token, its values are noise: blocks differ, so selection has
something to choose from, and nothing is zero or constant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache as memoized

import torch
from torch import Tensor

from ...kernels import ChunkTensors, KVCache, write_tokens
from ...kernels.attention.chunk import best_chunk_kernel
from ...kernels.e4m3 import encoded, scales_of
from ...kernels.portable import write_tokens_torch
from ..model.decoder import Cells, Decoder
from .engine import State
from .sound import check_logits

STRETCH = 64  # tokens that share a direction
NOISE_MOST = 8.0  # that no unit noise exceeds
PIECE_BYTES = 2**28  # noise drawn at a time


def fill_synthetic(state: State, seed: int = 0) -> None:
    """Fill every cache of the state up to its capacity; the same seed gives the same values on the same device."""
    generator = torch.Generator(state.lengths.device).manual_seed(seed)
    for cache in {id(c): c for c in state.caches}.values():
        if cache.scales is not None:
            cache.scales.fill_(scales_of(torch.full((1, 1, 1, 1), NOISE_MOST)).item())
        for data, stretch in ((cache.k, STRETCH), (cache.v, None)):
            _fill(data, generator, stretch, cache)


def _fill(data: Tensor, generator: torch.Generator, stretch: int | None, cache: KVCache) -> None:
    """Unit noise into the cache's K or V, with a part of it shared by `stretch` tokens. No copy of the cache's size."""
    outer, heads, tokens, dim = data.shape
    size = max(PIECE_BYTES // (heads * dim * cache.dtype.itemsize) // STRETCH, 1) * STRETCH
    for page in range(outer):
        for start in range(0, tokens, size):
            place = data[page, :, start : start + size]
            piece = place if cache.scales is None else torch.empty_like(place, dtype=cache.dtype)
            piece.normal_(generator=generator)
            if stretch:
                count = math.ceil(piece.shape[1] / stretch)
                common = torch.empty(heads, count, dim, dtype=piece.dtype, device=data.device)
                common.normal_(generator=generator)
                piece += common.repeat_interleave(stretch, dim=1)[:, : piece.shape[1]]
                piece *= 2**-0.5
            if cache.scales is not None:
                place.copy_(encoded(piece, cache.scales[:, 0]))


def prefill(
    decoder: Decoder,
    state: State,
    tokens: Tensor,
    *,
    done: int = 0,
    chunk_tokens: int = 512,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Run a prompt through the model densely, filling the caches. Its first chunk chooses the scales of caches in fp8.

    Args:
        tokens: int64 `[B, T]`.
        done: tokens whose K and V are in the caches already.
        chunk_tokens: tokens of each sequence that go through the model at a time.
        on_tokens: told how many are done.

    Returns:
        Logits `[B, vocab]` after the last token.

    Raises:
        ValueError: the prompt does not fit the caches. CheckFailed: its logits are not finite, or constant.
    """
    batch, count = tokens.shape
    if count > state.capacity:
        raise ValueError(f"prompt: {count} tokens do not fit the capacity of {state.capacity}")
    shape = decoder.config.attention(batch)
    portable = None if decoder.device.type == "cuda" else "torch"  # the interpreter would take hours
    write = write_tokens_torch if portable else write_tokens
    state.lengths.fill_(done)
    for cache in state.caches:
        if cache.queries is not None and not done:
            cache.queries.zero_()
    x = torch.empty(0)
    for start in range(done, count, chunk_tokens):
        part = tokens[:, start : start + chunk_tokens]
        length = part.shape[1]
        state.lengths.add_(length)
        chunk = empty_chunk(decoder, batch, length)

        def attend(i: int, cells: Cells, chunk: ChunkTensors = chunk, state_is_empty: bool = not start) -> Tensor:
            cache: KVCache = state.caches[i]
            if state_is_empty:
                cache.calibrate(chunk.k.transpose(1, 2), chunk.v.transpose(1, 2))
            write(cache, chunk.k, chunk.v)
            if cache.queries is not None:
                cache.queries.copy_(torch.cat((cache.queries, chunk.q), 1)[:, -cache.queries.shape[1] :])
            out = best_chunk_kernel(shape, cache, portable).bind(cache, shape, chunk)()
            return chunk.out if out is None else out

        positions = torch.arange(start, start + length, device=decoder.device).repeat(batch)
        hidden = decoder.hidden(part.reshape(-1), positions, chunk, attend)
        x = hidden.view(batch, length, -1)[:, -1]
        on_tokens(start + length)
    logits = decoder.logits(x)
    check_logits(logits)
    return logits


def empty_chunk(decoder: Decoder, batch: int, tokens: int) -> ChunkTensors:
    """Room for the queries, keys, values and outputs of one layer, of so many tokens a sequence."""
    config = decoder.config
    q = torch.empty(batch, tokens, config.q_heads, config.head_dim, dtype=decoder.dtype, device=decoder.device)
    k = torch.empty(batch, tokens, config.kv_heads, config.head_dim, dtype=decoder.dtype, device=decoder.device)
    return ChunkTensors(q, k, torch.empty_like(k), torch.empty_like(q))


@memoized
def english_text() -> str:
    """Plain English that every Python installation carries: the reference topics behind `help()`, about 700 kB."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return re.sub(r"[ \t]+", " ", re.sub(r"[*|=+`\\-]{2,}", "", text))
