"""The table a quality run ends with: each method against dense, averaged over stretches of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ...kernels import SparseConfig, get_method, registered
from ..cases import MethodSpec
from ..rows import Row
from .cases import LEVEL

RESA = ("resa", "resa-torch")


def label(row: Row, ratios: bool = False) -> str:
    """The method variant of a row as a person reads it; f is named, since it is what is compared here."""
    if row.method not in registered():
        return row.method
    settings = {n: getattr(row, n) for n in get_method(row.method).uses if getattr(row, n) is not None}
    name = MethodSpec(row.method, SparseConfig(**settings), row.dense_layers or None).label
    name = name if row.rectify_every is None or f"f{row.rectify_every}" in name else f"{name} f{row.rectify_every}"
    return f"{name} r{row.active_ratio:g}" if ratios and row.active_ratio is not None else name


def mean(rows: Sequence[Row], metric: str, after: int = 0) -> float | None:
    """The mean of a metric over the steps after `after`, stretches weighted by their samples."""
    found = [
        r for r in rows if r.metric == metric and r.layer is None and (r.step or 0) > after and r.value is not None
    ]
    weights = sum(r.n_samples or 1 for r in found)
    return sum((r.value or 0.0) * (r.n_samples or 1) for r in found) / weights if found else None


def excess(rows: Sequence[Row], method: Sequence[Row], after: int) -> float | None:
    """KL over that of ReSA at f = 1 with the same ratio: a sparse step's own error, which no rectification removes."""
    ratio = method[0].active_ratio
    level = [r for r in rows if r.method in RESA and r.rectify_every == LEVEL and r.active_ratio == ratio]
    mine, floor = mean(method, "kl", after), mean(level, "kl", after)
    return None if mine is None or floor is None else mine - floor


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: a line a method in the order measured, over all steps and over their second half.

    Of methods with a window also the error of K and V once the window is over, and the effective KV exposure.
    """
    mine = [r for r in rows if r.case == case]
    half = max((r.step or 0 for r in mine), default=0) // 2
    ratios = len({r.active_ratio for r in mine if r.active_ratio is not None}) > 1
    table = Table(title=f"{case}: against dense decoding fed the same tokens", title_justify="left")
    names = ["method", "KL, nats", f"after step {half}", "over f = 1", "same top token", "perplexity", "K/V error"]
    windows = any(r.metric == "kv_exposure" for r in mine)
    for name in names + (["repaired", "KV seen"] if windows else []):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name in dict.fromkeys(label(r, ratios) for r in mine):
        found = [r for r in mine if label(r, ratios) == name]
        loss = mean(found, "loss")
        if loss is None:
            table.add_row(f"[red]{name}: {found[0].status}[/] {found[0].reason or ''}")
            continue
        kl, late, over = mean(found, "kl"), mean(found, "kl", half), excess(mine, found, half)
        same, error = mean(found, "top1"), mean(found, "kv_error")
        repaired, seen = mean(found, "kv_error_repaired"), mean(found, "kv_exposure")
        more = ("" if repaired is None else f"{repaired:.4f}", "" if seen is None else f"{seen:.2f}x")
        table.add_row(
            name,
            "" if kl is None else f"{kl:.4f}",
            "" if late is None else f"{late:.4f}",
            "" if over is None else f"{over:+.4f}",
            "" if same is None else f"{same:.1%}",
            f"{math.exp(loss):.3f}",
            "" if error is None else f"{error:.4f}",
            *(more if windows else ()),
        )
    return table


def print_report(rows: Sequence[Row], console: Console) -> None:
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows))
