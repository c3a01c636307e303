"""Cases of the decode suite: model x weight type x batch x context, and the methods measured in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...kernels import AttentionShape, SparseConfig, get_method
from ...kernels.config import ceil_div
from ..engine.measure import EAGER_STEPS
from ..engine.sampling import Sampling
from ..micro.cases import DTYPES, QUEST_DENSE_LAYERS, K, MethodSpec, retro_spec
from ..model.config import ModelConfig

WEIGHTS = ("bf16", "fp16", "fp32", "int4")
GPU_TEXT_DENSE = ("triton-dense", "flash-attn-3", "flash-attn-2")  # that follow the length of a growing text
GPU_DENSE = ("sdpa-cudnn", "triton-dense")  # the best two of the micro suite; the second follows the length


class ModelCase:
    """What cases of whole models have in common; they bring what is only named here."""

    __slots__ = ()

    suite: ClassVar[str]
    at_a_time: ClassVar[int | None] = None  # methods that are measured and written together; None: all
    model: str
    config: ModelConfig
    dtype: str
    seed: int

    if TYPE_CHECKING:  # at run time a dataclass would take a property of its base for a field's default

        @property
        def slug(self) -> str: ...
        @property
        def batch(self) -> int: ...
        @property
        def context(self) -> int: ...
        @property
        def weights(self) -> str: ...

    @property
    def shape(self) -> AttentionShape:
        return self.config.attention(self.batch)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return {
            "suite": self.suite,
            "model": self.config.name,
            "case": self.slug,
            "context": self.context,
            "batch": self.batch,
            "q_heads": self.config.q_heads,
            "kv_heads": self.config.kv_heads,
            "head_dim": self.config.head_dim,
            "layers": self.config.layers,
            "dtype": self.dtype,
            "weight_dtype": self.weights,
            "kv_layout": "head-major",
            "paged": False,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class DecodeCase(ModelCase):
    """One model, batch and context, in which all methods decode."""

    suite: ClassVar[str] = "decode"

    model: str  # a preset, `smollm2-135m`, or the path of a checkpoint
    config: ModelConfig
    batch: int
    context: int  # tokens that the timed decoding ends at
    weights: str = "bf16"
    dtype: str = "bf16"  # of activations and K/V
    shared_kv: bool = False
    prompt: str = "synthetic"
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.context < 1 or self.batch < 1:
            raise ValueError(f"context, batch: got {self.context}, {self.batch}, must be at least 1")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights: got {self.weights!r}, allowed are {', '.join(WEIGHTS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, allowed are {', '.join(DTYPES)}")
        if self.weights not in ("int4", self.dtype):
            raise ValueError(
                f"weights: got {self.weights} beside {self.dtype} activations, allowed int4 or {self.dtype}"
            )
        if self.prompt not in ("synthetic", "text"):
            raise ValueError(f"prompt: got {self.prompt!r}, allowed are synthetic, text")

    @property
    def slug(self) -> str:
        """`decode-qwen2.5-7b-int4-b1-256k`, then `-shared` (one K/V cache), `-text`, the sampling where they apply."""
        length = f"{self.context // K}k" if self.context % K == 0 else str(self.context)
        parts = ["decode", self.config.name, self.weights, f"b{self.batch}", length]
        if self.shared_kv:
            parts.append("shared")
        if self.prompt == "text":
            parts.append("text")
        if self.sampling.temperature:
            parts.append(f"t{self.sampling.temperature:g}-p{self.sampling.top_p:g}")
        return "-".join(parts)

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {"shared_kv": self.shared_kv, "selection_pattern": self.prompt}


TEXT_PERIODS = 3  # of warm-up and timing, which follow a text prompt


def capacity(case: ModelCase) -> int:
    """Tokens that each cache has room for."""
    return ceil_div(case.context, 64) * 64


def prompt_tokens(case: DecodeCase, specs: Sequence[MethodSpec]) -> int:
    """Tokens of a text prompt: what is decoded after it ends at the case's context."""
    return case.context - max([TEXT_PERIODS * period(s) for s in specs] + [2 * EAGER_STEPS])


def period(spec: MethodSpec) -> int:
    """Tokens of a period: f, for methods without rectification too, so that all time the same steps."""
    return spec.config.rectify_every


def rectifies(spec: MethodSpec) -> bool:
    return "rectify_every" in get_method(spec.name).uses


def window(spec: MethodSpec) -> int:
    """Tokens of each sequence that a step runs."""
    return spec.config.window if "window" in get_method(spec.name).uses else 1


def default_specs(
    device: torch.device, base: SparseConfig, block_sizes: Sequence[int], prompt: str = "synthetic"
) -> list[MethodSpec]:
    """The best dense methods, ReSA and Quest; on a CPU their portable paths and every other selector."""
    first = replace(base, block_size=block_sizes[0])
    shared = [replace(base, block_size=b, gqa_policy="group-sum") for b in block_sizes]
    quest = [MethodSpec("quest", config, QUEST_DENSE_LAYERS) for config in shared]
    if device.type == "cuda":
        dense = [MethodSpec(name, base) for name in (GPU_DENSE if prompt == "synthetic" else GPU_TEXT_DENSE)]
        resa = [MethodSpec(name, replace(base, block_size=b)) for name in ("resa", "resa-fused") for b in block_sizes]
        return [*dense, *resa, *quest]
    resa = [MethodSpec("resa-torch", replace(base, block_size=b)) for b in block_sizes]
    others = [MethodSpec(name, first) for name in ("sparse", "sink-window", "oracle")]
    return [MethodSpec("torch-dense", base), *resa, *quest, retro_spec(first, first.window), *others]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list: weights, batch, contexts, whether layers share one cache."""

    weights: str
    batch: int
    contexts_k: tuple[int, ...]
    shared_kv: bool = False


GPU_LISTS = {
    "quick": (Entry("bf16", 1, (4, 32)),),
    "default": (
        Entry("bf16", 1, (4, 32, 128, 256)),
        Entry("int4", 1, (4, 32, 128, 256)),
        Entry("int4", 4, (4, 32, 128, 256)),
        Entry("bf16", 8, (16, 64, 256), shared_kv=True),  # the set-up and contexts of ReSA's paper
        Entry("int4", 8, (256,), shared_kv=True),
    ),
    "full": tuple(
        Entry(weights, batch, (4, 8, 16, 32, 64, 128, 256), shared)
        for weights in ("bf16", "int4")
        for batch, shared in ((1, False), (4, False), (8, False), (8, True))
    ),
}
CPU_LISTS = {
    "quick": (Entry("fp32", 1, (1,)),),
    "default": (Entry("fp32", 1, (1, 4, 8)),),
    "full": (Entry("fp32", 1, (1, 2, 4, 8)),),
}


def default_list(
    device: torch.device, scale: str, model: str, config: ModelConfig, *, dtype: str, prompt: str, seed: int
) -> list[DecodeCase]:
    """The lists `quick`, `default` and `full`."""
    lists = GPU_LISTS if device.type == "cuda" else CPU_LISTS
    cases = []
    for entry in lists[scale]:
        weights = "int4" if entry.weights == "int4" else dtype
        for context_k in entry.contexts_k:
            case = DecodeCase(model, config, entry.batch, context_k * K, weights, dtype, entry.shared_kv, prompt)
            cases.append(replace(case, seed=seed))
    return cases


def matching(cases: Sequence[DecodeCase], names: Sequence[str]) -> list[DecodeCase]:
    """Cases whose slug matches any glob (or contains the text), each once. Raises ValueError if none is left."""
    found = [c for c in cases if not names or any(fnmatch(c.slug, n) or n in c.slug for n in names)]
    if not found:
        raise ValueError(f"--case {' '.join(names)}: no case matches; see `resa-bench decode --plan`")
    return list(dict.fromkeys(found))


def is_study(case: DecodeCase) -> bool:
    """The case of the default list that is measured in more detail."""
    return (case.weights, case.batch, case.context) == ("int4", 1, 256 * K)


def study_specs(specs: Sequence[MethodSpec]) -> list[MethodSpec]:
    """What the study adds: block sizes, rectification periods, further methods.

    RetroAttention leaves no layer dense; Quest without dense layers is the same steps without repairs.
    """
    resa = next(s.config for s in specs if s.name == "resa")
    sizes = [MethodSpec("resa", replace(resa, block_size=b)) for b in (32, 64)]
    periods = [MethodSpec("resa", replace(resa, rectify_every=f)) for f in (16, 64, 128)]
    further = [MethodSpec(name, resa) for name in ("sparse", "sink-window", "flash-attn-2", "flash-attn-3")]
    windows = [retro_spec(resa, w) for w in (2, 4, 8)]
    quest = MethodSpec("quest", replace(resa, gqa_policy="group-sum"), 0)
    kept = replace(resa, pinned_blocks=1)  # as fast; another quality (docs/notes/quality.md)
    pinned = [MethodSpec("resa", c) for c in (kept, replace(kept, summary_kind="meanstd", spread_weight=0.5))]
    halved = [MethodSpec(name, replace(resa, summary_dtype="fp8")) for name in ("resa", "resa-fused")]
    return [*sizes, *halved, *periods, *further, quest, *windows, *pinned]
