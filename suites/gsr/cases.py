"""Cases of the GSR suite: how many tokens each candidate writes, what the refine prompt holds, how long the answer is.

Phase A decodes N candidates from one prompt, phase B one answer from a prompt that holds the problem and a summary of
each candidate (arXiv 2509.00084). What a model writes decides the lengths; a benchmark states them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any, ClassVar

import torch

from ...kernels.linear.best import OURS
from ..core.spec import resa_here
from ..engine.case import ModelCase, check_context, check_counts, check_types
from ..engine.products import check_products
from ..engine.products import libraries as product_libraries
from ..engine.sampling import Sampling
from ..model.config import ModelConfig

LENGTHS = (9000, 11000, 14000, 18000)  # tokens of four candidates: ragged, 13K on average as on AIME
REFINE_MOST = 6144  # tokens of a refine prompt
INSTRUCTION = 64  # tokens of it that say what to do
SAMPLING = Sampling(0.6, 0.95)
RUNS = ("full", "sampled")
POINTS = 3  # of each stretch of a sampled run
PAGE_SIZE = 256


@dataclass(frozen=True, slots=True)
class GsrCase(ModelCase):
    """One model and one script of lengths, all in tokens.

    Attributes:
        prompt: the problem, shared by all candidates.
        lengths: that each candidate decodes, in any order.
        summary: of each candidate in the refine prompt.
        answer: decoded in phase B.
        run: "full" decodes every token; "sampled" times steps at `points` contexts of every stretch in which as many
            candidates are at work, on synthetic caches, and integrates.
        page_size: of phase A's caches, whose candidates share the prompt's pages where the method reads pages; None
            for contiguous caches, each with its copy.
        products: what 4-bit projections run by.
        always_sparse: whether sparse methods run sparse steps also where dense ones are predicted to be faster.
    """

    suite: ClassVar[str] = "gsr"

    model: str
    config: ModelConfig
    lengths: tuple[int, ...] = LENGTHS
    prompt: int = 256
    summary: int = 960
    answer: int = 8192
    weights: str = "bf16"
    dtype: str = "bf16"
    run: str = "sampled"
    points: int = POINTS
    page_size: int | None = PAGE_SIZE
    sampling: Sampling = field(default_factory=lambda: SAMPLING)
    seed: int = 0
    products: str = field(default=OURS, kw_only=True)
    always_sparse: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths: got {self.lengths}, must be at least 1 token each, of 1 candidate or more")
        check_counts(prompt=self.prompt, summary=self.summary, answer=self.answer, points=self.points)
        if self.run not in RUNS:
            raise ValueError(f"run: got {self.run!r}, allowed are {', '.join(RUNS)}")
        check_types(self.weights, self.dtype)
        check_products(self.products, self.weights)
        if self.page_size is not None and (self.page_size < 64 or self.page_size % 64):
            raise ValueError(f"page size: got {self.page_size}, must be a multiple of 64 tokens")
        if self.run == "full" and self.summary > min(self.lengths):
            raise ValueError(f"summary: {self.summary} tokens, the shortest candidate has {min(self.lengths)}")
        if self.refine > REFINE_MOST:
            raise ValueError(
                f"refine prompt: {self.refine} tokens ({INSTRUCTION} of instruction, {self.prompt} of the problem, "
                f"{len(self.lengths)} summaries of {self.summary}), at most {REFINE_MOST}; take shorter summaries"
            )
        phase_a, phase_b = f"{self.prompt} of prompt and {max(self.lengths)} more", f"{self.refine} and {self.answer}"
        check_context(self, "lengths", f"the longest has {phase_a}, or {phase_b}")

    @property
    def batch(self) -> int:
        """Candidates."""
        return len(self.lengths)

    @property
    def refine(self) -> int:
        """Tokens of the refine prompt."""
        return INSTRUCTION + self.prompt + self.batch * self.summary

    @property
    def context(self) -> int:
        """Tokens of the longest sequence at its end."""
        return max(self.prompt + max(self.lengths), self.refine + self.answer)

    @property
    def slug(self) -> str:
        """`gsr-qwen2.5-7b-bf16-n4-p256-a52000-m18000-r4160-b8192-sampled`: candidates; tokens of the problem, of all
        candidates, of the longest one, of the refine prompt, of the answer; how it ran."""
        phase_a = f"p{self.prompt}-a{sum(self.lengths)}-m{max(self.lengths)}"
        phase_b = f"r{self.refine}-b{self.answer}"
        name = f"gsr-{self.config.name}-{self.weights}-n{self.batch}-{phase_a}-{phase_b}-{self.run}"
        return "-".join((name, *self.further_words))

    @property
    def further_words(self) -> list[str]:
        """What the name says of a case that is not the default one: `l3fa2c1-best-sparse-points5-page64`.

        A hash of lengths that are no script's at any scale; other products; sparse steps whatever is predicted; the
        points of a sampled run; the size of pages.
        """
        words = []
        if self.batch > 2 and not is_script(self.lengths):
            words.append("l" + sha256(repr(sorted(self.lengths)).encode()).hexdigest()[:6])
        if self.products != OURS:
            words.append(self.products)
        if self.always_sparse:
            words.append("sparse")
        if self.run == "sampled" and self.points != POINTS:
            words.append(f"points{self.points}")
        if self.page_size != (PAGE_SIZE if self.run == "sampled" else None):
            words.append(f"page{self.page_size or 0}")
        return words

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {
            "selection_pattern": "prompt" if self.run == "full" else "synthetic",
            "products": None if self.products == OURS else self.products,
        }

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions of what the best products may be."""
        return () if self.products == OURS else product_libraries(self.config, self.weights)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of phase A: `active` candidates decode their tokens `first` .. `last - 1`."""

    active: int
    first: int
    last: int

    @property
    def steps(self) -> int:
        """Tokens of each candidate."""
        return self.last - self.first


def segments(lengths: Sequence[int]) -> list[Segment]:
    """Stretches between the ends of candidates: a candidate that ends gives its place up at once.

    All start together, so those at work have equally many tokens; the first `active` rows of a batch whose candidates
    are ordered longest first are those at work.
    """
    ends = sorted(set(lengths))
    pairs = pairwise((0, *ends))
    return [Segment(sum(length >= end for length in lengths), first, end) for first, end in pairs]


def script(candidates: int) -> tuple[int, ...]:
    """The default lengths for so many candidates: those of four, again and again, so that four end at a time.

    Raises:
        ValueError: a number that is no multiple of four.
    """
    if candidates % len(LENGTHS):
        raise ValueError(
            f"--candidates {candidates}: default lengths are of a multiple of {len(LENGTHS)} candidates; give --lengths"
        )
    return LENGTHS * (candidates // len(LENGTHS))


def summary_tokens(candidates: int, prompt: int) -> int:
    """The most that each of so many summaries may have in a refine prompt."""
    return max((REFINE_MOST - INSTRUCTION - prompt) // candidates, 1)


def is_script(lengths: Sequence[int]) -> bool:
    """Whether these are the default lengths at some scale: then their sum and their longest say which."""
    if len(lengths) % len(LENGTHS):
        return False
    pairs = list(zip(sorted(lengths), sorted(script(len(lengths))), strict=True))
    least, most = max((n - 0.5) / full for n, full in pairs), min((n + 0.5) / full for n, full in pairs)
    return least <= most


def scaled(lengths: Sequence[int], scale: float) -> tuple[int, ...]:
    """The script at another size, at least one token each."""
    return tuple(max(round(length * scale), 1) for length in lengths)


def default_methods(device: torch.device) -> tuple[str, ...]:
    """Dense methods and ReSA."""
    if device.type != "cuda":
        return "torch-dense", resa_here(device)
    return "sdpa-cudnn", "triton-dense", "flashinfer", "flash-attn-3", "flash-attn-2", resa_here(device)
