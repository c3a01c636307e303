"""What a run leaves as it is: rows of others, good rows beside failures, what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from resa_bench.suites.core.results import append, read_file, read_rows
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.worker import WorkerDied
from resa_bench.suites.micro.cases import Case
from runner_cases import CASES, SPECS, A, B, C, FakeWorker, Run, raising, row_of, with_status


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "micro.jsonl")


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
