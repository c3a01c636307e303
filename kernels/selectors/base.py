"""What a selector is: an object that says which blocks a sparse step reads, known by its name.

One object serves every path. The portable step and the evaluation of all steps at once ask `scores` or `choose` in
plain torch, for one step or for many; the Triton step asks `kernel_stages`; floors ask `score_bytes`.
Shapes: H = sequences x KV heads, R steps, G query heads of a KV head, M blocks. X is 1 where a group's heads share a
list, else G; a first dimension of as many entries as sequences has one list for all heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..attention.scores import score_rows
from ..attention.summaries import Summaries
from ..cache import KVCache
from ..config import AttentionShape, SparseConfig
from ..method import Stage, StepTensors
from ..registry import SELECTORS


@dataclass
class Blocks(ABC):
    """What a selector may look at in R steps of one layer.

    Attributes:
        config: the method's settings.
        queries: float32 `[H, R, G, D]`.
        lengths: int64 `[1 or H, R]`, tokens that each step sees.
        tokens: no step sees more; M blocks hold them.
        sequences: among H.
        layer: which of the layers that the method serves, in order.
        handed: what earlier layers left for later ones, of the same steps.
        known: of the selector's `calibrate`, `[H, ..]`.
    """

    config: SparseConfig
    queries: Tensor
    lengths: Tensor
    tokens: int
    sequences: int
    layer: int = 0
    handed: dict[str, Tensor] = field(default_factory=dict)
    known: Tensor | None = None

    @abstractmethod
    def compared(self, query: Tensor, compare: Compare) -> Tensor:
        """What `compare` makes of a query `[H, R, X, Q]` and the table of every block, float32 `[H, R, X, M]`."""

    @abstractmethod
    def masses(self) -> Tensor:
        """The exact attention mass of every block, float32 `[H, R, G, M]`."""

    def best(self, scores: Tensor) -> Tensor:
        """The mask of the blocks that rank first, as many as the settings say (`best`)."""
        return best(scores, self._lengths(len(scores)), self.config)

    def counts(self, lists: int) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks and blocks to read of each step, `[.., R, 1, 1]`, and the index of every block, `[M]`.

        `lists`: how many first entries, H or the sequences; a single one where all sequences are equally long.
        """
        return layout(self.config.blocks(self.tokens), self._lengths(lists), self.config)

    def _lengths(self, first: int) -> Tensor:
        return self.lengths[:: max(len(self.queries) // first, 1)] if len(self.lengths) > 1 else self.lengths


Compare = Callable[[Tensor, Tensor], Tensor]
"""From queries `[H, R, X, Q]` and what is kept of blocks `[H, 1 or R, m, W]` to `[H, R, X, m]`."""


def products(query: Tensor, table: Tensor) -> Tensor:
    """The plainest `Compare`: dot products; Q is W."""
    if table.shape[1] == 1:
        return torch.unflatten(query.flatten(1, 2) @ table[:, 0].transpose(1, 2), 1, query.shape[1:3])
    return query @ table.transpose(2, 3)


class SelectingLayer(Protocol):
    """What a selector may ask of a layer on the kernels, to bind its stages."""

    cache: KVCache
    shape: AttentionShape
    config: SparseConfig
    summaries: Summaries | None
    table: Tensor | None
    known: Tensor | None
    handed: dict[str, Tensor]

    @property
    def work(self) -> Any: ...


class Selector(ABC):
    """Which blocks a step reads."""

    name: str = ""
    summarised: bool = False
    """Whether blocks are scored by the summaries that the kernels keep (attention/summaries.py)."""
    tabled: bool = False
    """Whether it keeps something else of every block (`describe`), which follows the keys."""
    reads_fp8: bool = False
    """Whether its kernels take caches in e4m3."""
    ranked: bool = True
    """Whether lists are the best blocks of `scores`, as many as the settings say; otherwise `choose` says."""
    choosing: tuple[bool, ...] = (True,)
    """Which of a method's layers choose, in turn over and over, the first in any case. The others read the lists of the
    layer before them."""

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """Lists of a sequence."""
        return score_rows(shape, config.gqa_policy)

    def check(self, config: SparseConfig) -> None:  # noqa: B027 (nothing to refuse)
        """Raises ValueError for settings that it does not serve."""

    def of_layer(self, index: int, config: SparseConfig) -> Selector:
        """What a layer's blocks are chosen by: `Following` where the layer before it chose."""
        chooser = self.chooser(config)
        return chooser if self.choosing[index % len(self.choosing)] else Following(chooser)

    def chooser(self, config: SparseConfig) -> Selector:
        """What the layers that choose are asked in place of this one."""
        return self

    def choosing_layers(self, layers: int) -> int:
        """How many of so many layers choose."""
        return sum(self.choosing[i % len(self.choosing)] for i in range(layers))

    def calibrate(self, keys: Tensor) -> Tensor | None:
        """What `describe` needs to know of a sequence, `[H, C, ..]`, from the keys that it begins with, `[H, S, D]`."""
        return None

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """What is kept of blocks, float32 `[H, ..., W]`.

        Args:
            keys: float32 `[H, ..., b, D]`, as rounded as the cache holds them.
            valid: bool, broadcast to `[..., b, 1]`: keys that count; None for all. A block without any may be anything.
            known: of `calibrate`.
        """
        raise NotImplementedError(f"{self.name}: keeps nothing of its own")

    def scores(self, blocks: Blocks) -> Tensor:
        """What each block is ranked by, float32 `[H or sequences, R, X, M]`; anything past a step's last block."""
        raise NotImplementedError(f"{self.name}: ranks nothing")

    def choose(self, blocks: Blocks) -> Tensor:
        """The blocks that are read, bool `[H or sequences or 1, R, X, M]`."""
        return blocks.best(self.scores(blocks))

    @property
    def has_kernels(self) -> bool:
        """Whether it brings stages of its own."""
        return type(self).kernel_stages is not Selector.kernel_stages

    def serves(self, shape: AttentionShape) -> bool:
        """Whether its own stages serve such heads."""
        return self.has_kernels

    def kernel_stages(self, layer: SelectingLayer, step: StepTensors) -> tuple[Stage, ...] | None:
        """The stages that fill the layer's lists on the kernels; None where there are none of its own."""
        return None

    def kernel_table(self, cache: KVCache, config: SparseConfig) -> Tensor:
        """Room for what the kernels keep of blocks, where the selector is `tabled` and has kernels."""
        raise NotImplementedError(f"{self.name}: has no kernels")

    def kernel_describe(self, layer: SelectingLayer, tokens: int | None) -> None:
        """Bring the layer's table up to date with the last `tokens` tokens of each sequence; with all if None."""
        raise NotImplementedError(f"{self.name}: has no kernels")

    def appends(self, config: SparseConfig) -> bool:
        """Whether the first of `kernel_stages` writes the step's token, too."""
        return False

    @abstractmethod
    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """Bytes of one sequence of `tokens` tokens that are read to rank its blocks; elements of so many bytes."""


class Following(Selector):
    """Of a layer that reads the lists of another: it scores nothing, keeps nothing, and chooses nothing.

    Attributes:
        leader: what those lists are chosen by.
    """

    ranked = False

    def __init__(self, leader: Selector) -> None:
        self.leader = leader

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """As the leader."""
        return self.leader.rows(shape, config)

    def choose(self, blocks: Blocks) -> Tensor:
        """What was handed on as chosen, where masks are; steps on a cache find the lists where they are written."""
        return blocks.handed["chosen"]

    def appends(self, config: SparseConfig) -> bool:
        """Whether attention writes the step's token, too: every list ends with the newest block then."""
        return self.leader.ranked and config.local_blocks > 0

    def kernel_stages(self, layer: SelectingLayer, step: StepTensors) -> tuple[Stage, ...]:
        """None are needed."""
        return ()

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """Nothing is read to rank."""
        return 0


S = TypeVar("S", bound=Selector)


def register_selector(name: str, *arguments: Any, **settings: Any) -> Callable[[type[S]], type[S]]:
    """Class decorator: make a selector, made with these arguments, known by `name`. Several names may stand together.

    Raises:
        ValueError: another class has that name.
    """

    def add(cls: type[S]) -> type[S]:
        other = SELECTORS.get(name)
        if other is not None and type(other).__qualname__ != cls.__qualname__:
            raise ValueError(f"selector {name!r} is registered already, by {type(other).__qualname__}")
        SELECTORS[name] = selector = cls(*arguments, **settings)
        selector.name = name
        return cls

    return add


def selectors() -> dict[str, Selector]:
    """Every known selector by name, in order of registration."""
    return dict(SELECTORS)


def selector_of(ranks_by: str | None, config: SparseConfig) -> Selector:
    """The selector of a method: what its blocks are ranked by, and for `summary` what its settings say.

    Raises:
        ValueError: no such selector.
    """
    name = ranks_by or "summary"
    name = config.selector or config.summary_kind if name == "summary" else name
    if name not in SELECTORS:
        raise ValueError(f"selector: got {name!r}, known are {', '.join(SELECTORS)}")
    selector: Selector = SELECTORS[name]
    selector.check(config)
    return selector


def best(scores: Tensor, lengths: Tensor, config: SparseConfig) -> Tensor:
    """The best blocks of each step, bool like `scores`; local and pinned blocks always, ties to the lower index.

    Args:
        scores: float32 `[.., R, .., M]`; those of blocks that a step does not have may be anything.
        lengths: int64 `[.., R]`, tokens that each step sees; `M` blocks hold the most of them.
    """
    blocks, counts, index = layout(scores.shape[-1], lengths, config)
    always = config.always_selected(index, blocks)
    scores = scores.masked_fill(always, float("inf")).masked_fill(index >= blocks, float("-inf"))
    ranked = scores.topk(config.selected(scores.shape[-1] * config.block_size), dim=-1).values
    threshold = ranked.gather(-1, (counts - 1).clamp(min=0).expand(*ranked.shape[:-1], 1))
    above, equal = scores > threshold, scores == threshold
    return above | (equal & (equal.cumsum(-1) <= counts - above.sum(-1, keepdim=True)))


def layout(most: int, lengths: Tensor, config: SparseConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks and blocks to read of each step, `[.., R, 1, 1]`, and the index of `most` blocks, `[M]`.

    `SparseConfig.selected` of all steps at once, on the device: the host need not know the lengths.
    """
    ratio, blocks = config.ratio, -(-lengths[..., None, None] // config.block_size)
    wanted = -(-blocks * ratio.numerator // ratio.denominator)
    counts = torch.minimum(blocks, wanted.clamp(min=config.floor_blocks))
    return blocks, counts, torch.arange(most, device=lengths.device)
