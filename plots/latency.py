"""Time of one decode step over context, a panel per batch, every method."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..suites.core.looks import GREY, Look
from ..suites.core.rows import Row
from .caption import caption, title
from .data import FigureSet, points
from .registry import figure
from .style import LIMIT_DASHES, context_axis, draw_line, finish, legend_line, legend_lines, panels

FLOOR = Look(GREY, "", LIMIT_DASHES)


@figure("latency", suite="micro")
def latency(figures: FigureSet) -> Figure:
    """Median of `total` in microseconds with its q20 to q80 band, log-log, and the dense floor."""
    figures.need_curve()
    batches, contexts = figures.batches(), figures.contexts()
    fig, axes, left = panels(len(batches), height_in=2.5)
    drawn: list[Row] = []
    styles = figures.looks
    has_floor = False
    for ax, batch in zip(axes, batches, strict=True):
        ax.set_yscale("log")
        floor = _dense_floor(figures, batch)
        has_floor |= bool(floor)
        draw_line(ax, floor, "floor_us", FLOOR, marker=False)
        for variant, rows in figures.lines.items():
            style = styles[variant]
            steps = points(rows, "total", batch, "median_us")
            band = [row for row in steps if row.q20_us is not None and row.q80_us is not None]
            ax.fill_between(
                [row.context for row in band],
                [row.q20_us or 0.0 for row in band],
                [row.q80_us or 0.0 for row in band],
                color=style.colour,
                alpha=0.25,
                linewidth=0,
            )
            draw_line(ax, steps, "median_us", style)
            drawn += steps
        ax.set_title(f"batch {batch}")
        ax.set_xlabel("context, tokens")
        context_axis(ax, contexts)
        ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for ax in left:
        ax.set_ylabel("decode step, µs")

    legend = legend_lines(styles, drawn)
    if has_floor:
        legend.append(legend_line(FLOOR, "dense floor"))
    note = "median, band q20 to q80"
    return finish(fig, title(figures, "attention time of a decode step"), legend, caption(figures, drawn, note))


def _dense_floor(figures: FigureSet, batch: int) -> list[Row]:
    """At each context the dense row with the lowest floor."""
    lowest: dict[int, Row] = {}
    for variant, rows in figures.lines.items():
        for row in points(rows, "total", batch, "floor_us") if variant.is_dense else ():
            if row.context not in lowest or (row.floor_us or 0.0) < (lowest[row.context].floor_us or 0.0):
                lowest[row.context] = row
    return [lowest[context] for context in sorted(lowest)]
