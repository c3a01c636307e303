"""How far chips of one kind differ: the same rows of several runs, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .report import new_table
from .results import read_rows
from .rows import Row, identity
from .stages import WHOLE_STEPS


@dataclass(frozen=True, slots=True)
class Spread:
    """Over the rows of one kind: the largest time of a row over its smallest, less 1.

    Attributes:
        count: rows that at least two runs have.
        median, most_of_90, worst: of those ratios; 90 % of the rows differ by `most_of_90` at most.
        worst_row: in words.
    """

    suite: str
    kind: str
    count: int
    median: float
    most_of_90: float
    worst: float
    worst_row: str


def kind_of(row: Row) -> str:
    """What is compared with what: whole steps, their stages, or what the host launches."""
    if row.launch == "eager":
        return "launched by the host"
    return "whole steps" if row.stage in WHOLE_STEPS else "stages"


def spreads(runs: Sequence[Iterable[Row]]) -> list[Spread]:
    """The spread of each suite's rows by kind, in the order in which the first run has them.

    Raises:
        ValueError: fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"got {len(runs)} run, expected two at least")
    times: dict[tuple[object, ...], list[tuple[Row, float]]] = {}
    for rows in runs:
        latest = {identity(row): row for row in rows if row.timed and row.time_us}
        for key, row in latest.items():
            times.setdefault(key, []).append((row, row.time_us or 0.0))
    groups: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for measured in times.values():
        if len(measured) > 1:
            row, values = measured[0][0], [value for _, value in measured]
            groups.setdefault((row.suite, kind_of(row)), []).append((max(values) / min(values) - 1, row))
    kinds = []
    for (suite, kind), ratios in groups.items():
        ordered = sorted(ratio for ratio, _ in ratios)
        worst, row = max(ratios, key=lambda pair: pair[0])
        most = ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))]
        words = f"{row.case} {row.method} {row.stage}"
        kinds.append(Spread(suite, kind, len(ordered), statistics.median(ordered), most, worst, words))
    return kinds


def read_run(folder: Path) -> list[Row]:
    """All rows of a published folder. Raises ValueError for a folder without any."""
    files = sorted((*folder.glob("*.jsonl.gz"), *folder.glob("*.jsonl")))
    if not files:
        raise ValueError(f"{folder}: holds no *.jsonl.gz; give the folders of two reference runs")
    return [row for path in files for row in read_rows(path)]


def spread_table(kinds: Iterable[Spread]) -> Table:
    """A line for each suite and kind."""
    title = "the same row on different chips: its largest time over its smallest"
    columns = ("suite", "rows of", "count", "median", "90 % within", "worst", "which")
    table = new_table(title, columns, ("suite", "rows of", "which"))
    for spread in kinds:
        shares = (f"{100 * value:.1f} %" for value in (spread.median, spread.most_of_90, spread.worst))
        table.add_row(spread.suite, spread.kind, str(spread.count), *shares, spread.worst_row)
    return table


def print_spread(folders: Sequence[Path], console: Console) -> None:
    """Raises ValueError for fewer than two folders, or one without rows."""
    console.print(spread_table(spreads([read_run(folder) for folder in folders])))
