"""Until where a method says what dense decoding says: pure functions on token ids, and noise that methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def agreeing(decoded: Tensor, reference: Tensor) -> Tensor:
    """Tokens before the first that differs, int64 `[B]`; all of them where none does.

    Args:
        decoded, reference: ids int64 `[B, T]`.
    """
    return (decoded == reference).long().cumprod(1).sum(1)


def survival(lengths: Tensor, steps: int) -> list[tuple[int, float]]:
    """(s, share of sequences whose first s tokens agree) at s = 1, 2, 3, 4, 6, 8, 12, 16, ... and `steps`.

    Args:
        lengths: what `agreeing` gives, over all sequences.
    """
    powers = [2**i for i in range(steps.bit_length())]
    at = sorted({s for p in powers for s in (p, p + p // 2) if s < steps} | {steps})
    return [(s, float((lengths >= s).double().mean())) for s in at]


class CommonNoise:
    """Sampling by the Gumbel trick with noise that depends on the step alone: common random numbers.

    argmax(logits / T + g) is distributed as the softmax of logits / T. Methods that use the same g at the same step
    differ only where their logits do, as greedy decoding does. The noise lies at a fixed address: `draw` before a step,
    captured or not.
    """

    def __init__(self, batch: int, vocab: int, temperature: float, seed: int, device: torch.device) -> None:
        """`temperature` 0 is greedy: no noise."""
        self.temperature, self._seed = temperature, seed
        self._generator = torch.Generator(device)
        self._noise = torch.zeros(batch, vocab, device=device) if temperature else None

    def draw(self, step: int) -> None:
        """Noise of this step: the same whoever asks."""
        if self._noise is not None:
            self._generator.manual_seed(self._seed * 1_000_003 + step)
            self._noise.exponential_(generator=self._generator).log_().neg_()

    def __call__(self, logits: Tensor) -> Tensor:
        """Token ids int64 `[B]` from logits `[B, vocab]`."""
        if self._noise is None:
            return logits.argmax(-1)
        return (logits.float() / self.temperature + self._noise).argmax(-1)
