"""Cases of the micro suite: model shape x batch x context x data, and the methods measured in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...kernels import AttentionShape, SparseConfig, registered
from ...kernels.config import DTYPES, ceil_div
from ..core.flags import K, size_word
from ..core.spec import MethodSpec, make_spec, other_ways, runs_by_default, unique
from ..engine.case import RAGGED, check_kv, ragged_tokens

QUEST_POLICIES = ("per-head", "group-sum")  # as published, and the cheapest way to share its lists
BLOCK_SIZES = (16, 32, 64)  # of ReSA in the default list
DATA = ("random", "clustered", "recent")  # where the blocks lie that queries are drawn to
PATTERNS = (*DATA, RAGGED)  # the last: random data, sequences of many lengths


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Attention heads of a model."""

    q_heads: int
    kv_heads: int
    head_dim: int


PRESETS = {
    "qwen2.5-7b": ModelShape(28, 4, 128),
    "llama-3.1-8b": ModelShape(32, 8, 128),
    "qwen3-8b": ModelShape(32, 8, 128),
    "r1-distill-qwen-1.5b": ModelShape(12, 2, 128),
    "qwen3-14b": ModelShape(40, 8, 128),
    "qwen2.5-32b": ModelShape(40, 8, 128),
    "qwen3-32b": ModelShape(64, 8, 128),
    "llama-3.1-70b": ModelShape(64, 8, 128),
    "msa": ModelShape(64, 4, 128),  # MiniMax-M3's sparse attention: 16 blocks of 128 tokens, a list a KV head
}
DEFAULT_MODEL = "qwen2.5-7b"
OTHER_MODELS = ("llama-3.1-8b", "llama-3.1-70b", "msa")  # of the default list, each of other heads
MSA_BLOCKS = {"block_size": 128, "min_blocks": 16, "active_ratio": 1e-4}  # 16 blocks up to 20 million tokens


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs, on which all methods are measured in one run."""

    suite: ClassVar[str] = "micro"
    at_a_time: ClassVar[int | None] = None  # methods; None: all, since they are interleaved and compared within a run

    model: str
    heads: ModelShape
    batch: int
    context: int  # tokens, the newest included; of ragged batches the longest sequence's
    dtype: str = "bf16"
    pattern: str = "random"
    page_size: int | None = None
    seed: int = 0
    kv_dtype: str | None = None  # of keys and values in the cache; None: as `dtype`

    def __post_init__(self) -> None:
        if self.context < 1 or self.batch < 1:
            raise ValueError(f"context, batch: got {self.context}, {self.batch}, must be at least 1")
        if self.page_size is not None and self.page_size < 1:
            raise ValueError(f"page_size: got {self.page_size}, must be at least 1 token")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, allowed are {', '.join(DTYPES)}")
        check_kv(self.kv_dtype)
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: got {self.pattern!r}, allowed are {', '.join(PATTERNS)}")
        if self.pattern == RAGGED:
            ragged_tokens(self.context, self.batch)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence: all the context, or in a ragged batch in even steps up to it."""
        return ragged_tokens(self.context, self.batch) if self.pattern == RAGGED else [self.context] * self.batch

    @property
    def slug(self) -> str:
        """`qwen2.5-7b-b1-256k`, with the pattern, page size and K/V type where they are not the default."""
        parts = [self.model, f"b{self.batch}", size_word(self.context)]
        if self.pattern != "random":
            parts.append(self.pattern)
        if self.page_size:
            parts.append(f"page{self.page_size}")
        if self.kv_dtype:
            parts.append(f"{self.kv_dtype}kv")
        return "-".join(parts)

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return {
            "suite": self.suite,
            "model": self.model,
            "case": self.slug,
            "context": self.context,
            "batch": self.batch,
            "q_heads": self.heads.q_heads,
            "kv_heads": self.heads.kv_heads,
            "head_dim": self.heads.head_dim,
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype,
            "kv_layout": "head-major",
            "paged": self.page_size is not None,
            "selection_pattern": self.pattern,
            "seed": self.seed,
        }

    @property
    def shape(self) -> AttentionShape:
        """Batch and heads."""
        return AttentionShape(self.batch, self.heads.q_heads, self.heads.kv_heads, self.heads.head_dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of queries, and of keys and values as they are given."""
        return DTYPES[self.dtype]

    @property
    def capacity(self) -> int:
        """Tokens a sequence has room for: the context rounded up to whole pages."""
        unit = self.page_size or 64
        return ceil_div(self.context, unit) * unit

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V."""
        size = 1 if self.kv_dtype else self.torch_dtype.itemsize
        return 2 * self.batch * self.heads.kv_heads * self.capacity * self.heads.head_dim * size


def default_methods(
    device: torch.device, base: SparseConfig, block_sizes: Sequence[int], policies: Sequence[str] = QUEST_POLICIES,
    windows: Sequence[int] = (2,),
) -> list[MethodSpec]:  # fmt: skip
    """Every registered method that is not kept for asking by name, dense ones first.

    ReSA runs at each block size (in plain torch on a CPU), Quest under each policy, RetroAttention at each window, any
    other sparse method at the first block size. The way that `resa` does not take joins case by case
    (`further_methods`).
    """
    methods = {name: kind for name, kind in registered().items() if runs_by_default(kind, "micro", device)}
    specs = [MethodSpec(name) for name, kind in methods.items() if kind.is_dense]
    first = replace(base, block_size=block_sizes[0])
    for name in (name for name, kind in methods.items() if not kind.is_dense):
        if name in ("resa", "resa-torch"):
            specs += [make_spec(name, base, block_size=b) for b in block_sizes]
        elif name == "quest":
            specs += [make_spec(name, first, gqa_policy=policy, dense_layers=None) for policy in policies]
        elif name == "retro":
            specs += [make_spec(name, first, window=window) for window in windows]
        else:
            specs.append(replace(make_spec(name, first), dense_layers=None))  # a layer stands alone
    return unique(specs)


def further_methods(case: Case, base: SparseConfig, device: torch.device) -> list[MethodSpec]:
    """What the default model's long cases on random data add to the default list.

    ReSA with summaries in fp8; at batch 1 RetroAttention with wider windows, whose gains end at 8 tokens (arXiv
    2508.09001). MSA's heads run with as many blocks of as many tokens as MSA reads, chosen by ReSA's summaries.
    """
    if case.model == "msa":
        return [make_spec("resa", base, **MSA_BLOCKS)]
    if case.model != DEFAULT_MODEL or case.pattern != "random" or case.context < 32 * K:
        return []
    wide = () if case.kv_dtype else (4, 8) if case.batch == 1 and case.context >= 128 * K else ()
    halved = [make_spec("resa", base, summary_dtype="fp8")]
    return [
        *halved,
        *(() if case.kv_dtype else other_ways(case.shape, halved, device)),
        *(make_spec("retro", base, window=window) for window in wide),
    ]


def default_cases(device: torch.device, scale: str, model: str = DEFAULT_MODEL) -> list[Case]:
    """The lists `quick`, `default` and `full`. On a CPU they are shorter, in fp32, at one batch.

    default on a GPU: 4K to 256K at batch 1, the long ones at batch 4 and 8, each selection pattern at 128K, one
    case of each of OTHER_MODELS, and a ragged batch beside a uniform one of as many tokens.
    """
    heads = PRESETS[model]
    if device.type != "cuda":
        contexts = {"quick": [4, 16], "default": [4, 16, 64], "full": [4, 8, 16, 32, 64, 128, 256]}[scale]
        batches = [1, 4] if scale == "full" else [1]
        return [Case(model, heads, b, c * K, dtype="fp32") for b in batches for c in contexts]
    if scale == "quick":
        return [Case(model, heads, 1, c * K) for c in (8, 32)]
    ragged = [Case(model, heads, 16, 32 * K, pattern=RAGGED), Case(model, heads, 16, 17 * K)]
    if scale == "full":
        grid = [
            Case(name, PRESETS[name], b, c * K, pattern=pattern)
            for name in (DEFAULT_MODEL, *OTHER_MODELS)
            for pattern in DATA
            for b in (1, 4, 8)
            for c in (4, 8, 16, 32, 64, 128, 256)
        ]
        return [*grid, *ragged]
    cases = [Case(model, heads, 1, c * K) for c in (4, 8, 16, 32, 64, 128, 256)]
    cases += [Case(model, heads, 4, c * K) for c in (16, 64, 128)]
    cases += [Case(model, heads, 8, c * K) for c in (16, 64)]
    cases += [Case(model, heads, 1, 128 * K, pattern=p) for p in DATA[1:]]
    cases += ragged
    cases += [Case(name, PRESETS[name], 1, 128 * K) for name in OTHER_MODELS if name != model]
    return cases
