"""The command `micro`: measuring, failures, interruptions, figures, both halves of the main job."""

from __future__ import annotations

import json
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import ON_CPU, row
from resa_bench.profiling import timing
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites import cli
from resa_bench.suites.cli import main
from resa_bench.suites.core import command, worker
from resa_bench.suites.core.registry import Suite
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.core.worker import Settings, Worker
from resa_bench.suites.micro.cases import Case

TINY = [*ON_CPU, "--q-heads", "4", "--kv-heads", "2", "--head-dim", "16", "--context", "256"]


class FakeWorker:
    """Gives a good row for every method; remembers how it was set up."""

    made: list[FakeWorker]
    fails = False
    interrupts = False

    def __init__(self, settings: Settings) -> None:
        self.settings, self.measured = settings, []  # type: ignore[var-annotated]
        self.made.append(self)

    def run(self, case: Case, specs: list[MethodSpec], on_step: object) -> list[Row]:
        if self.interrupts:
            raise KeyboardInterrupt
        self.measured.append(case.slug)
        base = {"case": case.slug, "context": case.context, "dtype": case.dtype, "seed": case.seed}
        outcome = {"median_us": None, "status": "failed", "reason": "off by 2"} if self.fails else {}
        return [row(10.0, **base, method=s.name, **s.columns(), **outcome) for s in specs]

    def stop(self) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    class Fake(FakeWorker):
        made: list[FakeWorker] = []  # noqa: RUF012

    monkeypatch.setattr(command, "Worker", Fake)
    return Fake


def micro(folder: Path, *more: str) -> int:
    return main(["micro", *TINY, "--method", "torch-dense", "--output", str(folder), "--no-plots", *more])


def test_micro_measures_reports_and_resumes(tmp_path: Path, fake: type[FakeWorker], capsys: Any) -> None:
    assert micro(tmp_path, "--no-warm") == 0
    out = capsys.readouterr().out
    assert "1 case x 1 method on cpu" in out
    assert "custom-4-2-16-b1-256: one decode step of attention" in " ".join(out.split())
    assert [r.method for r in read_rows(tmp_path / "micro.jsonl")] == ["torch-dense"]
    assert micro(tmp_path, "--no-warm") == 0
    assert "1 of 1 cases were done already" in capsys.readouterr().out
    assert [w.measured for w in fake.made] == [["custom-4-2-16-b1-256"], []]
    assert micro(tmp_path, "--fresh") == 0
    assert fake.made[2].measured == ["custom-4-2-16-b1-256"]


def test_failures_give_status_1(tmp_path: Path, fake: type[FakeWorker], capsys: Any) -> None:
    fake.fails = True
    assert micro(tmp_path) == 1
    out = capsys.readouterr().out
    assert "1 rows failed" in out
    assert "failed custom-4-2-16-b1-256 torch-dense total: off by 2" in out


def test_interruption_gives_status_130(tmp_path: Path, fake: type[FakeWorker], capsys: Any) -> None:
    fake.interrupts = True
    assert micro(tmp_path) == 130
    assert "interrupted: finished cases are kept" in capsys.readouterr().out


def test_settings_reach_the_worker(tmp_path: Path, fake: type[FakeWorker]) -> None:
    assert micro(tmp_path, "--no-warm", "--no-eager", "--budget-s", "3.5") == 0
    settings = fake.made[0].settings
    assert (settings.device, settings.plan.warm, settings.plan.eager, settings.plan.timing.budget_s) == (
        "cpu",
        False,
        False,
        3.5,
    )
    assert micro(tmp_path) == 0
    defaults = fake.made[1].settings.plan
    assert (defaults.warm, defaults.eager, defaults.timing.precision) == (True, False, 0.02)  # on a CPU all is eager


def test_plots_are_drawn_beside_the_results(
    tmp_path: Path, fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr(cli, "draw", lambda paths, folder, console: drawn.append((paths, folder)))
    assert micro(tmp_path) == 0
    assert drawn == []
    arguments = ["bench", *TINY, "--method", "torch-dense", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert drawn == [([tmp_path / "micro.jsonl"], tmp_path / "plots")]
    fake.fails = True
    assert main([*arguments[:-1], str(tmp_path / "another")]) == 1
    assert len(drawn) == 1  # nothing was timed


def test_the_main_job_runs_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Common flags reach both; flags that only kernels know leave decoding out; the first failure decides."""
    ran: list[tuple[str, dict[str, Any]]] = []

    def act(suite: Suite, given: dict[str, Any], console: Any) -> int:
        ran.append((suite.name, given))
        return int(suite.name == "decode")

    monkeypatch.setattr(cli, "act_suite", act)
    assert main(["bench", *ON_CPU, "--quick", "--context", "1K", "--method", "torch-dense", "--fresh"]) == 1
    assert [name for name, _ in ran] == ["micro", "decode"]
    decode = ran[1][1]
    assert {name: decode[name] for name in ("context", "method", "scale", "fresh")} == {
        "context": [1024], "method": ["torch-dense"], "scale": "quick", "fresh": True,
    }  # fmt: skip
    for arguments, halves in (
        (["--q-heads", "4", "--kv-heads", "2", "--head-dim", "16"], ["micro"]),
        (["--pattern", "recent"], ["micro"]),
        (["--pattern", "ragged"], ["micro", "decode"]),
        (["--only", "decode"], ["decode"]),
        (["--only", "micro"], ["micro"]),
        (["--context", "64K"], ["micro"]),  # longer than SmolLM2's texts
    ):
        ran.clear()
        main(["bench", *ON_CPU, *arguments])
        assert [name for name, _ in ran] == halves, arguments


def serve_small(pipe: Connection, settings: Settings) -> None:
    """The real measuring process with a small cache and ceilings given."""
    timing._cpu_cache_bytes = lambda: 2**16
    vars(worker)["measure_ceilings"] = lambda timer: Ceilings(1e6, 1e6, 1e6)
    worker.serve(pipe, settings)


@pytest.mark.slow
def test_micro_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """In a process of its own: two methods, checked, timed, written, compared with themselves."""
    monkeypatch.setattr(command, "Worker", partial(Worker, target=serve_small))
    arguments = ["--method", "torch-dense", "resa-torch", "--block-size", "16", "--min-blocks", "4"]
    more = ["--output", str(tmp_path), "--no-plots", "--budget-s", "0.3"]
    assert main(["micro", *TINY, *arguments, *more]) == 0
    out = capsys.readouterr().out
    rows = read_rows(tmp_path / "micro.jsonl")
    assert {(r.method, r.status) for r in rows} == {("torch-dense", "ok"), ("resa-torch", "ok")}
    assert {r.stage for r in rows if r.method == "resa-torch"} >= {"score", "select", "attend", "total", "rectify"}
    assert all(r.timed and r.device and r.torch == torch.__version__ for r in rows)
    assert "resa-torch b16" in out
    assert all(json.loads(line)["case_rows"] == len(rows) for line in (tmp_path / "micro.jsonl").open())
    assert main(["compare", *[str(tmp_path / "micro.jsonl")] * 2, "--tolerance", "0.9"]) == 0
