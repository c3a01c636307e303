"""The tables that a tasks run ends with: dense decoding's own score first, every method below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.analysis import share_error
from ..core.report import new_table, number
from ..core.rows import Row
from ..core.spec import Names, is_dense
from .registry import task_kinds


def pick(rows: Sequence[Row], metric: str, *, depth: float | None = None, step: int | None = None) -> Row | None:
    """The row of a metric, of one depth (None: of all together), at one step where several have it."""
    for row in rows:
        if row.metric == metric and row.depth == depth and row.value is not None and step in (None, row.step):
            return row
    return None


def _share(row: Row | None) -> str:
    if row is None or row.value is None:
        return ""
    error = max(row.value_error or 0.0, share_error(row.value, row.n_samples or 1))
    return f"{row.value:.1%} ± {error:.1%}"


def _value(row: Row | None) -> str:
    return number(row.value if row is not None else None, ".1f")


def _samples(row: Row | None) -> str:
    return "" if row is None else str(row.n_samples)


def _against(row: Row | None, dense: Row | None) -> str:
    if row is None or dense is None or row.value is None or dense.value is None:
        return ""
    return f"{row.value:.2f} ({row.value - dense.value:+.2f})"


def _right(row: Row | None) -> str:
    """Right answers of so many."""
    if row is None or row.value is None:
        return ""
    return f"{round(row.value * (row.n_samples or 1))}/{row.n_samples}"


def case_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table:
    """One case: dense decoding, then a line a method in the order measured."""
    names = names or Names(rows)
    of_case = sorted((r for r in rows if r.case == case), key=lambda r: not is_dense(r.method))
    task = of_case[0].selection_pattern or ""
    lines: dict[str, list[Row]] = {}
    for row in of_case:
        lines.setdefault(names[row] + (" in chunks" if row.stage == "chunk" else ""), []).append(row)
    dense = next(iter(lines.values()))
    depths = sorted({r.depth for r in of_case if r.depth is not None})
    steps = max((r.step or 0 for r in of_case), default=0)
    never, scores = f"never in {steps}", ("of dense's", "log-prob. (over dense)")
    kinds = task_kinds()
    title = kinds[task].title if task in kinds else task
    columns: tuple[str, ...] = ("score", *scores, "questions")
    if task == "divergence":
        columns = ("mean", "median", never, "prompts")
    elif depths:
        columns = (*(f"at {d:g}" for d in depths), "all", *scores)
    title = title if task == "divergence" else f"{title}; ± one standard error"
    table = new_table(f"{case}: {title}", ("method", *columns))
    for name, own in lines.items():
        if not any(row.measured for row in own):
            table.add_row(f"[red]{escape(name)}: {own[0].status}[/] {escape(own[0].reason or '')}")
            continue
        hits = pick(own, task)
        if task == "divergence":
            kept = pick(own, "survival", step=steps)
            cells = [_value(hits), _value(pick(own, "divergence_median")), _share(kept)]
            cells = [*(["its own", "", ""] if own is dense else cells), _samples(hits)]
        else:
            kept = pick(own, f"{task}_kept") if own is not dense else None
            cells = [_share(hits), _share(kept), _against(pick(own, f"{task}_logp"), pick(dense, f"{task}_logp"))]
            by_depth = [_right(pick(own, task, depth=d)) for d in depths]
            cells = [*by_depth, *cells] if depths else [*cells, _samples(hits)]
        table.add_row(escape(name), *cells)
    return table


def print_report(rows: Sequence[Row], console: Console) -> None:
    """A table for each case, by task."""
    order = {task: i for i, task in enumerate(task_kinds())}
    rows = sorted(rows, key=lambda r: order.get(r.selection_pattern or "", len(order)))
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows))
