"""Nsight Systems: the command that records a capture range, and its report read into a timeline."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from .nvtx_ranges import DOMAIN
from .process import ToolMissing, run
from .timeline import Call, Kernel, Range, Timeline, short_name
from .tools import LIBRARIES, NSYS, importer_fault

PUSH_POP_RANGE = 59  # NVTX_EVENTS.eventType
DOMAIN_CREATED = 75
DEVICE_TABLES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": "(SELECT value FROM StringIds WHERE id = demangledName)",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "'memcpy'",
    "CUPTI_ACTIVITY_KIND_MEMSET": "'Memset'",
}


def find() -> Path:
    """A working nsys.

    Raises:
        ToolMissing: there is none, or its importer does not start (it could record, but not make a report).
    """
    path = NSYS.find()
    if path is None:
        raise ToolMissing(f"nsys not found: {NSYS.remedy}")
    fault = importer_fault(path)
    if fault:
        raise ToolMissing(f"nsys at {path} cannot make reports: {fault}; {LIBRARIES}")
    return path


def command(nsys: Path, report: Path, program: Sequence[str]) -> list[str]:
    """The command that records what `program` does between cudaProfilerStart and Stop, graphs node by node."""
    return [
        str(nsys), "profile", f"--output={report}", "--force-overwrite=true", "--trace=cuda,nvtx",
        "--cuda-graph-trace=node", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
        "--sample=none", "--cpuctxsw=none", *program,
    ]  # fmt: skip


def export(nsys: Path, report: Path, database: Path) -> None:
    """Write the report's events as SQLite. Raises ToolFailed."""
    run(
        [str(nsys), "export", "--type=sqlite", "--force-overwrite=true", f"--output={database}", str(report)],
        "nsys export",
    )


def read(database: Path) -> Timeline:
    """Kernels, launches and the ranges of our domain of an exported report.

    Raises:
        ValueError: the file is no such export, or holds no kernel.
    """
    timeline = Timeline()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table, name in DEVICE_TABLES.items():
                if table in tables:
                    query = f"SELECT {name}, start, end, correlationId FROM {table}"
                    for label, start, end, correlation in connection.execute(query):
                        kernel = Kernel(short_name(label), start / 1e3, end / 1e3)
                        timeline.kernels.append((kernel, correlation))
            if not timeline.kernels:
                raise ValueError(f"{database}: no kernel was recorded; did the program start its capture range?")
            query = "SELECT correlationId, globalTid, start, end FROM CUPTI_ACTIVITY_KIND_RUNTIME"
            for correlation, thread, start, end in connection.execute(query):
                timeline.calls[correlation] = Call(thread, start / 1e3, end / 1e3)
            if "NVTX_EVENTS" in tables:
                timeline.ranges += _ranges(connection)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{database}: not an export of nsys ({error})") from error
    return timeline


def _ranges(connection: sqlite3.Connection) -> list[Range]:
    text = "coalesce(text, (SELECT value FROM StringIds WHERE id = textId))"
    domains = connection.execute(
        f"SELECT domainId FROM NVTX_EVENTS WHERE eventType = {DOMAIN_CREATED} AND {text} = ?", (DOMAIN,)
    )
    ours = {domain for (domain,) in domains}
    query = f"""SELECT globalTid, {text}, start, end, int64Value, domainId FROM NVTX_EVENTS
                WHERE eventType = {PUSH_POP_RANGE} AND end IS NOT NULL"""
    return [
        Range(thread, name, start / 1e3, end / 1e3, value)
        for thread, name, start, end, value, domain in connection.execute(query)
        if domain in ours
    ]
