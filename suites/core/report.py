"""What the tables of all suites share: cells, the launch that is shown, what was skipped or failed, break-even."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .rows import FAILED, Row
from .spec import Names


def new_table(title: str, columns: Iterable[str], left: Sequence[str] = ("case", "method"), **options: Any) -> Table:
    """A table whose columns stand to the right, those of `left` to the left."""
    table = Table(title=escape(title), title_justify="left", **options)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def filled_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table of lines, without the columns in which none of them has a cell."""
    filled = [i for i in range(len(columns)) if not lines or any(line[i] for line in lines)]
    table = new_table(title, [columns[i] for i in filled])
    for line in lines:
        table.add_row(*(line[i] for i in filled))
    return table


def number(value: float | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    """A cell; empty for no value."""
    return "" if value is None else format(value * scale, form) + unit


def counted(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def speedup(value: float | None) -> str:
    """A ratio, green above 1."""
    if value is None:
        return ""
    return f"[bold green]{value:.2f}x[/]" if value > 1 else f"{value:.2f}x"


def share(value: float | None, places: int = 0) -> str:
    """Per cent."""
    return "" if value is None else f"{100 * value:.{places}f} %"


def titled(row: Row, names: Names, notes: Iterable[str] = ()) -> str:
    """A method's name with notes; bold where it is the best dense one; throttling and other users are said."""
    words = [*notes, *(["[yellow]throttled[/]"] if row.status == "throttled" else [])]
    words += ["[yellow]others ran[/]"] if row.contention else []
    name = escape(names[row]) + (f" ({', '.join(words)})" if words else "")
    return f"[bold]{name}[/] (best dense)" if row.best_dense == row.method else name


def main_launch(rows: Iterable[Row]) -> str:
    """The launch whose times tables show: graphs where there are any."""
    return "graph" if any(row.launch == "graph" for row in rows) else "eager"


def failed_lines(table: Table, rows: Iterable[Row], names: Names) -> None:
    """A line for each row that failed."""
    for row in rows:
        if row.status in FAILED:
            table.add_row(f"[red]{escape(names[row])} {row.stage}: {row.status}[/]")


def print_untimed(rows: Sequence[Row], console: Console) -> None:
    """Who else used the device, what was skipped, by reason, and what failed, with its reason: a report's end."""
    names = Names(rows)
    for contention in dict.fromkeys(row.contention for row in rows if row.contention):
        console.print(f"[yellow]others ran:[/] {escape(contention)}", highlight=False)
    skipped: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.status == "skipped":
            skipped.setdefault((names[row], row.reason or ""), set()).add(row.case)
    if skipped:
        table = new_table("skipped", ("method", "cases", "reason"), ("method", "reason"))
        for (name, why), cases in sorted(skipped.items()):
            table.add_row(escape(name), str(len(cases)), escape(why))
        console.print(table)
    failures = ((r.status, r.case, names[r], r.stage, r.reason) for r in rows if r.status in FAILED)
    for status, case, name, stage, reason in dict.fromkeys(failures):
        console.print(f"[red]{status}[/] {escape(f'{case} {name} {stage}: {reason}')}", highlight=False)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The context from which a method beats the best dense one; `at_most`: it won at the shortest measured."""

    tokens: float
    at_most: bool

    def __str__(self) -> str:
        return self.words()

    def words(self, scale: int = 1, unit: str = "") -> str:
        """`5124`, `<= 4096`; with a scale of 1024 and the unit K `5K`."""
        return f"{'<= ' if self.at_most else ''}{self.tokens / scale:.0f}{unit}"


def crossing(points: Sequence[tuple[int, float]]) -> float | None:
    """The context from which a speed-up stays above 1, from (context, speed-up) pairs.

    Log-linear between the neighbouring contexts; the shortest one if it wins throughout; None if it never does.
    """
    points = sorted(points)
    wins = [i for i in range(len(points)) if all(s > 1 for _, s in points[i:])]
    if not wins:
        return None
    i = wins[0]
    if i == 0:
        return float(points[0][0])
    (c0, s0), (c1, s1) = points[i - 1], points[i]
    return math.exp(math.log(c0) + (1 - s0) / (s1 - s0) * (math.log(c1) - math.log(c0)))


def break_even(rows: Iterable[Row], curve: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], BreakEven]:
    """By curve (cases that differ in their context alone, and a method); absent if it never wins.

    Args:
        rows: sparse whole steps with a speed-up. A curve needs two contexts.
    """
    points: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for row in rows:
        if row.speedup_vs_best_dense:
            points.setdefault(curve(row), []).append((row.context, row.speedup_vs_best_dense))
    crossings = {}
    for key, measured in points.items():
        if len({context for context, _ in measured}) > 1 and (tokens := crossing(measured)):
            crossings[key] = BreakEven(tokens, tokens <= min(context for context, _ in measured))
    return crossings


def print_break_even(
    title: str, columns: Sequence[str], crossings: dict[tuple[str, ...], BreakEven], console: Console
) -> None:
    """A table of `break_even`, a line a curve; nothing where there is none."""
    if not crossings:
        return
    table = new_table(title, (*columns, "tokens"), columns)
    for key, point in sorted(crossings.items()):
        table.add_row(*map(escape, key), str(point))
    console.print(table)
