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
class Rank(Ranks):
    """This process among those that share the work, each with the whole model."""

    def share(self, items: Sequence[T]) -> list[T]:
        """Every world-th item. Taken of the whole list, done or not: ranks that start later still agree on it."""
        return list(items[self.rank :: self.world])

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
