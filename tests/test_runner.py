"""Running a list of cases: resume, retries, processes that die, interruptions, exit statuses."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from resa_bench.kernels import AttentionShape, TorchDense, register
from resa_bench.profiling.device import COMMIT_VARIABLE
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.runner import Outcome, default_folder, is_done, run_cases
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.worker import WorkerDied
from resa_bench.suites.micro.cases import Case
from rich.console import Console
from runner_cases import CASES, CPU, DENSE, RESA, SPECS, A, B, C, FakeWorker, Run, raising, row_of, with_status


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "micro.jsonl")


def test_all_cases_are_measured_and_written(run: Run) -> None:
    outcome = run()
    assert run.worker.measured == [A, B, C]
    assert run.worker.stopped
    assert [(row.case, row.method) for row in read_rows(run.path)] == [(s, n.name) for s in (A, B, C) for n in SPECS]
    assert len(pd.read_csv(run.path.with_suffix(".csv"))) == len(outcome.rows) == 6
    assert (outcome.exit_status, outcome.resumed, outcome.interrupted) == (0, 0, False)
    assert [line.split(" in ")[0] for line in run.printed.splitlines()] == [f"{s}: 2 measured" for s in (A, B, C)]


def test_a_case_is_on_disk_before_the_next_begins(run: Run) -> None:
    def does(case: Case, specs: list[MethodSpec]) -> list[Row]:
        assert {row.case for row in read_rows(run.path)} == {A}
        return [row_of(case, spec) for spec in specs]

    assert run(FakeWorker({B: does})).exit_status == 0


def test_a_rerun_measures_nothing_again(run: Run) -> None:
    first = run()
    before = run.path.read_bytes()
    second = run()
    assert run.worker.measured == []
    assert (second.resumed, second.exit_status) == (3, 0)
    assert run.path.read_bytes() == before
    assert [row.case for row in second.rows] == [row.case for row in first.rows]


def test_fresh_measures_everything_again(run: Run) -> None:
    run()
    outcome = run(fresh=True)
    assert run.worker.measured == [A, B, C]
    assert len(read_rows(run.path)) == len(outcome.rows) == 6


def test_a_new_case_is_added_and_the_others_kept(run: Run) -> None:
    run(cases=CASES[:2])
    outcome = run(cases=CASES[1:])
    assert run.worker.measured == [C]
    assert (outcome.resumed, sorted({row.case for row in read_rows(run.path)})) == (1, sorted([A, B, C]))


def test_a_new_method_measures_its_cases_again(run: Run) -> None:
    """Methods are compared within one run: rows of two runs are not mixed in a case."""
    run(specs=[DENSE])
    run()
    assert run.worker.measured == [A, B, C]
    assert len(read_rows(run.path)) == 6


def test_without_a_dense_method_what_is_done_keeps_its_ratio(run: Run) -> None:
    """A run without a dense one gives no ratio, so it measures only what is left."""
    run()
    quest, before = MethodSpec("quest"), [row for row in read_rows(run.path) if row.method == RESA.name]
    asked: list[list[MethodSpec]] = []

    def does(case: Case, specs: list[MethodSpec]) -> list[Row]:
        asked.append(specs)
        return [row_of(case, spec) for spec in specs]

    run(FakeWorker(dict.fromkeys((A, B, C), does)), specs=[quest, RESA])
    assert asked == [[quest]] * 3
    assert [row for row in read_rows(run.path) if row.method == RESA.name] == before
    assert len(read_rows(run.path)) == 9


@pytest.mark.parametrize("status", ["failed", "oom"])
def test_failed_cases_are_measured_again(run: Run, status: str) -> None:
    outcome = run(FakeWorker({B: with_status("resa-torch", status)}))
    assert outcome.exit_status == 1
    assert [(row.case, row.method) for row in outcome.failures] == [(B, "resa-torch")]
    assert f"{B}: 1 measured, 1 FAILED in" in run.printed
    again = run()
    assert run.worker.measured == [B]
    assert (again.exit_status, again.resumed) == (0, 2)
    assert {row.status for row in read_rows(run.path)} == {"ok"}


@pytest.mark.usefixtures("registry")
def test_skipped_methods_are_measured_once_they_can_run(run: Run) -> None:
    missing: list[str | None] = ["no such library"]

    @register("optional")
    class Optional(TorchDense):
        @classmethod
        def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
            return missing[0]

    specs = [DENSE, MethodSpec("optional")]
    skip = {case.slug: with_status("optional", "skipped") for case in CASES[:2]}
    outcome = run(FakeWorker(skip), CASES[:2], specs)
    assert outcome.exit_status == 0  # a skip is no failure
    assert f"{A}: 1 measured, 1 skipped in" in run.printed
    run(cases=CASES[:2], specs=specs)
    assert run.worker.measured == []
    missing[0] = None
    run(cases=CASES[:2], specs=specs)
    assert run.worker.measured == [A, B]


def other(status: str = "ok", **changes: Any) -> list[Row]:
    """Both methods' rows of the first case, the second one's changed."""
    return [row_of(CASES[0], DENSE), row_of(CASES[0], RESA, status, **changes)]


@pytest.mark.parametrize(
    ("rows", "done"),
    [
        pytest.param(other(), True, id="all-ok"),
        pytest.param(other("throttled"), True, id="throttled"),
        pytest.param(other("failed"), False, id="failed"),
        pytest.param(other("oom"), False, id="oom"),
        pytest.param(other("skipped"), False, id="skipped-but-it-can-run"),
        pytest.param([*other(), row_of(CASES[0], RESA, "failed", stage="rectify")], False, id="one-stage-failed"),
        pytest.param(other()[:1], False, id="a-method-missing"),
        pytest.param(other(block_size=32), False, id="another-block-size"),
        pytest.param(other(active_ratio=0.5), False, id="another-ratio"),
        pytest.param(other(dtype="bf16"), False, id="another-dtype"),
        pytest.param(other(seed=1), False, id="another-seed"),
        pytest.param(other(case=B), False, id="another-case"),
        pytest.param([*other(), row_of(CASES[1], RESA, "failed")], True, id="anothers-failure"),
        pytest.param([], False, id="nothing"),
    ],
)
def test_is_done(rows: list[Row], done: bool) -> None:
    assert is_done(CASES[0], SPECS, rows, CPU) is done


def test_a_torn_file_is_mended_by_the_next_run(run: Run) -> None:
    """Cut in the second case: the first is kept, the second measured again, no line is glued to the torn one."""
    run(cases=CASES[:2])
    data = run.path.read_bytes()
    run.path.write_bytes(data[: -len(data) // 4])
    outcome = run(cases=CASES[:2])
    assert run.worker.measured == [B]
    assert outcome.resumed == 1
    assert [row.case for row in read_rows(run.path)] == [A, A, B, B]


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(run: Run) -> None:
    outcome = run(FakeWorker({B: raising(KeyboardInterrupt())}))
    assert (outcome.interrupted, outcome.exit_status) == (True, 130)
    assert run.worker.measured == [A, B]
    assert run.worker.stopped
    assert {row.case for row in read_rows(run.path)} == {A}
    assert set(pd.read_csv(run.path.with_suffix(".csv"))["case"]) == {A}
    assert run().exit_status == 0
    assert run.worker.measured == [B, C]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(WorkerDied("the measuring process ended with exit code -11"), "exit code -11", id="died"),
        pytest.param(RuntimeError("out of luck"), "RuntimeError: out of luck", id="raised"),
    ],
)
def test_a_broken_case_costs_itself_alone(run: Run, error: Exception, reason: str) -> None:
    outcome = run(FakeWorker({B: raising(error)}))
    assert run.worker.measured == [A, B, C]
    assert outcome.exit_status == 1
    broken = [row for row in read_rows(run.path) if row.case == B]
    assert [(row.method, row.status, row.median_us) for row in broken] == [
        ("torch-dense", "failed", None),
        ("resa-torch", "failed", None),
    ]
    assert all(reason in str(row.reason) for row in broken)
    assert (broken[1].block_size, broken[1].context, broken[1].dtype, broken[1].case_rows) == (16, 512, "fp32", 2)
    assert f"{B}: 0 measured, 2 FAILED in" in run.printed


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        pytest.param(Outcome(Path("x")), 0, id="nothing"),
        pytest.param(Outcome(Path("x"), [row_of(CASES[0], DENSE)]), 0, id="ok"),
        pytest.param(Outcome(Path("x"), [row_of(CASES[0], DENSE, "skipped")]), 0, id="skipped"),
        pytest.param(Outcome(Path("x"), [row_of(CASES[0], DENSE, "oom")]), 1, id="oom"),
        pytest.param(Outcome(Path("x"), [row_of(CASES[0], DENSE, "failed")], interrupted=True), 130, id="interrupted"),
    ],
)
def test_exit_status(outcome: Outcome, status: int) -> None:
    assert outcome.exit_status == status


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    file = io.StringIO()
    console = Console(width=120, file=file, force_terminal=True)
    run_cases(CASES, SPECS, FakeWorker(), tmp_path / "micro.jsonl", CPU, console)  # type: ignore[arg-type]
    assert "3/3" in file.getvalue()
    assert f"{C}: round 1" in file.getvalue()


def test_seconds_by_the_clock(run: Run) -> None:
    ticks = iter(range(100, 1000, 10))
    outcome = run(clock=lambda: next(ticks))
    assert outcome.seconds == 70  # start, two a case, end
    assert all(line.endswith(" in 10 s") for line in run.printed.splitlines())


@pytest.mark.parametrize(
    ("commit", "folder"),
    [
        pytest.param("0123456789abcdef", "0123456789", id="clean"),
        pytest.param("0123456789abcdef-dirty", r"0123456789-dirty-[0-9a-f]{6}", id="dirty"),
    ],
)
def test_default_folder_is_of_one_device_and_commit(monkeypatch: pytest.MonkeyPatch, commit: str, folder: str) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, commit)
    monkeypatch.setattr("resa_bench.suites.core.runner.device_name", lambda _: "NVIDIA H100 80GB HBM3 (2)")
    default = default_folder(CPU)
    assert default.parent == Path("runs/nvidia-h100-80gb-hbm3-2")
    assert re.fullmatch(folder, default.name)
