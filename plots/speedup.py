"""Speed-up over the best dense kernel, over context, a panel per batch."""

from __future__ import annotations

from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..suites.core.rows import Row
from .caption import caption, title
from .data import FUSED, FigureSet, NotDrawn, Variant, points
from .style import GREY, Look, context_axis, draw_line, finish, labels, legend_line, looks, panels

COLUMN = "speedup_vs_best_dense"
LIMIT = Look(GREY, "", (0, (6, 2)))
STAGE_LINES = {"total": "-", "total_amortised": (0, (2, 1))}
STAGE_NAMES = {"total": "step alone", "total_amortised": "with rectification"}


def speedup(figures: FigureSet) -> Figure:
    """One decode step (`total`) of every sparse method against the best dense one, and what the floors allow."""
    lines = [(variant, "total", style) for variant, style in looks(figures.lines).items() if not variant.dense]
    return _draw(figures, lines, "speed-up of a decode step")


def speedup_amortised(figures: FigureSet) -> Figure:
    """ReSA with its rectification paid for (`total_amortised`, dashed), beside the step alone (`total`, solid).

    Its steps in one kernel have panels of their own.
    """
    figures.need_curve("total_amortised")
    styles = looks(figures.lines)
    lines = [
        (variant, stage, Look(styles[variant].colour, styles[variant].marker, line))
        for variant in (*figures.resa(), *figures.fused())
        for stage, line in STAGE_LINES.items()
    ]
    return _draw(figures, lines, "speed-up with rectification", apart=True)


def _draw(figures: FigureSet, lines: list[tuple[Variant, str, Look]], what: str, *, apart: bool = False) -> Figure:
    """A panel a batch; `apart`: variants in one kernel in further panels."""
    figures.need_curve()
    lines = [
        line for line in lines if any(r.stage == line[1] and r.speedup_vs_best_dense for r in figures.lines[line[0]])
    ]
    if not lines:
        raise NotDrawn(f"no sparse row has {COLUMN}: was a dense method measured in the same cases?")
    rows = [r for variant, stage, _ in lines for r in figures.lines[variant] if r.stage == stage]
    batches = sorted({row.batch for row in rows if row.speedup_vs_best_dense})
    groups: dict[str, list[tuple[Variant, str, Look]]] = {}
    for line in lines:
        groups.setdefault(", one kernel" if apart and line[0].method == FUSED else "", []).append(line)
    contexts = sorted({row.context for row in rows})
    limited = _limited(figures)
    fig, axes, left = panels(len(batches) * len(groups))
    drawn: list[Row] = []
    for ax, ((name, mine), batch) in zip(axes, product(groups.items(), batches), strict=True):
        ax.axhline(1.0, color="black", linewidth=0.8)
        for variant, style in limited.items():
            limit = points(figures.lines[variant], "total", batch, "floor_speedup")
            draw_line(ax, limit, "floor_speedup", style, marker=False)
        for variant, stage, style in mine:
            found = points(figures.lines[variant], stage, batch, COLUMN)
            draw_line(ax, found, COLUMN, style)
            drawn += found
        ax.set_title(f"batch {batch}{name}")
        ax.set_xlabel("context, tokens")
        context_axis(ax, contexts)
    _ratio_axis(axes[0])
    for ax in left:
        ax.set_ylabel("speed-up, log scale")

    rivals = ", ".join(sorted({row.best_dense for row in drawn if row.best_dense}))
    heading = title(figures, f"{what} over the best dense kernel")
    return finish(
        fig,
        heading,
        _legend(figures, lines, bool(limited)),
        caption(figures, drawn, f"best dense: {rivals}" if rivals else ""),
    )


def _legend(figures: FigureSet, lines: list[tuple[Variant, str, Look]], limited: bool) -> list[Line2D]:
    names = labels(figures.lines)
    styles = {variant: style for variant, _, style in lines}
    stages = sorted({stage for _, stage, _ in lines})
    if len(stages) > 1:  # the line's style stands for the stage, not for the method
        styles = {variant: Look(style.colour, style.marker) for variant, style in styles.items()}
    legend = [legend_line(style, names[variant]) for variant, style in styles.items()]
    if len(stages) > 1:
        legend += [legend_line(Look(GREY, "", STAGE_LINES[stage]), STAGE_NAMES[stage]) for stage in stages]
    if limited:
        legend.append(legend_line(LIMIT, "what ReSA's floor allows"))
    return legend


def _limited(figures: FigureSet) -> dict[Variant, Look]:
    """ReSA's variants whose floor is known, with the look of its line: the variant's colour, thin and dashed."""
    styles = looks(figures.lines)
    known = [v for v in figures.resa() if any(r.stage == "total" and r.floor_speedup for r in figures.lines[v])]
    return {variant: Look(styles[variant].colour, "", LIMIT.linestyle) for variant in known}


def _ratio_axis(ax: Axes) -> None:
    ax.set_yscale("log", base=2)
    low, high = ax.get_ylim()
    spread = high / low
    subs = (1.0, 1.125, 1.25, 1.5, 1.75) if spread < 3 else (1.0, 1.5) if spread < 16 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(base=2, subs=subs))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
