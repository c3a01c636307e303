"""Timing one operation many times: the only way a time comes about in this project.

On a GPU an operation is captured as a CUDA graph and timed by events around its replay. Before a *cold* sample a
buffer of four times the L2 is *read*: a flush that writes leaves dirty lines whose write-back lands inside the timed
span (docs/measuring.md shows by how much). A *warm* sample gets an untimed run instead. Either way the GPU spins first
for longer than a slow host takes to enqueue events and replay: commands that arrive late cost a microsecond.

An operation launched *eagerly* starts on an idle GPU, so that what its launches cost the host is in its time.

Operations of one case are sampled in turn, round by round, so that drift hits all alike; samples stay in order.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .replay import Replay
from .stats import half_width

_cuda: Any = torch.cuda  # whose functions have types in some versions only

FLUSH_MULTIPLE = 4  # of the last-level cache
MAX_FLUSH_BYTES = 2**30
SPIN_CYCLES = 80_000  # about 40 us of an H100: the host's head start
LEAD_CYCLES = 400_000  # about 200 us, once a round: after a synchronisation the host has the queue to fill


@dataclass(frozen=True, slots=True)
class Op:
    """Something to time.

    Attributes:
        key: its name, hashable; no two operations of a measurement share one.
        run: does it once, without waiting for the device.
        cold: the cache is flushed before every sample; otherwise it holds what an untimed run before left.
        idle: the device has nothing to do when a sample starts.
    """

    key: Any
    run: Callable[[], object]
    cold: bool = True
    idle: bool = False


@dataclass(slots=True)
class Samples:
    """Times of one op in the order they were taken, and why sampling ended ("precision", "time" or "samples")."""

    times_us: list[float] = field(default_factory=list)
    stopped_by: str = "time"


@dataclass(frozen=True, slots=True)
class Plan:
    """When to stop: the median's 95 % interval within `precision`, or `budget_s` spent on the case.

    Attributes:
        precision: half the interval's width relative to the median.
        budget_s: wall seconds for all operations of a case, warm-up apart.
        min_samples, max_samples: of each operation; five do where the budget is spent.
        warmup_s: wall seconds of untimed runs of each operation, after compilation.
    """

    precision: float = 0.005
    budget_s: float = 6.0
    min_samples: int = 20
    max_samples: int = 300
    warmup_s: float = 0.02


class Timer(ABC):
    """A device's clock and its cache flush.

    Attributes:
        device: what is timed.
        flush_bytes: read before every cold sample: four times the cache, a gibibyte at most.
    """

    device: torch.device
    flush_bytes: int

    def __init__(self, device: torch.device, cache_bytes: int) -> None:
        self.device = device
        self.flush_bytes = min(FLUSH_MULTIPLE * cache_bytes, MAX_FLUSH_BYTES)
        values = torch.empty(self.flush_bytes // 4, dtype=torch.float32, device=device)
        self._buffer = values.uniform_(-1, 1)

    def flush(self) -> None:
        """Displace the cache by reading; leaves no dirty line."""
        self._sink = self._buffer.sum()

    @abstractmethod
    def settle(self, op: Op) -> None:
        """Bring the cache into the state `op` asks for, with the device busy until the sample starts."""

    def lead(self) -> None:  # noqa: B027  (nothing to do where there is no queue)
        """Keep the device busy while the host fills its empty queue; a round's first op would wait for it otherwise."""

    @abstractmethod
    def stamp(self) -> Any:
        """A point in time; the difference of two is seconds as float."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run` as one graph, where the device has graphs; otherwise as it is."""
        return run


class EventStamp:
    """A CUDA event in a stream that subtracts to seconds."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event: Any = _cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: EventStamp) -> float:
        self.event.synchronize()
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds * 1e-3


class CudaTimer(Timer):
    """Events in the current stream; the GPU spins while the host enqueues them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, torch.cuda.get_device_properties(device).L2_cache_size)

    def settle(self, op: Op) -> None:
        """Flush or run once, and spin until the sample's commands are there; or wait, for an op on an idle device."""
        _cuda._sleep(SPIN_CYCLES)
        if op.cold:
            self.flush()
        else:
            op.run()
            _cuda._sleep(SPIN_CYCLES)  # a short op would leave the host no time
        if op.idle:
            self.synchronize()

    def lead(self) -> None:
        """Spin for longer than the host takes to fill the queue after a synchronisation."""
        _cuda._sleep(LEAD_CYCLES)

    def stamp(self) -> EventStamp:
        """An event in the current stream."""
        return EventStamp()

    def synchronize(self) -> None:
        """Wait until the GPU has done all it was given."""
        torch.cuda.synchronize(self.device)

    def captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """Capture after a warm-up on a side stream, as CUDA graphs ask for; `run` lives as long as the graph."""
        side: Any = _cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return Replay(graph, (run,))


class CpuTimer(Timer):
    """The system's performance counter: a CPU does what it is told before the call returns."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, _cpu_cache_bytes())

    def settle(self, op: Op) -> None:
        """Flush, or run once."""
        if op.cold:
            self.flush()
        else:
            op.run()

    def stamp(self) -> float:
        """Seconds of the performance counter."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is ever left to wait for."""


def _cpu_cache_bytes() -> int:
    """Size of the last-level cache of the first core; 32 MiB where the system does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    texts = [text for size in sizes if (text := size.read_text().strip())]
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1] in units), default=32 * 2**20)


def make_timer(device: torch.device) -> Timer:
    """The timer of a device type. Raises ValueError for anything but CPU and CUDA."""
    makers: dict[str, Callable[[torch.device], Timer]] = {"cuda": CudaTimer, "cpu": CpuTimer}
    if device.type not in makers:
        raise ValueError(f"device: got {device.type}, allowed are {', '.join(makers)}")
    return makers[device.type](device)


def warm_up(ops: Sequence[Op], timer: Timer, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
    """Run every op for `seconds` of wall time, after its first run (which may compile) has finished."""
    for op in ops:
        op.run()
        timer.synchronize()
        start = clock()
        while clock() - start < seconds:
            op.run()
            timer.synchronize()


def measure(
    ops: Sequence[Op],
    timer: Timer,
    plan: Plan | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] | None = None,
) -> dict[Any, Samples]:
    """Time ops in turn until each is precise enough or the budget is spent.

    Args:
        clock: wall seconds, for the budget alone.
        on_round: called with the number of rounds done.

    Returns:
        Samples by `Op.key`, in microseconds, in the order they were taken.

    Raises:
        ValueError: two operations share a key.
    """
    plan = plan or Plan()
    samples = {op.key: Samples() for op in ops}
    if len(samples) != len(ops):
        raise ValueError("ops: two operations share a key")
    warm_up(ops, timer, plan.warmup_s, clock)
    active = list(ops)
    start, rounds = clock(), 0
    while active and rounds < plan.max_samples:
        pending = []
        timer.lead()
        for op in active:
            timer.settle(op)
            before = timer.stamp()
            op.run()
            pending.append((op, before, timer.stamp()))
        timer.synchronize()
        for op, before, after in pending:
            samples[op.key].times_us.append((after - before) * 1e6)
        rounds += 1
        if on_round:
            on_round(rounds)
        if rounds >= plan.min_samples and rounds % 5 == 0:
            precise = [op for op in active if half_width(samples[op.key].times_us) < plan.precision]
            for op in precise:
                samples[op.key].stopped_by = "precision"
            active = [op for op in active if op not in precise]
        if clock() - start > plan.budget_s and rounds >= min(plan.min_samples, 5):
            return samples
    for op in active:
        samples[op.key].stopped_by = "samples"
    return samples
