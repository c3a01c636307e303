"""What there is to answer: problems x samples, shared among the processes that torchrun starts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from ...kernels.config import ceil_div
from ..core.ranks import Ranks
from .problems import Problem

T = TypeVar("T")
WAIT = timedelta(days=30)  # for the slowest rank: hours are usual


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of one problem, and its prompt's token ids."""

    problem: Problem
    sample: int
    prompt: tuple[int, ...]

    def room(self, max_tokens: int, context: int) -> int:
        """Tokens that its answer may have; below 1 where the prompt fills the model's context."""
        return min(max_tokens, context - len(self.prompt))


def repeat(problems: Sequence[Problem], samples: int, answers: int | None = None) -> list[tuple[Problem, int]]:
    """Each problem with its samples' numbers; with `answers`, as many as bring each set at least so many."""
    sizes = Counter(problem.set for problem in problems)
    return [
        (problem, sample)
        for problem in problems
        for sample in range(ceil_div(answers, sizes[problem.set]) if answers else samples)
    ]


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those that share the work: `rank` of `world`, `local` on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Rank:
        """As torchrun says by RANK, WORLD_SIZE and LOCAL_RANK; one process without them.

        Raises:
            ValueError: they are no numbers, or the rank is outside the world.
        """
        words = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
        words.append(os.environ.get("LOCAL_RANK", words[0]))
        try:
            rank, world, local = map(int, words)
        except ValueError:
            raise ValueError(f"RANK, WORLD_SIZE, LOCAL_RANK: got {', '.join(words)}, expected numbers") from None
        if not 0 <= rank < world:
            raise ValueError(f"RANK: got {rank} with WORLD_SIZE {world}, must be 0 to {world - 1}")
        return cls(rank, world, local)

    def share(self, items: Sequence[T]) -> list[T]:
        """Every world-th item. Taken of the whole list, done or not: ranks that start later still agree on it."""
        return list(items[self.rank :: self.world])

    def device(self, chosen: torch.device) -> torch.device:
        """A GPU of its own; on a CPU the one there is. Raises ValueError for more ranks than GPUs."""
        return Ranks(self.rank, self.world, self.local).device(chosen)

    def meet(self) -> bool:
        """Join the other ranks, so that `wait` can wait for them; False where nobody says where to meet."""
        if self.world == 1:
            return True
        if "MASTER_ADDR" not in os.environ:
            return False
        torch.distributed.init_process_group("gloo", timeout=WAIT)
        return True

    def wait(self) -> None:
        """Until all ranks are here, and part."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
