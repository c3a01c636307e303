"""Hostile answers and processes: limits of time and memory, and an end with the parent."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from resa_bench.suites.maths.judge import Judge
from resa_bench.suites.model.line_server import LineProcess


@pytest.mark.parametrize("limit_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_means_nothing_is_refused(limit_s: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        Judge(limit_s)


HOSTILE = [
    "2^{2^{2^{100}}}",
    "10^{10^{10}}",
    "(10^{9})!",
    "((9!)!)!",
    r"\binom{10^{9}}{5\cdot 10^{8}}",
    "9" * 1_000_000,
]


@pytest.mark.slow
def test_hostile_answers_are_stopped() -> None:
    pytest.importorskip("math_verify")
    with Judge(1.0) as process:
        for answer in HOSTILE:
            assert process("1", rf"\boxed{{{answer}}}").outcome in ("wrong", "timeout", "crashed")
        assert process("1", r"\boxed{1}").outcome == "right"


SERVER = """import sys
from resa_bench.suites.model.line_server import serve
def reply(line):
    return str(len(bytes(int(line))))
serve(sys.stdin, reply, 2**29)
"""


def test_memory_has_its_limit() -> None:
    server = LineProcess([sys.executable, "-c", SERVER], 20.0)
    assert server.ask("1000") == "1000\n"
    assert server.ask(str(2**30)) == ""
    assert server.ask("1000") == "1000\n"
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: elsewhere a process ends with its input")
def test_a_process_ends_with_its_parent() -> None:
    """Killed without a chance to clean up, while the process computes."""
    busy = SERVER.replace("str(len(bytes(int(line))))", "exec('while True: pass')")
    parent = (
        "import sys\nfrom resa_bench.suites.model.line_server import LineProcess\n"
        f"server = LineProcess([sys.executable, '-c', {busy!r}], 60.0)\nserver.start()\n"
        "print(server._process.pid, flush=True)\nserver.ask('1')"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        started.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and running(pid):
        time.sleep(0.05)
    assert not running(pid)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
