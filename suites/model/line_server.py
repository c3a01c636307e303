"""A process that answers a line with a line under limits of time and memory, for work that strangers' texts set.

`LineProcess` is the asking end. It kills the process that overruns its time, and starts it anew for the next line.
`serve` is the answering end, without torch, so that it starts fast.
"""

from __future__ import annotations

import math
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..lifetime import end_with_parent

START_S = 120.0  # to import what the process needs, which a loaded machine may take long for
READY = "ready"
PIECE_BYTES = 2**20  # of a reply, read at a time


class LineProcess:
    """The process, started when it is first needed and anew after it hung or died."""

    def __init__(self, command: Sequence[str], limit_s: float) -> None:
        """`command` answers the protocol of `serve`; `limit_s` is the time for one line, in seconds.

        Raises:
            ValueError: the limit is no finite number above 0.
        """
        if not (math.isfinite(limit_s) and limit_s > 0):
            raise ValueError(f"time limit: got {limit_s} s, must be a finite number above 0")
        self.limit_s, self._command = limit_s, list(command)
        self._process: Any = None

    def ask(self, line: str) -> str | None:
        """The reply to a line; None after the time limit, empty where the process died.

        Raises:
            RuntimeError: the process does not start.
        """
        self.start()
        try:
            self._process.stdin.write((line + "\n").encode())
            self._process.stdin.flush()
            reply = self._line(self.limit_s)
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.stop()
        return reply

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
            raise RuntimeError(f"the process does not start: {' '.join(self._command)}")

    def _line(self, limit_s: float) -> str | None:
        """The next line; None after the limit, empty where the process has ended."""
        deadline = time.monotonic() + limit_s
        descriptor, line = self._process.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                return None
            piece = os.read(descriptor, PIECE_BYTES)
            if not piece:
                return ""
            line += piece
        return line.decode()

    def stop(self) -> None:
        """End the process, working or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def serve(
    lines: Iterable[str], reply: Callable[[str], str], memory_bytes: int, prepare: Callable[[], None] = lambda: None
) -> None:
    """Answer each line by `reply`, within `memory_bytes` of address space, until the lines or the parent end.

    A MemoryError ends the process: what has filled its memory is not to slow the next line down.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end_with_parent()  # elsewhere than on Linux it ends with its stdin
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    prepare()
    replies.write(f"{READY}\n")
    for line in lines:
        try:
            answer = reply(line)
        except MemoryError:
            sys.exit(1)
        replies.write(answer + "\n")
