"""Cases of the quality suite: a real model, texts of so many tokens, then so many steps that are fed what to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...kernels import SparseConfig
from ..cases import DTYPES, K, MethodSpec, retro_spec
from ..decode.cases import ModelCase
from ..model.config import ModelConfig

SOURCES = ("text", "own")
POLICIES = ("per-head", "group-sum")  # of Quest: as published, and the cheapest to share
LEVEL = 1  # f of ReSA that shows the error of a single sparse step, which no rectification removes


@dataclass(frozen=True, slots=True)
class QualityCase(ModelCase):
    """Sequences whose first `prompt` tokens are prefilled densely and whose next `steps` are fed one by one.

    Attributes:
        source: what is fed: the text as it goes on, or the dense model's own continuation of it, sampled.
        batch: stretches of the text, one after another.
    """

    suite: ClassVar[str] = "quality"

    model: str
    config: ModelConfig
    prompt: int
    steps: int
    source: str = "text"
    batch: int = 2
    dtype: str = "fp32"
    seed: int = 0

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
        """`quality-smollm2-135m-b2-4k-512-text`: batch, prompt, steps, source."""
        prompt, steps = (f"{n // K}k" if n % K == 0 else str(n) for n in (self.prompt, self.steps))
        return f"quality-{self.config.name}-b{self.batch}-{prompt}-{steps}-{self.source}"

    @property
    def weights(self) -> str:
        return self.dtype

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {"selection_pattern": self.source}


def default_specs(
    device: torch.device, base: SparseConfig, periods: Sequence[int], windows: Sequence[int], *, quick: bool = False
) -> list[MethodSpec]:
    """Sparse steps alone, ReSA at each period, then Quest, RetroAttention at each window, other summaries, sink +
    window and the oracle.

    Quest runs without dense layers here, so that methods differ in their selection alone; RetroAttention's is that of
    Quest under `group-sum`.
    """
    resa = "resa" if device.type == "cuda" else "resa-torch"
    specs = [MethodSpec("sparse", base), *(MethodSpec(resa, replace(base, rectify_every=f)) for f in periods)]
    if quick:
        return specs
    specs += [MethodSpec("quest", replace(base, gqa_policy=policy), 0) for policy in POLICIES]
    specs += [retro_spec(base, w) for w in windows]
    specs.append(MethodSpec("sparse", replace(base, summary_kind="meanstd")))
    return [*specs, MethodSpec("sink-window", base), MethodSpec("oracle", base)]
