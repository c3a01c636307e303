"""What the user gets, looked at: logits are finite, and not the same for every token.

Attention that is right on both sides says nothing about broken weights, or about 16 bits that overflow. Every suite
that runs a model looks here: `prefill` and the gate at once, a run of many steps by a `Watch`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.failure import CheckFailed


def unsound(logits: Tensor) -> Tensor:
    """Which rows of logits `[..., vocab]` hold what is not finite, or say the same of every token: bool `[...]`."""
    spread = logits.amax(-1).float() - logits.amin(-1).float()  # NaN or infinite where a row holds such
    return ~((spread > 0) & spread.isfinite())


def check_logits(logits: Tensor) -> None:
    """Raises CheckFailed where a row of logits `[..., vocab]` is unsound. Waits for the device."""
    if not bool(unsound(logits).any()):
        return
    broken = int((~logits.isfinite()).sum())
    if broken:
        raise CheckFailed(
            f"logits: {broken} of {logits.numel()} are not finite; weights hold NaN, or {logits.dtype} overflows"
        )
    raise CheckFailed("logits: a sequence has the same for every token; are the weights those of the model?")


def check_count(count: int) -> None:
    """Raises CheckFailed where the logits of so many tokens, above 0, are unsound."""
    if count:
        raise CheckFailed(
            f"logits: those of {count} tokens are not finite, or the same for every token; weights hold NaN, or 16 "
            "bits overflow"
        )


class Watch:
    """Looks at the logits of many steps without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def look(self, logits: Tensor) -> None:
        """Remember which of logits `[..., vocab]` are unsound."""
        self._count.add_(unsound(logits).sum())

    def check(self) -> None:
        """Raises CheckFailed where any were. Waits for the device."""
        check_count(int(self._count))
