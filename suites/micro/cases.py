"""Cases of the micro suite: model shape x batch x context x data, and the methods measured in each."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from ...kernels import AttentionShape, SparseConfig, get_method, registered
from ...kernels.config import SUMMARY_DTYPES, SUMMARY_KINDS, ceil_div

QUEST_POLICIES = ("per-head", "group-sum")  # as published, and the cheapest way to share its lists
PATTERNS = ("random", "clustered", "recent")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SUMMARIES = (*SUMMARY_KINDS, *(f"{kind}-{dtype}" for dtype in SUMMARY_DTYPES for kind in SUMMARY_KINDS))
SUMMARY_HELP = "what a block is scored by; -fp8: half the bytes of 16-bit summaries, rounded (docs/notes/quality.md)"


def summary_settings(name: str) -> dict[str, Any]:
    """One of SUMMARIES as settings of `SparseConfig`."""
    kind, _, dtype = name.partition("-")
    return {"summary_kind": kind, "summary_dtype": dtype or None}


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
}
DEFAULT_MODEL = "qwen2.5-7b"
DEFAULTS = SparseConfig()
QUEST_DENSE_LAYERS = 2  # Quest leaves a model's first two layers dense (arXiv 2406.10774, section 4.1)


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs, on which all methods are measured in one run."""

    suite: ClassVar[str] = "micro"
    at_a_time: ClassVar[int | None] = None  # methods; None: all, since they are interleaved and compared within a run

    model: str
    heads: ModelShape
    batch: int
    context: int  # tokens, the newest included
    dtype: str = "bf16"
    pattern: str = "random"
    page_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.context < 1 or self.batch < 1:
            raise ValueError(f"context, batch: got {self.context}, {self.batch}, must be at least 1")
        if self.page_size is not None and self.page_size < 1:
            raise ValueError(f"page_size: got {self.page_size}, must be at least 1 token")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, allowed are {', '.join(DTYPES)}")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: got {self.pattern!r}, allowed are {', '.join(PATTERNS)}")

    @property
    def slug(self) -> str:
        """`qwen2.5-7b-b1-256k`, with the pattern and page size where they are not the default."""
        length = f"{self.context // 1024}k" if self.context % 1024 == 0 else str(self.context)
        parts = [self.model, f"b{self.batch}", length]
        if self.pattern != "random":
            parts.append(self.pattern)
        if self.page_size:
            parts.append(f"page{self.page_size}")
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
            "kv_layout": "head-major",
            "paged": self.page_size is not None,
            "selection_pattern": self.pattern,
            "seed": self.seed,
        }

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(self.batch, self.heads.q_heads, self.heads.kv_heads, self.heads.head_dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def capacity(self) -> int:
        """Tokens a sequence has room for: the context rounded up to whole pages."""
        unit = self.page_size or 64
        return ceil_div(self.context, unit) * unit

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V."""
        size = torch.empty(0, dtype=self.torch_dtype).element_size()
        return 2 * self.batch * self.heads.kv_heads * self.capacity * self.heads.head_dim * size


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method by its registered name, with the settings it runs at."""

    name: str
    config: SparseConfig = field(default_factory=SparseConfig)
    dense_layers: int | None = None  # first layers of a model that stay dense, where the method has such
    draft_length: int | None = None  # tokens that lossless decoding drafts a round

    def columns(self) -> dict[str, Any]:
        """The columns that tell this variant from others: only settings that the method uses."""
        columns = {name: getattr(self.config, name) for name in get_method(self.name).uses}
        if "spread_weight" in columns and self.config.summary_kind != "meanstd":
            columns["spread_weight"] = None
        if not columns.get("pinned_blocks", True):
            columns["pinned_blocks"] = None
        further = {"dense_layers": self.dense_layers, "draft_length": self.draft_length}
        return columns | {name: value for name, value in further.items() if value is not None}

    @property
    def label(self) -> str:
        """`resa b16`, `quest b16 per-head`: what a person reads."""
        columns = self.columns()
        words = [self.name]
        if "block_size" in columns:
            words.append(f"b{columns['block_size']}")
        policy = columns.get("gqa_policy")
        if policy and (self.name == "quest" or policy != usual_policy(self.name)):
            words.append(str(policy))
        if "window" in columns:
            words.append(f"w{columns['window']}")
        if columns.get("summary_kind") == "meanstd":
            words.append("meanstd")
            if self.config.spread_weight != DEFAULTS.spread_weight:
                words.append(f"c{self.config.spread_weight:g}")
        if columns.get("summary_dtype"):
            words.append(str(columns["summary_dtype"]))
        if columns.get("pinned_blocks"):
            words.append(f"pin{columns['pinned_blocks']}")
        if self.dense_layers not in (None, QUEST_DENSE_LAYERS):
            words.append(f"{self.dense_layers} dense layers")
        if columns.get("rectify_every", DEFAULTS.rectify_every) != DEFAULTS.rectify_every:
            words.append(f"f{columns['rectify_every']}")
        if self.draft_length is not None:
            words.append(f"m{self.draft_length}")
        return " ".join(words)


def default_methods(device: torch.device, base: SparseConfig, block_sizes: Sequence[int]) -> list[MethodSpec]:
    """Every registered method that is not kept for asking by name, dense ones first.

    ReSA runs at each block size, as a chain and as one kernel (in plain torch on a CPU), Quest under two GQA policies,
    RetroAttention under the one of them that it can share, any other sparse method at the first block size.
    """
    left_out = ("resa-torch", "torch-dense") if device.type == "cuda" else ("resa", "resa-fused")
    methods = {n: m for n, m in registered().items() if m.in_default and n not in left_out}
    specs = [MethodSpec(name) for name, method in methods.items() if method.is_dense]
    first = replace(base, block_size=block_sizes[0])
    for name, method in methods.items():
        if method.is_dense:
            continue
        if name in ("resa", "resa-fused", "resa-torch"):
            specs += [MethodSpec(name, replace(base, block_size=b)) for b in block_sizes]
        elif name == "quest":
            specs += [MethodSpec(name, replace(first, gqa_policy=policy)) for policy in QUEST_POLICIES]
        elif name == "retro":
            specs.append(retro_spec(first, first.window))
        else:
            specs.append(MethodSpec(name, first))
    return specs


def usual_policy(name: str) -> str:
    """How a method's lists are shared unless it is said: RetroAttention's by Quest's sum, as it takes none per head."""
    return "group-sum" if name.startswith("retro") else DEFAULTS.gqa_policy


def named_spec(name: str, config: SparseConfig) -> MethodSpec:
    """A method asked for by name, under its usual policy."""
    return MethodSpec(name, replace(config, gqa_policy=usual_policy(name)))


def retro_spec(base: SparseConfig, window: int) -> MethodSpec:
    """RetroAttention with a window of so many tokens."""
    return named_spec("retro", replace(base, window=window))


def further_methods(case: Case, base: SparseConfig) -> list[MethodSpec]:
    """What the default model's long cases on random data add to the default list.

    ReSA with summaries in fp8; at batch 1 RetroAttention with wider windows, whose gains end at 8 tokens (arXiv
    2508.09001).
    """
    if case.model != DEFAULT_MODEL or case.pattern != "random" or case.context < 32 * K:
        return []
    wide = (4, 8) if case.batch == 1 and case.context >= 128 * K else ()
    halved = [MethodSpec(name, replace(base, summary_dtype="fp8")) for name in ("resa", "resa-fused")]
    return [*halved, *(retro_spec(base, window) for window in wide)]


K = 1024


def default_cases(device: torch.device, scale: str, model: str = DEFAULT_MODEL) -> list[Case]:
    """The lists `quick`, `default` and `full`. On a CPU they are shorter, in fp32, at one batch.

    default on a GPU: 4K to 256K at batch 1, the long ones at batch 4 and 8, each selection pattern at 128K and one
    case of every other model shape.
    """
    heads = PRESETS[model]
    if device.type != "cuda":
        contexts = {"quick": [4, 16], "default": [4, 8, 16, 32, 64], "full": [4, 8, 16, 32, 64, 128, 256]}[scale]
        batches = [1, 4] if scale == "full" else [1]
        return [Case(model, heads, b, c * K, dtype="fp32") for b in batches for c in contexts]
    if scale == "quick":
        return [Case(model, heads, 1, c * K) for c in (8, 32)]
    if scale == "full":
        return [
            Case(name, PRESETS[name], b, c * K, pattern=pattern)
            for name in PRESETS
            for pattern in PATTERNS
            for b in (1, 4, 8)
            for c in (4, 8, 16, 32, 64, 128, 256)
        ]
    cases = [Case(model, heads, 1, c * K) for c in (4, 8, 16, 32, 64, 128, 256)]
    cases += [Case(model, heads, 4, c * K) for c in (16, 64, 128)]
    cases += [Case(model, heads, 8, c * K) for c in (16, 64)]
    cases += [Case(model, heads, 1, 128 * K, pattern=p) for p in PATTERNS[1:]]
    cases += [Case(name, PRESETS[name], 1, 128 * K) for name in PRESETS if name != model]
    return cases


def filter_cases(
    cases: Iterable[Case], names: Sequence[str] = (), contexts: Sequence[int] = (), batches: Sequence[int] = ()
) -> list[Case]:
    """Cases whose slug matches any glob (or contains the text) and whose context and batch are among those given."""

    def named(case: Case) -> bool:
        return not names or any(fnmatch.fnmatch(case.slug, n) or n in case.slug for n in names)

    return [
        c for c in cases if named(c) and (not contexts or c.context in contexts) and (not batches or c.batch in batches)
    ]


def parse_tokens(text: str) -> int:
    """`256K` or `262144` to tokens. Raises ValueError."""
    try:
        return int(text[:-1]) * K if text[-1:].lower() == "k" else int(text)
    except ValueError:
        raise ValueError(f"context: got {text!r}, expected tokens such as 4096 or 4K") from None
