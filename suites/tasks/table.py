"""The tables that a tasks run ends with: dense decoding's own score first, every method below it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ...kernels import SparseConfig, get_method, registered
from ..core.rows import Row
from ..micro.cases import MethodSpec
from .cases import TASKS
from .divergence import share_error


def label(row: Row, ratios: bool = False) -> str:
    """The method variant of a row as a person reads it; f is named, and the ratio where several were measured."""
    if row.method not in registered():
        return row.method
    kind = get_method(row.method)
    if kind.is_dense:
        return f"{row.method} in chunks" if row.stage == "chunk" else row.method
    settings = {n: getattr(row, n) for n in kind.uses if getattr(row, n) is not None}
    name = MethodSpec(row.method, SparseConfig(**settings), row.dense_layers or None).label
    name = name if row.rectify_every is None or f"f{row.rectify_every}" in name else f"{name} f{row.rectify_every}"
    return f"{name} r{row.active_ratio:g}" if ratios and row.active_ratio is not None else name


def is_dense(row: Row) -> bool:
    return row.method in registered() and get_method(row.method).is_dense


def several_ratios(rows: Sequence[Row]) -> bool:
    return len({row.active_ratio for row in rows if row.active_ratio is not None}) > 1


def pick(rows: Sequence[Row], metric: str, *, depth: float | None = None, step: int | None = None) -> Row | None:
    """The row of a metric, of one depth (None: of all together), at one step where several have it."""
    for row in rows:
        if row.metric == metric and row.depth == depth and row.value is not None and step in (None, row.step):
            return row
    return None


def _share(row: Row | None) -> str:
    if row is None or row.value is None:
        return ""
    return f"{row.value:.0%} ± {share_error(row.value, row.n_samples or 1):.0%}"


def _number(row: Row | None, places: int = 1) -> str:
    return "" if row is None or row.value is None else f"{row.value:.{places}f}"


def _against(row: Row | None, dense: Row | None) -> str:
    if row is None or dense is None or row.value is None or dense.value is None:
        return ""
    return f"{row.value:.2f} ({row.value - dense.value:+.2f})"


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: dense decoding, then a line a method in the order measured."""
    mine = sorted((r for r in rows if r.case == case), key=lambda r: not is_dense(r))
    task = mine[0].selection_pattern
    ratios = several_ratios(mine)
    lines: dict[str, list[Row]] = {}
    for row in mine:
        lines.setdefault(label(row, ratios), []).append(row)
    dense = next(iter(lines.values()))
    depths = sorted({r.depth for r in mine if r.depth is not None})
    steps = max((r.step or 0 for r in mine), default=0)
    if task == "divergence":
        title = f"{case}: tokens until the first that dense decoding does not say"
        names = ["mean", "median", f"never in {steps}", "prompts"]
    elif task == "needle":
        title = f"{case}: the number is in the answer; ± one standard error"
        names = [*(f"at {d:g}" for d in depths), "all", "of dense's", "log-prob. (over dense)"]
    else:
        title = f"{case}: values copied exactly; ± one standard error"
        names = ["copied", "of dense's", "log-prob. (over dense)", "questions"]
    table = Table(title=title, title_justify="left")
    for name in ("method", *names):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, found in lines.items():
        if all(row.value is None for row in found):
            table.add_row(f"[red]{name}: {found[0].status}[/] {found[0].reason or ''}")
            continue
        if task == "divergence":
            whole, never = pick(found, "divergence"), pick(found, "survival", step=steps)
            same = whole is not None and found is dense
            count = "" if whole is None else str(whole.n_samples)
            cells = [_number(whole), _number(pick(found, "divergence_median")), _share(never), count]
            cells = ["its own", "", "", count] if same else cells
        else:
            assert task is not None
            hits, kept = pick(found, task), pick(found, f"{task}_kept")
            soft = _against(pick(found, f"{task}_logp"), pick(dense, f"{task}_logp"))
            ours = "" if found is dense else _share(kept)
            if task == "needle":
                cells = [*(_plain(pick(found, "needle", depth=d)) for d in depths), _share(hits), ours, soft]
            else:
                cells = [_share(hits), ours, soft, "" if hits is None else str(hits.n_samples)]
        table.add_row(name, *cells)
    return table


def _plain(row: Row | None) -> str:
    """Right answers of so many."""
    if row is None or row.value is None:
        return ""
    return f"{round(row.value * (row.n_samples or 1))}/{row.n_samples}"


def print_report(rows: Sequence[Row], console: Console) -> None:
    order = {task: i for i, task in enumerate(TASKS)}
    mine = sorted(rows, key=lambda r: order.get(r.selection_pattern or "", len(order)))
    for case in dict.fromkeys(row.case for row in mine):
        console.print(case_table(case, mine))
