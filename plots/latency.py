"""Time of one decode step over context, a panel per batch, every method."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..suites.core.looks import GREY, Look
from ..suites.core.rows import Row
from .caption import caption, title
from .data import FigureSet, points
from .registry import figure
from .style import LIMIT_DASHES, curve_panels, draw_line, finish, legend_line, legend_lines

FLOOR = Look(GREY, "", LIMIT_DASHES)


@figure("latency", suite="micro")
def latency(figures: FigureSet) -> Figure:
    """Median of `total` in microseconds with its q20 to q80 band, log-log, and the dense floor."""
    figures.need_curve()
    batches, styles = figures.batches(), figures.looks
    fig, axes = curve_panels([f"batch {n}" for n in batches], figures.contexts(), "decode step, µs", 2.5)
    drawn: list[Row] = []
    floors: list[Row] = []
    for ax, batch in zip(axes, batches, strict=True):
        ax.set_yscale("log")
        floor = _dense_floor(figures, batch)
        floors += floor
        draw_line(ax, floor, "floor_us", FLOOR)
        for variant, rows in figures.lines.items():
            steps = points(rows, "total", batch, "median_us")
            band = [(row.context, row.q20_us, row.q80_us) for row in steps if row.q20_us and row.q80_us]
            if band:
                xs, lows, highs = zip(*band, strict=True)
                ax.fill_between(xs, lows, highs, color=styles[variant].colour, alpha=0.25, linewidth=0)
            draw_line(ax, steps, "median_us", styles[variant])
            drawn += steps
        ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend = legend_lines(styles, drawn) + ([legend_line(FLOOR, "dense floor")] if floors else [])
    note = "median, band q20 to q80"
    return finish(fig, title(figures, "attention time of a decode step"), legend, caption(figures, drawn, note))


def _dense_floor(figures: FigureSet, batch: int) -> list[Row]:
    """At each context the dense row with the lowest floor."""
    dense = [rows for variant, rows in figures.lines.items() if variant.is_dense]
    floors = [row for rows in dense for row in points(rows, "total", batch, "floor_us")]
    lowest = {row.context: row for row in sorted(floors, key=lambda row: -(row.floor_us or 0.0))}
    return [lowest[context] for context in sorted(lowest)]
