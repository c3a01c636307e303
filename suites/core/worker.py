"""A process that measures cases one by one, so that a crash costs one case and not the run.

A segfault, a kernel that corrupts the device's context or the system's out-of-memory killer end the worker; the
parent turns the case in hand into a failed row and starts another.
"""

from __future__ import annotations

import multiprocessing as mp
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from ...profiling.attached import ranges_for_tool
from ...profiling.ceilings import Ceilings, measure_ceilings
from ...profiling.device import describe
from ...profiling.energy import EnergyCounter
from ...profiling.timing import make_timer
from ..lifetime import begin
from .bench import Bench, Case, Report
from .plugins import load_plugins
from .ranks import Ranks
from .registry import get_suite, suites
from .rows import Row
from .spec import MethodSpec


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker needs to set itself up; `plan` is the suite's (`Plan.measure`)."""

    device: str
    command: str
    plan: Any = None
    ranks: Ranks = field(default_factory=Ranks)


class WorkerDied(Exception):
    """The worker ended while it had a case in hand."""


def make_bench(settings: Settings) -> Bench:
    """Measure the device's ceilings, and gather what rows say about where they come from. Ranks go by the first's."""
    device, ranks = torch.device(settings.device), settings.ranks
    ranks.join(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    idle_watts = EnergyCounter(device).idle_watts()
    timer = make_timer(device)
    ceilings = ranks.same(measure_ceilings(timer))
    return Bench(device, describe(device), settings.command, settings.plan, timer, ceilings, idle_watts, ranks)


class Pipe(Protocol):
    """Where a measuring process is told what to measure."""

    def send(self, message: Any, /) -> None: ...
    def recv(self) -> Any: ...


def serve(pipe: Pipe, settings: Settings) -> None:
    """Measure what comes through the pipe until None does. Of several ranks, all measure what the first is told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a rank that torchrun started
    from ... import baselines  # noqa: F401  (registers the rivals)

    suites()  # methods that a suite registers are known to all of them
    load_plugins()
    bench = make_bench(settings)
    pipe.send(("ready", (bench.ceilings, bench.environment.device)))
    while True:
        task = settings.ranks.same(_next_task(pipe))
        if task is None:
            settings.ranks.leave()
            return
        case, specs = task

        def on_step(text: str) -> None:
            pipe.send(("step", text))

        with ranges_for_tool():
            run = get_suite(case.suite).run
            assert run is not None
            rows = run(case, specs, bench, on_step)
        pipe.send(("rows", rows))
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()  # a broken context raises here and ends the worker before the next case


def _next_task(pipe: Pipe) -> Any:
    """What the parent sends; None where it is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


class Worker:
    """Parent's end of a measuring process."""

    def __init__(self, settings: Settings, target: Callable[[Connection, Settings], None] = serve) -> None:
        self._settings, self._target = settings, target
        self._process: Any = None
        self.ceilings: Ceilings | None = None

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        payload = pickle.dumps((self._target, self._settings))
        self._process = context.Process(target=begin, args=(far_end, payload), daemon=True)
        resource_tracker.ensure_running()  # whose start unblocks what is blocked here
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is the parent's
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        far_end.close()
        self.ceilings = self._receive()[1][0]

    def _receive(self) -> tuple[str, Any]:
        try:
            return self._pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            killed = "; it was killed: the system may have run out of memory" if code == -signal.SIGKILL else ""
            raise WorkerDied(f"the measuring process ended with exit code {code}{killed}") from None

    def start(self) -> None:
        """Start the process and measure ceilings, if it is not up. Raises WorkerDied."""
        if self._process is None or not self._process.is_alive():
            self._start()

    def run(self, case: Case, specs: Sequence[MethodSpec], on_step: Report) -> list[Row]:
        """Rows of one case. Raises WorkerDied."""
        self.start()
        try:
            self._pipe.send((case, list(specs)))
            kind, content = self._receive()
        except (WorkerDied, ConnectionError):  # broke after its last case, before it began this one: take a new one
            self._process = None
            self.start()
            self._pipe.send((case, list(specs)))
            kind, content = self._receive()
        while kind != "rows":
            on_step(content)
            kind, content = self._receive()
        return content  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the process, measuring or not."""
        if self._process is not None:
            self._process.kill()  # it holds nothing, and whoever started us may have SIGTERM ignored
            self._process.join()
            self._process = None
