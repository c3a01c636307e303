"""Prefilling prompts that begin alike: each goes on from where it leaves the one before it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.engine import OBSERVED_QUERIES, State
from ..engine.prompt import prefill
from ..model.decoder import Decoder


def prefill_rows(decoder: Decoder, state: State, tokens: Tensor) -> Tensor:
    """Run prompts through the model densely, one after another, the last first.

    Args:
        state: of as many sequences as prompts; only keys and values are written.
        tokens: int64 `[R, L]`. Prompts that share their beginning with the next one pay for the rest alone.

    Returns:
        Logits `[R, vocab]` after the last token of each.

    Raises:
        ValueError: the prompts do not fit the caches.
    """
    rows, length = tokens.shape
    if length > state.capacity:
        raise ValueError(f"prompt: {length} tokens do not fit the capacity of {state.capacity}")
    alone = State.allocate(decoder, 1, length, 1)
    logits = torch.empty(0)
    out = []
    for r in reversed(range(rows)):
        common = 0
        if r < rows - 1:
            common = int((tokens[r] == tokens[r + 1]).long().cumprod(0).sum())
        if common < length:
            common = min(common, max(length - OBSERVED_QUERIES, 0))  # the newest queries are those of this prompt
            logits = prefill(decoder, alone, tokens[r : r + 1], done=common)
        for source, target in zip(alone.caches, state.caches, strict=True):
            target.k[r, :, :length] = source.k[0, :, :length]
            target.v[r, :, :length] = source.v[0, :, :length]
            if source.queries is not None and target.queries is not None:
                target.queries[r] = source.queries[0]
        out.append(logits)
    return torch.cat(out[::-1])
