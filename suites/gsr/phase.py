"""A phase: candidates that start together and end raggedly, decoded in full or timed at points and integrated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..engine.measure import synchronize
from .cases import Segment


@dataclass(frozen=True, slots=True)
class Launch:
    """How a batch of one size steps and rectifies."""

    step: Callable[[], object]
    rectify: Callable[[], object] | None
    rectify_every: int | None


@dataclass(frozen=True, slots=True)
class Point:
    """Time of a step of `active` candidates, rectification amortised in, at a context of so many tokens."""

    active: int
    context: int
    step_us: float


def run_in_full(
    launches: dict[int, Launch],
    script: Sequence[Segment],
    device: torch.device,
    on_steps: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Decode the script from where the state stands; seconds of each segment, by the wall clock.

    The batch shrinks at the end of a segment. Rectification keeps its period across that: what is still at work goes
    through the model every f tokens, whoever ended in between.

    Args:
        launches: of every number of candidates at work.
    """
    seconds = []
    for part in script:
        launch = launches[part.active]
        synchronize(device)
        start = clock()
        for token in range(part.first + 1, part.last + 1):
            launch.step()
            if launch.rectify is not None and launch.rectify_every and token % launch.rectify_every == 0:
                launch.rectify()
            if token % 64 == 0:
                on_steps(token)
        synchronize(device)
        seconds.append(clock() - start)
    return seconds


def contexts(part: Segment, prompt: int, points: int) -> list[int]:
    """Contexts at which a segment's steps are timed: evenly from its first step's to its last's, or its middle."""
    first, last = prompt + part.first + 1, prompt + part.last
    if points == 1 or first == last:
        return [(first + last) // 2]
    return sorted({first + round((last - first) * i / (points - 1)) for i in range(points)})


def integrate(part: Segment, timed: Sequence[Point]) -> float:
    """Seconds of a segment whose step time is linear in the context between points, and constant beyond them."""
    if len(timed) == 1:
        return part.steps * timed[0].step_us * 1e-6
    ordered = sorted(timed, key=lambda point: point.context)
    area = sum((b.context - a.context) * (a.step_us + b.step_us) / 2 for a, b in pairwise(ordered))
    return part.steps * area / (ordered[-1].context - ordered[0].context) * 1e-6
