"""What runs under a profiler: a case, warmed up, with its steps and rectifications inside the capture range."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from timeit import timeit
from typing import Any

import torch

from ...profiling.device import describe
from ...profiling.ranges import Blocks, Listener, Open, Span, listening, mark, span
from ..core.rows import SCHEMA
from .workload import Workload

EAGER_WARMUP = 2
EAGER_STEPS = 4
IDLE_RANGES = 20_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What the profiled process tells the one that reads the trace.

    Attributes:
        untraced_us: one step by the suite's own clock, before anything was recorded; `eager_us` one launched from
            Python, by the wall clock.
        ranges: stages and spans that a step opens; `idle_range_us` is what one costs while nobody listens.
        stage_bytes: compulsory bytes of one layer's attention by stage.
        environment: device, versions, commit (`profiling.device.Environment`).
        columns: what rows say about the case and the method.
    """

    case: str
    method: str
    label: str
    context: int
    graph: bool
    back_to_back: bool
    untraced_us: float
    eager_us: float
    ranges: int
    idle_range_us: float
    stage_bytes: dict[str, int]
    environment: dict[str, Any]
    columns: dict[str, Any] = field(default_factory=dict)


def facts(workload: Workload, device: torch.device) -> Facts:
    """Warm up, and say what is known before a trace."""
    warm_up(workload)
    untraced_us = workload.untraced_us()
    counter = Counter()
    workload.start(1)
    with listening(counter):
        workload.eager_step()
    workload.start(EAGER_STEPS)
    _synchronize()
    begin = time.perf_counter()
    for _ in range(EAGER_STEPS):
        workload.eager_step()
    _synchronize()
    eager_us = (time.perf_counter() - begin) * 1e6 / EAGER_STEPS
    case, spec = workload.case, workload.spec
    idle_range_us = timeit(_idle_range, number=IDLE_RANGES) * 1e6 / IDLE_RANGES
    stage_bytes = {stage: traffic.bytes for stage, traffic in workload.traffic().items()}
    return Facts(
        case.slug, spec.name, spec.label, case.context, workload.graph, workload.flush is None, untraced_us, eager_us,
        counter.count, idle_range_us, stage_bytes, asdict(describe(device)),
        case.columns() | spec.columns() | {"method": spec.name, "way": workload.way, "schema": SCHEMA},
    )  # fmt: skip


def warm_up(workload: Workload) -> None:
    """Everything compiled and every library's first call made."""
    workload.start(EAGER_WARMUP + 1)
    for _ in range(EAGER_WARMUP):
        workload.eager_step()
    workload.step()
    if workload.eager_rectify and workload.rectify:
        workload.start_rectify()
        workload.eager_rectify()
        workload.rectify()
    _synchronize()


def run_passes(workload: Workload, steps: int, *, eager_only: bool = False) -> None:
    """`steps` steps and one rectification as the suite launches them, then one of each from Python, in ranges."""
    context = workload.case.context

    def steps_of(run: Callable[[], object], count: int) -> None:
        workload.start(count)
        _synchronize()
        for i in range(count):
            if workload.flush and not eager_only:
                workload.flush()
            with span("step", context if workload.flush else context - count + i + 1):
                run()
        _synchronize()

    def rectification(run: Callable[[], object]) -> None:
        workload.start_rectify()
        if workload.flush and not eager_only:
            workload.flush()
        _synchronize()
        with span("rectification", context):
            run()
        _synchronize()

    if workload.graph and not eager_only:
        steps_of(workload.step, steps)
        if workload.rectify:
            rectification(workload.rectify)
    steps_of(workload.eager_step, 1)
    if workload.eager_rectify:
        rectification(workload.eager_rectify)


@contextmanager
def capture_range() -> Iterator[None]:
    """What nsys and ncu record when they wait for the program's word."""
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        _synchronize()
        torch.cuda.profiler.stop()


class Counter(Listener):
    """A listener that counts ranges."""

    def __init__(self) -> None:
        self.count = 0

    def stage(self, name: str, blocks: Blocks | None) -> Open:
        self.count += 1
        return nullcontext()

    def span(self, name: Span, value: int | None) -> Open:
        self.count += 1
        return nullcontext()


def _idle_range() -> None:
    with mark("attend"):
        pass


class OneLayer(Listener):
    """A listener in front of another: the capture range is open in one layer of each pass alone."""

    def __init__(self, behind: Listener, layer: int) -> None:
        self._behind, self._layer = behind, layer

    def stage(self, name: str, blocks: Blocks | None) -> Open:
        return self._behind.stage(name, blocks)

    @contextmanager
    def _captured(self, inner: Open) -> Iterator[None]:
        _synchronize()
        with capture_range(), inner:
            yield

    def span(self, name: Span, value: int | None) -> Open:
        inner = self._behind.span(name, value)
        return self._captured(inner) if name == "layer" and value == self._layer else inner


def run_under_tool(workload: Workload, listener: Listener, steps: int, *, one_by_one: bool) -> None:
    """Run the passes inside the capture range.

    Args:
        one_by_one: for a tool that stops at every kernel: no replays, and of a whole model one layer.
    """
    only = OneLayer(listener, workload.layer) if one_by_one and workload.layer is not None else None
    with listening(only or listener), nullcontext() if only else capture_range():
        run_passes(workload, steps, eager_only=one_by_one)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
