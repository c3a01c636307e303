"""Decoding over context: tokens per second, and their ratio to the best dense method's."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..suites.core.looks import Look
from ..suites.core.report import counted
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import best_dense_of, caption, title
from .curves import (
    BEST_DENSE,
    DENSE_FLOOR,
    MOST,
    RESA_FLOOR,
    Curve,
    column_curve,
    full_names,
    grid,
    level_line,
    name_of,
)
from .data import FigureSet, NotDrawn, ranked
from .decode_data import Setting, curves, fastest_dense, steps, steps_only
from .registry import figure
from .style import finish

SPEEDUP = "speedup_vs_best_dense"
HEADROOM = 1.65  # times the most measured at a batch, where the scale of its panels ends
MEAN = "mean over whole periods, rectification included"
COLUMNS = 2


@figure("decode-tokens", suite="decode")
def decode_tokens(figures: FigureSet) -> Figure:
    """Tokens per second of all sequences together, a panel a setting; those of one batch have one scale from 0.

    The fused ReSA where it was timed, ReSA, the best dense method at each context, and what the floors of the latter
    two allow. The ratio at the longest context is that of the first line's own run.
    """
    able = curves(figures)
    cells: list[tuple[str, list[Curve]]] = []
    tops, firsts = [], []
    for where, variants in able.items():
        dense = list(fastest_dense(figures, where).values())
        own = {v: steps(figures, v, where) for v in ranked(figures.lines) if v in variants}
        resa = next((rows for v, rows in own.items() if v in figures.resa()), [])
        tops.append(max(row.tokens_per_s or 0.0 for rows in (dense, *own.values()) for row in rows))
        lines = [column_curve(own[v], "tokens_per_s", figures.looks[v], name_of(v)) for v in list(own)[: MOST - 3]]
        floors = [_allowed(dense, DENSE_FLOOR, tops[-1]), _allowed(resa, RESA_FLOOR, tops[-1])]
        cells.append((str(where), [column_curve(dense, "tokens_per_s", BEST_DENSE), *lines, *floors]))
        firsts.append(next(iter(own.values()), [None])[-1])
    fig, axes, drawn = grid(cells, "tokens/s", columns=COLUMNS, height_in=2.6, share_y=False)
    compared = {}
    batches = [where.batch for where in able]
    for ax, step, batch in zip(axes, firsts, batches, strict=True):
        most = max(top for top, other in zip(tops, batches, strict=True) if other == batch)
        ax.set_ylim(0, HEADROOM * most)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if step is not None and _ratio(ax, step, figures.looks[step.variant].colour):
            compared[name_of(step.variant)] = True
    notes = [full_names(drawn), MEAN, best_dense_of(drawn), _lone(figures, able)]
    notes += ["all sequences of the batch together"] if any(where.batch > 1 for where in able) else []
    notes += [f"ratio: {', '.join(compared)} over the best dense of its run"] if compared else []
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
    cells: list[tuple[str, list[Curve]]] = []
    for where, variants in able.items():
        own = [v for v in ranked(figures.lines) if v in variants][: MOST - 2]
        lines = [column_curve(steps(figures, v, where, SPEEDUP), SPEEDUP, figures.looks[v], name_of(v)) for v in own]
        resa = next((v for v in figures.resa() if v in variants), None)
        limit = column_curve(steps(figures, resa, where) if resa else [], "floor_speedup", RESA_FLOOR)
        cells.append(
            (str(where), [*lines, limit, level_line("best dense", 1.0, (x for line in lines for x in line.xs))])
        )
    fig, axes, drawn = grid(cells, "speed-up", columns=COLUMNS, height_in=2.6, share_y=True)
    axes[0].set_ylim(bottom=0)
    axes[0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    heading = title(figures, "speed-up in tokens per second over the best dense method")
    notes = (full_names(drawn), MEAN, best_dense_of(drawn), _lone(figures, timed))
    return finish(fig, heading, caption(steps_only(figures), drawn, *notes))


def _allowed(rows: list[Row], look: Look, top: float) -> Curve:
    """The tokens per second that rows' floors allow; no points where they end far above `top`, the most measured."""
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
