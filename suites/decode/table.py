"""The tables a decode run ends with: tokens per second per case and method, where a step's time goes, what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from ...kernels.fused.method import STAGE as FUSED
from ..core.rows import Row
from ..core.speedups import crossing
from ..micro.table import label, main_launch, number, speedup

PARTS = (
    "append", "append+score", "score", "select", "score+select", "attend", "attend+merge", "merge",
    FUSED, "rectify", "project", "ffn", "rectify+project+ffn", "head", "sample", "other", "gap",
)  # fmt: skip
HEADINGS = {FUSED: "one kernel"}  # of parts with a long name


def steps(rows: Sequence[Row]) -> list[Row]:
    """Whole steps with a time."""
    return [r for r in rows if r.suite == "decode" and r.stage == "total" and r.tokens_per_s]


def case_table(case: str, rows: Sequence[Row]) -> Table:
    """One case: a line per method and launch, most tokens per second first."""
    mine = [r for r in rows if r.case == case]
    first = mine[0]
    cache = ", one K/V cache shared by all layers" if first.shared_kv else ""
    prompt = "synthetic context" if first.selection_pattern == "synthetic" else "text prompt"
    idle = f"; the idle GPU takes {first.idle_watts:.0f} W" if first.idle_watts else ""
    title = f"{case}: decoding with {first.weight_dtype} weights, {prompt}{cache}{idle}"
    table = Table(title=title, title_justify="left")
    names = ("method", "tokens/s", "ms a token", "p50", "p99", "of floor", "vs best dense", "floor allows", "J a token")
    for name in (*names, "peak GB"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in sorted(steps(mine), key=lambda r: -(r.tokens_per_s or 0)):
        notes = [] if row.launch == main_launch(mine) else [str(row.launch)]
        notes += ["fixed length"] if row.fixed_length else []
        notes += ["[yellow]throttled[/]"] if row.status == "throttled" else []
        name = label(row) + (f" ({', '.join(notes)})" if notes else "")
        best = row.best_dense == row.method and row.launch == main_launch(mine)
        table.add_row(
            f"[bold]{name}[/] (best dense)" if best else name,
            f"{row.tokens_per_s:.1f}",
            number(row.mean_us, ".2f", 1e-3),
            number(row.p50_us, ".2f", 1e-3),
            number(row.p99_us, ".2f", 1e-3),
            number(row.floor_fraction, ".0f", 100) + (" %" if row.floor_fraction else ""),
            speedup(row.speedup_vs_best_dense),
            number(row.floor_speedup, ".2f") + ("x" if row.floor_speedup else ""),
            number(row.joules_per_token, ".2f"),
            number(row.peak_memory_bytes, ".1f", 1e-9),
        )
    for row in mine:
        if row.status in ("failed", "oom"):
            table.add_row(f"[red]{label(row)} {row.stage}: {row.status}[/]")
    return table


def breakdown_table(case: str, rows: Sequence[Row]) -> Table | None:
    """Where each method's step goes, in microseconds; the parts sum to the mean step."""
    mine = [r for r in rows if r.case == case and r.timed and r.stage in PARTS]
    if not mine:
        return None
    present = [part for part in PARTS if any(r.stage == part for r in mine)]
    table = Table(title=f"{case}: a step's time in microseconds (sums to the mean step)", title_justify="left")
    table.add_column("method")
    for part in present:
        table.add_column(HEADINGS.get(part, part), justify="right")
    for name in dict.fromkeys(label(r) for r in mine):
        parts = {r.stage: r.mean_us for r in mine if label(r) == name}
        table.add_row(name, *(number(parts.get(part), ".0f") for part in present))
    return table


def texts(rows: Sequence[Row]) -> list[Panel]:
    """What the dense method and ReSA wrote after the longest prompt, to be set side by side."""
    written = [r for r in rows if r.text]
    if not written:
        return []
    longest = max(r.context for r in written)
    shown: dict[str, Panel] = {}
    for row in written:
        kind = "dense" if row.best_dense == row.method else "resa" if row.method.startswith("resa") else None
        if row.context == longest and kind and kind not in shown:
            title = f"{label(row)} after {longest} tokens"
            shown[kind] = Panel(escape(row.text or ""), title=title, width=68)
    return list(shown.values())


@dataclass(frozen=True, slots=True)
class Curve:
    """Cases that differ in their context alone, and one method."""

    model: str
    weights: str
    batch: int
    shared_kv: bool
    method: str


def break_even(rows: Sequence[Row]) -> dict[Curve, tuple[float, bool]]:
    """Context from which a method decodes faster than the best dense one, and whether it may be shorter still.

    Log-linear between the neighbouring contexts; the shortest measured, marked, if it wins throughout; absent if it
    never does. Needs two contexts.
    """
    points: dict[Curve, list[tuple[int, float]]] = {}
    for r in steps(rows):
        if r.block_size is not None and r.speedup_vs_best_dense and r.launch == main_launch(rows):
            curve = Curve(r.model, str(r.weight_dtype), r.batch, bool(r.shared_kv), label(r))
            points.setdefault(curve, []).append((r.context, r.speedup_vs_best_dense))
    found = {}
    for curve, measured in points.items():
        if len(measured) > 1 and (point := crossing(measured)):
            found[curve] = (point, point <= min(c for c, _ in measured))
    return found


def drift_table(rows: Sequence[Row]) -> Table:
    """What each rectification said about the sparse steps before it (`--drift`)."""
    table = Table(title="drift by the end of each period, read off its rectification", title_justify="left")
    for name in ("case", "method", "tokens", "KL, nats", "same top token", "K/V change", "most in layer"):
        table.add_column(name, justify="left" if name in ("case", "method") else "right")
    found = [r for r in rows if r.metric and r.value is not None]
    for case, name, step in dict.fromkeys((r.case, label(r), r.step) for r in found):
        mine = [r for r in found if (r.case, label(r), r.step) == (case, name, step)]
        values = {r.metric: r.value or 0.0 for r in mine if r.layer is None}
        layers = {r.layer: r.value or 0.0 for r in mine if r.layer is not None}
        mean, most = sum(layers.values()) / len(layers), max(layers, key=layers.__getitem__)
        numbers = (f"{values['kl']:.4f}", f"{values['top1']:.0%}", f"{mean:.2%}", f"{most} ({layers[most]:.2%})")
        table.add_row(case, name, str(step), *numbers)
    return table


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run."""
    for case in dict.fromkeys(r.case for r in rows):
        mine = [r for r in rows if r.case == case]
        if steps(mine) or any(r.status in ("failed", "oom") for r in mine):
            console.print(case_table(case, rows))
            parts = breakdown_table(case, rows)
            if parts is not None:
                console.print(parts)
    points = break_even(rows)
    if points:
        table = Table(title="break-even context (whole steps, against the best dense method)", title_justify="left")
        for name in ("model", "weights", "batch", "method", "tokens"):
            table.add_column(name)
        for curve, (tokens, at_most) in sorted(points.items(), key=str):
            batch = f"{curve.batch}, shared K/V" if curve.shared_kv else str(curve.batch)
            table.add_row(curve.model, curve.weights, batch, curve.method, f"{'<= ' if at_most else ''}{tokens:.0f}")
        console.print(table)
    if any(r.metric for r in rows):
        console.print(drift_table(rows))
    panels = texts(rows)
    if panels:
        console.print(Columns(panels))
    skipped = {(r.case, label(r), r.reason) for r in rows if r.status == "skipped"}
    if skipped:
        table = Table(title="skipped", title_justify="left")
        for name in ("case", "method", "reason"):
            table.add_column(name, overflow="fold")
        for case, name, reason in sorted(skipped, key=str):
            table.add_row(case, name, escape(reason or ""))
        console.print(table)
    for r in rows:
        if r.status in ("failed", "oom"):
            console.print(f"[red]{r.status}[/] {r.case} {label(r)} {r.stage}: {escape(r.reason or '')}")
