"""Decoding over context: tokens per second, and their ratio to the best dense method's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..suites.core.looks import BLACK, GREY, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import caption, title
from .data import FigureSet, NotDrawn
from .decode_data import Setting, context_ticks, curves, fastest_dense, steps, steps_only, usual_resa
from .registry import figure
from .style import LIMIT_DASHES, draw_line, finish, legend_line, legend_lines, names_of, panels

SPEEDUP = "speedup_vs_best_dense"
AREA = "#ECECEC"  # below the best dense method
FARTHEST = 3.0  # a floor allows at most that many times what was measured, or would flatten the panel
MEAN = "mean over whole periods, rectification included"


@figure("decode-tokens", suite="decode")
def decode_tokens(figures: FigureSet) -> Figure:
    """Tokens per second of all sequences together, a panel a setting, each with its own scale from 0.

    The grey area is what the best dense method reaches; thin dashes are what the floors of that method and of ReSA
    allow, left out of panels that they would flatten. The ratio at the longest context is that of ReSA's own run.
    """
    able = curves(figures)
    fig, axes, left = panels(len(able), 2.0, share_y=False)
    styles, resa = figures.looks, usual_resa(figures)
    drawn: list[Row] = []
    limited, compared = False, ""
    for ax, (where, variants) in zip(axes, able.items(), strict=True):
        dense = fastest_dense(figures, where)
        ax.fill_between(list(dense), [row.tokens_per_s or 0.0 for row in dense.values()], color=AREA, linewidth=0)
        top = max(row.tokens_per_s or 0.0 for variant in variants for row in steps(figures, variant, where))
        limited |= _floor_line(ax, dense.values(), BLACK, top)
        for variant in sorted(variants, key=lambda variant: variant in resa):  # ReSA above the others
            rows = steps(figures, variant, where)
            if variant in resa:
                limited |= _floor_line(ax, rows, styles[variant].colour, top)
            draw_line(ax, rows, "tokens_per_s", styles[variant])
            drawn += rows
        _frame(ax, figures, where, variants)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        main = next((variant for variant in resa if variant in variants), None)
        if main and _ratio(ax, steps(figures, main, where)[-1], styles[main].colour):
            compared = names_of(drawn).of(main)
    _name_axes(axes, left, "tokens/s")
    legend: list[Artist] = [Patch(facecolor=AREA, label="best dense")]
    legend += _legend(figures, drawn, "what the floor allows" if limited else "")
    heading = title(figures, "tokens per second, decoding with the whole model")
    notes = [MEAN, "all sequences of the batch together" if any(where.batch > 1 for where in able) else ""]
    notes += [f"ratio: {compared} over the best dense of its run"] if compared else []
    return finish(fig, heading, legend, caption(steps_only(figures), drawn, *notes, _lone(figures, able)))


@figure("decode-speedup", suite="decode")
def decode_speedup(figures: FigureSet) -> Figure:
    """Tokens per second over the best dense method's of the same case and run, and what ReSA's floor allows."""
    timed = curves(figures)
    sparse = {where: [v for v in variants if not v.is_dense] for where, variants in curves(figures, SPEEDUP).items()}
    able = {where: variants for where, variants in sparse.items() if variants}
    if not able:
        raise NotDrawn(f"no sparse method has {SPEEDUP}: was a dense one measured in the same cases?")
    fig, axes, left = panels(len(able), 1.9)
    styles, resa = figures.looks, usual_resa(figures)
    drawn: list[Row] = []
    limited = False
    for ax, (where, variants) in zip(axes, able.items(), strict=True):
        ax.axhline(1.0, color="black", linewidth=0.8)
        for variant in sorted(variants, key=lambda variant: variant in resa):
            limit = steps(figures, variant, where, "floor_speedup") if variant in resa else []
            limited |= _thin(ax, [(row.context, row.floor_speedup or 0.0) for row in limit], styles[variant].colour)
            rows = steps(figures, variant, where, SPEEDUP)
            draw_line(ax, rows, SPEEDUP, styles[variant])
            drawn += rows
        _frame(ax, figures, where, variants)
    axes[0].set_ylim(bottom=0)
    axes[0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    _name_axes(axes, left, "speed-up")
    rivals = sorted({row.best_dense for row in drawn if row.best_dense})
    notes = (MEAN, f"best dense: {', '.join(rivals)}" if rivals else "", _lone(figures, timed))
    heading = title(figures, "speed-up in tokens per second over the best dense method")
    legend = _legend(figures, drawn, "what ReSA's floor allows" if limited else "")
    return finish(fig, heading, legend, caption(steps_only(figures), drawn, *notes))


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


def _ratio(ax: Axes, step: Row, colour: str) -> bool:
    """A line from the best dense step of its own run up to a step, and how many times it is."""
    ratio, high = step.speedup_vs_best_dense, step.tokens_per_s
    if not ratio or not high:
        return False
    low = high / ratio
    ax.plot([step.context] * 2, [low, high], color=colour, linewidth=0.8, zorder=1)
    words = f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
    ax.annotate(
        words, (step.context, (low * high) ** 0.5), (3, 0), textcoords="offset points", color=colour,
        fontweight="bold", fontsize=8, va="center", annotation_clip=False,
    )  # fmt: skip
    return True


def _frame(ax: Axes, figures: FigureSet, where: Setting, variants: Sequence[Variant]) -> None:
    contexts = sorted({row.context for variant in variants for row in steps(figures, variant, where)})
    ax.set_title(str(where))
    context_ticks(ax, contexts, ax.figure.get_figwidth() / _columns(ax) - 0.6)  # type: ignore[union-attr]


def _legend(figures: FigureSet, drawn: Sequence[Row], limit: str) -> list[Artist]:
    limits = [legend_line(Look(GREY, "", LIMIT_DASHES), limit)] if limit else []
    return [*legend_lines(figures.looks, drawn), *limits]


def _lone(figures: FigureSet, able: dict[Setting, list[Variant]]) -> str:
    """How many were timed, but have a curve nowhere, in words."""
    drawn = {variant for variants in able.values() for variant in variants}
    lone = [v for v in figures.lines if v not in drawn and any(r.stage == "total" for r in figures.lines[v])]
    if not lone:
        return ""
    return f"{len(lone)} {'variant' if len(lone) == 1 else 'variants'} timed at one context only: not drawn"
