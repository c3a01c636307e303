"""What the profile commands print."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.report import new_table
from .analysis import Section, kernel_frame
from .target import Facts

MAX_GAP = 0.05  # of a replayed step


def _table(columns: Sequence[str], left: Sequence[str]) -> Table:
    return new_table("", columns, left, box=None, pad_edge=False)


def print_sections(parts: Sequence[Section], known: Facts, source: str, console: Console) -> None:
    """Stages of each section side by side, then its kernels."""
    for part in parts:
        what = "replayed" if part.launch == "graph" else "launched from Python"
        count = f"mean of {part.passes}, " if part.passes > 1 else ""
        title = f"{known.case}, {known.label}: one {part.kind}, {what} ({count}{source})"
        console.print(f"\n{title}", style="bold", markup=False, highlight=False)
        table = _table(("stage", "kernels", "us", "share"), ("stage",))
        for name, value in part.stages_us.items():
            here = sum(kernel.stage == name for kernel in part.one_pass) if part.kernels else 0
            table.add_row(escape(name), str(here or ""), f"{value:.1f}", f"{value / part.wall_us:.1%}")
        if part.kernels:
            share = part.gap_us / part.wall_us
            wide = part.launch == "graph" and share > MAX_GAP
            table.add_row("gap", "", f"{part.gap_us:.1f}", f"[red]{share:.1%}[/]" if wide else f"{share:.1%}")
        table.add_row("[bold]wall clock", str(len(part.one_pass) or ""), f"[bold]{part.wall_us:.1f}", "")
        console.print(table)
        notes = []
        if part.kind == "step" and (part.launch == "graph" or not known.graph):
            more = f" ({part.wall_us / known.untraced_us - 1:+.1%} traced)" if part.kernels else ""
            notes.append(f"untraced, by the suite's own clock: {known.untraced_us:.1f} us{more}")
        if part.kernels:
            notes.append(
                f"the host: {part.host_us:.0f} us, {part.call_us:.0f} of them in the calls that launch "
                f"({part.host_us / part.wall_us:.0%} of the device's time)"
            )
        if notes:
            console.print("; ".join(notes), highlight=False)
    idle_us = known.ranges * known.idle_range_us
    console.print(
        f"{known.ranges} ranges a step cost {idle_us:.1f} us while nobody listens: {idle_us / known.eager_us:.2%} of a "
        f"step launched from Python ({known.eager_us:.0f} us), nothing in a replay",
        highlight=False,
    )
    replayed = [part for part in parts if part.launch == "graph"] or list(parts)
    if any(part.kernels for part in replayed):
        console.print("\n[bold]kernels by stage[/] (own durations; with dependent launch they overlap)")
        console.print(_kernel_table(kernel_frame(replayed)))


def _kernel_table(frame: pd.DataFrame) -> Table:
    left = ("", "stage", "kernel")
    table = _table((*left, "a pass", "median us", "total us"), left)
    for line in frame.itertuples():
        count = f"{line.count:g}"
        table.add_row(
            line.kind,
            escape(line.stage),
            escape(str(line.kernel)[:56]),
            count,
            f"{line.median_us:.2f}",
            f"{line.total_us:.1f}",
        )
    return table


def print_counters(frame: pd.DataFrame, console: Console) -> None:
    """A line a launch."""
    console.print("\n[bold]counters[/], one launch each, caches flushed before it")
    left = ("", "stage", "kernel")
    measured = ("us", "read MB", "write MB", "GB/s", "% of DRAM", "L2 hit %", "warps %", "regs", "programs", "stalls")
    table = _table((*left, *measured), left)
    for column in table.columns:
        column.no_wrap = True
    for line in frame.itertuples():
        table.add_row(
            line.kind, escape(line.stage), escape(line.kernel[:24]), f"{line.time_us:.1f}", f"{line.dram_read_mb:.2f}",
            f"{line.dram_write_mb:.2f}", f"{line.gbps:.0f}", f"{line.dram_percent:.0f}", f"{line.l2_hit_percent:.0f}",
            f"{line.occupancy_percent:.0f}", str(line.registers), str(line.programs), escape(line.stalls.split(",")[0]),
        )  # fmt: skip
    console.print(table)


def print_bytes(frame: pd.DataFrame, console: Console) -> None:
    """The byte model's verdicts."""
    console.print("\n[bold]DRAM bytes[/] of one layer's attention beside the compulsory ones")
    table = _table(("stage", "model MB", "DRAM MB", "ratio", ""), ("stage", ""))
    colours = {"agrees": "green", "disagrees": "red", "small": "dim"}
    for line in frame.itertuples():
        verdict = f"[{colours[line.verdict]}]{line.verdict}[/]"
        table.add_row(escape(line.stage), f"{line.model_mb:.3f}", f"{line.dram_mb:.3f}", f"{line.ratio:.3f}", verdict)
    console.print(table)
