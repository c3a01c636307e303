"""Cases of the decode suite: model x weight type x batch x context, and the methods measured in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from ...kernels import SparseConfig
from ...kernels.config import ceil_div
from ...kernels.linear.best import OURS
from ..core.flags import K, size_word
from ..core.spec import PINNED, MethodSpec, joining, make_spec, other_ways
from ..engine.case import (
    GPU_DENSE,
    GPU_TEXT_DENSE,
    RAGGED,
    ModelCase,
    check_counts,
    check_kv,
    check_types,
    ragged_tokens,
)
from ..engine.client import ENGINE
from ..engine.measure import EAGER_STEPS
from ..engine.products import check_products
from ..engine.products import libraries as product_libraries
from ..engine.sampling import Sampling
from ..model.config import ModelConfig
from ..model.weights import QUANTISED


@dataclass(frozen=True, slots=True)
class DecodeCase(ModelCase):
    """One model, batch and context, in which all methods decode."""

    suite: ClassVar[str] = "decode"

    model: str  # a preset, `smollm2-135m`, or the path of a checkpoint
    config: ModelConfig
    batch: int
    context: int  # tokens that the timed decoding ends at; of a ragged batch the longest sequence's
    weights: str = "bf16"
    dtype: str = "bf16"  # of activations and K/V
    shared_kv: bool = False
    prompt: str = "synthetic"
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    client: str = field(default=ENGINE, kw_only=True)
    products: str = field(default=OURS, kw_only=True)
    kv_dtype: str | None = field(default=None, kw_only=True)  # of keys and values in the cache; None: as `dtype`
    pattern: str | None = field(default=None, kw_only=True)  # RAGGED: sequences of many lengths; None: of one

    def __post_init__(self) -> None:
        check_counts(context=self.context, batch=self.batch)
        check_types(self.weights, self.dtype)
        check_kv(self.kv_dtype)
        if self.prompt not in ("synthetic", "text"):
            raise ValueError(f"prompt: got {self.prompt!r}, allowed are synthetic, text")
        if self.pattern not in (None, RAGGED):
            raise ValueError(f"pattern: got {self.pattern!r}, allowed is {RAGGED}")
        if self.pattern == RAGGED:
            ragged_tokens(self.context, self.batch)
            if self.prompt != "synthetic":
                raise ValueError(f"pattern: {RAGGED} batches hold noise; take the prompt synthetic, not {self.prompt}")
        check_products(self.products, self.weights)

    @property
    def slug(self) -> str:
        """`decode-qwen2.5-7b-int4-b1-256k`, then `-ragged`, `-shared` (a cache), `-text`, `-fp8kv`, `-best`, the
        client, sampling."""
        parts = ["decode", self.config.name, self.weights, f"b{self.batch}", size_word(self.context)]
        parts += [self.pattern] if self.pattern else []
        parts += ["shared"] if self.shared_kv else []
        parts += ["text"] if self.prompt == "text" else []
        parts += [f"{self.kv_dtype}kv"] if self.kv_dtype else []
        parts += [self.products] if self.products != OURS else []
        parts += [self.client] if self.client != ENGINE else []
        return "-".join(parts) + self.sampling.word

    @property
    def sequence_tokens(self) -> list[int]:
        """Tokens of each sequence: all the context, or in a ragged batch in even steps up to it."""
        return ragged_tokens(self.context, self.batch) if self.pattern == RAGGED else [self.context] * self.batch

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions of the client, and of what the best products may be."""
        client = (self.client,) if self.client != ENGINE else ()
        if self.products == OURS:
            return client
        return client + product_libraries(self.config, self.weights)

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {
            "shared_kv": self.shared_kv,
            "selection_pattern": self.pattern or self.prompt,
            "products": None if self.products == OURS else self.products,
        }


def beside_ragged(case: DecodeCase) -> DecodeCase:
    """The uniform batch of as many tokens (rounded up to a whole token a sequence)."""
    return replace(case, context=ceil_div(sum(case.sequence_tokens), case.batch), pattern=None)


def ragged_pair(case: DecodeCase) -> list[DecodeCase]:
    """A batch as a ragged one, and the uniform one of as many tokens."""
    ragged = replace(case, pattern=RAGGED)
    return [ragged, beside_ragged(ragged)]


TEXT_PERIODS = 3  # of warm-up and timing, which follow a text prompt


def prompt_tokens(case: DecodeCase, specs: Sequence[MethodSpec]) -> int:
    """Tokens of a text prompt: what is decoded after it ends at the case's context."""
    return case.context - max([TEXT_PERIODS * s.period for s in specs] + [2 * EAGER_STEPS])


def default_specs(
    device: torch.device, base: SparseConfig, block_sizes: Sequence[int], prompt: str = "synthetic",
    policies: Sequence[str] = ("group-sum",), windows: Sequence[int] = (2,), dense_layers: Sequence[int] = (2,),
) -> list[MethodSpec]:  # fmt: skip
    """The best dense methods, ReSA and Quest; on a CPU their portable paths, RetroAttention and the window."""
    first = replace(base, block_size=block_sizes[0])
    quest = [
        make_spec("quest", base, block_size=b, gqa_policy=policy, dense_layers=n)
        for policy in policies
        for n in dense_layers
        for b in block_sizes
    ]
    if device.type == "cuda":
        dense = [make_spec(name, base) for name in (GPU_DENSE if prompt == "synthetic" else GPU_TEXT_DENSE)]
        resa = [make_spec("resa", base, block_size=b) for b in block_sizes]
        listed = [*dense, *resa, *quest]
    else:
        resa = [make_spec("resa-torch", base, block_size=b) for b in block_sizes]
        others = [make_spec("retro", first, window=w) for w in windows]
        others += [make_spec("sink-window", first)]
        listed = [make_spec("torch-dense", base), *resa, *quest, *others]
    return [*listed, *joining("decode", device, listed, first)]


def following_specs(specs: Sequence[MethodSpec], base: SparseConfig, device: torch.device) -> list[MethodSpec]:
    """What a ragged batch adds to the default methods: the dense ones that follow each sequence's length.

    (SDPA takes one length, and is skipped.) The uniform batch beside runs them, too.
    """
    names = {spec.name for spec in specs}
    return [make_spec(name, base) for name in GPU_TEXT_DENSE if device.type == "cuda" and name not in names]


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
        Entry("bf16", 1, (4, 32, 256)),
        Entry("int4", 1, (4, 32, 256)),
        Entry("int4", 4, (4, 32, 256)),
        Entry("int4", 32, (8, 32)),  # reasoning and rollouts
        Entry("bf16", 8, (16, 64, 256), shared_kv=True),  # the set-up and contexts of ReSA's paper
        Entry("int4", 8, (256,), shared_kv=True),
    ),
    "full": tuple(
        Entry(weights, batch, (4, 8, 16, 32, 64, 128, 256), shared)
        for weights in ("bf16", "int4")
        for batch, shared in ((1, False), (4, False), (8, False), (8, True))
    )
    + tuple(Entry("int4", batch, (8, 16, 32)) for batch in (16, 32, 64)),
}
RAGGED_BATCH, RAGGED_LONGEST = 16, 32 * K  # 2K, 4K, ... 32K, as in the micro suite; beside it 16 of 17K
CPU_LISTS = {
    "quick": (Entry("fp32", 1, (1,)),),
    "default": (Entry("fp32", 1, (1, 8)),),
    "full": (Entry("fp32", 1, (1, 2, 4, 8)),),
}


def default_list(
    device: torch.device, scale: str, model: str, config: ModelConfig, *, dtype: str, prompt: str, seed: int
) -> list[DecodeCase]:
    """The lists `quick`, `default` and `full`."""
    lists = GPU_LISTS if device.type == "cuda" else CPU_LISTS
    cases = []
    for entry in lists[scale]:
        weights = entry.weights if entry.weights in QUANTISED else dtype
        for context_k in entry.contexts_k:
            case = DecodeCase(model, config, entry.batch, context_k * K, weights, dtype, entry.shared_kv, prompt)
            cases.append(replace(case, seed=seed))
    if device.type == "cuda" and scale == "full" and prompt == "synthetic":
        cases += ragged_pair(DecodeCase(model, config, RAGGED_BATCH, RAGGED_LONGEST, "int4", dtype, seed=seed))
    return cases


def is_study(case: DecodeCase) -> bool:
    """The case of the default list that is measured in more detail."""
    return (case.weights, case.batch, case.context, case.kv_dtype) == ("int4", 1, 256 * K, None)


def study_specs(case: DecodeCase, specs: Sequence[MethodSpec], device: torch.device) -> list[MethodSpec]:
    """What the study adds: block sizes, rectification periods, further methods; fp8 by either way of ReSA's steps.

    RetroAttention leaves no layer dense; Quest without dense layers is the same steps without repairs.
    """
    resa = next(s.config for s in specs if s.name == "resa")
    sizes = [make_spec("resa", resa, block_size=b) for b in (32, 64)]
    periods = [make_spec("resa", resa, rectify_every=f) for f in (16, 64, 128)]
    further = [make_spec(name, resa) for name in ("sparse", "sink-window", "flash-attn-2", "flash-attn-3")]
    windows = [make_spec("retro", resa, window=w) for w in (2, 4, 8)]
    quest = make_spec("quest", resa, gqa_policy="group-sum", dense_layers=0)
    pinned = [  # as fast; another quality (docs/notes/quality.md)
        make_spec("resa", resa, **PINNED),
        make_spec("resa", resa, **PINNED, summary_kind="meanstd", spread_weight=0.5),
    ]
    halved = [make_spec("resa", resa, summary_dtype="fp8")]
    return [*sizes, *halved, *other_ways(case.shape, halved, device), *periods, *further, quest, *windows, *pinned]
