"""Processes that end with the one that started them, however that one ends: kill -9 leaves no orphans."""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import os
import pickle
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait

PR_SET_PDEATHSIG = 1
ORPHANED = 1  # exit status of a process whose parent is gone


def end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it is gone. Elsewhere nothing happens."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_starter() -> None:
    """End, on any system, when the process that started this one by `multiprocessing` is gone; nothing in any other.

    Beside the kernel a thread watches the pipe that the parent holds open.
    """
    parent = mp.parent_process()
    if parent is None:
        return
    end_with_parent()
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def begin(pipe: Connection, payload: bytes) -> None:
    """What a process does first: tie itself to its starter, then import what its work needs, which takes seconds.

    Args:
        pipe: to the starter.
        payload: a function and its settings, pickled, which the function takes after the pipe.
    """
    end_with_starter()
    work, settings = pickle.loads(payload)
    work(pipe, settings)


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(ORPHANED)
