"""What a method is asked to do: the attention's shape and the sparse settings. Both check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

GQA_POLICIES = ("group-mean", "group-sum", "per-head", "all-heads")
SUMMARY_KINDS = ("minmax", "meanstd")
SUMMARY_DTYPES = ("fp8",)  # besides the cache's own
BLOCK_SIZES = (8, 16, 32, 64, 128)
HEAD_DIMS = (16, 32, 64, 128, 256)
MAX_BLOCKS = 32768  # blocks in one sequence: one program holds a row of scores in registers
RATIO_DENOMINATOR = 10_000


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Batch and heads of one attention layer. `group` is the number of query heads that share a KV head."""

    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("batch", "q_heads", "kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, must be at least 1")
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads: got {self.q_heads}, must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim: got {self.head_dim}, allowed are {HEAD_DIMS}")

    @property
    def group(self) -> int:
        return self.q_heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class SparseConfig:
    """Settings of a block-sparse decode step (ReSA's defaults; arXiv 2506.04108, section 3).

    A sequence of L tokens has M = ceil(L / block_size) blocks, of which n = min(M, max(min_blocks, ceil(r * M))) are
    read. With `budget_tokens` (Quest) n = min(M, budget_tokens // block_size) instead.
    """

    block_size: int = 16
    active_ratio: float = 0.1
    min_blocks: int = 16
    local_blocks: int = 1  # newest blocks, always selected
    pinned_blocks: int = 0  # first blocks that are always selected too: the attention sink's
    rectify_every: int = 32
    gqa_policy: str = "group-mean"
    summary_kind: str = "minmax"
    summary_dtype: str | None = None  # "fp8": e4m3, half the bytes to score; None: the cache's
    spread_weight: float = 1.0  # c of the mean/std score q.mean + c |q|.std
    budget_tokens: int | None = None
    sink_blocks: int = 1  # of sink + window alone
    window: int = 2  # of RetroAttention alone: newest tokens that a step runs, the fed one included
    chunk_kernel: str | None = None  # that attends in rectification (kernels/chunk.py); None: the fastest that can run

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size: got {self.block_size}, allowed are the powers of two {BLOCK_SIZES}")
        if not 0 < self.active_ratio <= 1:
            raise ValueError(f"active_ratio: got {self.active_ratio}, must be in (0, 1]")
        if self.gqa_policy not in GQA_POLICIES:
            raise ValueError(f"gqa_policy: got {self.gqa_policy!r}, allowed are {', '.join(GQA_POLICIES)}")
        if self.summary_kind not in SUMMARY_KINDS:
            raise ValueError(f"summary_kind: got {self.summary_kind!r}, allowed are {', '.join(SUMMARY_KINDS)}")
        if self.summary_dtype not in (None, *SUMMARY_DTYPES):
            raise ValueError(f"summary_dtype: got {self.summary_dtype!r}, allowed: None, {', '.join(SUMMARY_DTYPES)}")
        if self.rectify_every < 1:
            raise ValueError(f"rectify_every: got {self.rectify_every}, must be at least 1 token")
        if self.window < 1:
            raise ValueError(f"window: got {self.window}, must be at least 1 token (the one that is fed)")
        if self.local_blocks < 0 or self.sink_blocks < 0:
            raise ValueError(f"local_blocks, sink_blocks: got {self.local_blocks}, {self.sink_blocks}, must be >= 0")
        if self.budget_tokens is not None and self.budget_tokens < self.block_size:
            raise ValueError(
                f"budget_tokens: got {self.budget_tokens}, must hold one block of {self.block_size} tokens"
            )
        if self.pinned_blocks < 0:
            raise ValueError(f"pinned_blocks: got {self.pinned_blocks}, must be >= 0")
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
        return Fraction(round(self.active_ratio * RATIO_DENOMINATOR), RATIO_DENOMINATOR)

    @property
    def floor_blocks(self) -> int:
        """Least number of blocks selected where the sequence has that many."""
        return self.min_blocks if self.budget_tokens is None else self.budget_tokens // self.block_size

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
