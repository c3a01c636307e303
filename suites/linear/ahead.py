"""Which kernels of libraries a run of the suite gets compiled ahead (`core.ahead`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ...kernels.linear.product import products
from ...profiling.timing import Plan as TimingPlan
from ..core.ahead import compile_ahead
from ..core.bench import Report
from .cases import LinearCase, ProductSpec


@dataclass(frozen=True, slots=True)
class Measure:
    """What the measuring process is told: when to stop, and which product each case of the run is measured with."""

    timing: TimingPlan
    ahead: tuple[tuple[LinearCase, str], ...] = ()


def compilable(cases: Iterable[LinearCase], chosen: Sequence[ProductSpec]) -> tuple[tuple[LinearCase, str], ...]:
    """The pairs of case and product whose kernels a library compiles, not this project."""
    return tuple(
        (case, spec.name) for case in cases for spec in chosen if case.kind in spec.kind.kinds and spec.kind.compiles
    )


class Compiled:
    """What was compiled ahead in this process, with its seconds."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[LinearCase, str], float] = {}
        self._done = False

    def all_of(self, pairs: Sequence[tuple[LinearCase, str]], device: torch.device, on_step: Report) -> None:
        """Compile the kernels of these pairs, once; what fails here fails again where it is measured, with a row."""
        if self._done:
            return
        self._done = True
        jobs = {}
        for case, name in pairs:
            kind = products()[name]
            if kind.unavailable(case.shape, case.torch_dtype, device) is None:
                jobs[case, name] = kind.ahead(case.kind, case.shape, case.torch_dtype, device)
        self._seconds = compile_ahead(jobs, on_step)

    def seconds(self, case: LinearCase, name: str) -> float | None:
        """What a product's kernel of a case took, beside others; None where nothing was compiled."""
        return self._seconds.get((case, name))
