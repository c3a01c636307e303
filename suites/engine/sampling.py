"""From logits to the next token, on the device: greedy, or with temperature and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 is greedy; top-p keeps the smallest set of tokens whose probabilities reach it."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature: got {self.temperature}, must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, must be in (0, 1]")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(f"top_p: got {self.top_p} beside temperature 0, which is greedy; give a temperature")

    @property
    def word(self) -> str:
        """`-t0.6-p0.95`, the end of a case's name that tells its sampling; empty for greedy decoding."""
        return f"-t{self.temperature:g}-p{self.top_p:g}" if self.temperature else ""

    def probabilities(self, logits: Tensor) -> Tensor:
        """float32 `[B, vocab]` from logits `[B, vocab]`; needs a temperature above 0."""
        scaled = logits.float() / self.temperature
        if self.top_p < 1:
            ranked, order = scaled.sort(dim=-1, descending=True)
            share = ranked.softmax(-1)
            beyond = share.cumsum(-1) - share >= self.top_p  # never the first
            scaled = scaled.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
        return scaled.softmax(-1)

    def __call__(self, logits: Tensor) -> Tensor:
        """Token ids int64 `[B]` from logits `[B, vocab]`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return draw(self.probabilities(logits))


def draw(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Token ids int64 `[B]` in proportion to weights float32 `[B, vocab]`, which need not sum to one.

    By exponential races, which need no synchronisation and can be captured.
    """
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(-1)
