"""Running a tool: its output, or why there is none."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class ToolMissing(RuntimeError):
    """The tool is not here or does not work; the message says what to install."""


class ToolFailed(RuntimeError):
    """The tool, or the program under it, ended with an error."""


def run(words: Sequence[str], what: str) -> str:
    """Run a command to its end.

    Args:
        what: its name in an error.

    Returns:
        What it printed, errors included.

    Raises:
        ToolFailed: its exit status is not 0, with the last lines that it printed.
    """
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise ToolFailed(f"{what} ended with {done.returncode}:\n{tail}")
    return done.stdout
