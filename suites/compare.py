"""Two result files against each other: what got faster or slower, what broke, and how well two runs agree."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .core.report import counted
from .core.results import read_rows
from .core.rows import Row
from .core.spec import Names
from .core.stages import WHOLE_STEPS
from .core.verdict import VERDICTS, Comparison, Pair, compare

COLOURS = {"slower": "red", "faster": "green", "unclear": "yellow", "same": "dim", "newly failed": "red"}


def render(comparison: Comparison) -> Table:
    """What changed: newly failed rows, then slower, faster and unclear ones, the largest difference first."""
    changed = _changed(comparison.pairs)
    shown = [*comparison.newly_failed, *(pair.a for pair in changed)]
    names = Names([*comparison.newly_failed, *(pair.a for pair in comparison.pairs)])
    runs = {_run(row) for row in shown}
    one_run = f", {runs.pop()}" if len(runs) == 1 else ""  # said once, not in every line
    table = Table(
        title=f"B against A, tolerance {100 * comparison.tolerance:.10g}%{one_run}",
        title_justify="left",
        box=box.SIMPLE,
    )
    for name in ("case", "method", "stage") if one_run else ("case", "method", "stage", "run"):
        table.add_column(name, overflow="fold")
    for name in ("A, us", "B, us", "B / A"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for row in comparison.newly_failed:
        run = [] if one_run else [_run(row)]
        table.add_row(*map(escape, _names(row, names)), *run, "", "", "", _coloured("newly failed", f": {row.reason}"))
    for pair in changed:
        run = [] if one_run else [_run(pair.a)]
        throttled = " (throttled)" if "throttled" in (pair.a.status, pair.b.status) else ""
        numbers = (f"{pair.a.time_us:.2f}", f"{pair.b.time_us:.2f}", f"{pair.ratio:.3f}")
        table.add_row(*map(escape, _names(pair.a, names)), *run, *numbers, _coloured(pair.verdict, throttled))
    return table


def compare_files(
    path_a: Path, path_b: Path, tolerance: float = 0.02, console: Console | None = None, as_markdown: bool = False
) -> int:
    """Compare two files and print what changed, for a terminal or as Markdown. Returns the exit status.

    0: nothing got worse. 1: a whole step is slower, or something newly failed. 2: nothing was comparable.

    Raises:
        OSError, ValueError: a file that cannot be read, or holds what is no result row.
    """
    console = console or Console()
    comparison = compare(read_rows(path_a), read_rows(path_b), tolerance)
    if as_markdown:
        console.print(markdown(comparison), markup=False, highlight=False, soft_wrap=True)
        return comparison.exit_code
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


def headline(comparison: Comparison) -> str:
    """One line: the worst that the deciding rows say, and of how many."""
    deciding, tolerance = comparison.deciding, f"{100 * comparison.tolerance:.10g}%"
    if comparison.newly_failed:
        return f"**FAILED**: {counted(len(comparison.newly_failed), 'row')} of B newly failed"
    if not deciding:
        return "**UNCLEAR**: no row is timed in both files"
    rows = "whole steps" if all(pair.a.stage in WHOLE_STEPS for pair in deciding) else "rows"
    for verdict in ("slower", "faster"):
        moved = [abs(pair.ratio - 1) for pair in deciding if pair.verdict == verdict]
        if moved:
            most = f"by up to {max(moved):.1%} (tolerance {tolerance})"
            return f"**{verdict.upper()}**: {len(moved)} of {len(deciding)} {rows}, {most}"
    unclear = sum(pair.verdict == "unclear" for pair in deciding)
    if unclear:
        return f"**UNCLEAR**: {unclear} of {len(deciding)} {rows} vary too much to tell {tolerance}"
    return f"**SAME**: {len(deciding)} of {len(deciding)} {rows} within {tolerance}"


def markdown(comparison: Comparison, at_most: int = 100) -> str:
    """A verdict for a pull request: a headline, what changed with 95 % intervals, counts, both runs' provenance.

    Args:
        at_most: rows that a table lists; a comment has a limit. What is left out is counted.
    """
    names = Names([*comparison.newly_failed, *(pair.a for pair in comparison.pairs)])
    changed, deciding = _changed(comparison.pairs), set(map(id, comparison.deciding))
    first = [pair for pair in changed if id(pair) in deciding]
    same = [pair for pair in comparison.deciding if pair.verdict == "same"]
    lines = [f"**FAILED** `{' '.join(_names(row, names))}`: {row.reason}" for row in comparison.newly_failed[:at_most]]
    parts = [headline(comparison), *lines, _markdown_table(first, names, at_most)]
    stages = [pair for pair in changed if id(pair) not in deciding]
    for title, pairs in (("other rows that changed", stages), ("the same", same)):
        if pairs:
            parts.append(f"<details><summary>{len(pairs)} {title}</summary>")
            parts += [_markdown_table(pairs, names, at_most), "</details>"]
    parts.append("\n".join(f"- {line}" for line in [*summary(comparison), *_provenance(comparison)]))
    return "\n\n".join(part for part in parts if part)


def _markdown_table(pairs: Sequence[Pair], names: Names, at_most: int) -> str:
    if not pairs:
        return ""
    lines = ["| case | method | stage | run | A, us | B, us | B / A | verdict |", "|---|---|---|---|--:|--:|--:|---|"]
    for pair in pairs[:at_most]:
        throttled = " (throttled)" if "throttled" in (pair.a.status, pair.b.status) else ""
        cells = [*_names(pair.a, names), _run(pair.a), _interval(pair.a), _interval(pair.b), f"{pair.ratio:.3f}"]
        cells.append(pair.verdict.upper() + throttled)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    left_out = f"\n\n{counted(len(pairs) - at_most, 'row')} more" if len(pairs) > at_most else ""
    return "\n".join(lines) + left_out


def _interval(row: Row) -> str:
    """The time and its 95 % interval, in microseconds."""
    if row.ci_low_us is None or row.ci_high_us is None:
        return f"{row.time_us:.2f}"
    return f"{row.time_us:.2f} ({row.ci_low_us:.2f} to {row.ci_high_us:.2f})"


def _provenance(comparison: Comparison) -> list[str]:
    """What was measured where: a warning where the devices differ, and each side's commits."""
    lines = []
    for name, devices, rows in (
        ("A", comparison.devices_a, [pair.a for pair in comparison.pairs]),
        ("B", comparison.devices_b, [pair.b for pair in comparison.pairs]),
    ):
        commits = {f"{row.commit[:10]}{' (changed since)' if row.dirty else ''}" for row in rows if row.commit}
        lines.append(f"{name}: {', '.join(devices) or 'device unknown'}; {', '.join(sorted(commits)) or 'no commit'}")
    if comparison.devices_a != comparison.devices_b:
        lines.insert(0, "**the devices differ**: times do not compare")
    return lines


def _changed(pairs: Sequence[Pair]) -> list[Pair]:
    """Slower, faster and unclear ones, the largest difference first."""
    changed = (pair for pair in pairs if pair.verdict != "same")
    return sorted(changed, key=lambda pair: (VERDICTS.index(pair.verdict), -abs(pair.ratio - 1)))


def _names(row: Row, names: Names) -> tuple[str, str, str]:
    """Case, method with its settings, and stage."""
    return row.case, names[row], row.stage


def _run(row: Row) -> str:
    return " ".join(word for word in (row.cache_state, row.launch) if word) or "run unknown"


def _coloured(verdict: str, rest: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]" + escape(rest)
