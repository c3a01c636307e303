"""Judging answers by math-verify, in a process of its own with a time limit: a hang costs that one answer."""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PACKAGE = "math-verify"
LIMIT_S = 10.0
START_S = 120.0  # to import sympy, which a loaded machine may take long for
OUTCOMES = ("right", "wrong", "no answer", "timeout", "crashed")
COMMAND = (sys.executable, "-m", "resa_bench.suites.maths.judge_process")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an answer (one of OUTCOMES), and what was read out of the text."""

    outcome: str
    extracted: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: got {self.outcome!r}, allowed are {', '.join(OUTCOMES)}")


def unavailable() -> str | None:
    """Why answers cannot be judged here, or None if they can."""
    if importlib.util.find_spec("math_verify") is None:
        return f"judging answers needs math-verify, which is not here; pip install {PACKAGE}"
    return None


class Judge:
    """The judging process, started when it is first needed and anew after each hang."""

    def __init__(self, limit_s: float = LIMIT_S, command: Sequence[str] = COMMAND) -> None:
        """`command` answers the protocol of `judge_process`."""
        self.limit_s, self._command = limit_s, list(command)
        self._process: Any = None

    def __call__(self, expected: str, text: str) -> Verdict:
        """Whether `text` ends in `expected`. A limit overrun is `timeout`, a process that dies `crashed`.

        Raises:
            RuntimeError: the process does not start.
        """
        self.start()
        try:
            self._process.stdin.write((json.dumps([expected, text]) + "\n").encode())
            self._process.stdin.flush()
            line = self._line(self.limit_s)
        except BrokenPipeError:
            line = ""
        if line:
            return Verdict(*json.loads(line))
        self.stop()
        return Verdict("timeout" if line is None else "crashed")

    def start(self) -> None:
        """Have the process up. Raises RuntimeError."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        if not self._line(START_S):
            self.stop()
            raise RuntimeError(f"the judging process does not start: {' '.join(self._command)}")

    def _line(self, limit_s: float) -> str | None:
        """The next line; None after the limit, empty where the process has ended. It writes lines whole."""
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        return self._process.stdout.readline().decode() if ready else None

    def stop(self) -> None:
        """End the process, judging or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
