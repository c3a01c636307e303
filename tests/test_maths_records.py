"""Answers on the disk: judged, judged again, cut short, shared among ranks."""

from __future__ import annotations

import errno
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from maths_cases import CPU, FAKE, record
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.core.results import append, read_file
from resa_bench.suites.maths import suite
from resa_bench.suites.maths.judge import Judge, Verdict
from resa_bench.suites.maths.problems import Problem
from resa_bench.suites.maths.records import RecordFile, read_records
from resa_bench.suites.maths.run import MathsCase
from resa_bench.suites.maths.table import result_rows
from resa_bench.suites.maths.work import Rank, repeat
from rich.console import Console
from tiny_model import TINY


def test_judge_right_wrong_and_none() -> None:
    pytest.importorskip("math_verify")
    with Judge() as ask:
        assert ask("\\frac{1}{2}", "<think>\\boxed{3}?</think> So it is \\boxed{0.5}.") == Verdict(
            "right", "\\frac{1}{2}"
        )
        assert ask("42", "The answer is 42.").outcome == "right"
        assert ask("42", "The answer is \\boxed{41}.").outcome == "wrong"
        assert ask("42", "I do not know.") == Verdict("no answer")


def test_a_hang_or_a_crash_costs_one_answer() -> None:
    with Judge(0.3, [sys.executable, "-c", FAKE]) as ask:
        verdicts = [ask("1", text) for text in ("a", "hang", "b", "die", "c")]
    assert [v.outcome for v in verdicts] == ["right", "timeout", "right", "crashed", "right"]
    with pytest.raises(RuntimeError, match="does not start"):
        Judge(1, [sys.executable, "-c", "pass"])("1", "1")


def test_a_verdict_stands_before_a_judging_cut_short(tmp_path: Path) -> None:
    """Whichever file comes first: another run's answer of the same problem may time out."""
    RecordFile(tmp_path, 0, 1).append([record("1", "right"), record("2", "timeout")])
    RecordFile(tmp_path, 0, 2).append([record("1", "crashed"), record("2", "wrong")])
    assert {r.problem: r.outcome for r in read_records(tmp_path)} == {"1": "right", "2": "wrong"}


def test_what_was_not_judged_is_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end of the answer that the record keeps; what cannot be judged again stays as it was."""
    monkeypatch.setattr(suite, "Judge", lambda limit_s: Judge(0.3, [sys.executable, "-c", FAKE]))
    file = RecordFile(tmp_path)
    file.append([record("1", "timeout", text="a"), record("2", "crashed", text="die"), record("3", "wrong", text="x")])
    console = Console(width=200, record=True, file=io.StringIO())
    suite.judge_again(tmp_path, file, 1.0, console)
    assert {r.problem: r.outcome for r in read_records(tmp_path)} == {"1": "right", "2": "crashed", "3": "wrong"}
    assert "1 of 2 answers that were not judged are now" in console.export_text()


def test_records_survive_a_torn_line(tmp_path: Path) -> None:
    first = RecordFile(tmp_path, 0, 2)
    first.append([record("1"), record("2")])
    RecordFile(tmp_path, 1, 2).append([record("3", "wrong")])
    with first.path.open("a") as file:
        file.write('{"setting": {"mod')
    assert [r.problem for r in read_records(tmp_path)] == ["1", "2", "3"]
    again = RecordFile(tmp_path, 0, 2)  # takes the torn part off, so that the next line is whole
    again.append([record("4")])
    assert [r.problem for r in read_records(tmp_path)] == ["1", "2", "4", "3"]
    again.append([record("1", "wrong")])
    assert [r.outcome for r in read_records(tmp_path) if r.problem == "1"] == ["wrong"]
    with first.path.open("a") as file:
        file.write('{"no": "record"}\n')
    with pytest.raises(ValueError, match="line 5: not a record"):
        read_records(tmp_path)


def test_a_disk_that_fills_up_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next method's records do not begin on a line that was cut short."""
    file = RecordFile(tmp_path)
    file.append([record("1")])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            file.append([record("2"), record("3")])
    file.append([record("4")])
    assert [r.problem for r in read_records(tmp_path)] == ["1", "4"]


def test_rows_of_others_stay_in_the_file(tmp_path: Path) -> None:
    """Of other settings, of a run that was cut short, and what cannot be read; only this setting's are replaced."""
    path = tmp_path / "maths.jsonl"
    case = MathsCase("tiny", TINY, 2, 64, dtype="fp32", weights="fp32")
    common = case.columns()
    other, cut = (
        result_rows([record("1")], common | {"case": "other"}),
        result_rows([record("1")], common | {"seed": 9}),
    )
    append(path, [replace(row, case_rows=len(other)) for row in other])
    append(path, [replace(row, case="cut", case_rows=9) for row in cut])
    with path.open("a") as file:
        file.write("not a row\n")
    for outcome in ("wrong", "right"):
        suite.write_rows(path, [record("1", outcome)], case, CPU, "resa-bench maths")
        held = [row for row in read_file(path).rows if row.case == f"{case.slug}-s"]
        accuracy = [row.value for row in held if row.metric == "accuracy"]
        assert accuracy == [float(outcome == "right")]
    contents = read_file(path)
    assert {row.case for row in contents.rows} == {"other-s", f"{case.slug}-s"}
    assert {row.case for row in contents.partial} == {"cut"}
    assert (tmp_path / "maths.jsonl.unreadable").read_text() == "not a row\n"


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_cover_all_once(world: int) -> None:
    problems = [Problem("a", str(i), "?", "1") for i in range(5)] + [Problem("b", "0", "?", "1")]
    items = repeat(problems, 1, answers=7)
    assert sum(p.set == "a" for p, _ in items) == 10
    assert sum(p.set == "b" for p, _ in items) == 7
    shared = [item for rank in range(world) for item in Rank(rank, world).share(items)]
    assert len(shared) == len(items)
    assert set(shared) == set(items)


def test_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_environment() == Rank(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ValueError, match="must be 0 to 0"):
        Rank.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Rank.from_environment() == Rank(3, 4, 1)
