"""The tables a lossless run ends with: tokens per second and accepted drafts by draft length, texts compared."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.report import new_table, number, print_untimed, speedup, titled
from ..core.rows import FAILED, Row
from ..core.spec import Names
from .replay import ACCEPTANCE, REPLAYED

BARS = " ▁▂▃▄▅▆▇█"


def histogram(rows: Sequence[Row]) -> str:
    """Shares of rounds by accepted drafts, 0 to m, as bars as high as the largest share."""
    shares = [r.value or 0.0 for r in sorted(rows, key=lambda r: r.step or 0)]
    top = max(shares, default=0.0)
    return "".join(BARS[round(share / top * (len(BARS) - 1))] for share in shares) if top else ""


def texts(rows: Sequence[Row]) -> str:
    """`all equal`, or how many are, and how many are what one-row steps write."""
    values = {r.metric: r.value for r in rows}
    equal = values.get("equal_tokens")
    if equal is None:
        return ""
    words = ["all equal" if equal == 1 else f"{equal:.0%} equal, first apart after {values['first_divergence']:.0f}"]
    if values.get("equal_tokens_one_row") is not None:
        words.append(f"{values['equal_tokens_one_row']:.0%} of one-row steps'")
    return ", ".join(words)


def case_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table:
    """One case: dense methods and lossless decoding in the order measured."""
    names = names or Names(rows)
    of_case = [r for r in rows if r.case == case]
    replayed = any(r.selection_pattern == "replayed" for r in of_case)
    first = of_case[0]
    what = "acceptance REPLAYED, synthetic caches" if replayed else f"{first.batch} stretches of text"
    accepted = "accepted (replayed)" if replayed else "accepted a round"
    last = "both at floor" if replayed else "texts"  # random weights have no text, texts of any length no floor
    columns = ("method", "tokens/s", "ms a token", "vs best dense", accepted, "0 .. m", last)
    table = new_table(f"{case}: {first.weight_dtype} weights, {what}", columns, ("method", "0 .. m", "texts"))
    for row in (r for r in of_case if r.stage == "total"):
        if not row.timed:
            name = f"{escape(names[row])}: {row.status}"
            table.add_row(f"[red]{name}[/]" if row.status in FAILED else name)
            continue
        facts = [r for r in of_case if r.stage == "text" and r.variant == row.variant]
        shares = [r for r in facts if r.metric in (ACCEPTANCE, REPLAYED)]
        table.add_row(
            titled(row, names),
            number(row.tokens_per_s, ".1f"),
            number(row.mean_us, ".2f", 1e-3),
            speedup(row.speedup_vs_best_dense),
            number(row.accepted_length, ".2f"),
            histogram(shares),
            number(row.floor_speedup, ".2f", unit="x") if replayed else texts(facts),
        )
    return table


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run, and what they rest on."""
    names = Names(rows)
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows, names))
    for source in dict.fromkeys(r.reason for r in rows if r.metric == REPLAYED and r.reason):
        console.print(f"[yellow]replayed:[/] {escape(source)}", highlight=False)
    print_untimed(rows, console)
