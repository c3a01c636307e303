"""The line under a figure, which says how its numbers came about, and the title above it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..suites.core.report import counted
from ..suites.core.rows import FAILED, WHOLE_MODELS, Row
from .data import FigureSet

REASON_CHARS = 44


def title(figures: FigureSet, what: str) -> str:
    """The line above a figure; a CPU is named, since its numbers say nothing about kernels."""
    where = " (portable torch path on CPU)" if figures.on_cpu else ""
    return f"{figures.model}: {what}{where}"


def caption(figures: FigureSet, drawn: Iterable[Row], *extra: str) -> str:
    """What the rows drawn were measured with, cache and launch, what the figure needs said, and what is missing.

    The cache of kernels alone: nothing is flushed between the steps of a whole model, whose rows say "cold", too.

    Args:
        figures: the set that the figure is made from; its untimed rows are counted.
        drawn: the rows whose numbers are in the figure.
        extra: what this figure needs said besides.
    """
    rows = list(drawn)
    launch = "graph replay" if figures.launch == "graph" else figures.launch
    caches = _unique(f"{r.cache_state} cache" for r in rows if r.cache_state and r.suite not in WHOLE_MODELS)
    ways = ", ".join([*caches, launch])
    return circumstances(rows, ways, figures.storage, *extra, figures.undrawn, *missing(figures))


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
        *_unique(of_ranks(row) for row in rows),
        *extra,
    ]
    return "\u00a0· ".join(part for part in parts if part)  # no line starts with the dot


def of_commits(rows: Iterable[Row]) -> str:
    """The commits that the rows were measured at."""
    commits = _unique(f"{row.commit[:7]}{'-dirty' if row.dirty else ''}" for row in rows if row.commit)
    return f"commit {', '.join(commits)}" if commits else "commit unknown"


def of_ranks(row: Row) -> str:
    """What a figure says of ranks that share the model; nothing of a model on one device."""
    if row.ranks is None:
        return ""
    return f"ONE OF {row.ranks} RANKS alone, without the exchange" if row.simulated else f"over {row.ranks} ranks"


def best_dense_of(rows: Iterable[Row]) -> str:
    """The methods that rows' speed-ups are over."""
    rivals = ", ".join(_unique(row.best_dense for row in rows if row.best_dense))
    return f"best dense: {rivals}" if rivals else ""


def missing(figures: FigureSet) -> list[str]:
    """Methods skipped and methods failed, counted, with a reason each."""
    measured = {variant.method for variant in figures.lines}
    notes = []
    for statuses, word in ((("skipped",), "skipped"), (FAILED, "failed")):
        by_method: dict[str, list[Row]] = defaultdict(list)
        for row in figures.untimed:
            if row.status in statuses:
                by_method[row.method].append(row)
        by_reason: dict[str, list[str]] = defaultdict(list)
        for method, rows in sorted(by_method.items()):
            where = f" in {counted(len({row.case for row in rows}), 'case')}" if method in measured else ""
            by_reason[shorten(rows[0].reason or rows[0].status)].append(method + where)
        named = [f"{', '.join(methods)} ({reason})" for reason, methods in by_reason.items()]
        notes += [f"{counted(len(by_method), 'method')} {word}: {'; '.join(named)}"] if named else []
    return notes


def shorten(reason: str) -> str:
    """A reason on one line of REASON_CHARS at most."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON_CHARS else line[: REASON_CHARS - 1].rstrip() + "…"


def _unique(words: Iterable[str]) -> list[str]:
    return sorted(set(words))
