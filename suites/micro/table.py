"""The tables a micro run ends with: every method's step per case, where sparse starts to win, what did not run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..core.report import (
    BreakEven,
    break_even,
    failed_lines,
    filled_table,
    main_launch,
    number,
    print_break_even,
    print_untimed,
    share,
    speedup,
    titled,
)
from ..core.rows import Row
from ..core.spec import Names
from ..core.stages import AMORTISED, WHOLE_STEPS
from .rotation import STATE

COLUMNS = ("method", "median us", "+-%", "GB/s", "of floor", "vs best dense", "amortised", "both at floor")


def whole_steps(rows: Sequence[Row]) -> list[Row]:
    """Cold `total` rows of the main launch; a method that cannot be captured shows its eager row."""
    cold = [r for r in rows if r.timed and r.stage == "total" and r.cache_state == "cold"]
    launch = main_launch(rows)
    of_launch = [r for r in cold if r.launch == launch]
    shown = {(r.case, r.variant) for r in of_launch}
    return of_launch + [r for r in cold if r.launch != launch and (r.case, r.variant) not in shown]


def case_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table:
    """One case: a line per method, fastest first."""
    names = names or Names(rows)
    of_case = [r for r in rows if r.case == case]
    steps = [r for r in whole_steps(rows) if r.case == case]
    amortised = {r.variant: r for r in of_case if r.timed and r.stage == AMORTISED}
    launch = main_launch(rows)
    rotating = {r.variant: r for r in of_case if r.timed and r.stage == "total" and r.cache_state == STATE}
    columns = [*COLUMNS[:6], "in rotation", *COLUMNS[6:]] if rotating else COLUMNS
    where = "portable torch path on a CPU, " if any((r.device or "").startswith("CPU") for r in of_case) else ""
    lines: list[Sequence[str]] = []
    for row in sorted(steps, key=lambda r: r.median_us or math.inf):
        assert row.median_us
        width = ((row.ci_high_us or 0) - (row.ci_low_us or 0)) / 2 / row.median_us
        rectified = amortised.get(row.variant)
        lines.append((
            titled(row, names, [] if row.launch == launch else [str(row.launch)]),
            f"{row.median_us:.1f}",
            f"{100 * width:.1f}",
            number(row.gbps, ".0f"),
            share(row.floor_fraction),
            speedup(row.speedup_vs_best_dense),
            *([_in_rotation(rotating.get(row.variant))] if rotating else []),
            speedup(rectified.speedup_vs_best_dense if rectified else None),
            number(row.floor_speedup, ".2f", unit="x"),
        ))  # fmt: skip
    table = filled_table(f"{case}: one decode step of attention ({where}cold, {launch})", columns, lines)
    failed_lines(table, of_case, names)
    return table


def _in_rotation(row: Row | None) -> str:
    """Microseconds and the ratio to the best dense method's; empty without a row."""
    return f"{row.median_us:.1f} {speedup(row.speedup_vs_best_dense)}".strip() if row else ""


def crossings(rows: Sequence[Row]) -> dict[tuple[str, ...], BreakEven]:
    """By model, batch and method: the context from which its step beats the best dense one, on random data, cold.

    Of a method that rectifies, with rectification's share in the step.
    """
    names, launch = Names(rows), main_launch(rows)
    sparse = [
        r for r in rows
        if r.timed and r.stage in WHOLE_STEPS and r.cache_state == "cold" and r.launch == launch
        and r.selection_pattern == "random" and r.block_size is not None
    ]  # fmt: skip
    rectified = {(r.case, r.variant) for r in sparse if r.stage == AMORTISED}
    whole = [r for r in sparse if r.stage == AMORTISED or (r.case, r.variant) not in rectified]
    return break_even(whole, lambda row: (model_of(row), str(row.batch), names[row]))


def model_of(row: Row) -> str:
    """The model, and how its K and V are stored where not as the queries."""
    return f"{row.model}, K/V in {row.kv_dtype}" if row.kv_dtype else row.model


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run."""
    names = Names(rows)
    for case in dict.fromkeys(r.case for r in rows):
        console.print(case_table(case, rows, names))
    title = "break-even context (with rectification's share, against the best dense method)"
    print_break_even(title, ("model", "batch", "method"), crossings(rows), console)
    print_untimed(rows, console)
