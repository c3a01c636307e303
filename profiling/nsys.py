"""Nsight Systems: the command that records a capture range, and its report read into a timeline.

Tables and columns of its export come and go between versions. What is there is read, what is not is named in the
timeline's `missing`; only without kernels and their times is there nothing to read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .nvtx_ranges import DOMAIN
from .process import ToolMissing, run
from .timeline import Call, Kernel, Range, Timeline, short_name
from .tools import LIBRARIES, NSYS, importer_fault

PUSH_POP_RANGE = 59  # NVTX_EVENTS.eventType
DOMAIN_CREATED = 75
KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
COPIES = {"CUPTI_ACTIVITY_KIND_MEMCPY": "memcpy", "CUPTI_ACTIVITY_KIND_MEMSET": "Memset"}
WHOLE_GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
CALLS = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")  # the latter apart in old versions
KERNEL_NAMES = ("demangledName", "shortName", "mangledName")
UNNAMED = "unnamed"
Values = tuple[Any, ...]


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
    """Kernels, launches and the ranges of our domain of an exported report, times in microseconds.

    Returns:
        A timeline whose `missing` says in a line each what this export lacks: then kernels have no launch, stage or
        name, or ranges no payload.

    Raises:
        ValueError: the file is no such export, holds no kernel, or lacks the columns of a kernel's times.
    """
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _Export(database, connection).timeline()
    except sqlite3.Error as error:
        raise ValueError(f"{database}: not an export of nsys ({error})") from error


class _Export:
    """One export: its tables and columns, and what was read of them."""

    def __init__(self, database: Path, connection: sqlite3.Connection) -> None:
        self._database, self._connection = database, connection
        connection.text_factory = lambda text: text.decode(errors="replace")
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        self._columns: dict[str, set[str]] = {
            table: {column[1] for column in connection.execute(f'PRAGMA table_info("{table}")')} for (table,) in tables
        }
        self._missing: dict[str, None] = {}  # in order, each once

    def timeline(self) -> Timeline:
        """Everything that is there. Raises ValueError without kernels or their times."""
        timeline = Timeline(kernels=list(self._kernels()))
        if not timeline.kernels:
            if WHOLE_GRAPHS in self._columns:
                raise ValueError(f"{self._database}: graphs were recorded whole; record with --cuda-graph-trace=node")
            if KERNELS not in self._columns and "StringIds" not in self._columns:
                raise ValueError(f"{self._database}: not an export of nsys (it has no table {KERNELS})")
            raise ValueError(f"{self._database}: no kernel was recorded; did the program start its capture range?")
        threads = self._threads()
        timeline.calls = dict(self._calls(threads))
        timeline.ranges = list(self._ranges(threads))
        timeline.missing = tuple(self._missing)
        return timeline

    def _kernels(self) -> Iterator[tuple[Kernel, int | None]]:
        names = [name for name in KERNEL_NAMES if self._has(KERNELS, name)]
        if KERNELS in self._columns and not names:
            self._lacks(f"{KERNELS}.{KERNEL_NAMES[0]}: kernels have no names")
        texts = ", ".join(self._text(name) for name in names)
        yield from self._on_device(KERNELS, f"coalesce({texts}, '{UNNAMED}')" if names else f"'{UNNAMED}'")
        for table, name in COPIES.items():
            yield from self._on_device(table, f"'{name}'")

    def _on_device(self, table: str, name: str) -> Iterator[tuple[Kernel, int | None]]:
        if table not in self._columns:
            return
        for column in ("start", "end"):
            if not self._has(table, column):
                raise ValueError(f"{self._database}: the export has no column {table}.{column}")
        correlation = self._column(table, "correlationId", "kernels are not matched with their launches")
        for label, start, end, number in self._rows(f"SELECT {name}, start, end, {correlation} FROM {table}", (1, 2)):
            yield Kernel(short_name(str(label)), start / 1e3, end / 1e3), number

    def _threads(self) -> str:
        """The column of the thread that called, or a constant where a table lacks it."""
        tables = [table for table in (*CALLS, "NVTX_EVENTS") if table in self._columns]
        lacking = [table for table in tables if not self._has(table, "globalTid")]
        if lacking:
            self._lacks(f"{lacking[0]}.globalTid: calls and ranges of all threads count as of one")
        return "0" if lacking else "globalTid"

    def _calls(self, threads: str) -> Iterator[tuple[int, Call]]:
        tables = [table for table in CALLS if table in self._columns]
        if not tables:
            self._lacks(f"{CALLS[0]}: kernels are not matched with their launches")
        for table in tables:
            absent = [column for column in ("correlationId", "start", "end") if not self._has(table, column)]
            if absent:
                self._lacks(f"{table}.{absent[0]}: kernels are not matched with their launches")
                continue
            query = f"SELECT correlationId, {threads}, start, end FROM {table}"
            for correlation, thread, start, end in self._rows(query, (2, 3)):
                yield correlation, Call(thread, start / 1e3, end / 1e3)

    def _ranges(self, threads: str) -> Iterator[Range]:
        table, consequence = "NVTX_EVENTS", "there are no steps and stages"
        if table not in self._columns:
            self._lacks(f"{table}: {consequence}")
            return
        texts = [column for column in ("text", "textId") if self._has(table, column)]
        absent = [column for column in ("start", "end") if not self._has(table, column)]
        if absent or not texts:
            self._lacks(f"{table}.{absent[0] if absent else 'text'}: {consequence}")
            return
        name = f"coalesce({', '.join(self._text(column) for column in texts)}, '')"
        kind = self._column(table, "eventType", "every event with an end counts as a range")
        domain = self._column(table, "domainId", "ranges of other domains count as ours")
        value = self._column(table, "int64Value", "ranges have no payload")
        where = "" if kind == "NULL" else f"WHERE eventType = {PUSH_POP_RANGE}"
        ours: set[Any] = {None}
        if domain != "NULL" and kind != "NULL":
            query = f"SELECT domainId FROM {table} WHERE eventType = {DOMAIN_CREATED} AND {name} = '{DOMAIN}'"
            ours = {number for (number,) in self._connection.execute(query)}
            if not ours:
                self._lacks(f"a domain named {DOMAIN} in {table}: {consequence}")
        elif domain != "NULL":
            self._lacks(f"{table}.eventType: ranges of other domains count as ours")
            domain = "NULL"
        query = f"SELECT {threads}, {name}, start, end, {value}, {domain} FROM {table} {where}"
        for thread, text, start, end, payload, number in self._rows(query, (2, 3)):
            if number in ours:
                yield Range(thread, str(text), start / 1e3, end / 1e3, payload)

    def _has(self, table: str, column: str) -> bool:
        return column in self._columns.get(table, ())

    def _lacks(self, what: str) -> None:
        self._missing[f"the export lacks {what}"] = None

    def _column(self, table: str, column: str, consequence: str) -> str:
        """The column, or NULL and a word about it."""
        if self._has(table, column):
            return column
        self._lacks(f"{table}.{column}: {consequence}")
        return "NULL"

    def _text(self, column: str) -> str:
        """The text that a column holds or is the number of."""
        if not {"id", "value"} <= self._columns.get("StringIds", set()):
            self._lacks("StringIds: names are numbers")
            return column
        return f"coalesce((SELECT value FROM StringIds WHERE id = {column}), {column})"

    def _rows(self, query: str, times: tuple[int, ...]) -> Iterator[Values]:
        """Rows whose times are there (an event that never ended has none). Raises ValueError for times of no number."""
        for row in self._connection.execute(query):
            if any(row[place] is None for place in times):
                continue
            if not all(isinstance(row[place], (int, float)) for place in times):
                raise ValueError(f"{self._database}: {query.split()[-1]} holds a time that is no number")
            yield row
