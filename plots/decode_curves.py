"""Decoding over context: tokens per second, and their ratio to the best dense method's."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..suites.core.looks import BLACK, GREY, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import best_dense_of, caption, counted, title
from .data import FigureSet, NotDrawn
from .decode_data import Setting, curves, fastest_dense, steps, steps_only, usual_resa
from .registry import figure
from .style import LIMIT_DASHES, context_axis, draw_line, finish, legend_line, legend_lines, names_of, panels

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
    fig, axes, drawn = _curves(figures, able, "tokens_per_s", "tokens/s", share_y=False)
    limited, compared = False, ""
    for ax, (where, variants) in zip(axes, able.items(), strict=True):
        dense = list(fastest_dense(figures, where).values())
        ax.fill_between([r.context for r in dense], [r.tokens_per_s or 0.0 for r in dense], color=AREA, linewidth=0)
        top = max(row.tokens_per_s or 0.0 for variant in variants for row in steps(figures, variant, where))
        limited |= _floor_line(ax, dense, BLACK, top)
        resa = [(steps(figures, v, where), figures.looks[v].colour) for v in usual_resa(figures) if v in variants]
        for rows, colour in resa:
            limited |= _floor_line(ax, rows, colour, top)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if resa and _ratio(ax, resa[0][0][-1], resa[0][1]):
            compared = names_of(drawn)[resa[0][0][-1]]
    heading = title(figures, "tokens per second, decoding with the whole model")
    legend = [Patch(facecolor=AREA, label="best dense"), *_legend(figures, drawn, "what the floor allows", limited)]
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
    fig, axes, drawn = _curves(figures, able, SPEEDUP, "speed-up")
    limited = False
    for ax, (where, variants) in zip(axes, able.items(), strict=True):
        ax.axhline(1.0, color="black", linewidth=0.8)
        for variant in usual_resa(figures):
            limit = steps(figures, variant, where, "floor_speedup") if variant in variants else []
            draw_line(ax, limit, "floor_speedup", Look(figures.looks[variant].colour, "", LIMIT_DASHES))
            limited |= bool(limit)
    axes[0].set_ylim(bottom=0)
    axes[0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    heading = title(figures, "speed-up in tokens per second over the best dense method")
    legend = _legend(figures, drawn, "what ReSA's floor allows", limited)
    notes = (MEAN, best_dense_of(drawn), _lone(figures, timed))
    return finish(fig, heading, legend, caption(steps_only(figures), drawn, *notes))


def _curves(
    figures: FigureSet, able: dict[Setting, list[Variant]], column: str, quantity: str, *, share_y: bool = True
) -> tuple[Figure, list[Axes], list[Row]]:
    """A panel a setting with the lines of a column, ReSA's above the others; the rows drawn."""
    fig, axes, left = panels(len(able), 2.0, share_y=share_y)
    columns = axes[0].get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    drawn: list[Row] = []
    for ax, (where, variants) in zip(axes, able.items(), strict=True):
        lines = {variant: steps(figures, variant, where, column) for variant in variants}
        for variant in sorted(lines, key=lambda variant: variant in figures.resa()):
            draw_line(ax, lines[variant], column, figures.looks[variant])
        rows = [row for line in lines.values() for row in line]
        drawn += rows
        ax.set_title(str(where))
        context_axis(ax, sorted({row.context for row in rows}))
    for ax in left:
        ax.set_ylabel(quantity)
    for ax in axes[-columns:]:
        ax.set_xlabel("context, tokens")
    return fig, axes, drawn


def _floor_line(ax: Axes, rows: Sequence[Row], colour: str, top: float) -> bool:
    """The tokens per second that rows' floors allow, unless they lie far above `top`, the most measured."""
    allowed = [(row.context, row.batch / row.floor_us * 1e6) for row in rows if row.floor_us]
    if len(allowed) < 2 or max(height for _, height in allowed) > FARTHEST * top:
        return False
    ax.plot(*zip(*allowed, strict=True), color=colour, linestyle=LIMIT_DASHES, linewidth=0.8)
    return True


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


def _legend(figures: FigureSet, drawn: Sequence[Row], limit: str, limited: bool) -> list[Artist]:
    limits = [legend_line(Look(GREY, "", LIMIT_DASHES), limit)] if limited else []
    return [*legend_lines(figures.looks, drawn), *limits]


def _lone(figures: FigureSet, able: dict[Setting, list[Variant]]) -> str:
    """How many were timed, but have a curve nowhere, in words."""
    drawn = {variant for variants in able.values() for variant in variants}
    lone = [v for v in figures.lines if v not in drawn and any(r.stage == "total" for r in figures.lines[v])]
    return f"{counted(len(lone), 'variant')} timed at one context only: not drawn" if lone else ""
