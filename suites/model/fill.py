"""How a decoder's tensors are filled, and in what groups of columns they become 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

Fill = Callable[[str, Tensor], None]
"""Writes the tensor of that name into the one given, `[N, K]` or `[N]`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A cut of a tensor: `count` of `whole` places along `dim`, from `first` on."""

    dim: int
    first: int
    count: int
    whole: int

    @property
    def index(self) -> tuple[slice, ...]:
        """What a tensor is indexed by for it."""
        return (slice(None),) * self.dim + (slice(self.first, self.first + self.count),)

    def shape(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The whole tensor's shape, of which `own` is the part's."""
        return (*own[: self.dim], self.whole, *own[self.dim + 1 :])


@runtime_checkable
class FillsParts(Protocol):
    """A `Fill` that can write a part of a tensor without the rest."""

    def fill_part(self, name: str, out: Tensor, part: Part) -> None:
        """Write a part of the tensor of that name into the one given."""


def int4_group(columns: int) -> int:
    """Weights that share a 4-bit scale: 128 as is usual, fewer where the rows ask for it (SmolLM2's 576 columns)."""
    return next((group for group in (128, 64) if columns % group == 0), 32)
