"""Two result files against each other: what got faster or slower, what broke, and how well two runs agree."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .core.results import read_rows
from .core.rows import FAILED, IDENTITY, Row, identity
from .core.spec import Names

VERDICTS = ("slower", "faster", "unclear", "same")
COLOURS = {"slower": "red", "faster": "green", "unclear": "yellow", "same": "dim", "newly failed": "red"}


@dataclass(frozen=True, slots=True)
class Pair:
    """One measurement in both files, timed in both."""

    a: Row
    b: Row
    ratio: float  # B's median over A's: above 1, B is slower
    verdict: str  # one of VERDICTS

    def within(self, relative: float) -> bool:
        """Whether the medians differ by at most this share of A's."""
        return _within(self.a, self.b, relative)


@dataclass(frozen=True, slots=True)
class Comparison:
    tolerance: float  # relative
    pairs: tuple[Pair, ...]
    newly_failed: tuple[Row, ...]  # rows of B that failed or ran out of memory, where A had none that did
    status_changes: tuple[tuple[Row, Row], ...]  # in both files, with another status; throttled or not counts too
    only_a: tuple[Row, ...]
    only_b: tuple[Row, ...]
    devices_a: tuple[str, ...]
    devices_b: tuple[str, ...]

    def count(self, verdict: str) -> int:
        return sum(pair.verdict == verdict for pair in self.pairs)

    def share_within(self, relative: float) -> float:
        """Share of the pairs whose medians differ by at most this. Needs at least one pair."""
        return sum(pair.within(relative) for pair in self.pairs) / len(self.pairs)

    @property
    def exit_code(self) -> int:
        """1 if a whole step got slower or anything newly failed, else 2 if nothing was comparable, else 0.

        Stages of a few microseconds, and eager rows, which time the host, move between runs of one commit: they are
        listed, but decide only where there are no cold whole steps as graphs (then all whole steps do, or all rows).
        """
        if self.newly_failed or any(pair.verdict == "slower" for pair in self.deciding):
            return 1
        return 0 if self.pairs else 2

    @property
    def deciding(self) -> tuple[Pair, ...]:
        """The pairs that decide the exit status."""
        whole = tuple(pair for pair in self.pairs if pair.a.stage in ("total", "total_amortised"))
        graphs = tuple(pair for pair in whole if (pair.a.launch, pair.a.cache_state) == ("graph", "cold"))
        return graphs or whole or self.pairs


def verdict(a: Row, b: Row, tolerance: float) -> str:
    """What two timed rows say, by the 95 % intervals of their medians.

    "faster" or "slower" (B than A): the intervals share no point, and the medians differ by more than the tolerance.
    "same": the medians differ by no more than the tolerance, and each interval's half-width is within it too.
    "unclear": anything else, a missing interval included.
    """
    if a.ci_low_us is None or a.ci_high_us is None or b.ci_low_us is None or b.ci_high_us is None:
        return "unclear"
    if _within(a, b, tolerance):
        return "same" if _narrow(a, tolerance) and _narrow(b, tolerance) else "unclear"
    if b.ci_low_us > a.ci_high_us:
        return "slower"
    return "faster" if b.ci_high_us < a.ci_low_us else "unclear"


def compare(a: Iterable[Row], b: Iterable[Row], tolerance: float = 0.02) -> Comparison:
    """Pair the rows of two runs by their identity; of a row that a file has twice, the later counts.

    Args:
        a: the earlier run, or the reference.
        b: the later run, or the one in question.
        tolerance: relative difference of two medians that does not matter, such as 0.02.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: got {tolerance}, expected a relative difference from 0 to below 1, such as 0.02")
    in_a, in_b = {identity(row): row for row in a}, {identity(row): row for row in b}
    both = [(row, in_b[key]) for key, row in in_a.items() if key in in_b]
    only_b = tuple(row for key, row in in_b.items() if key not in in_a)
    failed = [y for x, y in both if y.status in FAILED and x.status not in FAILED]
    failed += [row for row in only_b if row.status in FAILED and any(_stands_for(row, x) for x in in_a.values())]
    return Comparison(
        tolerance=tolerance,
        pairs=tuple(Pair(x, y, _ratio(x, y), verdict(x, y, tolerance)) for x, y in both if _comparable(x, y)),
        newly_failed=tuple(failed),
        status_changes=tuple((x, y) for x, y in both if x.status != y.status),
        only_a=tuple(row for key, row in in_a.items() if key not in in_b),
        only_b=only_b,
        devices_a=_devices(in_a.values()),
        devices_b=_devices(in_b.values()),
    )


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
        table.add_row(*map(escape, _names(row, names)), *run, "", "", "", _coloured("newly failed", f": {row.reason}"))
    for pair in changed:
        run = [] if one_run else [_run(pair.a)]
        throttled = " (throttled)" if "throttled" in (pair.a.status, pair.b.status) else ""
        numbers = (f"{pair.a.time_us:.2f}", f"{pair.b.time_us:.2f}", f"{pair.ratio:.3f}")
        table.add_row(*map(escape, _names(pair.a, names)), *run, *numbers, _coloured(pair.verdict, throttled))
    return table


def compare_files(path_a: Path, path_b: Path, tolerance: float = 0.02, console: Console | None = None) -> int:
    """Compare two files and print what changed. Returns the exit status.

    0: nothing got worse. 1: a whole step is slower, or something newly failed. 2: nothing was comparable.

    Raises:
        OSError, ValueError: a file that cannot be read, or holds what is no result row.
    """
    console = console or Console()
    comparison = compare(read_rows(path_a), read_rows(path_b), tolerance)
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


def _ratio(a: Row, b: Row) -> float:
    if not a.time_us or not b.time_us or min(a.time_us, b.time_us) < 0:
        raise ValueError(
            f"times must be above 0, got {a.time_us} and {b.time_us} us ({' '.join(_names(a, Names([a])))})"
        )
    return b.time_us / a.time_us


def _within(a: Row, b: Row, relative: float) -> bool:
    # Not by the ratio: 102 / 100 - 1 is a little more than 0.02.
    return abs((b.time_us or 0.0) - (a.time_us or 0.0)) <= relative * (a.time_us or 0.0)


def _narrow(row: Row, relative: float) -> bool:
    """Whether half the interval is within this share of the time."""
    return ((row.ci_high_us or 0.0) - (row.ci_low_us or 0.0)) / 2 <= relative * (row.time_us or 0.0)


def _comparable(a: Row, b: Row) -> bool:
    """Timed in both. The stages of a decode step have no interval (a trace of few steps, and the remainder)."""
    return a.timed and b.timed and (a.suite != "decode" or a.stage == "total")


def _stands_for(broken: Row, row: Row) -> bool:
    """Whether a failed row is what has become of `row`: it may stand for all stages, and leave settings empty."""
    settings = (name for name in IDENTITY if name != "stage" and getattr(broken, name) is not None)
    return row.status not in FAILED and all(getattr(row, name) == getattr(broken, name) for name in settings)


def _devices(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(sorted({row.device for row in rows if row.device}))


def _names(row: Row, names: Names) -> tuple[str, str, str]:
    """Case, method with its settings, and stage."""
    return row.case, names[row], row.stage


def _run(row: Row) -> str:
    return " ".join(word for word in (row.cache_state, row.launch) if word) or "run unknown"


def _coloured(verdict: str, rest: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]" + escape(rest)
