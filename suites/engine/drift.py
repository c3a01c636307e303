"""How far sparse decoding had drifted when a rectification set it right: read off the rectification itself.

A rectification runs the last f tokens densely, so it knows what dense decoding would have said after each of them, and
what their keys and values should have been. The meter keeps what the sparse steps said and wrote, and compares. The
model runs once, as without it, but to its end: the last layer and the head of f rows more than a bare rectification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .engine import Engine


@dataclass(frozen=True, slots=True)
class Drift:
    """One period.

    Attributes:
        tokens: fed when the period ended, of each sequence.
        kl: KL(dense || sparse) of the next-token distributions, nats, mean over the period's steps and sequences.
        same_top: share of steps after which both rank the same token first.
        change: relative change of the period's keys and values by the rectification, a value a layer.
    """

    tokens: int
    kl: float
    same_top: float
    change: tuple[float, ...]

    def __str__(self) -> str:
        mean, most = sum(self.change) / len(self.change), max(self.change)
        return (
            f"after {self.tokens} tokens: KL {self.kl:.4f} nats, same top token {self.same_top:.0%}, "
            f"K and V off by {mean:.2%}, most in layer {self.change.index(most)} ({most:.2%})"
        )


class DriftMeter:
    """An engine's steps and rectifications, with a reading for each period.

    Use `step` and `rectify` in place of the engine's own; eager only, since a reading asks the device.
    """

    def __init__(self, engine: Engine, on_reading: Callable[[Drift], None] = lambda drift: None) -> None:
        """
        Args:
            on_reading: told each period's drift as it is known, for a live line.

        Raises:
            ValueError: the engine never rectifies.
        """
        if engine.rectify_every is None:
            raise ValueError("engine: its method does not rectify, so nothing says what dense decoding would have done")
        self._engine, self._tell = engine, on_reading
        self._sparse_logp: list[Tensor] = []  # log-probabilities [B, vocab] of the period's steps
        self._fed = 0
        self.readings: list[Drift] = []

    def step(self) -> None:
        """One sparse step."""
        self._engine.step()
        self._sparse_logp.append(self._engine.logits.float().log_softmax(-1))
        self._fed += 1

    def rectify(self) -> None:
        """A rectification of the last f tokens, and a reading.

        Raises:
            ValueError: fewer than f steps went through the meter since the last one.
        """
        engine, every = self._engine, self._engine.rectify_every
        if len(self._sparse_logp) != every:
            raise ValueError(f"rectify: {len(self._sparse_logp)} steps since the last one, a period has {every}")
        state = engine.state
        before = self._keys_and_values()
        span = torch.arange(-len(self._sparse_logp), 0, device=state.history.device)
        fed = state.history.index_select(0, state.count + span).t()
        dense = engine.verify(fed).float().log_softmax(-1)  # [B, f, vocab]
        sparse = torch.stack(self._sparse_logp, 1)
        kl = (dense.exp() * (dense - sparse)).sum(-1).clamp(min=0).mean()
        same = (dense.argmax(-1) == sparse.argmax(-1)).float().mean()
        change = torch.stack([(a - b).norm() / b.norm() for a, b in zip(before, self._keys_and_values(), strict=True)])
        reading = Drift(self._fed, float(kl), float(same), tuple(change.tolist()))
        self._sparse_logp = []
        self.readings.append(reading)
        self._tell(reading)

    def _keys_and_values(self) -> list[Tensor]:
        """Of each layer, those of the period's tokens as one float32 vector."""
        state, count = self._engine.state, len(self._sparse_logp)
        index = state.lengths.long()[:, None] + torch.arange(-count, 0, device=state.lengths.device)
        parts = []
        for cache in state.caches:
            at = index[:, None, :, None].expand(-1, cache.kv_heads, -1, cache.head_dim)
            keys, values = cache.gather()
            parts.append(torch.cat([x.gather(2, at).float().flatten() for x in (keys, values)]))
        return parts
