"""What tests measure with: a timer with a small flush, ceilings that no time beats, no process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.device import describe
from resa_bench.profiling.timing import CpuTimer, Timer
from resa_bench.profiling.timing import Plan as TimingPlan
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.micro.suite import Measure

P = ParamSpec("P")
T = TypeVar("T")
CPU = torch.device("cpu")
QUICK = TimingPlan(precision=0.5, budget_s=0.2, min_samples=5, max_samples=10, warmup_s=0.0)


class SmallTimer(CpuTimer):
    """The CPU's timer with a small flush, for quick tests."""

    def __init__(self) -> None:
        Timer.__init__(self, CPU, 2**16)


def make_bench(plan: Any = None, ceilings: Ceilings | None = None, command: str = "resa-bench test") -> Bench:
    """A bench on the CPU; `plan` is the suite's, micro's by default."""
    ceilings = ceilings or Ceilings(1e6, 1e6, 1e6)
    return Bench(CPU, describe(CPU), command, plan or Measure(QUICK), SmallTimer(), ceilings)


def recorded(function: Callable[P, T], results: list[T]) -> Callable[P, T]:
    """The function, whose results are added to a list as well."""

    def call(*arguments: P.args, **options: P.kwargs) -> T:
        results.append(function(*arguments, **options))
        return results[-1]

    return call
