"""Cases of the tasks suite: a real model, a task, prompts of so many tokens; and the methods that each runs under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...kernels import SparseConfig
from ..core.flags import size_word
from ..core.spec import MethodSpec, dense_here, joining, make_spec, resa_here
from ..engine.case import ModelCase, check_context, check_counts, check_types
from ..model.config import ModelConfig

TOGETHER_BYTES = 2**34  # of 16-bit keys and values of the prompts of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCase(ModelCase):
    """Prompts of `prompt` tokens, prefilled densely, that a method goes on from; `groups` batches of them.

    Tasks bring `task`, `batch`, `room` and `words`.
    """

    suite: ClassVar[str] = "tasks"
    at_a_time: ClassVar[int | None] = 16  # dense decoding goes before each group again

    model: str
    config: ModelConfig
    prompt: int
    groups: int = 1
    dtype: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(prompt=self.prompt, groups=self.groups, batch=self.batch, room=self.room)
        check_types(self.weights, self.dtype)
        check_context(self, f"{self.task}, prompt and room for {self.room} more", "ask for a shorter context")

    if TYPE_CHECKING:  # as in ModelCase

        @property
        def task(self) -> str:
            """The name of its kind."""

        @property
        def batch(self) -> int:
            """Prompts that are decoded together."""

        @property
        def room(self) -> int:
            """Tokens fed after the prompt at most."""

        @property
        def words(self) -> tuple[str, ...]:
            """What the slug says beside model, task and prompt."""

    @property
    def context(self) -> int:
        """Tokens of the prompt and after it at most."""
        return self.prompt + self.room

    @property
    def slug(self) -> str:
        """`tasks-smollm2-135m-needle-4k-5x2`: task, prompt, then what the task says of itself."""
        return "-".join(("tasks", self.config.name, self.task, size_word(self.prompt), *self.words))

    def columns(self) -> dict[str, Any]:
        """What a row says about its case; its context is that of the prompt."""
        return ModelCase.columns(self) | {"context": self.prompt, "selection_pattern": self.task}


def prompts_together(config: ModelConfig, tokens: int, wanted: int) -> int:
    """How many prompts of so many tokens are decoded together, of those wanted: as many as TOGETHER_BYTES hold."""
    prompt_bytes = config.layers * config.kv_heads * config.head_dim * 2 * 2 * tokens
    return max(min(TOGETHER_BYTES // prompt_bytes, wanted), 1)


def dense_spec(device: torch.device) -> MethodSpec:
    """Dense decoding, which every other method is compared with."""
    return make_spec(dense_here(device))


GRID: dict[str, tuple[Any, ...]] = {
    "rectify_every": (16, 32, 128),
    "gqa_policy": ("per-head", "group-sum"),  # of Quest: as published, and the cheapest to share
    "dense_layers": (0,),  # of Quest: methods differ in their selection alone
    "window": (2,),  # of RetroAttention
}


def default_specs(
    device: torch.device, base: SparseConfig, grid: Mapping[str, Sequence[Any]], *, quick: bool = False
) -> list[MethodSpec]:
    """Sparse steps alone, ReSA at each period, Quest, RetroAttention, sink + window, oracle; `grid` as GRID."""
    resa = resa_here(device)
    specs = [make_spec("sparse", base), *(make_spec(resa, base, rectify_every=f) for f in grid["rectify_every"])]
    if not quick:
        specs += [
            make_spec("quest", base, gqa_policy=policy, dense_layers=n)
            for n in grid["dense_layers"]
            for policy in grid["gqa_policy"]
        ]
        specs += [make_spec("retro", base, window=window) for window in grid["window"]]
        specs += [make_spec(name, base) for name in ("sink-window", "oracle")]
    return [*specs, *joining("tasks", device, specs, base)]
