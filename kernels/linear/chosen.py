"""A weight that several products hold, each for the numbers of rows that it was measured to be best at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .best import Best
from .fp8 import Fp8Weight
from .int4 import Int4Weight

Multiply = Callable[[Tensor], Tensor]
"""`[rows, K]` to `x W^T`, `[rows, N]` of x's dtype, without the bias."""


@dataclass(frozen=True, slots=True)
class ChosenWeight:
    """A 4-bit or 8-bit weight, and other products' hold of it; what stands around such a product runs apart from it.

    Attributes:
        own: as this project's kernels read it.
        best: names the product for a number of rows.
        held: what multiplies, of the products that `best` names beside ours.
    """

    own: Int4Weight | Fp8Weight
    best: Best
    held: Mapping[str, Multiply] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.own.shape

    @property
    def bias(self) -> Tensor | None:
        """`[N]`."""
        return self.own.bias

    @property
    def bytes(self) -> int:
        """What one multiplication must read: one of the copies."""
        return self.own.bytes

    def multiply(self, rows: int) -> Multiply | None:
        """What multiplies so many rows; None where ours does."""
        return self.held.get(self.best.product(rows))
