"""Sampling that depends on nothing but (seed, set, problem, sample): each answer has a stream of random numbers.

Which others are decoded beside it, in which batch and on which GPU, makes no difference beyond rounding. All methods
read the same streams, so that what differs between their answers is the method, and they can be compared in pairs.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..engine.sampling import Sampling


def stream(seed: int, *name: str | int, count: int) -> Tensor:
    """`count` numbers in [0, 1), float32 on the CPU, that belong to (seed, name)."""
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator)


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Token ids int64 `[B]` from logits `[B, vocab]`, distributed as `sampling` says where `uniform` `[B]` is so.

    By inverting the cumulated probabilities, most likely token first; needs no synchronisation and can be captured.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    ranked, order = (logits.float() / sampling.temperature).sort(dim=-1, descending=True)
    share = ranked.softmax(-1)
    reached = share.cumsum(-1)
    kept = ((reached - share < sampling.top_p) & (share > 0)).sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    target = uniform[:, None] * reached.gather(-1, kept - 1)
    index = (reached <= target).sum(-1, keepdim=True)
    return order.gather(-1, torch.minimum(index, kept - 1))[:, 0]


class StreamSampling:
    """An engine's sampling that reads row `count - 1` of a table of uniform numbers, `[steps, B]` on the device."""

    def __init__(self, sampling: Sampling, steps: int, batch: int, count: Tensor) -> None:
        """`count` int64 `[1]`: steps done, this one included, as an engine's state has it."""
        self.sampling, self.count = sampling, count
        self.uniforms = torch.zeros(steps, batch, device=count.device)

    def __call__(self, logits: Tensor) -> Tensor:
        return choose(logits, self.sampling, self.uniforms.index_select(0, self.count - 1)[0])
