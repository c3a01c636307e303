"""The line under a figure, which says how its numbers came about, and the title above it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..suites.core.rows import FAILED, Row
from .data import FigureSet

REASON_CHARS = 44


def title(figures: FigureSet, what: str) -> str:
    """The line above a figure; a CPU is named, since its numbers say nothing about kernels."""
    where = " (portable torch path on CPU)" if figures.on_cpu else ""
    return f"{figures.model}: {what}{where}"


def caption(figures: FigureSet, drawn: Iterable[Row], *extra: str) -> str:
    """What the rows drawn were measured with, cache and launch, what the figure needs said, and what is missing.

    Args:
        figures: the set that the figure is made from; its untimed rows are counted.
        drawn: the rows whose numbers are in the figure.
        extra: what this figure needs said besides.
    """
    rows = list(drawn)
    launch = "graph replay" if figures.launch == "graph" else figures.launch
    ways = ", ".join([*_unique(f"{row.cache_state} cache" for row in rows if row.cache_state), launch])
    return circumstances(rows, ways, figures.storage, *extra, *missing(figures))


def circumstances(rows: Iterable[Row], *extra: str) -> str:
    """Device, commit, dates, dtype and active ratios of rows, and what the figure needs said besides."""
    rows = list(rows)
    dates = _unique(row.started_at[:10] for row in rows if row.started_at)
    ratios = _unique(f"{row.active_ratio:g}" for row in rows if row.active_ratio is not None)
    parts = [
        ", ".join(_unique(row.device for row in rows if row.device)) or "device unknown",
        of_commits(rows),
        " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "date unknown",
        ", ".join(_unique(row.dtype for row in rows if row.dtype)) or "dtype unknown",
        f"r\u00a0=\u00a0{', '.join(ratios)}" if ratios else "",
        *extra,
    ]
    return "\u00a0· ".join(part for part in parts if part)  # no line starts with the dot


def of_commits(rows: Iterable[Row]) -> str:
    """The commits that the rows were measured at."""
    commits = _unique(f"{row.commit[:7]}{'-dirty' if row.dirty else ''}" for row in rows if row.commit)
    return f"commit {', '.join(commits)}" if commits else "commit unknown"


def missing(figures: FigureSet) -> list[str]:
    """Methods skipped and methods failed, counted, with a reason each."""
    return [text for text in (_missing(figures, ("skipped",), "skipped"), _missing(figures, FAILED, "failed")) if text]


def _missing(figures: FigureSet, statuses: tuple[str, ...], word: str) -> str:
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in figures.untimed:
        if row.status in statuses:
            by_method[row.method].append(row)
    if not by_method:
        return ""
    measured = {variant.method for variant in figures.lines}
    by_reason: dict[str, list[str]] = defaultdict(list)
    for method, rows in sorted(by_method.items()):
        cases = len({row.case for row in rows})
        where = f" in {cases} {'case' if cases == 1 else 'cases'}" if method in measured else ""
        by_reason[_short(rows[0].reason or rows[0].status)].append(f"{method}{where}")
    named = [f"{', '.join(methods)} ({reason})" for reason, methods in by_reason.items()]
    return f"{len(by_method)} {'method' if len(by_method) == 1 else 'methods'} {word}: {'; '.join(named)}"


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= REASON_CHARS else line[: REASON_CHARS - 1].rstrip() + "…"


def _unique(words: Iterable[str]) -> list[str]:
    return sorted(set(words))
