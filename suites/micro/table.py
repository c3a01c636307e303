"""The tables a run ends with: every method's step per case, what was skipped or failed, where sparse starts to win."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...kernels import SparseConfig, get_method, registered
from ..core.rows import Row
from ..core.speedups import crossing
from .cases import MethodSpec


def label(row: Row) -> str:
    """The method variant of a row as a person reads it."""
    if row.method not in registered():  # a file may hold methods that are not here any more
        return row.method
    settings = {n: getattr(row, n) for n in get_method(row.method).uses if getattr(row, n) is not None}
    return MethodSpec(row.method, SparseConfig(**settings), row.dense_layers, row.draft_length).label


def main_launch(rows: Sequence[Row]) -> str:
    """The launch whose times the table shows: graphs where there are any."""
    return "graph" if any(row.launch == "graph" for row in rows) else "eager"


def whole_steps(rows: Sequence[Row]) -> list[Row]:
    """Cold `total` rows of the main launch; a method that cannot be captured shows its eager row."""
    cold = [r for r in rows if r.timed and r.stage == "total" and r.cache_state == "cold"]
    launch = main_launch(rows)
    main = [r for r in cold if r.launch == launch]
    shown = {(r.case, label(r)) for r in main}
    return main + [r for r in cold if r.launch != launch and (r.case, label(r)) not in shown]


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def speedup(value: float | None) -> str:
    if value is None:
        return ""
    return f"[bold green]{value:.2f}x[/]" if value > 1 else f"{value:.2f}x"


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: a line per method, fastest first."""
    mine = [r for r in rows if r.case == case]
    steps = [r for r in whole_steps(rows) if r.case == case]
    amortised = {label(r): r for r in mine if r.timed and r.stage == "total_amortised"}
    launch = main_launch(rows)
    where = "portable torch path on a CPU, " if any((r.device or "").startswith("CPU") for r in mine) else ""
    table = Table(title=f"{case}: one decode step of attention ({where}cold, {launch})", title_justify="left")
    for name in ("method", "median us", "+-%", "GB/s", "of floor", "vs best dense", "amortised", "floor allows"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in sorted(steps, key=lambda r: r.median_us or math.inf):
        assert row.median_us
        width = ((row.ci_high_us or 0) - (row.ci_low_us or 0)) / 2 / row.median_us
        name = label(row) + ("" if row.launch == launch else f" ({row.launch})")
        name += " [yellow](throttled)[/]" if row.status == "throttled" else ""
        best = row.best_dense == row.method
        table.add_row(
            f"[bold]{name}[/] (best dense)" if best else name,
            f"{row.median_us:.1f}",
            f"{100 * width:.1f}",
            number(row.gbps, ".0f"),
            "" if row.floor_fraction is None else f"{100 * row.floor_fraction:.0f} %",
            speedup(row.speedup_vs_best_dense),
            speedup(amortised[label(row)].speedup_vs_best_dense) if label(row) in amortised else "",
            number(row.floor_speedup, ".2f") + ("x" if row.floor_speedup else ""),
        )
    for row in mine:
        if row.status in ("failed", "oom"):
            table.add_row(f"[red]{label(row)} {row.stage}: {row.status}[/]", end_section=False)
    return table


def break_even(rows: Sequence[Row], stage: str = "total") -> dict[tuple[str, int, str], float]:
    """Context from which a sparse method beats the best dense one: (model, batch, variant) to tokens.

    Log-linear between the neighbouring contexts; the shortest context measured if it wins throughout; absent if it
    never does.
    """
    launch = main_launch(rows)
    found: dict[tuple[str, int, str], float] = {}
    groups: dict[tuple[str, int, str], list[tuple[int, float]]] = {}
    for r in rows:
        usable = r.timed and r.stage == stage and r.cache_state == "cold" and r.launch == launch
        if usable and r.selection_pattern == "random" and r.speedup_vs_best_dense and r.block_size is not None:
            groups.setdefault((r.model, r.batch, label(r)), []).append((r.context, r.speedup_vs_best_dense))
    for key, points in groups.items():
        if point := crossing(points):
            found[key] = point
    return found


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run."""
    cases = list(dict.fromkeys(r.case for r in rows))
    for case in cases:
        console.print(case_table(case, rows))
    points = break_even(rows)
    measured: dict[tuple[str, int, str], set[int]] = {}
    for r in rows:
        if r.timed:
            measured.setdefault((r.model, r.batch, label(r)), set()).add(r.context)
    curves = {key: value for key, value in points.items() if len(measured[key]) > 1}
    if curves:
        table = Table(title="break-even context (one step, against the best dense method)", title_justify="left")
        for name in ("model", "batch", "method", "tokens"):
            table.add_column(name, justify="right" if name in ("batch", "tokens") else "left")
        for (model, batch, name), tokens in sorted(curves.items()):
            least = min(measured[model, batch, name])
            table.add_row(model, str(batch), name, f"<= {least}" if tokens <= least else f"{tokens:.0f}")
        console.print(table)
    skipped = {(label(r), r.reason) for r in rows if r.status == "skipped"}
    if skipped:
        table = Table(title="skipped", title_justify="left")
        table.add_column("method")
        table.add_column("reason", overflow="fold")
        for name, reason in sorted(skipped, key=str):
            table.add_row(name, escape(reason or ""))
        console.print(table)
    for r in rows:
        if r.status in ("failed", "oom"):
            reason = escape(r.reason or "")
            console.print(f"[red]{r.status}[/] {r.case} {label(r)} {r.stage}: {reason}", highlight=False)
