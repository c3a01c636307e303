"""The tables a lossless run ends with: tokens per second and accepted drafts by draft length, texts compared."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.rows import Row
from ..micro.table import label, number, speedup
from .replay import ACCEPTANCE, REPLAYED

BARS = " ▁▂▃▄▅▆▇█"


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """The method variant, with the active ratio where a run has several."""
    ratios = {r.active_ratio for r in rows if r.active_ratio is not None}
    return label(row) + (f" r{row.active_ratio:g}" if len(ratios) > 1 and row.active_ratio is not None else "")


def histogram(rows: Sequence[Row]) -> str:
    """Shares of rounds by accepted drafts, 0 to m, as bars as high as the largest share."""
    shares = [r.value or 0.0 for r in sorted(rows, key=lambda r: r.step or 0)]
    top = max(shares, default=0.0)
    return "".join(BARS[round(share / top * (len(BARS) - 1))] for share in shares) if top else ""


def texts(rows: Sequence[Row]) -> str:
    """`all dense's`, or how many are, and what a one-row kernel says."""
    values = {r.metric: r.value for r in rows}
    equal = values.get("equal_tokens")
    if equal is None:
        return ""
    words = ["all equal" if equal == 1 else f"{equal:.0%} equal, first apart after {values['first_divergence']:.0f}"]
    if values.get("equal_tokens_one_row") is not None:
        words.append(f"{values['equal_tokens_one_row']:.0%} of one-row steps'")
    return ", ".join(words)


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: dense methods and lossless decoding in the order measured."""
    mine = [r for r in rows if r.case == case]
    replayed = [r for r in mine if r.selection_pattern == "replayed"]
    first = mine[0]
    what = "acceptance REPLAYED, synthetic caches" if replayed else f"{first.batch} stretches of text"
    table = Table(title=f"{case}: {first.weight_dtype} weights, {what}", title_justify="left")
    accepted = "accepted (replayed)" if replayed else "accepted a round"
    last = "floor allows" if replayed else "texts"  # random weights have no text, texts of any length no floor
    for name in ("method", "tokens/s", "ms a token", "vs best dense", accepted, "0 .. m", last):
        table.add_column(name, justify="left" if name in ("method", "0 .. m", "texts") else "right")
    for row in (r for r in mine if r.stage == "total"):
        name = name_of(row, mine)
        if not row.timed:
            table.add_row(f"[red]{name}: {row.status}[/]" if row.status != "skipped" else f"{name}: skipped")
            continue
        facts = [r for r in mine if r.stage == "text" and name_of(r, mine) == name]
        shares = [r for r in facts if r.metric in (ACCEPTANCE, REPLAYED)]
        best = row.best_dense == row.method
        table.add_row(
            f"[bold]{name}[/] (best dense)" if best else name,
            f"{row.tokens_per_s:.1f}",
            number(row.mean_us, ".2f", 1e-3),
            speedup(row.speedup_vs_best_dense),
            number(row.accepted_length, ".2f"),
            histogram(shares),
            number(row.floor_speedup, ".2f") + ("x" if row.floor_speedup else "") if replayed else texts(facts),
        )
    return table


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run, and what they rest on."""
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows))
    for source in dict.fromkeys(r.reason for r in rows if r.metric == REPLAYED and r.reason):
        console.print(f"[yellow]replayed:[/] {escape(source)}", highlight=False)
    for status, reason in dict.fromkeys((r.status, r.reason) for r in rows if r.status in ("failed", "oom", "skipped")):
        console.print(f"[red]{status}[/] {escape(reason or '')}", highlight=False)
