"""What a command prints at its end, from published rows: the first table of a suite's report, as plain text."""

from __future__ import annotations

import io

from rich.console import Console

from ...suites.core.registry import get_suite
from .numbers import Place, PlaceError, Sources, rows_of, select

WIDTH = 100  # columns


def render_printed(place: Place, sources: Sources) -> str:
    """The rows that fit `where`, as `suite` reports them. Raises PlaceError where none fits, or none is printed."""
    frame = select(place, sources, [place["where"]])
    if frame is None:
        raise PlaceError(f"no row fits {place['where']!r}")
    rows = rows_of(frame.attrs["path"])
    report = get_suite(place["suite"]).report
    if report is None:
        raise PlaceError(f"suite {place['suite']!r} prints no report of its own")
    printed = Console(file=io.StringIO(), width=place.get("width", WIDTH))
    report([rows[i] for i in frame.index], printed)
    assert isinstance(printed.file, io.StringIO)
    lines = [line.rstrip() for line in printed.file.getvalue().splitlines()]
    end = next((i for i, line in enumerate(lines) if line.startswith("\u2514")), None)  # the table's lower edge
    if end is None:
        raise PlaceError("the report has no table")
    return "\n".join(["```text", *lines[: end + 1], "```"])
