"""The roofline: TFLOP/s reached over the FLOPs a byte, under the rates that were measured on the same device."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..suites.core.looks import BLACK, Look
from ..suites.core.rows import Row
from .caption import caption, title
from .curves import MOST, Curve, draw_curves, full_names, label_end, name_of
from .data import FigureSet, NotDrawn, best_dense, points, ranked
from .registry import figure
from .style import WIDTHS_IN, finish, log_axis, ring, tokens

RECTIFY_SIZE = 7.0
STEP_SIZE = 4.5


@figure("roofline", suite="micro")
def roofline(figures: FigureSet) -> Figure:
    """A point a method, context and batch: work is what the step must do (`bytes`, `flops`), time its median.

    The slope is the measured read rate, the flat part the measured rate of the matrix units, where rows carry it.
    Whole steps are small markers, rectifications (many tokens share a read) large ones.
    """
    context, batch = max(figures.contexts(), default=0), max(figures.batches(), default=0)
    dense = [rival[0] for n in range(batch, 0, -1) if (rival := best_dense(figures, n, context))][:1]
    drawn: list[Row] = []
    fig = Figure(figsize=(WIDTHS_IN[1] + 1.4, 3.3), layout="constrained")
    ax = fig.subplots()
    for variant in [*dense, *ranked(figures.lines)][:MOST]:
        look = figures.looks[variant]
        for stage, size in (("total", STEP_SIZE), ("rectify", RECTIFY_SIZE)):
            rows = [r for n in figures.batches() for r in points(figures.lines[variant], stage, n, "median_us")]
            rows = [row for row in rows if row.bytes and row.flops]
            xs, ys = [intensity(row) for row in rows], [reached_tflops(row) for row in rows]
            ax.plot(xs, ys, ls="", marker=look.marker, color=look.colour, ms=size, mec="white", mew=0.3, zorder=3)
            for row, x, y in zip(rows, xs, ys, strict=True):
                if row.status == "throttled":
                    ring(ax, x, y)
            drawn += rows
    if not drawn:
        raise NotDrawn("no step has both bytes and FLOPs")
    read_gbps, matrix_tflops = roofs(drawn)
    if read_gbps is None:
        raise NotDrawn("no row has read_ceiling_gbps")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    notes = _roofs(ax, drawn, read_gbps, matrix_tflops)
    log_axis(ax)
    ax.set_xlabel("FLOPs a byte, of the compulsory work")
    ax.set_ylabel("TFLOP/s")
    _name_methods(ax, figures, drawn)
    contexts = sorted({row.context for row in drawn})
    where = f"{tokens(contexts[0])} to {tokens(contexts[-1])} tokens, batch {', '.join(map(str, figures.batches()))}"
    large = "large markers: rectification" if any(row.stage == "rectify" for row in drawn) else ""
    words = caption(figures, drawn, full_names(drawn), where, large, *notes)
    return finish(fig, title(figures, "roofline of attention in a decode step"), words)


def intensity(row: Row) -> float:
    """FLOPs a byte."""
    return (row.flops or 0) / (row.bytes or 1)


def reached_tflops(row: Row) -> float:
    """Of the compulsory FLOPs, in the median time."""
    return (row.flops or 0) / (row.median_us or 1.0) / 1e6


def roofs(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """The measured rates: of reads in GB/s, of the matrix units in TFLOP/s; None where no row tells one.

    Rows of earlier versions have no `matrix_ceiling_tflops`; a floor above that of the bytes gives it.
    """
    reads = [row.read_ceiling_gbps for row in rows if row.read_ceiling_gbps]
    matrix = [row.matrix_ceiling_tflops for row in rows if row.matrix_ceiling_tflops]
    for row in rows:
        if row.floor_us and row.bytes and row.flops and row.read_ceiling_gbps:
            if row.floor_us > 1.02 * row.bytes / row.read_ceiling_gbps / 1e3:
                matrix.append(row.flops / row.floor_us / 1e6)
    return max(reads, default=None), max(matrix, default=None)


def _roofs(ax: Axes, drawn: Sequence[Row], read_gbps: float, matrix_tflops: float | None) -> list[str]:
    """The two ceilings, over somewhat more than the points span; what the caption says of them."""
    low, high = 0.5 * min(map(intensity, drawn)), 2.0 * max(map(intensity, drawn))
    ridge = 1e3 * matrix_tflops / read_gbps if matrix_tflops else high
    high = max(high, min(3 * ridge, 20 * high)) if matrix_tflops else high
    xs = [low, *([ridge] if ridge < high else []), high]
    draw_curves(ax, [Curve("", Look(BLACK, ""), xs, [min(x, ridge) * read_gbps / 1e3 for x in xs])])
    middle = (low * min(ridge, high)) ** 0.5
    ax.annotate(
        f"read: {read_gbps:.0f} GB/s",
        (middle, middle * read_gbps / 1e3),
        (-4, 4),
        textcoords="offset points",
        ha="right",
    )
    if matrix_tflops and ridge < high:
        at = ((ridge * high) ** 0.5, matrix_tflops)
        ax.annotate(f"matrix units: {matrix_tflops:.4g} TFLOP/s", at, (0, 4), textcoords="offset points", ha="center")
    return ["ceilings: measured on the device", "" if matrix_tflops else "no row carries the rate of the matrix units"]


def _name_methods(ax: Axes, figures: FigureSet, drawn: Sequence[Row]) -> None:
    """A name right of the panel for each method, tied to its rightmost step."""
    for method in dict.fromkeys(row.method for row in drawn):
        rows = [row for row in drawn if row.method == method and row.stage == "total"]
        if rows:
            last = max(rows, key=lambda row: (row.context, row.batch))
            look = figures.looks[last.variant]
            label_end(ax, Curve(name_of(last.variant), look, [intensity(last)], [reached_tflops(last)]))
