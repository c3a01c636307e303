"""The tables a GSR run ends with: both phases of each method and the time to the answer; steps by batch and context."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.rows import Row
from ..micro.table import label, number, speedup

STEPS = ("candidates_step", "refine_step")


def _of(rows: Sequence[Row], name: str, stage: str) -> Row | None:
    return next((r for r in rows if label(r) == name and r.stage == stage and r.timed), None)


def _value(row: Row | None, name: str) -> float | None:
    return None if row is None else getattr(row, name)


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: a line per method, the earliest answer first."""
    mine = [r for r in rows if r.case == case]
    first = mine[0]
    prefills = [
        f"{r.context} tokens {r.value:.2f} s" for r in mine if r.stage == "prefill" and label(r) == label(first)
    ]
    how = "every token decoded" if first.selection_pattern == "prompt" else "steps timed at points, integrated"
    prefilled = f"; prefills (in the time to the answer of all): {', '.join(prefills)}" if prefills else ""
    title = f"{case}: {first.batch} candidates, {first.weight_dtype} weights, {how}{prefilled}"
    table = Table(title=title, title_justify="left")
    names = (
        "method",
        "prompt",
        "A tokens/s",
        "A s",
        "vs dense",
        "B ms a token",
        "B s",
        "vs dense",
        "answer s",
        "vs dense",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("method", "prompt") else "right")
    done = [r for r in mine if r.stage == "answer" and r.timed]
    for row in sorted(done, key=lambda r: r.value or 0.0):
        name = label(row)
        one, two = _of(mine, name, "candidates"), _of(mine, name, "refine")
        best = row.best_dense == row.method
        table.add_row(
            f"[bold]{name}[/] (best dense)" if best else name,
            "shared" if row.paged else "copied",
            number(_value(one, "tokens_per_s"), ".1f"),
            number(_value(one, "value"), ".1f"),
            speedup(_value(one, "speedup_vs_best_dense")),
            number(_value(two, "mean_us"), ".2f", 1e-3),
            number(_value(two, "value"), ".1f"),
            speedup(_value(two, "speedup_vs_best_dense")),
            number(row.value, ".1f"),
            speedup(row.speedup_vs_best_dense),
        )
    for row in mine:
        if row.status in ("failed", "oom"):
            table.add_row(f"[red]{label(row)}: {row.status}[/]")
    return table


def steps_table(case: str, rows: Sequence[Row]) -> Table | None:
    """Milliseconds a step by candidates at work and context, a column a method."""
    mine = [r for r in rows if r.case == case and r.stage in STEPS and r.mean_us]
    if not mine:
        return None
    names = list(dict.fromkeys(label(r) for r in mine))
    table = Table(title=f"{case}: milliseconds a step, rectification amortised in", title_justify="left")
    for name in ("phase", "at work", "context", *names):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for stage, batch, context in dict.fromkeys((r.stage, r.batch, r.context) for r in mine):
        here = {label(r): r.mean_us for r in mine if (r.stage, r.batch, r.context) == (stage, batch, context)}
        phase = "A" if stage == STEPS[0] else "B"
        table.add_row(phase, str(batch), str(context), *(number(here.get(name), ".2f", 1e-3) for name in names))
    return table


def print_report(rows: Sequence[Row], console: Console) -> None:
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows))
        steps = steps_table(case, rows)
        if steps is not None:
            console.print(steps)
    unmeasured = dict.fromkeys((label(r), r.status, r.reason) for r in rows if r.status in ("failed", "oom", "skipped"))
    for name, status, reason in unmeasured:
        console.print(f"[red]{status}[/] {name}: {escape(reason or '')}", highlight=False)
