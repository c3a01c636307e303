"""Cases whose methods are independent: measured and written in groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from resa_bench.kernels import SparseConfig
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.worker import WorkerDied
from resa_bench.suites.micro.cases import Case
from runner_cases import HEADS, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "micro.jsonl")


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
