"""Compiling ahead: libraries whose kernels take seconds each get them compiled side by side, before anything is timed.

Each compiler is a process of its own; a thread here waits for it. Kernels that a disk holds already take no time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch

from ...kernels.linear.product import products
from ...profiling.timing import Plan as TimingPlan
from ..core.bench import Report
from .cases import LinearCase, ProductSpec

LEFT_FREE = 2  # CPUs


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
        if not jobs:
            return
        workers = max(1, (os.cpu_count() or 1) - LEFT_FREE)
        with ThreadPoolExecutor(workers) as pool:
            waiting = {pool.submit(_timed, job): pair for pair, job in jobs.items()}
            for count, future in enumerate(as_completed(waiting), 1):
                if future.exception() is None:
                    self._seconds[waiting[future]] = future.result()
                on_step(f"compiled {count} of {len(jobs)} kernels of libraries, {workers} at a time")

    def seconds(self, case: LinearCase, name: str) -> float | None:
        """What a product's kernel of a case took, beside others; None where nothing was compiled."""
        return self._seconds.get((case, name))


def _timed(job: Callable[[], object]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin
