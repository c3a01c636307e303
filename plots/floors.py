"""How near a kernel comes to what the memory (or the matrix units) allow: the share of its floor, over context."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..suites.core.rows import Row
from .caption import caption, counted, title
from .data import FigureSet, NotDrawn, points
from .registry import figure
from .style import DOUBLE_IN, context_axis, draw_line, finish, legend_lines

STAGES = ("attend", "total")


@figure("floors", suite="micro")
def floors(figures: FigureSet) -> Figure:
    """`floor_fraction` of attention alone and of the whole step: 1 is the measured ceiling. A row of panels a batch.

    A cold row above 1 has wrong bytes or a warm cache. It is drawn where it is, and the caption counts it.
    """
    figures.need_curve()
    fused = {stage: _named(figures, stage) for stage in STAGES}
    stages = [stage for stage in STAGES if fused[stage]]
    if not stages:
        raise NotDrawn("no row has floor_fraction")
    batches, contexts = figures.batches(), figures.contexts()
    fig = Figure(figsize=(DOUBLE_IN, 1.75 * len(batches)), layout="constrained")
    grid = fig.subplots(len(batches), len(stages), sharex=True, sharey=True, squeeze=False)
    drawn: list[Row] = []
    styles = figures.looks
    for i, batch in enumerate(batches):
        for j, stage in enumerate(stages):
            ax = grid[i, j]
            ax.axhline(1.0, color="black", linewidth=0.8)
            for variant, rows in figures.lines.items():
                reached = [row for name in fused[stage] for row in points(rows, name, batch, "floor_fraction")]
                reached.sort(key=lambda row: row.context)
                draw_line(ax, reached, "floor_fraction", styles[variant])
                drawn += reached
            context_axis(ax, contexts)
            if i == 0:
                ax.set_title("attention alone" if stage == "attend" else "whole step")
        grid[i, 0].set_ylabel(f"batch {batch}\nfloor / median")
    for ax in grid[-1]:
        ax.set_xlabel("context, tokens")
    grid[0, 0].set_ylim(0, max(1.05, *(1.05 * (row.floor_fraction or 0.0) for row in drawn)))

    ceilings = sorted({round(row.read_ceiling_gbps) for row in drawn if row.read_ceiling_gbps})
    above = sum((row.floor_fraction or 0.0) > 1 for row in drawn)
    measured = " to ".join(str(gbps) for gbps in dict.fromkeys(ceilings[:1] + ceilings[-1:]))
    notes = (
        f"measured read ceiling {measured} GB/s" if ceilings else "",
        f"{counted(above, 'row')} above 1: wrong bytes or a warm cache" if above else "",
    )
    heading = title(figures, "share of the floor reached")
    return finish(fig, heading, legend_lines(styles, drawn), caption(figures, drawn, *notes))


def _named(figures: FigureSet, stage: str) -> list[str]:
    """The names under which a stage occurs, alone or fused ("attend+merge")."""
    return sorted({r.stage for r in figures.rows if stage in r.stage.split("+") and r.floor_fraction is not None})
