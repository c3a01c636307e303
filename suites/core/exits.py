"""Exit statuses, each with one meaning, and how an error that ends a command is told: a line, or a traceback."""

from __future__ import annotations

import errno
import opcode
import sys
import traceback
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape

from ...kernels import NotHere
from .failure import CheckFailed, failure

DONE, FAILED, UNUSABLE, FAULT, INTERRUPTED, CLOSED = 0, 1, 2, 3, 130, 141
MEANINGS = {
    DONE: "all that was asked for is done; rows that were skipped say why",
    FAILED: "a row or a check failed; compare: a whole step got slower",
    UNUSABLE: "an argument, a file, a device or a place cannot be used; one line says which and what to do",
    FAULT: "a fault of resa-bench itself: a traceback to report",
    INTERRUPTED: "interrupted; finished cases are kept, the same command goes on",
    CLOSED: "whoever read the output is gone; finished cases are kept",
}
"""What each status of a command means (docs/exit-status.md)."""

PACKAGE = Path(__file__).resolve().parents[2]
PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of a place that another place has not."""


def epilog(examples: str = "") -> str:
    """The end of a command's help: its examples, and the exit statuses."""
    lines = [f"  {status:<4} {meaning}" for status, meaning in MEANINGS.items()]
    return "\n".join([*([examples, ""] if examples else []), "exit status:", *lines])


def is_from_outside(error: BaseException) -> bool:
    """Whether an error is about what was given or is there, and not a fault of this package.

    Such an error is one of the system's, of memory, or a ValueError or TypeError that a `raise` in this package made
    for a reader. What a library raised, or an operation of ours, nobody worded for one: that is a fault.
    """
    if isinstance(error, (OSError, NotHere, CheckFailed)) or failure(error)["status"] == "oom":
        return True
    return isinstance(error, (ValueError, TypeError)) and _is_raised_here(error.__traceback__)


def _is_raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is of this package, at a `raise`."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    is_raise = code.co_code[trace.tb_lasti] == opcode.opmap["RAISE_VARARGS"]
    return is_raise and PACKAGE in Path(code.co_filename).resolve().parents


def line_of(error: BaseException) -> str:
    """What an error from outside says, with what helps where the system says no more than a number."""
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        remedy = "; free some, or name another place (--output)" if error.errno in PLACES else ""
        return f"{error.strerror}: {' -> '.join(places)}{remedy}" if places else f"{error.strerror}{remedy}"
    return str(error) or type(error).__name__


def tell(error: Exception, command: str, console: Console) -> int:
    """Print what ended a command, and give its exit status.

    Args:
        command: `resa-bench` and what follows up to the arguments.
        console: of stderr.
    """
    if is_from_outside(error):
        console.print(f"[red]{escape(command)}:[/] {escape(line_of(error))}", highlight=False)
        return FAILED if isinstance(error, CheckFailed) else UNUSABLE
    traceback.print_exception(error, file=sys.stderr)
    text = "this is a fault of resa-bench, not yours: please report the command and the lines above"
    console.print(f"[red]{escape(command)}:[/] {text}", highlight=False)
    return FAULT
