"""All variants side by side, one bar each, so that no figure of a few lines hides one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..suites.core.analysis import mean_of, recall_of
from ..suites.core.looks import BLACK, look_of
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import caption, circumstances, title
from .data import FigureSet, NotDrawn, points
from .quality_data import LEVEL_LOOK, QualitySet, error_words, kl_error
from .registry import figure
from .style import SMALL_PT, WIDTHS_IN, finish, names_of, panels, starred, tokens

LEAST = 3  # variants that make a comparison
BAR_IN = 0.155


@figure("methods", suite="micro")
def methods(figures: FigureSet) -> Figure:
    """Median microseconds of a step (`total`) at each batch's longest context, the fastest on top; a tick is its floor.

    A panel a batch. The whisker is q20 to q80.
    """
    shown: dict[int, list[Row]] = {}
    for batch in figures.batches():
        context = max(row.context for row in figures.rows if row.stage == "total" and row.batch == batch)
        rows = [r for own in figures.lines.values() for r in points(own, "total", batch, "median_us")]
        shown[batch] = sorted((r for r in rows if r.context == context), key=lambda row: -(row.median_us or 0.0))
    shown = {batch: rows for batch, rows in shown.items() if len(rows) >= LEAST}
    if not shown:
        raise NotDrawn(f"fewer than {LEAST} variants were timed in one case")
    drawn = [row for rows in shown.values() for row in rows]
    names = names_of(drawn)
    fig, axes, _ = panels(len(shown), 0.5 + BAR_IN * max(map(len, shown.values())), share_y=False, columns=3)
    for ax, (batch, rows) in zip(axes, shown.items(), strict=True):
        times = [row.median_us or 0.0 for row in rows]
        lows, highs = (
            [abs((getattr(r, c) or t) - t) for r, t in zip(rows, times, strict=True)] for c in ("q20_us", "q80_us")
        )
        colours = [look_of(row.method).colour for row in rows]
        _bars(ax, [starred(names[row], [row]) for row in rows], times, colours, "{:.4g}", xerr=[lows, highs])
        floors = [(row.floor_us, place) for place, row in enumerate(rows) if row.floor_us]
        for colour, width in (("white", 2.4), (BLACK, 1.1)):  # seen on black bars, too
            ax.plot([us for us, _ in floors], [place for _, place in floors], "|", color=colour, ms=7, mew=width)
        ax.set_title(f"batch {batch}, {tokens(rows[0].context)}")
        ax.set_xlabel("decode step, µs")
    notes = (
        "bar: median, whisker q20 to q80",
        "black tick: what its floor allows" if any(r.floor_us for r in drawn) else "",
    )
    return finish(fig, title(figures, "attention time of a decode step, all variants"), caption(figures, drawn, *notes))


@figure("quality-methods", suite="quality")
def quality_methods(figures: QualitySet) -> Figure:
    """Mean KL over all steps of every variant, the best on top; beside it its recall where that was measured.

    Each in its method's colour; ReSA at f = 1 with the selection of ReSA's first variant is grey.
    """
    lines = figures.lines
    if len(lines) < LEAST:
        raise NotDrawn(f"{len(lines)} variants are compared in the table as well")
    values = {variant: mean_of(rows, "kl") or 0.0 for variant, rows in lines.items()}
    variants = sorted(values, key=lambda variant: -values[variant])  # the first bar lies lowest
    names = names_of(row for rows in lines.values() for row in rows)
    colours = [_colour(figures, variant) for variant in variants]
    fig = Figure(figsize=(WIDTHS_IN[2], 0.6 + BAR_IN * len(variants)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    errors = [kl_error(lines[variant]) for variant in variants]
    _bars(left, [names.of(v) for v in variants], [values[v] for v in variants], colours, "{:.3f}", xerr=errors)
    for place, (variant, colour) in enumerate(zip(variants, colours, strict=True)):
        share = recall_of(lines[variant])
        if share is not None:
            right.plot(share, place, marker="o", ms=4, color=colour, ls="")
    left.set_xlabel("KL(dense || method), nats a token")
    right.set_xlabel("attention mass in the blocks read")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.tick_params(axis="y", length=0)
    notes = (
        figures.about,
        f"whisker: {error_words(figures.rows)}",
        "grey: ReSA at f = 1, a sparse step's own error" if LEVEL_LOOK in figures.looks.values() else "",
    )
    heading = f"{figures.model}: what each way of choosing and rectifying costs"
    return finish(fig, heading, circumstances(figures.rows, *notes))


def _bars(
    ax: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str], form: str, xerr: Any
) -> None:
    """Bars from below, named, their values beside them."""
    places = range(len(values))
    ax.barh(places, values, 0.72, color=colours, xerr=xerr, error_kw={"elinewidth": 0.6, "ecolor": "#555555"})
    highs = xerr[-1] if isinstance(xerr[0], list) else xerr
    for place, (value, high) in enumerate(zip(values, highs, strict=True)):
        ax.annotate(
            form.format(value),
            (value + high, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL_PT,
        )
    ax.set_yticks(places, names, fontsize=SMALL_PT)
    ax.set_ylim(-0.6, len(values) - 0.4)
    ax.set_xlim(0, 1.14 * max(map(sum, zip(values, highs, strict=True))))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")


def _colour(figures: QualitySet, variant: Variant) -> str:
    return LEVEL_LOOK.colour if figures.looks[variant] == LEVEL_LOOK else look_of(variant.method).colour
