"""Random command lines end with a status that has a meaning and no traceback; what would measure stops there."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzz_commands import Drawer, odd_files
from fuzz_seeds import seeds
from resa_bench.suites.cli import main
from resa_bench.suites.core import command
from resa_bench.suites.core.exits import DONE, FAILED, UNUSABLE
from resa_bench.suites.decode import suite as decode
from resa_bench.suites.maths import suite as maths
from resa_bench.suites.profile import commands as profile
from resa_bench.suites.reference.run import Reference

MOST_SECONDS = 60


class Reached(BaseException):
    """The command is about to measure: it took its arguments."""


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured or loaded."""

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    for owner, name in (
        (command, "run_cases"), (decode, "measure_ceilings"), (maths, "load"), (profile, "build"), (Reference, "run"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, reached)


def end_of(words: list[str]) -> int | str:
    """The status, or `reached`, or `usage` where argparse refused (with the status of bad arguments)."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"over {MOST_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        return main(words)
    except Reached:
        return "reached"
    except SystemExit as stop:
        return "usage" if stop.code == UNUSABLE else f"SystemExit({stop.code})"
    finally:
        signal.alarm(0)


@pytest.mark.slow
def test_command_lines(
    stops: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    drawer, ends, faults = Drawer(odd_files(tmp_path / "files")), Counter[int | str](), []
    for seed in seeds("commands", 50):
        words = drawer.draw(seed)
        try:
            end: int | str = end_of(words)
        except Exception as error:
            end = f"{type(error).__name__}: {error}"
        out, err = capfd.readouterr()
        ends[end] += 1
        if end not in (DONE, FAILED, UNUSABLE, "reached", "usage") or "Traceback" in out + err:
            faults.append(f"seed {seed}: {words} ends with {end}\n{out[-300:]}{err[-1500:]}")
        elif end == UNUSABLE and not err.startswith("resa-bench ") and "nothing to compare" not in out:
            faults.append(f"seed {seed}: {words} is refused without a word: {err!r}")
        if "\x1b" in out + err:
            faults.append(f"seed {seed}: {words} prints an escape sequence")
    assert not faults, "\n\n".join([f"{len(faults)} faults; {dict(ends)}", *faults[:20]])
    assert ends["reached"] > len(seeds("commands", 50)) // 10, dict(ends)


def test_a_fault_is_found(stops: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What is looked for shows: an error of ours ends with a status of its own, and a traceback."""

    def broken(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("resa_bench.suites.cli.options", broken)
    assert end_of(["micro", "--list"]) not in (DONE, FAILED, UNUSABLE, "reached", "usage")
    assert "Traceback" in capfd.readouterr().err
