"""Cases, methods and a measuring process that is none, for tests of the runner."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resa_bench.kernels import SparseConfig
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.runner import run_cases
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.micro.cases import Case, ModelShape
from rich.console import Console

CPU = torch.device("cpu")
HEADS = ModelShape(4, 2, 16)
CASES = [Case("m", HEADS, 1, context, dtype="fp32") for context in (256, 512, 1000)]
A, B, C = (case.slug for case in CASES)
DENSE = MethodSpec("torch-dense")
RESA = MethodSpec("resa-torch", SparseConfig(min_blocks=4))
SPECS = [DENSE, RESA]


def row_of(case: Case, spec: MethodSpec, status: str = "ok", /, **changes: Any) -> Row:
    outcome = {"median_us": 5.0} if status in ("ok", "throttled") else {"reason": f"is {status}"}
    defaults: dict[str, Any] = {
        "suite": "micro", "model": case.model, "case": case.slug, "method": spec.name, "stage": "total",
        "context": case.context, "batch": case.batch, "q_heads": 4, "kv_heads": 2, "head_dim": 16,
        "dtype": case.dtype, "seed": case.seed, "status": status, **spec.columns(), **outcome,
    }  # fmt: skip
    return Row(**(defaults | changes))


class FakeWorker:
    """Measures nothing, in this process; `does` gives what happens in a case instead of two good rows."""

    def __init__(self, does: dict[str, Callable[[Case, list[MethodSpec]], list[Row]]] | None = None) -> None:
        self.does, self.measured, self.stopped = does or {}, [], False  # type: ignore[var-annotated]

    def run(self, case: Case, specs: list[MethodSpec], on_step: Callable[[str], None]) -> list[Row]:
        self.measured.append(case.slug)
        on_step("round 1")
        does = self.does.get(case.slug, lambda case, specs: [row_of(case, spec) for spec in specs])
        return does(case, specs)

    def stop(self) -> None:
        self.stopped = True


def raising(error: BaseException) -> Callable[[Case, list[MethodSpec]], list[Row]]:
    def does(case: Case, specs: list[MethodSpec]) -> list[Row]:
        raise error

    return does


def with_status(name: str, status: str) -> Callable[[Case, list[MethodSpec]], list[Row]]:
    """Good rows but for the method `name`."""
    return lambda case, specs: [row_of(case, spec, status if spec.name == name else "ok") for spec in specs]


class Run:
    """`run_cases` on one file, with what it printed and which cases it measured."""

    worker: Any

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, worker: Any = None, cases: list[Case] = CASES, specs: list[MethodSpec] = SPECS, **more: Any):
        self.worker = worker or FakeWorker()
        console = Console(width=200, file=io.StringIO(), record=True)
        outcome = run_cases(cases, specs, self.worker, self.path, CPU, console, **more)
        self.printed = console.export_text()
        return outcome
