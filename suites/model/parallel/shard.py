"""What one of N ranks has of a model: its heads, its columns of the feed-forward part, its rows of the head.

A layer's first matrices (q, k, v; gate, up) are cut by rows, its second ones (o; down) by columns. So each rank
computes attention and SwiGLU of its own, and what follows is a sum over the ranks: two exchanges a layer. The scheme
is Megatron-LM's (arXiv 1909.08053). The embedding is kept whole by every rank: looking a row up costs nothing,
and a third exchange would. Where there are fewer KV heads than ranks, several ranks hold the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ....kernels.config import ceil_div
from ..config import ModelConfig
from ..fill import Fill, FillsParts, Part, int4_group


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of the `ranks` that share a model; `simulated`: it runs alone, and the others do not exist.

    Raises:
        ValueError: a rank outside its world.
    """

    rank: int
    ranks: int
    simulated: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank: got {self.rank} of {self.ranks}, must be 0 to {self.ranks - 1}")

    def config(self, whole: ModelConfig) -> ModelConfig:
        """The shape that this rank has of a model. Its name says that it is a share.

        Raises:
            ValueError: heads, vocabulary or feed-forward columns that so many ranks cannot share.
        """
        check_divisible(whole, self.ranks)
        kind = "rank-of-" if self.simulated else "tp"
        return replace(
            whole,
            name=f"{whole.name}-{kind}{self.ranks}",
            q_heads=whole.q_heads // self.ranks,
            kv_heads=max(whole.kv_heads // self.ranks, 1),
            ffn=self._columns(whole).count,
            ranks=self.ranks,
            simulated=self.simulated,
            kv_replicas=max(self.ranks // whole.kv_heads, 1),
        )

    def part(self, whole: ModelConfig, name: str) -> Part | None:
        """What of the tensor of this name the rank has; None: all of it."""
        kind, rank, dim = name.split(".")[-2], self.rank, whole.head_dim
        q_heads = whole.q_heads // self.ranks
        if kind in ("q_proj", "o_proj"):
            return Part(int(kind == "o_proj"), rank * q_heads * dim, q_heads * dim, whole.q_heads * dim)
        if kind in ("k_proj", "v_proj"):
            heads = max(whole.kv_heads // self.ranks, 1)
            return Part(0, rank * whole.kv_heads // self.ranks * dim, heads * dim, whole.kv_heads * dim)
        if kind in ("gate_proj", "up_proj", "down_proj"):
            return replace(self._columns(whole), dim=int(kind == "down_proj"))
        if kind == "lm_head":
            return self.vocabulary(whole)
        return None

    def vocabulary(self, whole: ModelConfig) -> Part:
        """The rows of the head."""
        rows = whole.vocab // self.ranks
        return Part(0, self.rank * rows, rows, whole.vocab)

    def fill(self, whole: ModelConfig, fill: Fill) -> Fill:
        """A `Fill` of this rank's parts; where the other writes whole tensors alone, one of them is held at a time."""

        def fill_part(name: str, out: Tensor) -> None:
            part = self.part(whole, name)
            if part is None:
                fill(name, out)
            elif isinstance(fill, FillsParts):
                fill.fill_part(name, out, part)
            else:
                tensor = out.new_empty(part.shape(tuple(out.shape)))
                fill(name, tensor)
                out.copy_(tensor[part.index])

        return fill_part

    def _columns(self, whole: ModelConfig) -> Part:
        """Of the feed-forward part: whole 4-bit groups, so that all weight types are cut alike. Rank 0 has the most."""
        group = _unit(whole, self.ranks)
        first, last = (ceil_div(rank * (whole.ffn // group), self.ranks) for rank in (self.rank, self.rank + 1))
        return Part(1, first * group, (last - first) * group, whole.ffn)


def _unit(whole: ModelConfig, ranks: int) -> int:
    """Feed-forward columns that stay together: a 4-bit group, where there are enough of them."""
    group = int4_group(whole.ffn)
    return group if whole.ffn % group == 0 and whole.ffn // group >= ranks else 1


def check_divisible(whole: ModelConfig, ranks: int) -> None:
    """Raises ValueError for heads, vocabulary or columns that so many ranks cannot share, naming which."""
    what = f"{whole.name} over {ranks} ranks"
    if whole.q_heads % ranks:
        raise ValueError(f"{what}: {whole.q_heads} query heads cannot be shared; take a divisor of {whole.q_heads}")
    if whole.kv_heads % ranks and ranks % whole.kv_heads:
        raise ValueError(f"{what}: {whole.kv_heads} KV heads cannot be shared; one number must divide the other")
    if whole.vocab % ranks:
        raise ValueError(f"{what}: a vocabulary of {whole.vocab} cannot be shared; take a divisor of it")
    if whole.ffn < ranks:
        raise ValueError(f"{what}: {whole.ffn} feed-forward columns cannot be shared")


def check_groups(whole: ModelConfig, ranks: int) -> None:
    """Raises ValueError where 4-bit groups along a second matrix's columns would span two ranks."""
    heads = whole.q_heads // ranks * whole.head_dim
    for name, columns, kept in (
        ("attention's output", whole.q_heads * whole.head_dim, heads),
        ("the feed-forward part", whole.ffn, _unit(whole, ranks)),
    ):
        if kept % int4_group(columns):
            raise ValueError(
                f"{whole.name} over {ranks} ranks: 4-bit groups of {int4_group(columns)} of the {columns} columns of "
                f"{name} would span ranks; take fewer ranks, or 16-bit weights"
            )
