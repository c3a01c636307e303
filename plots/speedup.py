"""Speed-up over the best dense kernel, over context, a panel per batch."""

from __future__ import annotations

from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..suites.core.looks import GREY, TITLES, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import best_dense_of, caption, title
from .data import FigureSet, NotDrawn, points
from .registry import figure
from .style import LIMIT_DASHES, curve_panels, draw_line, finish, legend_line, legend_lines

COLUMN = "speedup_vs_best_dense"
STAGE_LINES = {"total": "-", "total_amortised": (0, (2, 1))}
STAGE_NAMES = {"total": "step alone", "total_amortised": "with rectification"}

Line = tuple[Variant, str, Look]
"""A variant, the stage whose speed-up is drawn, and how."""


@figure("speedup", suite="micro")
def speedup(figures: FigureSet) -> Figure:
    """One decode step (`total`) of every sparse method against the best dense one, and what the floors allow."""
    lines = [(variant, "total", look) for variant, look in figures.looks.items() if not variant.is_dense]
    return draw_speedups(figures, {"": lines}, "speed-up of a decode step")


@figure("speedup-amortised", suite="micro")
def speedup_amortised(figures: FigureSet) -> Figure:
    """ReSA with its rectification paid for (`total_amortised`, dashed), beside the step alone (`total`, solid).

    Further forms of it (its steps in one kernel) have panels of their own.
    """
    figures.need_curve("total_amortised")
    groups: dict[str, list[Line]] = {}
    for method, variants in figures.forms().items():
        name = f", {TITLES.get(method, method)}" if groups else ""
        groups[name] = [
            (variant, stage, Look(figures.looks[variant].colour, figures.looks[variant].marker, dashes))
            for variant in variants
            for stage, dashes in STAGE_LINES.items()
        ]
    return draw_speedups(figures, groups, "speed-up with rectification")


def draw_speedups(figures: FigureSet, groups: dict[str, list[Line]], what: str) -> Figure:
    """A panel a batch and group of lines; groups by what their panels' titles say of them."""
    figures.need_curve()
    groups = {name: [line for line in lines if _rows(figures, line)] for name, lines in groups.items()}
    groups = {name: lines for name, lines in groups.items() if lines}
    if not groups:
        raise NotDrawn(f"no sparse row has {COLUMN}: was a dense method measured in the same cases?")
    rows = [row for lines in groups.values() for line in lines for row in _rows(figures, line)]
    batches, contexts = sorted({row.batch for row in rows}), sorted({row.context for row in rows})
    limited = [v for v in figures.resa() if any(r.stage == "total" and r.floor_speedup for r in figures.lines[v])]
    titles = [f"batch {batch}{name}" for name, batch in product(groups, batches)]
    fig, axes = curve_panels(titles, contexts, "speed-up, log scale")
    for ax, (lines, batch) in zip(axes, product(groups.values(), batches), strict=True):
        ax.axhline(1.0, color="black", linewidth=0.8)
        for variant in limited:
            limit = Look(figures.looks[variant].colour, "", LIMIT_DASHES)
            draw_line(ax, points(figures.lines[variant], "total", batch, "floor_speedup"), "floor_speedup", limit)
        for variant, stage, look in lines:
            draw_line(ax, points(figures.lines[variant], stage, batch, COLUMN), COLUMN, look)
    _ratio_axis(axes[0])
    legend = _legend(rows, [line for lines in groups.values() for line in lines])
    if limited:
        legend.append(legend_line(Look(GREY, "", LIMIT_DASHES), "what ReSA's floor allows"))
    heading = title(figures, f"{what} over the best dense kernel")
    return finish(fig, heading, legend, caption(figures, rows, best_dense_of(rows)))


def _rows(figures: FigureSet, line: Line) -> list[Row]:
    return [row for row in figures.lines[line[0]] if row.stage == line[1] and row.speedup_vs_best_dense]


def _legend(rows: list[Row], lines: list[Line]) -> list[Line2D]:
    styles = {variant: look for variant, _, look in lines}
    stages = sorted({stage for _, stage, _ in lines})
    if len(stages) > 1:  # the line's style stands for the stage, not for the method
        styles = {variant: Look(look.colour, look.marker) for variant, look in styles.items()}
    legend = legend_lines(styles, rows)
    if len(stages) > 1:
        legend += [legend_line(Look(GREY, "", STAGE_LINES[stage]), STAGE_NAMES[stage]) for stage in stages]
    return legend


def _ratio_axis(ax: Axes) -> None:
    ax.set_yscale("log", base=2)
    low, high = ax.get_ylim()
    spread = high / low
    subs = (1.0, 1.125, 1.25, 1.5, 1.75) if spread < 3 else (1.0, 1.5) if spread < 16 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(base=2, subs=subs))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
