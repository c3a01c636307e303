"""Decoding over context: tokens per second, and their ratio to the best dense method's."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..suites.core.looks import BLACK, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import best_dense_of, caption, counted, title
from .curves import BEST_DENSE, DENSE_FLOOR, MOST, RESA_FLOOR, Curve, column_curve, draw_curves, full_names, name_of
from .data import FigureSet, NotDrawn, ranked
from .decode_data import Setting, curves, fastest_dense, steps, steps_only
from .registry import figure
from .style import context_axis, finish, panels

SPEEDUP = "speedup_vs_best_dense"
HEADROOM = 1.25  # times the most measured in a row of panels, where its scale ends
MEAN = "mean over whole periods, rectification included"


@figure("decode-tokens", suite="decode")
def decode_tokens(figures: FigureSet) -> Figure:
    """Tokens per second of all sequences together, a panel a setting; panels side by side have one scale from 0.

    The fused ReSA where it was timed, ReSA, the best dense method at each context, and what the floors of the latter
    two allow. The ratio at the longest context is that of the first line's own run.
    """
    able = curves(figures)
    compared: list[str] = []

    def lines(where: Setting, ax: Axes) -> list[Curve]:
        dense = list(fastest_dense(figures, where).values())
        own = {v: steps(figures, v, where) for v in ranked(figures.lines) if v in able[where]}
        own = {v: rows for v, rows in own.items() if rows}
        resa = next((rows for v, rows in own.items() if v in figures.resa()), [])
        top = max(row.tokens_per_s or 0.0 for rows in (dense, *own.values()) for row in rows)
        floors = [_allowed(dense, DENSE_FLOOR, top), _allowed(resa, RESA_FLOOR, top)]
        measured = [column_curve(dense, "tokens_per_s", BEST_DENSE)]
        room = MOST - 3
        measured += [column_curve(own[v], "tokens_per_s", figures.looks[v], name_of(v)) for v in list(own)[:room]]
        if own:
            first, rows = next(iter(own.items()))
            if _ratio(ax, rows[-1], figures.looks[first].colour):
                compared.append(name_of(first))
        return [*measured, *floors]

    fig, axes, drawn = _panels(figures, able, lines, "tokens/s", share_y="row")
    for ax in axes:
        side_by_side = [other for other in axes if other.get_subplotspec().rowspan == ax.get_subplotspec().rowspan]  # type: ignore[union-attr]
        most = max(
            y
            for other in side_by_side
            for line in other.lines
            if line.get_marker() not in ("", "None")
            for y in _heights(line)
        )
        ax.set_ylim(0, HEADROOM * most)
        ax.yaxis.set_major_locator(MaxNLocator(5))
    notes = [full_names(drawn), MEAN, best_dense_of(drawn), _lone(figures, able)]
    notes += ["all sequences of the batch together"] if any(where.batch > 1 for where in able) else []
    notes += [f"ratio: {', '.join(dict.fromkeys(compared))} over the best dense of its run"] if compared else []
    heading = title(figures, "tokens per second, decoding with the whole model")
    return finish(fig, heading, caption(steps_only(figures), drawn, *notes))


@figure("decode-speedup", suite="decode")
def decode_speedup(figures: FigureSet) -> Figure:
    """Tokens per second over the best dense method's of the same case and run, and what ReSA's floor allows."""
    timed = curves(figures)
    sparse = {where: [v for v in variants if not v.is_dense] for where, variants in curves(figures, SPEEDUP).items()}
    able = {where: variants for where, variants in sparse.items() if variants}
    if not able:
        raise NotDrawn(f"no sparse method has {SPEEDUP}: was a dense one measured in the same cases?")

    def lines(where: Setting, _: Axes) -> list[Curve]:
        own = [v for v in ranked(figures.lines) if v in able[where]][: MOST - 2]
        ratios = [column_curve(steps(figures, v, where, SPEEDUP), SPEEDUP, figures.looks[v], name_of(v)) for v in own]
        resa = next((v for v in figures.resa() if v in able[where]), None)
        limit = column_curve(steps(figures, resa, where) if resa else [], "floor_speedup", RESA_FLOOR)
        ends = [curve.xs[i] for curve in ratios for i in (0, -1)]
        return [*ratios, limit, Curve("best dense", Look(BLACK, ""), [min(ends), max(ends)], [1.0, 1.0])]

    fig, axes, drawn = _panels(figures, able, lines, "speed-up")
    axes[0].set_ylim(bottom=0)
    axes[0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    heading = title(figures, "speed-up in tokens per second over the best dense method")
    notes = (full_names(drawn), MEAN, best_dense_of(drawn), _lone(figures, timed))
    return finish(fig, heading, caption(steps_only(figures), drawn, *notes))


def _panels(
    figures: FigureSet,
    able: dict[Setting, list[Variant]],
    lines: Callable[[Setting, Axes], list[Curve]],
    quantity: str,
    *,
    share_y: bool | str = True,
) -> tuple[Figure, list[Axes], list[Row]]:
    """A panel a setting; the rows drawn."""
    fig, axes, left = panels(len(able), 2.6, share_y=share_y, columns=2)
    drawn: list[Row] = []
    for ax, where in zip(axes, able, strict=True):
        rows = draw_curves(ax, lines(where, ax))
        ax.set_title(str(where))
        ax.set_xlabel("context, tokens")
        context_axis(ax, sorted({row.context for row in rows}))
        drawn += rows
    for ax in left:
        ax.set_ylabel(quantity)
    return fig, axes, drawn


def _heights(line: Line2D) -> list[float]:
    return [float(y) for y in line.get_ydata()]  # type: ignore[union-attr]


def _allowed(rows: list[Row], look: Look, top: float) -> Curve:
    """The tokens per second that rows' floors allow; without points where they lie far above `top`, the most measured."""
    points = [(row.context, row.batch / row.floor_us * 1e6) for row in rows if row.floor_us]
    near = len(points) > 1 and points[-1][1] <= HEADROOM * top
    return Curve(look.title, look, [x for x, _ in points if near], [y for _, y in points if near])


def _ratio(ax: Axes, step: Row, colour: str) -> bool:
    """A line from the best dense step of its own run up to a step, and how many times it is."""
    ratio, high = step.speedup_vs_best_dense, step.tokens_per_s
    if not ratio or not high:
        return False
    low = high / ratio
    ax.plot([step.context] * 2, [low, high], color=colour, linewidth=0.8, zorder=1)
    words = f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
    ax.annotate(
        words, (step.context, low), (2, -5), textcoords="offset points", color=colour, fontweight="bold", fontsize=9,
        va="top", ha="right",
    )  # fmt: skip
    return True


def _lone(figures: FigureSet, able: dict[Setting, list[Variant]]) -> str:
    """How many were timed, but have a curve nowhere, in words."""
    drawn = {variant for variants in able.values() for variant in variants}
    lone = [v for v in figures.lines if v not in drawn and any(r.stage == "total" for r in figures.lines[v])]
    return f"{counted(len(lone), 'variant')} timed at one context only: not drawn" if lone else ""
