"""Cases of the quality suite: a real model, texts of so many tokens, then so many steps that are fed what to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...kernels import SparseConfig
from ..decode.cases import ModelCase
from ..micro.cases import DEFAULTS, DTYPES, K, MethodSpec, retro_spec
from ..model.config import ModelConfig

SOURCES = ("text", "own")
LEVEL = 1  # f of ReSA that shows the error of a single sparse step, which no rectification removes


@dataclass(frozen=True, slots=True)
class QualityCase(ModelCase):
    """Sequences whose first `prompt` tokens are prefilled densely and whose next `steps` are fed one by one.

    Attributes:
        source: what is fed: the text as it goes on, or the dense model's own continuation of it, sampled.
        batch: stretches of the text, one after another.
        stepwise: every method decodes step by step, on a GPU with its kernels; otherwise those that can are evaluated
            for all steps at once (`parallel.py`).
    """

    suite: ClassVar[str] = "quality"
    at_a_time: ClassVar[int | None] = 8

    model: str
    config: ModelConfig
    prompt: int
    steps: int
    source: str = "text"
    batch: int = 2
    dtype: str = "fp32"
    seed: int = 0
    stepwise: bool = False

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.steps < 1 or self.batch < 1:
            raise ValueError(f"prompt, steps, batch: got {self.prompt}, {self.steps}, {self.batch}, must be at least 1")
        if self.source not in SOURCES:
            raise ValueError(f"source: got {self.source!r}, allowed are {', '.join(SOURCES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, allowed are {', '.join(DTYPES)}")
        if self.context > self.config.context:
            raise ValueError(
                f"prompt and steps: {self.prompt} + {self.steps} tokens are over the {self.config.context} that "
                f"{self.config.name} handles"
            )

    @property
    def context(self) -> int:
        """Tokens at the end."""
        return self.prompt + self.steps

    @property
    def slug(self) -> str:
        """`quality-smollm2-135m-b2-4k-512-text`: batch, prompt, steps, source; `-stepwise` where that was asked."""
        prompt, steps = (f"{n // K}k" if n % K == 0 else str(n) for n in (self.prompt, self.steps))
        name = f"quality-{self.config.name}-b{self.batch}-{prompt}-{steps}-{self.source}"
        return f"{name}-stepwise" if self.stepwise else name

    @property
    def weights(self) -> str:
        return self.dtype

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {"selection_pattern": self.source}


def default_specs(
    device: torch.device, base: SparseConfig, block_sizes: Sequence[int], periods: Sequence[int],
    policies: Sequence[str], dense_layers: Sequence[int], windows: Sequence[int], spread_weights: Sequence[float],
    pinned: Sequence[int], summary_dtypes: Sequence[str | None] = (None,), *, quick: bool = False,
) -> list[MethodSpec]:  # fmt: skip
    """Sparse steps alone and ReSA: periods, block sizes, fp8; Quest, RetroAttention, mean/std, sink + window, oracle.

    Args:
        block_sizes: ReSA runs at the others with its usual period, reading as many tokens at least.
        policies, dense_layers: of Quest. Without dense layers methods differ in their selection alone; more than
            none are tried with the last policy.
        windows: of RetroAttention, whose selection is that of Quest under `group-sum`.
        spread_weights: c of mean/std summaries, with each of `pinned`.
        pinned: first blocks that are always read; more than the first are tried with sparse steps and with ReSA.
        summary_dtypes: those that differ from the base's are tried with sparse steps and with ReSA.
    """
    resa = "resa" if device.type == "cuda" else "resa-torch"
    base = replace(base, block_size=block_sizes[0], pinned_blocks=pinned[0])
    specs = [MethodSpec("sparse", base), *(MethodSpec(resa, replace(base, rectify_every=f)) for f in periods)]
    if quick:
        return specs
    usual = DEFAULTS.rectify_every if DEFAULTS.rectify_every in periods else periods[-1]
    for b in block_sizes[1:]:
        least = max(base.min_blocks * base.block_size // b, 1)
        specs.append(MethodSpec(resa, replace(base, block_size=b, min_blocks=least, rectify_every=usual)))
    for kept in (replace(base, summary_dtype=dtype) for dtype in summary_dtypes if dtype != base.summary_dtype):
        specs += [MethodSpec("sparse", kept), MethodSpec(resa, replace(kept, rectify_every=usual))]
    specs += [MethodSpec("quest", replace(base, gqa_policy=policy), dense_layers[0]) for policy in policies]
    specs += [MethodSpec("quest", replace(base, gqa_policy=policies[-1]), n) for n in dense_layers[1:]]
    specs += [retro_spec(base, w) for w in windows]
    spreads = [] if base.summary_kind == "meanstd" else spread_weights
    for p in pinned:
        kept = replace(base, pinned_blocks=p)
        if p != pinned[0]:
            rectified = [replace(kept, rectify_every=f) for f in dict.fromkeys((LEVEL, usual))]
            specs += [MethodSpec("sparse", kept), *(MethodSpec(resa, config) for config in rectified)]
        for c in spreads:
            config = replace(kept, summary_kind="meanstd", spread_weight=c)
            specs += [MethodSpec("sparse", config), MethodSpec(resa, replace(config, rectify_every=usual))]
    return [*specs, MethodSpec("sink-window", base), MethodSpec("oracle", base)]
