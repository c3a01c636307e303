"""Compiling ahead: libraries whose kernels take seconds each get them compiled side by side, before anything is timed.

Each compiler is a process of its own; a thread here waits for it. Kernels that a disk holds already take no time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from .bench import Report

LEFT_FREE = 2  # CPUs
K = TypeVar("K", bound=Hashable)


def compile_ahead(jobs: Mapping[K, Callable[[], object]], on_step: Report) -> dict[K, float]:
    """Run jobs that compile, and give the seconds of each; what fails here fails again where it is used."""
    seconds: dict[K, float] = {}
    if not jobs:
        return seconds
    workers = max(1, (os.cpu_count() or 1) - LEFT_FREE)
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(_timed, job): key for key, job in jobs.items()}
        for count, future in enumerate(as_completed(waiting), 1):
            if future.exception() is None:
                seconds[waiting[future]] = future.result()
            on_step(f"compiled {count} of {len(jobs)} kernels of libraries, {workers} at a time")
    return seconds


def _timed(job: Callable[[], object]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin
