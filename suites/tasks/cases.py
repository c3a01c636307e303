"""Cases of the tasks suite: a real model, a task, prompts of so many tokens; and the methods that each runs under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...kernels import SparseConfig
from ..decode.cases import ModelCase
from ..micro.cases import DTYPES, K, MethodSpec, retro_spec
from ..model.config import ModelConfig

TASKS = ("divergence", "needle", "copy")
POLICIES = ("per-head", "group-sum")  # of Quest: as published, and the cheapest to share
WINDOWS = (2,)  # of RetroAttention
QUESTION_ROOM = 96  # tokens for a needle's question and answer
PAIR_ROOM = 32  # tokens for one question of the copy task and its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCase(ModelCase):
    """Prompts of `prompt` tokens, prefilled densely, that a method goes on from; `groups` batches of them.

    Tasks bring `rows` (prompts of a batch), `room` (tokens fed after the prompt at most) and `words` (of the slug).
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
        if min(self.prompt, self.groups, self.batch, self.room) < 1:
            raise ValueError(
                f"{self.task}: got {self.prompt} tokens of prompt, {self.groups} groups of {self.batch} prompts, "
                f"{self.room} tokens after them; each must be at least 1"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, allowed are {', '.join(DTYPES)}")
        if self.context > self.config.context:
            raise ValueError(
                f"{self.task}: {self.prompt} tokens of prompt and room for {self.room} more are over the "
                f"{self.config.context} that {self.config.name} handles; ask for a shorter context"
            )

    @property
    def batch(self) -> int:  # type: ignore[override]
        """Prompts that are decoded together."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """Tokens after the prompt at most."""
        raise NotImplementedError

    @property
    def words(self) -> tuple[str, ...]:
        """What the slug says beside model, task and prompt."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Tokens of the prompt and after it at most."""
        return self.prompt + self.room

    @property
    def weights(self) -> str:
        return self.dtype

    @property
    def slug(self) -> str:
        """`tasks-smollm2-135m-needle-4k-5x2`: task, prompt, then what the task says of itself."""
        prompt = f"{self.prompt // K}k" if self.prompt % K == 0 else str(self.prompt)
        return "-".join(("tasks", self.config.name, self.task, prompt, *self.words))

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
    def batch(self) -> int:  # type: ignore[override]
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
    def batch(self) -> int:  # type: ignore[override]
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
    def batch(self) -> int:  # type: ignore[override]
        return self.pairs // self.series

    @property
    def room(self) -> int:
        return self.series * PAIR_ROOM

    @property
    def words(self) -> tuple[str, ...]:
        return (f"{self.pairs}x{self.groups}",) if self.series == 4 else (f"{self.pairs}x{self.groups}s{self.series}",)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each task a list holds: prompts in tokens, then (steps, batch, groups) and so on."""

    divergence: tuple[int, int, int, int]  # tokens of prompt, steps, prompts a batch, batches
    needle: tuple[tuple[int, ...], int, int]  # tokens of haystacks, depths, haystacks
    copy: tuple[tuple[int, ...], int, int]  # tokens of lists, pairs, lists


SCALES = {
    "quick": Scale((512, 48, 4, 1), ((K,), 3, 1), ((K,), 8, 1)),
    "default": Scale((2 * K, 128, 8, 1), ((4 * K,), 3, 2), ((K, 4 * K), 16, 1)),
    "full": Scale((4 * K, 512, 16, 4), ((K, 2 * K, 4 * K, 7 * K), 9, 8), ((K, 2 * K, 4 * K, 7 * K), 32, 8)),
}


def default_list(
    scale: str,
    model: str,
    config: ModelConfig,
    *,
    tasks: Sequence[str] = TASKS,
    contexts: Sequence[int] = (),
    samples: int | None = None,
    steps: int | None = None,
    temperatures: Sequence[float] = (0.0,),
    dtype: str = "fp32",
    seed: int = 0,
) -> list[TaskCase]:
    """The cases of `quick`, `default` or `full`.

    Args:
        contexts: prompts of so many tokens instead of the list's, for every task.
        samples: groups of every task, instead of the list's.
        steps: decoded freely, instead of the list's.

    Raises:
        ValueError: a context that the model does not handle.
    """
    size, common = SCALES[scale], {"dtype": dtype, "seed": seed}
    cases: list[TaskCase] = []
    if "divergence" in tasks:
        prompt, listed, together, groups = size.divergence
        cases += [
            DivergenceCase(
                model=model, config=config, prompt=n, groups=samples or groups, steps=steps or listed,
                together=together, temperature=t, **common,  # type: ignore[arg-type]
            )
            for n in contexts or (prompt,)
            for t in temperatures
        ]  # fmt: skip
    if "needle" in tasks:
        prompts, depths, groups = size.needle
        cases += [
            NeedleCase(model=model, config=config, prompt=n, groups=samples or groups, depths=depths, **common)  # type: ignore[arg-type]
            for n in contexts or prompts
        ]
    if "copy" in tasks:
        prompts, pairs, groups = size.copy
        cases += [
            CopyCase(model=model, config=config, prompt=n, groups=samples or groups, pairs=pairs, **common)  # type: ignore[arg-type]
            for n in contexts or prompts
        ]
    return cases


def dense_spec(device: torch.device) -> MethodSpec:
    """Dense decoding, which every other method is compared with."""
    return MethodSpec("triton-dense" if device.type == "cuda" else "torch-dense")


def default_specs(
    device: torch.device, base: SparseConfig, periods: Sequence[int], *, quick: bool = False
) -> list[MethodSpec]:
    """Sparse steps alone, ReSA at each period, Quest without dense layers, RetroAttention, sink + window, oracle."""
    resa = "resa" if device.type == "cuda" else "resa-torch"
    specs = [MethodSpec("sparse", base), *(MethodSpec(resa, replace(base, rectify_every=f)) for f in periods)]
    if quick:
        return specs
    specs += [MethodSpec("quest", replace(base, gqa_policy=policy), 0) for policy in POLICIES]
    specs += [retro_spec(base, window) for window in WINDOWS]
    return [*specs, MethodSpec("sink-window", base), MethodSpec("oracle", base)]
