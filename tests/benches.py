"""What tests measure with: a timer with a small flush, ceilings that no time beats, no process of its own."""

from __future__ import annotations

from typing import Any

import torch
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.device import describe
from resa_bench.profiling.timing import CpuTimer, Timer
from resa_bench.profiling.timing import Plan as TimingPlan
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.micro.suite import Measure

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
