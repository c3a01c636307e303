"""Timing whole periods of a decoding: token by token on the device's clock, and as a whole on the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import torch

from ...profiling.energy import EnergyCounter
from ...profiling.ranges import span
from ...profiling.stats import quantile
from ..core.ranks import Ranks

T = TypeVar("T")
EAGER_STEPS = 8  # timed after as many of warm-up: an eager step costs the host tens of milliseconds


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How long to decode, and what to measure beside the time."""

    periods: int = 2  # whole periods at least, after one of warm-up
    seconds: float = 2.0  # at least, so that the energy counter has something to count
    eager: bool = True  # on a GPU: some steps launched eagerly beside
    breakdown: bool = True
    exchange: tuple[float, float] | None = None  # latency in us and GB/s a link of ranks' all-reduce; None: modelled
    drift: bool = False  # of methods that rectify: what each rectification says about the steps before it


@dataclass(slots=True)
class Timing:
    """Token intervals in the order they were taken, in microseconds; the wall clock beside them.

    The interval of a period's last token contains its rectification.
    """

    token_us: list[float] = field(default_factory=list)
    wall_us: float = 0.0
    period_us: list[float] = field(default_factory=list)  # mean interval of each period
    apart_us: float = 0.0  # a token's share of a rectification that was timed apart from the intervals
    joules: float | None = None
    seconds: float = 0.0  # that the energy was counted over

    @property
    def mean_us(self) -> float:
        """Amortised: rectification included."""
        return sum(self.token_us) / len(self.token_us) + self.apart_us

    @property
    def wall_mean_us(self) -> float:
        """The same by the wall clock."""
        return self.wall_us / len(self.token_us) + self.apart_us

    def quantile_us(self, q: float) -> float:
        """The interval that a share `q` of all does not exceed."""
        return quantile(sorted(self.token_us), q)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_seconds(run: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds by the wall clock until the device is done, and what `run` gives."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - start, result


def time_period(
    step: Callable[[], object],
    rectify: Callable[[], object] | None,
    tokens: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
    context: int | None = None,
) -> tuple[list[float], float]:
    """One period: token intervals and the wall time of all, in microseconds. No synchronisation inside on a GPU.

    Args:
        context: tokens at the period's end, for the payloads of ranges.
    """
    cuda = device.type == "cuda"
    stamps: list[torch.cuda.Event] = []
    times: list[float] = []

    def stamp() -> None:
        if cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            stamps.append(event)
        else:
            times.append(clock())

    synchronize(device)
    start = clock()
    stamp()
    for n in range(1, tokens + 1):
        with span("step", None if context is None else context - tokens + n):
            step()
        if n == tokens and rectify is not None:
            with span("rectification", context):
                rectify()
        stamp()
    synchronize(device)
    wall = (clock() - start) * 1e6
    if cuda:
        return [a.elapsed_time(b) * 1e3 for a, b in pairwise(stamps)], wall
    return [(b - a) * 1e6 for a, b in pairwise(times)], wall


def time_decoding(
    step: Callable[[], object],
    rectify: Callable[[], object] | None,
    tokens: int,
    device: torch.device,
    *,
    restart: Callable[[], None] = lambda: None,
    periods: int = 2,
    seconds: float = 0.0,
    energy: EnergyCounter | None = None,
    clock: Callable[[], float] = time.perf_counter,
    context: int | None = None,
    ranks: Ranks | None = None,
) -> Timing:
    """Time at least `periods` whole periods of `tokens` tokens, and at least `seconds` of wall time.

    Args:
        restart: called before every period, outside the timed spans.
        context: tokens at each period's end, where all end alike.
        ranks: that decode together: the first decides how long, and its times are everyone's; joules are summed.
    """
    ranks = ranks or Ranks()
    timing = Timing()
    before = energy.joules() if energy else None
    begin = clock()
    done = 0
    while ranks.same(done < periods or clock() - begin < seconds):
        restart()
        intervals, wall = time_period(step, rectify, tokens, device, clock, context)
        timing.token_us += intervals
        timing.wall_us += wall
        timing.period_us.append(sum(intervals) / tokens)
        done += 1
    timing.seconds = clock() - begin
    after = energy.joules() if energy else None
    if before is not None and after is not None:
        timing.joules = after - before
    joules = ranks.gathered(timing.joules)
    timing = ranks.same(timing)
    timing.joules = None if None in joules else sum(filter(None, joules))
    return timing
