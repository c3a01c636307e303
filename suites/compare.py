"""Two result files against each other: what got faster or slower, what broke, and how well two runs agree."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .core.results import read_rows
from .core.rows import Row
from .core.spec import Names
from .core.verdict import VERDICTS, Comparison, compare

COLOURS = {"slower": "red", "faster": "green", "unclear": "yellow", "same": "dim", "newly failed": "red"}


def render(comparison: Comparison) -> Table:
    """What changed: newly failed rows, then slower, faster and unclear ones, the largest difference first."""
    changed = sorted(
        (pair for pair in comparison.pairs if pair.verdict != "same"),
        key=lambda pair: (VERDICTS.index(pair.verdict), -abs(pair.ratio - 1)),
    )
    shown = [*comparison.newly_failed, *(pair.a for pair in changed)]
    names = Names([*comparison.newly_failed, *(pair.a for pair in comparison.pairs)])
    runs = {_run(row) for row in shown}
    one_run = f", {runs.pop()}" if len(runs) == 1 else ""  # said once, not in every line
    table = Table(
        title=f"B against A, tolerance {comparison.tolerance:.1%}{one_run}", title_justify="left", box=box.SIMPLE
    )
    for name in ("case", "method", "stage") if one_run else ("case", "method", "stage", "run"):
        table.add_column(name, overflow="fold")
    for name in ("A, us", "B, us", "B / A"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for row in comparison.newly_failed:
        run = [] if one_run else [_run(row)]
        table.add_row(*_names(row, names), *run, "", "", "", _coloured("newly failed", f": {row.reason}"))
    for pair in changed:
        run = [] if one_run else [_run(pair.a)]
        throttled = " (throttled)" if "throttled" in (pair.a.status, pair.b.status) else ""
        numbers = (f"{pair.a.time_us:.2f}", f"{pair.b.time_us:.2f}", f"{pair.ratio:.3f}")
        table.add_row(*_names(pair.a, names), *run, *numbers, _coloured(pair.verdict, throttled))
    return table


def compare_files(path_a: Path, path_b: Path, tolerance: float = 0.02, console: Console | None = None) -> int:
    """Compare two files and print what changed. Returns the exit status.

    0: nothing got worse. 1: a whole step is slower, or something newly failed. 2: nothing was comparable, or a file is
    unreadable.
    """
    console = console or Console()
    try:
        comparison = compare(_read(Path(path_a)), _read(Path(path_b)), tolerance)
    except (OSError, ValueError) as error:
        console.print(f"cannot compare: {error}", style="red", markup=False)
        return 2
    if comparison.devices_a != comparison.devices_b:
        a, b = (", ".join(names) or "unknown" for names in (comparison.devices_a, comparison.devices_b))
        console.print(f"warning: the devices differ: A ran on {a}, B on {b}", style="yellow", markup=False)
    table = render(comparison)
    if table.row_count:
        console.print(table)
    for line in summary(comparison):
        console.print(line, markup=False, highlight=False)
    return comparison.exit_code


def summary(comparison: Comparison) -> list[str]:
    """Counts, then how well the two runs agree."""
    lines = []
    if comparison.pairs:
        furthest = max(comparison.pairs, key=lambda pair: abs(pair.ratio - 1))
        counts = ", ".join(f"{comparison.count(name)} {name}" for name in VERDICTS)
        median = statistics.median(pair.ratio for pair in comparison.pairs)
        lines += [
            f"{len(comparison.pairs)} rows timed in both: {counts}",
            f"median B / A {median:.4f}; largest difference {abs(furthest.ratio - 1):.1%} "
            f"({' '.join(_names(furthest.a, Names([furthest.a])))}, {_run(furthest.a)})",
            f"within 2 %: {comparison.share_within(0.02):.1%} of rows; within 5 %: {comparison.share_within(0.05):.1%}",
        ]
    else:
        lines.append("nothing to compare: no row (by case, method, stage and settings) is timed in both files")
    lines.append(f"newly failed: {len(comparison.newly_failed)}")
    changes = Counter(f"{x.status} -> {y.status}" for x, y in comparison.status_changes)
    lines += [f"status {change}: {count}" for change, count in sorted(changes.items())]
    for name, rows in (("A", comparison.only_a), ("B", comparison.only_b)):
        if rows:
            methods = Counter(row.method for row in rows)
            named = ", ".join(f"{method} {count}" for method, count in sorted(methods.items()))
            lines.append(f"only in {name}: {len(rows)} rows ({named})")
    return lines


def _read(path: Path) -> list[Row]:
    try:
        return read_rows(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error


def _names(row: Row, names: Names) -> tuple[str, str, str]:
    """Case, method with its settings, and stage."""
    return row.case, names[row], row.stage


def _run(row: Row) -> str:
    return " ".join(word for word in (row.cache_state, row.launch) if word) or "run unknown"


def _coloured(verdict: str, rest: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]" + escape(rest)
