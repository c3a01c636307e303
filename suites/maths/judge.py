"""Judging answers by math-verify, in a process of its own with a time limit: a hang costs that one answer."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.line_server import LineProcess

PACKAGE = "math-verify"
LIMIT_S = 10.0
UNJUDGED = ("timeout", "crashed")
OUTCOMES = ("right", "wrong", "no answer", *UNJUDGED)
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
        """`limit_s`: the most seconds for one answer; `command` answers the protocol of `judge_process`.

        Raises:
            ValueError: the limit is no finite number above 0.
        """
        self._server = LineProcess(command, limit_s)

    @property
    def limit_s(self) -> float:
        """The most seconds for one answer."""
        return self._server.limit_s

    def __call__(self, expected: str, text: str) -> Verdict:
        """Whether `text` ends in `expected`. A limit overrun is `timeout`, a process that dies `crashed`.

        Raises:
            RuntimeError: the process does not start.
        """
        reply = self._server.ask(json.dumps([expected, text]))
        if reply:
            return Verdict(*json.loads(reply))
        return Verdict("timeout" if reply is None else "crashed")

    def start(self) -> None:
        """Have the process up. Raises RuntimeError."""
        self._server.start()

    def stop(self) -> None:
        """End the process, judging or not."""
        self._server.stop()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
