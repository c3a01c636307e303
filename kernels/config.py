"""What a method is asked to do: the attention's shape and the sparse settings. Both check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .checks import check_whole
from .registry import SELECTORS
from .setting import declared, setting

GQA_POLICIES = ("group-mean", "group-sum", "per-head", "all-heads")
SUMMARY_KINDS = ("minmax", "meanstd")
SUMMARY_DTYPES = ("fp8",)  # besides the queries' own
KV_DTYPES = ("fp8",)  # of keys and values, besides the queries' own
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Of activations, keys and values, by the names that rows have."""
BLOCK_SIZES = (8, 16, 32, 64, 128)
HEAD_DIMS = (16, 32, 64, 128, 256)
MAX_BLOCKS = 65536  # blocks in one sequence: a million tokens in blocks of 16
RATIO_DENOMINATOR = 32_000  # times MAX_BLOCKS it stays below 2^31, as the kernels count
MAX_ROWS = 1 << 30  # sequences, pages or heads at most: their indices fit 32 bits
MAX_PERIOD = 1 << 16  # tokens between rectifications, or in a window


def ceil_div(a: int, b: int) -> int:
    """The quotient rounded up."""
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Batch and heads of one attention layer. `group` is the number of query heads that share a KV head.

    Raises:
        TypeError: a number that is no int.
        ValueError: out of range, query heads that are no multiple of the KV heads, a head dim not in HEAD_DIMS.
    """

    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("batch", "q_heads", "kv_heads"):
            check_whole(name, getattr(self, name), 1, MAX_ROWS)
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads: got {self.q_heads}, must be a multiple of kv_heads ({self.kv_heads})")
        check_whole("head_dim", self.head_dim, 1, max(HEAD_DIMS))
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim: got {self.head_dim}, allowed are {HEAD_DIMS}")

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.q_heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class SparseConfig:
    """Settings of a block-sparse decode step (ReSA's defaults; arXiv 2506.04108, section 3).

    A sequence of L tokens has M = ceil(L / block_size) blocks, of which n = min(M, max(min_blocks, ceil(r * M))) are
    read. With `budget_tokens` (Quest) n = min(M, budget_tokens // block_size) instead.
    """

    block_size: int = setting(
        16, "tokens of a block", role="choice", flag="--block-size", symbol="b", choices=BLOCK_SIZES, word="b{}"
    )
    active_ratio: float = setting(
        0.1,
        "active ratio: share of blocks read",
        role="choice",
        flag="--ratio",
        symbol="r",
        above=0,
        most=1,
        word="r{:g}",
    )
    min_blocks: int = setting(
        16,
        "least blocks read",
        role="choice",
        flag="--min-blocks",
        symbol="N",
        least=0,
        most=MAX_BLOCKS,
        word="min{}",
        quiet=True,
    )
    local_blocks: int = setting(1, "newest blocks, always selected", least=0)
    pinned_blocks: int = setting(
        0,
        "first blocks, always selected too: the attention sink's",
        role="choice",
        flag="--pinned-blocks",
        symbol="P",
        least=0,
        word="pin{}",
        blank=0,
    )
    rectify_every: int = setting(
        32, "tokens between rectifications", flag="--rectify-every", symbol="f", least=1, most=MAX_PERIOD, word="f{}"
    )
    gqa_policy: str = setting(
        "group-mean",
        "how the query heads of a group share lists",
        role="score",
        flag="--gqa-policy",
        choices=GQA_POLICIES,
        word="{}",
    )
    summary_kind: str = setting("minmax", "what a block is scored by", role="score", choices=SUMMARY_KINDS, word="{}")
    selector: str | None = setting(
        None,
        "another way to choose the blocks that a step reads; without it, by their summaries (list: docs/methods.md)",
        role="score",
        kind=str,
        flag="--selector",
        names=SELECTORS,
        word="{}",
    )
    summary_dtype: str | None = setting(
        None,
        "fp8: e4m3, half the bytes to score; None: the cache's",
        role="score",
        kind=str,
        choices=SUMMARY_DTYPES,
        word="{}",
    )
    spread_weight: float = setting(
        1.0,
        "c of the mean/std score q.mean + c |q|.std",
        role="score",
        flag="--spread-weight",
        symbol="c",
        least=0,
        most=1e6,
        word="c{:g}",
        only_with=("summary_kind", "meanstd"),
    )
    budget_tokens: int | None = setting(
        None,
        "a budget in tokens instead of the active ratio (Quest)",
        role="budget",
        kind=int,
        flag="--budget-tokens",
        symbol="N",
        least=1,
        word="{} tokens",
    )
    sink_blocks: int = setting(1, "first blocks of sink + window", least=0)
    window: int = setting(
        2,
        "newest tokens that a step runs, the fed one included (RetroAttention)",
        flag="--window",
        symbol="w",
        least=1,
        most=MAX_PERIOD,
        word="w{}",
    )
    chunk_kernel: str | None = (
        None  # that attends in rectification (attention/chunk.py); None: the fastest that can run
    )

    def __post_init__(self) -> None:
        for entry in SETTINGS.values():
            entry.check(getattr(self, entry.name))
        if self.selector in SUMMARY_KINDS:
            raise ValueError(f"selector: {self.selector} is a kind of summary; set summary_kind")
        if self.budget_tokens is None and not self.ratio:
            raise ValueError(f"active_ratio: got {self.active_ratio:g}, must be at least {1 / RATIO_DENOMINATOR:g}")
        if self.budget_tokens is not None and self.budget_tokens < self.block_size:
            raise ValueError(
                f"budget_tokens: got {self.budget_tokens}, must hold one block of {self.block_size} tokens"
            )
        always = self.local_blocks + self.pinned_blocks
        if self.floor_blocks < max(1, always):
            raise ValueError(
                f"local_blocks: {always} always-selected blocks do not fit the least number of selected "
                f"blocks ({self.floor_blocks}); raise min_blocks or budget_tokens"
            )

    @property
    def ratio(self) -> Fraction:
        """The active ratio as an exact fraction, so that ceilings are exact (0.15 * 100 is 15); 0 under a budget."""
        if self.budget_tokens is not None:
            return Fraction(0)
        return Fraction(self.active_ratio).limit_denominator(RATIO_DENOMINATOR)

    @property
    def floor_blocks(self) -> int:
        """Least number of blocks selected where the sequence has that many."""
        return self.min_blocks if self.budget_tokens is None else self.budget_tokens // self.block_size

    @property
    def always(self) -> tuple[int, int]:
        """How many of the newest blocks, and how many of the first, are selected whatever their score."""
        return self.local_blocks, self.pinned_blocks

    def always_selected(self, index: Tensor, blocks: Tensor | int) -> Tensor:
        """Whether blocks are selected whatever their score: the newest and the first, a mask.

        Args:
            index: of blocks, int.
            blocks: M of each sequence, which `index` broadcasts with.
        """
        newest, first = self.always
        return (index >= blocks - newest) | (index < first)

    def summary_bytes(self, head_dim: int, cache_element: int) -> int:
        """Bytes of one block's summary, of one KV head, beside a cache of elements of so many bytes."""
        return 2 * head_dim * (1 if self.summary_dtype == "fp8" else cache_element)

    def blocks(self, tokens: int) -> int:
        """M: blocks of a sequence of `tokens` tokens."""
        return ceil_div(tokens, self.block_size)

    def selected(self, tokens: int) -> int:
        """n: blocks read of a sequence of `tokens` tokens."""
        m = self.blocks(tokens)
        return min(m, max(self.floor_blocks, ceil_div(m * self.ratio.numerator, self.ratio.denominator)))


SETTINGS = declared(SparseConfig)
"""The settings of a step by name, in the order of declaration."""
CHOOSES = tuple(name for name, entry in SETTINGS.items() if entry.role == "choice")
"""How many blocks are selected, and which always."""
SELECTS = tuple(name for name, entry in SETTINGS.items() if entry.role in ("choice", "score"))
"""The settings by which blocks are scored and selected."""
