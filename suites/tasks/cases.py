"""Cases of the tasks suite: a real model, a task, prompts of so many tokens; and the methods that each runs under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...kernels import SparseConfig
from ..core.flags import K, size_word
from ..core.spec import MethodSpec, dense_here, joining, make_spec, resa_here
from ..engine.case import ModelCase, check_context, check_counts, check_types
from ..model.config import ModelConfig

QUESTION_ROOM = 96  # tokens for a needle's question and answer
PAIR_ROOM = 32  # tokens for one question of the copy task and its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCase(ModelCase):
    """Prompts of `prompt` tokens, prefilled densely, that a method goes on from; `groups` batches of them.

    Tasks bring `batch`, `room` and `words`.
    """

    suite: ClassVar[str] = "tasks"
    at_a_time: ClassVar[int | None] = 16  # dense decoding goes before each group again
    task: ClassVar[str]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceCase(TaskCase):
    """Stretches of text that every method goes on from freely for `steps` tokens.

    Attributes:
        together: stretches in a batch.
        temperature: 0 is greedy; above it tokens are sampled with noise that all methods share.
    """

    task: ClassVar[str] = "divergence"

    steps: int = 128
    together: int = 8
    temperature: float = 0.0

    def __post_init__(self) -> None:
        TaskCase.__post_init__(self)
        if not self.temperature >= 0:
            raise ValueError(f"temperature: got {self.temperature}, must be 0 (greedy) or more")

    @property
    def batch(self) -> int:
        return self.together

    @property
    def room(self) -> int:
        return self.steps

    @property
    def words(self) -> tuple[str, ...]:
        sampled = (f"t{self.temperature:g}",) if self.temperature else ()
        return (str(self.steps), f"{self.together}x{self.groups}", *sampled)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleCase(TaskCase):
    """A sentence with a number at `depths` depths of a haystack, one prompt a depth; a group is a haystack."""

    task: ClassVar[str] = "needle"

    depths: int = 5

    @property
    def batch(self) -> int:
        return self.depths

    @property
    def room(self) -> int:
        return QUESTION_ROOM

    @property
    def words(self) -> tuple[str, ...]:
        return (f"{self.depths}x{self.groups}",)

    @property
    def places(self) -> tuple[float, ...]:
        """Depths from 0.1 to 0.9, 0 being the start of the prompt; a single one is in the middle."""
        if self.depths == 1:
            return (0.5,)
        return tuple(round(0.1 + 0.8 * i / (self.depths - 1), 4) for i in range(self.depths))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCase(TaskCase):
    """A list of `pairs` keys and values spread through the text, each asked once, `series` one after another.

    A group is a list. Its pairs / series sequences share the prompt.
    """

    task: ClassVar[str] = "copy"

    pairs: int = 16
    series: int = 4

    def __post_init__(self) -> None:
        if min(self.pairs, self.series) < 1 or self.pairs % self.series:
            raise ValueError(f"pairs, series: got {self.pairs}, {self.series}; pairs must be a multiple of series")
        TaskCase.__post_init__(self)

    @property
    def batch(self) -> int:
        return self.pairs // self.series

    @property
    def room(self) -> int:
        return self.series * PAIR_ROOM

    @property
    def words(self) -> tuple[str, ...]:
        return (f"{self.pairs}x{self.groups}",) if self.series == 4 else (f"{self.pairs}x{self.groups}s{self.series}",)


CASES: dict[str, type[TaskCase]] = {kind.task: kind for kind in (DivergenceCase, NeedleCase, CopyCase)}
TASKS = tuple(CASES)

SCALES: dict[str, dict[str, tuple[tuple[int, ...], dict[str, int]]]] = {
    "quick": {
        "divergence": ((512,), {"steps": 48, "together": 4}),
        "needle": ((K,), {"depths": 3}),
        "copy": ((K,), {"pairs": 8}),
    },
    "default": {
        "divergence": ((2 * K,), {"steps": 128, "together": 8}),
        "needle": ((4 * K,), {"depths": 3, "groups": 2}),
        "copy": ((K, 4 * K), {"pairs": 16}),
    },
    "full": {
        "divergence": ((4 * K,), {"steps": 512, "together": 16, "groups": 4}),
        "needle": ((K, 2 * K, 4 * K, 7 * K), {"depths": 9, "groups": 8}),
        "copy": ((K, 2 * K, 4 * K, 7 * K), {"pairs": 32, "groups": 8}),
    },
}
"""How much of each task a list holds: tokens of its prompts, and what else its cases are."""


def default_list(
    scale: str, model: str, config: ModelConfig, *, tasks: Sequence[str] = TASKS, contexts: Sequence[int] = (),
    samples: int | None = None, steps: int | None = None, temperatures: Sequence[float] = (0.0,),
    dtype: str = "fp32", seed: int = 0,
) -> list[TaskCase]:  # fmt: skip
    """The cases of `quick`, `default` or `full`.

    Args:
        contexts: prompts of so many tokens instead of the list's, for every task.
        samples: groups of every task, instead of the list's.
        steps: decoded freely, instead of the list's.

    Raises:
        ValueError: a context that the model does not handle.
    """
    cases: list[TaskCase] = []
    for task in (task for task in TASKS if task in tasks):
        prompts, listed = SCALES[scale][task]
        settings: dict[str, Any] = {"model": model, "config": config, "dtype": dtype, "seed": seed, **listed}
        settings |= {"groups": samples} if samples is not None else {}
        variants: list[dict[str, Any]] = [{}]
        if task == DivergenceCase.task:
            variants = [{"temperature": t, "steps": steps or settings["steps"]} for t in temperatures]
        cases += [
            CASES[task](**(settings | variant), prompt=prompt) for prompt in contexts or prompts for variant in variants
        ]
    return cases


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
