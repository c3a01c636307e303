"""Ranks under torchrun: who they are, one file written by the first, and the end of all where one is gone."""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_ranks import save_llama, small
from resa_bench.suites.cli import main
from resa_bench.suites.core.exits import INTERRUPTED
from resa_bench.suites.core.ranked import LeadingWorker, RanksEnded, follow, lead
from resa_bench.suites.core.ranks import RankLost, Ranks
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.runner import run_cases
from resa_bench.suites.core.worker import Settings
from rich.console import Console
from runner_cases import CASES, CPU, SPECS, A, row_of

TWO = Ranks(0, 2, 0)


# --- who they are ---------------------------------------------------------------------------------------------------


def test_a_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks()
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    ranks = Ranks.from_environment()
    assert (ranks, ranks.first) == (Ranks(3, 8, 1), False)
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(ValueError, match="got 8 with WORLD_SIZE 8, must be 0 to 7"):
        Ranks.from_environment()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="got first, 8, 1, expected numbers"):
        Ranks.from_environment()


def test_one_rank_asks_nobody() -> None:
    alone = Ranks()
    alone.join(CPU)
    alone.failed(ValueError("is its own"))
    alone.leave()
    assert (alone.same(3), alone.gathered(3)) == (3, [3])
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("command", ["micro", "tasks", "profile"])
def test_commands_that_share_no_model_are_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    more = ["nsys", "some-case"] if command == "profile" else []
    assert main([command, *more, "--device", "cpu"]) == 2
    assert f"under torchrun {command} would run 2 times" in " ".join(capsys.readouterr().err.split())


# --- a rank that is gone --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    """A leading rank that gives up ignores SIGTERM; what runs after it is not to inherit that."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class FakeProcess:
    """A measuring process that is up until it is ended."""

    exitcode = -9

    def __init__(self) -> None:
        self.ended = 0

    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float | None = None) -> None:
        pass

    def kill(self) -> None:
        self.ended += 1


class FakePipe:
    """Answers what it was given to, then breaks."""

    def __init__(self, *replies: tuple[str, Any]) -> None:
        self.replies, self.sent = list(replies), list[Any]()

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def recv(self) -> Any:
        if not self.replies:
            raise EOFError
        return self.replies.pop(0)


def leading(*replies: tuple[str, Any]) -> tuple[LeadingWorker, FakePipe, FakeProcess]:
    """A worker whose process has met the other ranks and is to give these replies."""
    worker, pipe, process = LeadingWorker(Settings("cpu", "test", ranks=TWO)), FakePipe(*replies), FakeProcess()
    worker._pipe, worker._process, worker._began = pipe, process, True  # type: ignore[assignment]
    return worker, pipe, process


GOOD = ("rows", [row_of(CASES[0], spec) for spec in SPECS])


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param([("lost", "rank 1 is gone")], "rank 1 is gone", id="told"),
        pytest.param(
            [],
            "the measuring process ended with exit code -9; it was killed: the system may have run out of memory",
            id="killed",
        ),
    ],
)
def test_a_lost_rank_ends_the_run_and_keeps_whole_cases(
    end: list[Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, no further case, nothing that failed in the file; the same command goes on."""
    worker, pipe, process = leading(GOOD, ("step", "time dense"), *end)
    path = tmp_path / "decode.jsonl"
    outcome = run_cases(CASES, SPECS, worker, path, CPU, Console(file=io.StringIO()))
    assert outcome.exit_status == INTERRUPTED
    assert [(row.case, row.status) for row in read_rows(path)] == [(A, "ok")] * 2
    assert capsys.readouterr().err.splitlines() == [
        f"resa-bench: the 2 ranks cannot go on: {reason}; whole cases are kept"
    ]
    assert None not in pipe.sent
    assert process.ended == bool(end)


def test_ranks_part_in_good_order_at_the_end() -> None:
    worker, pipe, process = leading(GOOD)
    assert worker.run(CASES[0], SPECS, lambda text: None) == GOOD[1]
    worker.stop()
    assert pipe.sent == [(CASES[0], SPECS), None]
    assert process.ended == 1


def test_torchrun_ending_the_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    worker, *_ = leading()
    with pytest.raises(RanksEnded):
        worker._on_ended(15, None)
    assert "torchrun ended the run; another rank failed, or was killed" in capsys.readouterr().err


def test_what_ends_a_rank_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the first through its pipe, by others in one line."""

    def serve(pipe: Any, settings: Settings) -> None:
        raise RankLost("rank 1 of 2 failed alone")

    monkeypatch.setattr("resa_bench.suites.core.ranked.serve", serve)
    pipe = FakePipe()
    lead(pipe, Settings("cpu", "test", ranks=TWO))  # type: ignore[arg-type]
    assert pipe.sent == [("lost", "rank 1 of 2 failed alone")]
    assert follow(Settings("cpu", "test", ranks=Ranks(1, 2, 1))) == 1
    assert capsys.readouterr().err == "resa-bench: rank 1 of 2 failed alone\n"


# --- as torchrun starts them ----------------------------------------------------------------------------------------


def _command(rank: int, port: int, arguments: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    raise SystemExit(main(arguments))


def command_by_two(arguments: list[str]) -> list[int | None]:
    """Exit statuses of a command run by two processes with torchrun's environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    processes = [context.Process(target=_command, args=(rank, port, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(500)
    return [process.exitcode for process in processes]


@pytest.mark.slow
@pytest.mark.usefixtures("plugins")
def test_two_ranks_decode_and_the_first_writes(tmp_path: Path) -> None:
    save_llama(tmp_path / "small", small("small", q_heads=4, kv_heads=2, ffn=128))
    arguments = [
        "decode", "--device", "cpu", "--model", str(tmp_path / "small"), "--prompt", "synthetic", "--context", "128",
        "--method", "torch-dense", "resa-torch", "--rectify-every", "4", "--min-blocks", "2",
        "--seconds", "0", "--no-plots", "--output", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert command_by_two(arguments) == [0, 0]
    rows = read_rows(tmp_path / "runs" / "decode.jsonl")
    totals = [row for row in rows if row.stage == "total"]
    assert [(row.method, row.status) for row in totals] == [("torch-dense", "ok"), ("resa-torch", "ok")]
    dense = totals[0]
    assert (dense.model, dense.ranks, dense.simulated, dense.kv_replicas) == ("small-tp2", 2, False, 1)
    assert (dense.q_heads, dense.kv_heads, dense.modelled_tokens_per_s) == (2, 1, None)
    stages = {row.stage for row in rows if row.method == "resa-torch"}
    assert stages >= {"all-reduce", "all-gather", "rectify+all-reduce"}


@pytest.mark.gpu
@pytest.mark.slow
def test_an_exchange_does_not_contain_the_start_of_a_trace(tmp_path: Path) -> None:
    """The stages of two GPUs add up to their step: no rank waits in the first exchange until the other traces too."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "resa_bench.suites",
        "decode", "--model", "qwen2.5-1.5b", "--context", "4K", "--method", "triton-dense",
        "--no-eager", "--no-plots", "--seconds", "0.1", "--output", str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    stages = {row.stage: row for row in read_rows(tmp_path / "decode.jsonl")}
    gap, step = stages["gap"].mean_us, stages["total"].mean_us
    assert gap is not None
    assert step is not None
    assert abs(gap) < 0.25 * step
