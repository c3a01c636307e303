"""A process that measures cases one by one, so that a crash costs one case and not the run.

A segfault, a kernel that corrupts the device's context or the system's out-of-memory killer end the worker; the
parent turns the case in hand into a failed row and starts another.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from ...profiling.attached import ranges_for_tool
from ...profiling.ceilings import Ceilings, measure_ceilings
from ...profiling.device import describe
from ...profiling.energy import EnergyCounter
from ...profiling.timing import Plan, make_timer
from .. import micro
from ..decode import suite as decode
from ..decode.cases import DecodeCase
from ..gsr import suite as gsr
from ..gsr.cases import GsrCase
from ..lossless import suite as lossless
from ..lossless.cases import LosslessCase, ReplayCase
from ..lossless.replayed import ReplayRun
from ..micro.cases import Case, MethodSpec
from ..quality import suite as quality
from ..quality.cases import QualityCase
from ..tasks import suite as tasks
from ..tasks.cases import TaskCase
from .rows import Row

AnyCase = Case | DecodeCase | GsrCase | LosslessCase | QualityCase | TaskCase


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker needs to set itself up."""

    device: str
    plan: Plan
    command: str
    warm: bool = True
    eager: bool = True
    decode: decode.DecodePlan = field(default_factory=decode.DecodePlan)


class WorkerDied(Exception):
    """The worker ended while it had a case in hand."""


def _serve(pipe: Connection, settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    from ... import baselines  # noqa: F401  (registers the rivals)

    device = torch.device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    idle_watts = EnergyCounter(device).idle_watts()
    timer = make_timer(device)
    ceilings = measure_ceilings(timer)
    environment = describe(device)
    kernels = micro.Bench(
        device, timer, ceilings, environment, settings.plan, settings.command, settings.warm, settings.eager
    )
    models = decode.DecodeBench(device, ceilings, environment, settings.decode, settings.command, idle_watts)
    loader = decode.Loader()
    fidelity = quality.QualityBench(device, environment, settings.command)
    looking_up = tasks.TaskBench(device, environment, settings.command)
    pipe.send(("ready", (ceilings, environment.device)))
    while True:
        task = pipe.recv()
        if task is None:
            return
        case, specs = task

        def on_step(text: str) -> None:
            pipe.send(("step", text))

        with ranges_for_tool():
            if isinstance(case, QualityCase):
                rows = quality.run_case(case, specs, fidelity, loader, on_step)
            elif isinstance(case, GsrCase):
                rows = gsr.run_case(case, specs, models, loader, on_step)
            elif isinstance(case, LosslessCase):
                rows = lossless.run_case(case, specs, models, loader, on_step)
            elif isinstance(case, ReplayCase):
                rows = decode.run_case(case, specs, models, loader, on_step, ReplayRun)
            elif isinstance(case, TaskCase):
                rows = tasks.run_case(case, specs, looking_up, loader, on_step)
            elif isinstance(case, DecodeCase):
                rows = decode.run_case(case, specs, models, loader, on_step)
            else:
                rows = micro.run_case(case, specs, kernels, on_step)
        pipe.send(("rows", rows))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()  # a broken context raises here and ends the worker before the next case


class Worker:
    """Parent's end of a measuring process."""

    def __init__(self, settings: Settings, target: Callable[[Connection, Settings], None] = _serve) -> None:
        self._settings, self._target = settings, target
        self._process: Any = None
        self.ceilings: Ceilings | None = None

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=self._target, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()
        self.ceilings = self._receive()[1][0]

    def _receive(self) -> tuple[str, Any]:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            raise WorkerDied(f"the measuring process ended with exit code {code}") from None

    def start(self) -> None:
        """Start the process and measure ceilings, if it is not up. Raises WorkerDied."""
        if self._process is None or not self._process.is_alive():
            self._start()

    def run(self, case: AnyCase, specs: list[MethodSpec], on_step: Callable[[str], None]) -> list[Row]:
        """Rows of one case. Raises WorkerDied."""
        self.start()
        try:
            self._pipe.send((case, specs))
            kind, content = self._receive()
        except (WorkerDied, ConnectionError):  # broke after its last case, before it began this one: take a new one
            self._process = None
            self.start()
            self._pipe.send((case, specs))
            kind, content = self._receive()
        while kind != "rows":
            on_step(content)
            kind, content = self._receive()
        return content

    def stop(self) -> None:
        """End the process, measuring or not."""
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._process = None
