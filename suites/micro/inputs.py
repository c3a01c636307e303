"""Inputs of a case: random, never zeros, with selection patterns that differ in where the best blocks lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import ChunkTensors, KVCache, StepTensors, Unsupported, WindowTensors
from .cases import Case

BOOST = 8.0  # length of what is added to a favoured key along the group's mean query; the scores' spread is about 2
RUNS = 8  # stretches of favoured keys in the clustered pattern
FAVOURED = 0.1  # share of the context


@dataclass(frozen=True, slots=True)
class Inputs:
    """A filled cache with a decode step and a rectification chunk on it.

    The new tokens' K and V are what the cache holds at their positions already, so a step may be repeated at will:
    it writes the same values to the same place.
    """

    cache: KVCache
    step: StepTensors
    chunk: ChunkTensors

    def period(self, tokens: int) -> ChunkTensors:
        """The chunk of a rectification of the last `tokens` tokens. Raises Unsupported where there are fewer."""
        if tokens > self.chunk.q.shape[1]:
            raise Unsupported(f"rectify_every: {tokens} tokens do not fit a context of {self.chunk.q.shape[1]}")
        if tokens == self.chunk.q.shape[1]:
            return self.chunk
        parts = (self.chunk.q, self.chunk.k, self.chunk.v, self.chunk.out)
        return ChunkTensors(*(x[:, -tokens:].contiguous() for x in parts))


def favoured_tokens(pattern: str, context: int) -> Tensor:
    """Token positions that the queries are drawn to: none, RUNS equal stretches, or the newest."""
    count = max(int(context * FAVOURED), 1)
    if pattern == "recent":
        return torch.arange(context - count, context)
    if pattern == "clustered":
        run = max(count // RUNS, 1)
        starts = torch.arange(RUNS) * (context // RUNS) + context // (3 * RUNS)
        return (starts[:, None] + torch.arange(run)).flatten().clamp(max=context - 1).unique()
    return torch.empty(0, dtype=torch.long)


def make_inputs(case: Case, device: torch.device, chunk_tokens: int) -> Inputs:
    """Draw the inputs of `case`; the same seed gives the same values on the same device."""
    generator = torch.Generator(device).manual_seed(case.seed)
    heads, dtype = case.heads, case.torch_dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    cache = KVCache.allocate(
        case.batch, heads.kv_heads, case.capacity, heads.head_dim,
        dtype=dtype, device=device, page_size=case.page_size, kv_dtype=case.kv_dtype,
    )  # fmt: skip
    q = draw(case.batch, heads.q_heads, heads.head_dim)
    k = draw(case.batch, heads.kv_heads, case.capacity, heads.head_dim)
    v = draw(case.batch, heads.kv_heads, case.capacity, heads.head_dim)
    favoured = favoured_tokens(case.pattern, case.context).to(device)
    if len(favoured):
        mean = q.view(case.batch, heads.kv_heads, -1, heads.head_dim).float().mean(2)
        k[:, :, favoured] += (BOOST * torch.nn.functional.normalize(mean, dim=-1)).to(dtype)[:, :, None]
    cache.store(k, v)
    cache.lengths.copy_(torch.tensor(case.lengths, dtype=torch.int32))
    count = min(chunk_tokens, *case.lengths)
    chunk_k, chunk_v = (
        torch.stack([x[b, :, n - count : n].transpose(0, 1) for b, n in enumerate(case.lengths)]) for x in (k, v)
    )
    chunk_q = draw(case.batch, count, heads.q_heads, heads.head_dim)
    step = StepTensors(q, chunk_k[:, -1].contiguous(), chunk_v[:, -1].contiguous(), torch.empty_like(q))
    return Inputs(cache, step, ChunkTensors(chunk_q, chunk_k, chunk_v, torch.empty_like(chunk_q)))


def make_window(inputs: Inputs, tokens: int, seed: int = 0) -> WindowTensors:
    """The newest `tokens` tokens as a step of a method with a window has them, all of them decoded.

    The newest row is the step's own; the queries of older ones are drawn. K and V are what the cache holds, so that
    this step may be repeated at will, too.

    Raises:
        Unsupported: a sequence is shorter than the window.
    """
    cache, step = inputs.cache, inputs.step
    lengths = cache.lengths.tolist()
    if min(lengths) < tokens:
        raise Unsupported(f"window: {tokens} tokens do not fit a context of {min(lengths)}")
    generator = torch.Generator(cache.device).manual_seed(seed + 1)
    q = torch.randn(
        cache.batch, tokens, *step.q.shape[1:], generator=generator, device=cache.device, dtype=cache.dtype
    )  # fmt: skip
    q[:, -1] = step.q
    keys, values = cache.gather()
    k, v = (
        torch.stack([x[b, :, length - tokens : length].transpose(0, 1) for b, length in enumerate(lengths)])
        for x in (keys, values)
    )
    return WindowTensors(q, k, v, torch.empty_like(q), cache.lengths - tokens)
