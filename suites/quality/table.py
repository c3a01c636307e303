"""The table a quality run ends with: each method against dense, averaged over stretches of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ...kernels import SparseConfig, get_method, registered
from ..core.rows import Row
from ..micro.cases import MethodSpec
from .cases import LEVEL

RESA = ("resa", "resa-torch", "resa-fused")


SELECTION = (
    "block_size", "active_ratio", "min_blocks", "budget_tokens", "gqa_policy", "summary_kind", "summary_dtype",
    "spread_weight", "pinned_blocks",
)  # fmt: skip
"""Columns that say how blocks are chosen: what a method shares with the level that its excess is measured from."""


def label(row: Row, ratios: bool = False) -> str:
    """The method variant of a row as a person reads it; f is named, since it is what is compared here."""
    if row.method not in registered():
        return row.method
    settings = {n: getattr(row, n) for n in get_method(row.method).uses if getattr(row, n) is not None}
    name = MethodSpec(row.method, SparseConfig(**settings)).label
    every = f"f{row.rectify_every}"
    name = name if row.rectify_every is None or every in name.split() else f"{name} {every}"
    name = f"{name} {row.dense_layers} dense" if row.dense_layers else name
    return f"{name} r{row.active_ratio:g}" if ratios and row.active_ratio is not None else name


def mean(rows: Sequence[Row], metric: str, after: int = 0) -> float | None:
    """The mean of a metric over the steps after `after`, stretches weighted by their samples."""
    found = [
        r for r in rows if r.metric == metric and r.layer is None and (r.step or 0) > after and r.value is not None
    ]
    weights = sum(r.n_samples or 1 for r in found)
    return sum((r.value or 0.0) * (r.n_samples or 1) for r in found) / weights if found else None


def recall(rows: Sequence[Row]) -> float | None:
    """The share of attention mass in the blocks read, mean over layers and heads."""
    found = [r.value for r in rows if r.metric == "recall" and r.value is not None]
    return sum(found) / len(found) if found else None


def level_of(rows: Sequence[Row], row: Row) -> list[Row]:
    """Rows of ReSA at f = 1 with the selection of `row`: a sparse step's own error, which no rectification removes.

    Where several methods have it, the row's own.
    """
    mine = [getattr(row, name) for name in SELECTION]
    found = [r for r in rows if r.rectify_every == LEVEL and [getattr(r, name) for name in SELECTION] == mine]
    method = next((name for name in (row.method, *RESA) if name in RESA and any(r.method == name for r in found)), None)
    return [r for r in found if r.method == method]


def excess(rows: Sequence[Row], method: Sequence[Row], after: int) -> float | None:
    """KL over that of ReSA at f = 1 with the same selection; None where that was not measured."""
    mine, floor = mean(method, "kl", after), mean(level_of(rows, method[0]), "kl", after)
    return None if mine is None or floor is None else mine - floor


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: a line a method in the order measured, over all steps and over their second half.

    Of methods with a window also the error of K and V once the window is over, and the effective KV exposure.
    The excess in brackets is a share of what sparse steps alone have over the same level.
    """
    mine = [r for r in rows if r.case == case]
    half = max((r.step or 0 for r in mine), default=0) // 2
    ratios = len({r.active_ratio for r in mine if r.active_ratio is not None}) > 1
    table = Table(
        title=f"{case}: against dense decoding fed the same tokens", title_justify="left", caption_justify="left",
        caption=f"over f = 1: KL after step {half} over that of ReSA at f = 1 with the same selection, a sparse step's "
        "own error; in brackets the share that is left of sparse steps' own excess",
    )  # fmt: skip
    table.add_column("method")
    columns = ("KL, nats", f"after {half}", "over f = 1", "recall", "same top", "perplexity", "K/V error")
    windows = any(r.metric == "kv_exposure" for r in mine)
    for name in (*columns, *(("repaired", "KV seen") if windows else ())):
        table.add_column(name, justify="right")
    names = {id(r): label(r, ratios) for r in mine}
    for name in dict.fromkeys(names.values()):
        found = [r for r in mine if names[id(r)] == name]
        loss = mean(found, "loss")
        if loss is None:
            table.add_row(f"[red]{name}: {found[0].status}[/] {found[0].reason or ''}")
            continue
        repaired, seen = mean(found, "kv_error_repaired"), mean(found, "kv_exposure")
        more = (_number(repaired, ".4f"), "" if seen is None else f"{seen:.2f}x")
        table.add_row(
            name,
            _number(mean(found, "kl"), ".4f"),
            _number(mean(found, "kl", half), ".4f"),
            _excess(mine, found, half),
            _number(recall(found), ".1%"),
            _number(mean(found, "top1"), ".1%"),
            f"{math.exp(loss):.3f}",
            _number(mean(found, "kv_error"), ".4f"),
            *(more if windows else ()),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _excess(rows: Sequence[Row], method: Sequence[Row], after: int) -> str:
    """`+0.0350 (58 %)`: over the level, and as a share of sparse steps' own excess."""
    over = excess(rows, method, after)
    if over is None:
        return ""
    level = level_of(rows, method[0])[0]
    sparse = [r for r in rows if r.method == "sparse" and all(getattr(r, n) == getattr(level, n) for n in SELECTION)]
    whole = excess(rows, sparse, after) if sparse else None
    share = f" ({over / whole:4.0%})" if whole and whole > 0 else ""
    return f"{over:+.4f}{share}"


def print_report(rows: Sequence[Row], console: Console) -> None:
    """A table for each case that has a value, or that failed."""
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows))
