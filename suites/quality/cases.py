"""Cases of the quality suite: a real model, texts of so many tokens, then so many steps that are fed what to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...kernels import SparseConfig
from ..core.analysis import LEVEL
from ..core.flags import size_word
from ..core.spec import DEFAULTS, PINNED, MethodSpec, joining, make_spec, resa_here
from ..engine.case import ModelCase, check_context, check_counts, check_kv, check_types
from ..engine.texts import SEVERAL, TEXTS
from ..model.config import ModelConfig

SOURCES = ("text", "own")
(PIN,) = PINNED  # the setting that says how many first blocks are always read


@dataclass(frozen=True, slots=True)
class QualityCase(ModelCase):
    """Sequences whose first `prompt` tokens are prefilled densely and whose next `steps` are fed one by one.

    Attributes:
        source: what is fed: the text as it goes on, or the dense model's own continuation of it, sampled.
        batch: stretches of text.
        texts: names of the texts that they are cut from, in turn.
        kv_dtype: of the keys and values of every method, dense decoding too, which is then compared as the methods are;
            None, and of what they are compared with: `dtype`.
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
    texts: tuple[str, ...] = SEVERAL[:1]
    kv_dtype: str | None = None

    def __post_init__(self) -> None:
        check_counts(prompt=self.prompt, steps=self.steps, batch=self.batch)
        check_types(self.weights, self.dtype)
        check_kv(self.kv_dtype)
        if self.source not in SOURCES:
            raise ValueError(f"source: got {self.source!r}, allowed are {', '.join(SOURCES)}")
        if not self.texts or not set(self.texts) <= set(TEXTS) or len(set(self.texts)) < len(self.texts):
            raise ValueError(f"texts: got {', '.join(self.texts) or 'none'}, allowed are {', '.join(TEXTS)}, once each")
        check_context(self, "prompt and steps", "take fewer of either")

    @property
    def context(self) -> int:
        """Tokens at the end."""
        return self.prompt + self.steps

    @property
    def slug(self) -> str:
        """`quality-smollm2-135m-b8-4k-192-text-4texts`: batch, prompt, steps, source, texts; `-fp8kv`, `-stepwise`.

        Texts are named where they are not the usual ones; one alone, the first, is not.
        """
        name = (
            f"quality-{self.config.name}-b{self.batch}-{size_word(self.prompt)}-{size_word(self.steps)}-{self.source}"
        )
        if len(self.texts) > 1:
            in_order = self.texts == SEVERAL[: len(self.texts)]
            name += f"-{len(self.texts)}texts" if in_order else f"-{'-'.join(self.texts)}"
        elif self.texts != SEVERAL[:1]:
            name += f"-{self.texts[0]}"
        name += f"-{self.kv_dtype}kv" if self.kv_dtype else ""
        return f"{name}-stepwise" if self.stepwise else name

    @property
    def text_sources(self) -> set[str]:
        """What rows say of these texts: of one, and of several in turn."""
        sources = [TEXTS[name].source() for name in self.texts]
        return {*sources, ", ".join(dict.fromkeys(sources[: self.batch]))}

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {"selection_pattern": self.source}


def default_specs(
    device: torch.device, base: SparseConfig, grid: Mapping[str, Sequence[Any]], *, quick: bool = False
) -> list[MethodSpec]:
    """Sparse steps alone and ReSA: periods, block sizes, fp8, `resa-plus`; Quest, RetroAttention, mean/std, bounds.

    Args:
        grid: values by setting.
            block_size: ReSA runs at all but the first with its usual period, reading as many tokens at least; at
                smaller ones with summaries in fp8.
            summary_dtype: those that differ from the base's are tried with sparse steps and with ReSA.
            gqa_policy, dense_layers: of Quest. Without dense layers methods differ in their selection alone; more than
                the first number are tried with the last policy.
            window: of RetroAttention, whose selection is that of Quest under `group-sum`.
            PIN: all but the first are tried with sparse steps and with ReSA.
            spread_weight: c of mean/std summaries, tried with each PIN.
    """
    resa, sizes, periods, pins = resa_here(device), grid["block_size"], grid["rectify_every"], grid[PIN]
    policies, layers = grid["gqa_policy"], grid["dense_layers"]
    base = replace(base, block_size=sizes[0], **{PIN: pins[0]})
    period = DEFAULTS.rectify_every if DEFAULTS.rectify_every in periods else periods[-1]

    def tried(*further: int, **settings: Any) -> list[MethodSpec]:
        """Sparse steps alone, and ReSA at its usual period and at further ones."""
        rectified = [{**settings, "rectify_every": f} for f in dict.fromkeys((*further, period))]
        return [make_spec("sparse", base, **settings), *(make_spec(resa, base, **own) for own in rectified)]

    specs = [make_spec("sparse", base), *(make_spec(resa, base, rectify_every=f) for f in periods)]
    if not quick:
        for b in sizes[1:]:
            least = max(base.min_blocks * base.block_size // b, 1)
            fp8 = {"summary_dtype": "fp8"} if b < sizes[0] else {}  # as many bytes of summaries
            specs.append(make_spec(resa, base, block_size=b, min_blocks=least, rectify_every=period, **fp8))
        for dtype in grid["summary_dtype"]:
            specs += tried(summary_dtype=dtype) if dtype != base.summary_dtype else []
        pairs = [*((policy, layers[0]) for policy in policies), *((policies[-1], n) for n in layers[1:])]
        specs += [make_spec("quest", base, gqa_policy=policy, dense_layers=n) for policy, n in pairs]
        specs += [make_spec("retro", base, window=w) for w in grid["window"]]
        for pin in pins:
            specs += tried(LEVEL, **{PIN: pin}) if pin != pins[0] else []
            for c in grid["spread_weight"] if base.summary_kind != "meanstd" else ():
                specs += tried(summary_kind="meanstd", spread_weight=c, **{PIN: pin})
        specs += [make_spec(name, base) for name in ("resa-plus", "sink-window", "oracle")]
    return [*specs, *joining("quality", device, specs, base)]
