"""The table a quality run ends with: each method against dense, averaged over stretches of steps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.analysis import error_over_texts, excess_of, level_rows, mean_of, selection_of
from ..core.metrics import Metric, metrics
from ..core.report import new_table
from ..core.rows import Row
from ..core.spec import Names, is_dense


def columns_of(rows: Sequence[Row]) -> list[Metric]:
    """The metrics that have a column: those with a heading that a row has."""
    present = {row.metric for row in rows}
    return [metric for metric in metrics() if metric.heading and metric.name in present]


def case_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table:
    """One case: dense decoding, then a line a method in the order measured; means over all steps.

    KL also over their second half, and that over f = 1. The excess in brackets is a share of what sparse steps alone
    have over the same level.
    """
    names = names or Names(rows)
    of_case = sorted((r for r in rows if r.case == case), key=lambda r: not is_dense(r.method))
    half = max((r.step or 0 for r in of_case), default=0) // 2
    shown = columns_of(of_case)
    headings = [h for m in shown for h in (m.heading, *((f"after {half}", "over f = 1") if m.name == "kl" else ()))]
    table = new_table(
        f"{case}: against dense decoding fed the same tokens", ("method", *headings), caption_justify="left",
        caption=f"over f = 1: KL after step {half} over that of ReSA at f = 1 with the same selection, a sparse step's "
        "own error; in brackets the share that is left of sparse steps' own excess; ±: one standard error over texts",
    )  # fmt: skip
    for variant in dict.fromkeys(r.variant for r in of_case):
        own = [r for r in of_case if r.variant == variant]
        name = escape(names.of(variant))
        if not any(r.measured for r in own):
            table.add_row(f"[red]{name}: {own[0].status}[/] {escape(own[0].reason or '')}")
            continue
        cells = []
        for metric in shown:
            cells.append(metric.cell(mean_of(own, metric.name)) + _error(own, metric))
            if metric.name == "kl":
                cells += [metric.cell(mean_of(own, "kl", half)), _excess(of_case, own, half)]
        table.add_row(name, *cells)
    return table


def _error(own: Sequence[Row], metric: Metric) -> str:
    """` ± 0.0100` of KL; the other metrics' errors are in the rows."""
    error = error_over_texts(own, metric.name) if metric.name == "kl" else None
    return "" if error is None else f" ± {metric.cell(error)}"


def _excess(rows: Sequence[Row], own: Sequence[Row], after: int) -> str:
    """`+0.0350 (58 %)`: over the level, and as a share of sparse steps' own excess."""
    over = excess_of(rows, own, after)
    if over is None:
        return ""
    selection = selection_of(level_rows(rows, own[0])[0])
    sparse = [r for r in rows if r.method == "sparse" and selection_of(r) == selection]
    whole = excess_of(rows, sparse, after) if sparse else None
    return f"{over:+.4f}" + (f" ({over / whole:4.0%})" if whole and whole > 0 else "")


def print_report(rows: Sequence[Row], console: Console) -> None:
    """A table for each case that has a value, or that failed."""
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows))
