"""Real measuring processes that die, or do not start: each costs its case."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from resa_bench.profiling.timing import Plan as TimingPlan
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.worker import Settings, Worker
from resa_bench.suites.lossless.method import NAME as LOSSLESS
from resa_bench.suites.micro.suite import Measure
from runner_cases import CASES, DENSE, SPECS, A, B, C, Run, row_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "micro.jsonl")


def perilous(pipe: Connection, settings: Settings) -> None:
    """A worker that dies in the case of 512 tokens, and a moment after it has finished the one of 1000."""
    pipe.send(("ready", (None, "cpu")))
    while True:
        case, specs = pipe.recv()
        pipe.send(("step", f"process {os.getpid()}"))
        if case.context == 512:
            os._exit(7)
        pipe.send(("rows", [row_of(case, spec) for spec in specs]))
        if case.context == 1000:
            time.sleep(0.3)
            os._exit(8)


def stillborn(pipe: Connection, settings: Settings) -> None:
    os._exit(9)


def interrupted(pipe: Connection, settings: Settings) -> None:
    """A worker that a terminal's Ctrl-C reaches, too."""
    os.kill(os.getpid(), signal.SIGINT)
    perilous(pipe, settings)


def new_worker(target: Callable[[Connection, Settings], None]) -> Worker:
    return Worker(Settings("cpu", "test"), target)


@pytest.mark.slow
def test_a_process_that_dies_costs_its_case(run: Run) -> None:
    """It is replaced; and the death of an idle one costs nothing, not even the case handed to it meanwhile."""
    last = replace(CASES[0], context=2048)
    outcome = run(new_worker(perilous), [*CASES, last])
    rows = read_rows(run.path)
    assert {case.slug: {row.status for row in rows if row.case == case.slug} for case in [*CASES, last]} == {
        A: {"ok"}, B: {"failed"}, C: {"ok"}, last.slug: {"ok"},
    }  # fmt: skip
    assert {row.reason for row in rows if row.case == B} == {"the measuring process ended with exit code 7"}
    assert outcome.exit_status == 1


@pytest.mark.slow
def test_a_process_that_cannot_start_fails_the_cases(run: Run) -> None:
    outcome = run(new_worker(stillborn), CASES[:1])
    assert {row.reason for row in outcome.rows} == {"the measuring process ended with exit code 9"}
    assert outcome.exit_status == 1


@pytest.mark.slow
def test_a_method_that_a_suite_registers_costs_no_other_its_row(run: Run) -> None:
    """`resa-lossless` decodes whole models alone: elsewhere it is skipped, and the case goes on."""
    plan = Measure(TimingPlan(budget_s=0.1), warm=False, eager=False, rotation=False)
    outcome = run(Worker(Settings("cpu", "test", plan)), CASES[:1], [MethodSpec(LOSSLESS), DENSE])
    ended = {row.method: (row.status, row.reason) for row in outcome.rows if row.stage == "total"}
    assert ended[LOSSLESS][0] == "skipped"
    assert "run `resa-bench lossless`" in str(ended[LOSSLESS][1])
    assert ended[DENSE.name] == ("ok", None)
    assert outcome.exit_status == 0


def test_an_interruption_is_the_parents_alone() -> None:
    worker = new_worker(interrupted)
    try:
        assert len(worker.run(CASES[0], SPECS, print)) == len(SPECS)
    finally:
        worker.stop()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
def test_steps_pass_through_and_one_process_serves_all_cases() -> None:
    worker, steps = new_worker(perilous), []  # type: ignore[var-annotated]
    try:
        for context in (256, 2048):
            rows = worker.run(replace(CASES[0], context=context), SPECS, steps.append)
            assert [row.context for row in rows] == [context] * 2
        process = worker._process
    finally:
        worker.stop()
    assert steps == [f"process {process.pid}"] * 2
    assert not process.is_alive()
