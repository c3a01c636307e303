"""Decoding over context: tokens per second, and their ratio to the best dense method's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..suites.core.rows import Row
from .caption import caption, title
from .data import FigureSet, NotDrawn, Variant
from .decode_data import Setting, curves, fastest_dense, left_out, steps, steps_only, usual
from .decode_style import AREA, LIMIT_DASHES, context_ticks, names
from .style import BLACK, GREY, Look, draw_line, finish, legend_line, looks, panels

SPEEDUP = "speedup_vs_best_dense"
LIMIT = Look(GREY, "", LIMIT_DASHES)
FARTHEST = 3.0  # a floor allows at most that many times what was measured, or would flatten the panel
MEAN = "mean over whole periods, rectification included"


def decode_tokens(figures: FigureSet) -> Figure:
    """Tokens per second of all sequences together, a panel a setting, each with its own scale from 0.

    The grey area is what the best dense method reaches; thin dashes are what the floors of that method and of ReSA
    allow, left out of panels that they would flatten. The ratio at the longest context is ReSA over the best dense.
    """
    found = curves(figures)
    fig, axes, left = panels(len(found), 2.0, share_y=False)
    styles = looks(figures.lines)
    main = _main(figures)
    drawn: list[Row] = []
    limited, compared = False, ""
    for ax, (where, able) in zip(axes, found.items(), strict=True):
        dense = fastest_dense(figures, where)
        ax.fill_between(list(dense), [row.tokens_per_s or 0.0 for row in dense.values()], color=AREA, linewidth=0)
        top = max(row.tokens_per_s or 0.0 for variant in able for row in steps(figures, variant, where))
        limited |= _floor_line(ax, dense.values(), BLACK, top)
        for variant in sorted(able, key=lambda variant: variant in main):  # ReSA above the others
            rows = steps(figures, variant, where)
            if variant in main:
                limited |= _floor_line(ax, rows, styles[variant].colour, top)
            draw_line(ax, rows, "tokens_per_s", styles[variant])
            drawn += rows
        _frame(ax, figures, where, able)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ratios = [variant for variant in main if variant in able]
        if ratios and _ratio(ax, dense, steps(figures, ratios[0], where), styles[ratios[0]].colour):
            compared = names(figures.lines)[ratios[0]]
    _name_axes(axes, left, "tokens/s")
    legend: list[Artist] = [Patch(facecolor=AREA, label="best dense")]
    legend += _legend(figures, found, "what the floor allows" if limited else "")
    heading = title(figures, "tokens per second, decoding with the whole model")
    notes = [MEAN, "all sequences of the batch together" if any(where.batch > 1 for where in found) else ""]
    notes += [f"ratio: {compared} over the best dense"] if compared else []
    return finish(fig, heading, legend, caption(steps_only(figures), drawn, *notes, *_lone(figures, found)))


def decode_speedup(figures: FigureSet) -> Figure:
    """Tokens per second over the best dense method's of the same case and run, and what ReSA's floor allows."""
    all_found = curves(figures)
    sparse = {where: [v for v in able if not v.dense] for where, able in curves(figures, SPEEDUP).items()}
    found = {where: able for where, able in sparse.items() if able}
    if not found:
        raise NotDrawn(f"no sparse method has {SPEEDUP}: was a dense one measured in the same cases?")
    fig, axes, left = panels(len(found), 1.9)
    styles = looks(figures.lines)
    main = _main(figures)
    drawn: list[Row] = []
    limited = False
    for ax, (where, able) in zip(axes, found.items(), strict=True):
        ax.axhline(1.0, color="black", linewidth=0.8)
        for variant in sorted(able, key=lambda variant: variant in main):
            limit = steps(figures, variant, where, "floor_speedup") if variant in main else []
            limited |= _thin(ax, [(row.context, row.floor_speedup or 0.0) for row in limit], styles[variant].colour)
            rows = steps(figures, variant, where, SPEEDUP)
            draw_line(ax, rows, SPEEDUP, styles[variant])
            drawn += rows
        _frame(ax, figures, where, able)
    axes[0].set_ylim(bottom=0)
    axes[0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    _name_axes(axes, left, "speed-up")
    rivals = sorted({row.best_dense for row in drawn if row.best_dense})
    notes = (MEAN, f"best dense: {', '.join(rivals)}" if rivals else "", *_lone(figures, all_found))
    heading = title(figures, "speed-up in tokens per second over the best dense method")
    legend = _legend(figures, found, "what ReSA's floor allows" if limited else "")
    return finish(fig, heading, legend, caption(steps_only(figures), drawn, *notes))


def _main(figures: FigureSet) -> list[Variant]:
    """ReSA's variants whose floor is drawn."""
    return [v for v in figures.resa() if v in usual(figures, (v.method,))]


def _floor_line(ax: Axes, rows: Iterable[Row], colour: str, top: float) -> bool:
    """The tokens per second that rows' floors allow, unless they lie far above `top`, the most measured."""
    allowed = [(row.context, row.batch / row.floor_us * 1e6) for row in rows if row.floor_us]
    return max((height for _, height in allowed), default=0.0) <= FARTHEST * top and _thin(ax, allowed, colour)


def _thin(ax: Axes, points: Sequence[tuple[int, float]], colour: str) -> bool:
    """A thin dashed line; whether there were the points for one."""
    if len(points) > 1:
        ax.plot(*zip(*points, strict=True), color=colour, linestyle=LIMIT_DASHES, linewidth=0.7)
    return len(points) > 1


def _name_axes(axes: Sequence[Axes], left: Sequence[Axes], quantity: str) -> None:
    """Name the y axis of the leftmost panels and the x axis of the lowest."""
    for ax in left:
        ax.set_ylabel(quantity)
    for ax in axes[-_columns(axes[0]) :]:
        ax.set_xlabel("context, tokens")


def _columns(ax: Axes) -> int:
    return ax.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]


def _ratio(ax: Axes, dense: dict[int, Row], rows: Sequence[Row], colour: str) -> bool:
    """At the longest context, a line from the best dense method up to ReSA, and how many times it is."""
    last = rows[-1]
    rival = dense.get(last.context)
    if rival is None or not rival.tokens_per_s or not last.tokens_per_s:
        return False
    low, high = rival.tokens_per_s, last.tokens_per_s
    ax.plot([last.context] * 2, [low, high], color=colour, linewidth=0.8, zorder=1)
    words = f"{high / low:.2f}x" if high < 10 * low else f"{high / low:.0f}x"
    ax.annotate(
        words, (last.context, (low * high) ** 0.5), (3, 0), textcoords="offset points", color=colour, fontweight="bold",
        fontsize=8, va="center", annotation_clip=False,
    )  # fmt: skip
    return True


def _frame(ax: Axes, figures: FigureSet, where: Setting, able: Sequence[Variant]) -> None:
    contexts = sorted({row.context for variant in able for row in steps(figures, variant, where)})
    ax.set_title(str(where))
    context_ticks(ax, contexts, ax.figure.get_figwidth() / _columns(ax) - 0.6)  # type: ignore[union-attr]


def _legend(figures: FigureSet, found: dict[Setting, list[Variant]], limit: str) -> list[Artist]:
    styles, named = looks(figures.lines), names(figures.lines)
    present = {variant for able in found.values() for variant in able}
    legend: list[Artist] = [legend_line(styles[v], named[v]) for v in figures.lines if v in present]
    if limit:
        legend.append(legend_line(LIMIT, limit))
    return legend


def _lone(figures: FigureSet, found: dict[Setting, list[Variant]]) -> list[str]:
    """How many were timed at one context only, in words."""
    count = len(left_out(figures, found))
    return [f"{count} {'variant' if count == 1 else 'variants'} timed at one context only: not drawn"] if count else []
