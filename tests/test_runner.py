"""Running a list of cases: resume, retries, processes that die, interruptions, exit statuses."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from resa_bench.kernels import AttentionShape, SparseConfig, TorchDense, register
from resa_bench.profiling.device import COMMIT_VARIABLE
from resa_bench.suites.core.results import append, read_file, read_rows
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.runner import Outcome, default_folder, is_done, run_cases
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.worker import Settings, Worker, WorkerDied
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


# --- real processes ---------------------------------------------------------------------------------------------------


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


def test_a_process_that_cannot_start_fails_the_cases(run: Run) -> None:
    outcome = run(new_worker(stillborn), CASES[:1])
    assert {row.reason for row in outcome.rows} == {"the measuring process ended with exit code 9"}
    assert outcome.exit_status == 1


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


def test_fresh_keeps_what_was_not_asked_for(run: Run) -> None:
    run()
    run(cases=CASES[:1], specs=SPECS[:1], fresh=True)
    assert run.worker.measured == [A]
    kept = [(row.case, row.method) for row in read_rows(run.path)]
    assert sorted(kept) == sorted((s, n.name) for s in (A, B, C) for n in SPECS)


def test_interrupting_a_fresh_run_loses_nothing(run: Run) -> None:
    run()
    before = read_rows(run.path)
    outcome = run(FakeWorker({A: raising(KeyboardInterrupt())}), fresh=True)
    assert outcome.exit_status == 130
    assert read_rows(run.path) == before


def test_interrupted_before_any_case_leaves_no_file(run: Run) -> None:
    outcome = run(FakeWorker({A: raising(KeyboardInterrupt())}))
    assert (outcome.exit_status, outcome.rows) == (130, [])
    assert not run.path.exists()


def test_other_dtypes_and_seeds_stay(run: Run) -> None:
    run(cases=CASES[:1])
    run(cases=[replace(CASES[0], seed=7)])
    run(cases=[replace(CASES[0], dtype="bf16")])
    assert {(row.dtype, row.seed) for row in read_rows(run.path)} == {("fp32", 0), ("fp32", 7), ("bf16", 0)}


def test_rows_of_a_kind_that_is_missing_are_measured(run: Run) -> None:
    run(cases=CASES[:1])
    run(cases=CASES[:1], kinds=["warm"])
    assert run.worker.measured == [A]


# --- cases whose methods are independent ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupCase(Case):
    """A case whose methods are measured and written eight at a time."""

    at_a_time: ClassVar[int | None] = 8


TEXT = GroupCase("m", HEADS, 1, 4096, dtype="fp32")
MANY = [MethodSpec("resa-torch", SparseConfig(rectify_every=f)) for f in range(1, 20)]


class GroupWorker:
    """Gives a row a method and two of dense decoding, which nobody asked for; `does` is called before each group."""

    def __init__(self, does: Callable[[int], None] = lambda group: None) -> None:
        self.does, self.measured = does, list[list[int]]()

    def run(self, case: GroupCase, specs: list[MethodSpec], on_step: Callable[[str], None]) -> list[Row]:
        self.does(len(self.measured))
        self.measured.append([spec.config.rectify_every for spec in specs])
        common: dict[str, Any] = {**case.columns(), "stage": "forced", "status": "ok", "metric": "loss"}
        at: dict[str, Any] = {"started_at": "one second"}  # of all groups
        value = float(len(self.measured))
        dense = [Row(**common, **at, method="torch-dense", step=step, value=value) for step in (4, 8)]
        return [*dense, *(Row(**common, **at, **spec.columns(), method=spec.name, value=1.0) for spec in specs)]

    def stop(self) -> None:
        pass


def periods(rows: list[Row]) -> list[int | None]:
    return [row.rectify_every for row in rows if row.method == "resa-torch"]


def test_independent_methods_are_written_in_groups(run: Run) -> None:
    on_disk: list[int] = []
    worker = GroupWorker(lambda group: on_disk.append(len(read_rows(run.path)) if group else 0))
    outcome = run(worker, [TEXT], MANY)
    assert worker.measured == [list(range(1, 9)), list(range(9, 17)), [17, 18, 19]]
    assert on_disk == [0, 10, 18]  # dense decoding's two rows once
    kept = read_rows(run.path)
    assert [identity(row) for row in kept] == [identity(row) for row in outcome.rows]
    assert [row.method for row in kept[:3]] == ["torch-dense", "torch-dense", "resa-torch"]
    assert {row.value for row in kept[:2]} == {3.0}  # the newest
    assert periods(kept) == list(range(1, 20))
    assert [line.split(":")[0] for line in run.printed.splitlines()] == [
        f"{TEXT.slug}, methods {part} of 19" for part in ("1 to 8", "9 to 16", "17 to 19")
    ]


def test_an_interruption_keeps_finished_groups_and_a_rerun_measures_the_rest(run: Run) -> None:
    def interrupt(group: int) -> None:
        if group == 1:
            raise KeyboardInterrupt

    outcome = run(GroupWorker(interrupt), [TEXT], MANY)
    assert (outcome.exit_status, periods(read_rows(run.path))) == (130, list(range(1, 9)))
    worker = GroupWorker()
    assert run(worker, [TEXT], MANY).resumed == 0
    assert worker.measured == [list(range(9, 17)), [17, 18, 19]]
    assert len({identity(row) for row in read_rows(run.path)}) == len(read_rows(run.path)) == 21
    assert run(GroupWorker(), [TEXT], MANY).resumed == 1


def test_a_group_that_fails_costs_its_methods(run: Run) -> None:
    def fail(group: int) -> None:
        if not worker.measured:
            worker.measured.append([])
            raise WorkerDied("exit code -11")

    worker = GroupWorker(fail)
    outcome = run(worker, [TEXT], MANY)
    assert [row.rectify_every for row in outcome.failures] == list(range(1, 9))
    again = GroupWorker()
    assert run(again, [TEXT], MANY).exit_status == 0
    assert again.measured == [list(range(1, 9))]
    assert sorted(f or 0 for f in periods(read_rows(run.path))) == list(range(1, 20))


def test_fresh_measures_all_groups_again(run: Run) -> None:
    run(GroupWorker(), [TEXT], MANY)
    worker = GroupWorker()
    run(worker, [TEXT], MANY, fresh=True)
    assert sum(map(len, worker.measured)) == 19
    assert len(read_rows(run.path)) == 21


# --- good rows stay ---------------------------------------------------------------------------------------------------


def test_a_failure_never_replaces_good_rows(run: Run) -> None:
    """Measured again, the process dies: the rows that were there stay, and the run says that it failed."""
    run()
    before = read_rows(run.path)
    outcome = run(FakeWorker({A: raising(WorkerDied("exit code -9"))}), fresh=True)
    assert outcome.exit_status == 1
    assert [row.reason for row in outcome.lost] == ["exit code -9"] * 2
    assert {identity(row) for row in read_rows(run.path)} == {identity(row) for row in before}
    assert {row.status for row in read_rows(run.path)} == {"ok"}


def test_one_method_that_fails_leaves_the_others_new_rows(run: Run) -> None:
    run()
    outcome = run(FakeWorker({A: with_status("resa-torch", "failed")}), cases=CASES[:1], fresh=True)
    assert [row.method for row in outcome.lost] == ["resa-torch"]
    assert sorted(row.method for row in read_rows(run.path) if row.case == A) == ["resa-torch", "torch-dense"]


def test_a_value_that_is_no_number_becomes_a_failed_row(run: Run) -> None:
    def does(case: Case, specs: list[MethodSpec]) -> list[Row]:
        return [row_of(case, specs[0], gbps=float("nan")), row_of(case, specs[1])]

    outcome = run(FakeWorker({A: does}), cases=CASES[:1])
    assert [(row.status, row.reason) for row in read_rows(run.path)] == [
        ("failed", "not a finite number: gbps"), ("ok", None),
    ]  # fmt: skip
    assert outcome.exit_status == 1


def test_rows_that_another_process_wrote_meanwhile_stay(run: Run) -> None:
    """Two runs share a file: each adds its own rows to what is there when it writes."""

    def does(case: Case, specs: list[MethodSpec]) -> list[Row]:
        append(run.path, [row_of(CASES[1], spec) for spec in specs])
        return [row_of(case, spec) for spec in specs]

    outcome = run(FakeWorker({A: does}), cases=CASES[:1], fresh=True)
    assert {row.case for row in read_rows(run.path)} == {A, B} == {row.case for row in outcome.rows}
    assert set(pd.read_csv(run.path.with_suffix(".csv"))["case"]) == {A, B}


def test_what_cannot_be_read_is_kept_when_another_case_is_written(run: Run) -> None:
    """A line of the first case is gone, another is no JSON: an unrelated case removes neither."""
    run(cases=CASES[:1])
    lines = run.path.read_text().splitlines()
    run.path.write_text(lines[1] + "\n{torn")
    run(cases=CASES[1:2])
    held = read_file(run.path)
    assert [row.case for row in held.partial] == [A]
    assert [row.case for row in held.rows] == [B, B]
    assert run.path.with_name("micro.jsonl.unreadable").read_text() == "{torn\n"
    assert "micro.jsonl: 1 lines are no rows (line 2: " in run.printed


@pytest.mark.parametrize(
    "change",
    [{"torch": "0.1"}, {"triton": "0.1"}, {"python": "3.9.1"}, {"model_fingerprint": "another"}], ids=str,
)  # fmt: skip
def test_another_model_or_library_is_measured_again(run: Run, change: dict[str, str]) -> None:
    run(FakeWorker({A: lambda case, specs: [row_of(case, spec, **change) for spec in specs]}), cases=CASES[:1])
    run(cases=CASES[:1])
    assert run.worker.measured == [A]
