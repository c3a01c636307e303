"""The micro suite over context: time, speed-up over the best dense kernel, share of the floor. A panel a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.looks import BLACK, TITLES, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import best_dense_of, caption, counted, title
from .curves import (
    BEST_DENSE,
    DENSE_FLOOR,
    MOST,
    RESA_FLOOR,
    Curve,
    column_curve,
    draw_curves,
    full_names,
    name_of,
    short_names,
)
from .data import FigureSet, NotDrawn, best_dense, points, ranked
from .registry import figure
from .style import context_axis, finish, log_axis, panels

SPEEDUP = "speedup_vs_best_dense"
ALONE_DASHES = (0, (1, 1.2))
PARTS = {"attend": "attention alone", "total": "whole step"}

Groups = dict[str, dict[int, list[Curve]]]
"""Curves by what the panels' titles say of them, then by batch."""


@figure("latency", suite="micro")
def latency(figures: FigureSet) -> Figure:
    """Median microseconds of a step, log-log, band q20 to q80: the main methods, and below them the dense kernels."""
    figures.need_curve()
    sparse = ranked(figures.lines)[: MOST - 2]
    dense = sorted((v for v in figures.lines if v.is_dense), key=lambda v: _longest(figures, v))[: MOST - 1]
    groups: Groups = {}
    for batch in figures.batches():
        rivals = _best_dense(figures, batch)
        floor = column_curve(rivals, "floor_us", DENSE_FLOOR)
        main = [_timed(figures, variant, batch) for variant in sparse]
        groups.setdefault("", {})[batch] = [*main, column_curve(rivals, "median_us", BEST_DENSE), floor]
        if len(dense) > 1:
            kernels = [_timed(figures, variant, batch) for variant in dense]
            groups.setdefault("dense kernels", {})[batch] = [*kernels, floor]
    fig, axes, drawn = _grid(figures, groups, "decode step, µs")
    log_axis(axes[0])
    notes = (full_names(drawn), "median, band q20 to q80", best_dense_of(drawn), left_out(figures, drawn))
    return finish(fig, title(figures, "attention time of a decode step"), caption(figures, drawn, *notes))


@figure("speedup", suite="micro")
def speedup(figures: FigureSet) -> Figure:
    """One decode step (`total`) over the best dense one: the main sparse methods, the others, what ReSA's floor allows."""
    figures.need_curve()
    room = MOST - 2
    able = [v for v in ranked(figures.lines) if _any(figures, v, "total")]
    parts = {"": able[:room], "other methods": able[room : 2 * room + 1]}
    groups: Groups = {}
    for name, variants in parts.items():
        for batch in figures.batches():
            limit = [] if name else [_limit(figures, batch)]
            lines = [_ratios(figures, variant, batch, "total") for variant in variants]
            groups.setdefault(name, {})[batch] = [*lines, *limit]
    return _speedups(figures, groups, "speed-up of a decode step")


@figure("speedup-amortised", suite="micro")
def speedup_amortised(figures: FigureSet) -> Figure:
    """ReSA with its rectification paid for (`total_amortised`).

    First the usual setting of each form beside the step alone (dotted), then for each form all its settings.
    """
    figures.need_curve("total_amortised")
    groups: Groups = {}
    for batch in figures.batches("total_amortised"):
        both = []
        for variants in list(figures.forms().values())[:2]:
            both.append(_ratios(figures, variants[0], batch, "total_amortised"))
            alone = _ratios(figures, variants[0], batch, "total", "step alone")
            both.append(replace(alone, look=replace(alone.look, linestyle=ALONE_DASHES)))
        groups.setdefault("", {})[batch] = both
        for method, variants in figures.forms().items():
            settings = [v for v in variants if _any(figures, v, "total_amortised")][: MOST - 1]
            if len(settings) > 1:
                lines = [_ratios(figures, v, batch, "total_amortised", _setting(figures, v)) for v in settings]
                groups.setdefault(TITLES.get(method, method), {})[batch] = lines
    return _speedups(figures, groups, "speed-up with rectification")


@figure("floors", suite="micro")
def floors(figures: FigureSet) -> Figure:
    """`floor_fraction` of attention alone and of the whole step; 1 is what the measured ceilings allow.

    A cold row above 1 has wrong bytes or a warm cache. It is drawn where it is, and the caption counts it.
    """
    figures.need_curve()
    groups: Groups = {}
    for stage, words in PARTS.items():
        stages = sorted({r.stage for r in figures.rows if stage in r.stage.split("+") and r.floor_fraction is not None})
        for batch in figures.batches():
            rival = best_dense(figures, batch, max(r.context for r in figures.rows if r.batch == batch))
            lines = []
            for variant in [*([rival[0]] if rival else []), *ranked(figures.lines)][: MOST - 1]:
                rows = [r for name in stages for r in points(figures.lines[variant], name, batch, "floor_fraction")]
                rows.sort(key=lambda row: row.context)
                label = "" if not rows else name_of(variant)
                lines.append(column_curve(rows, "floor_fraction", figures.looks[variant], label))
            if any(line.xs for line in lines):
                groups.setdefault(words, {})[batch] = [*lines, _flat(figures, 1.0, "floor")]
    if not groups:
        raise NotDrawn("no row has floor_fraction")
    fig, axes, drawn = _grid(figures, groups, "floor / median")
    axes[0].set_ylim(0, max(1.05, *(1.05 * (row.floor_fraction or 0.0) for row in drawn)))
    ceilings = sorted({round(row.read_ceiling_gbps) for row in drawn if row.read_ceiling_gbps})
    above = sum((row.floor_fraction or 0.0) > 1 for row in drawn)
    measured = " to ".join(str(gbps) for gbps in dict.fromkeys(ceilings[:1] + ceilings[-1:]))
    notes = (
        full_names(drawn),
        f"floor: compulsory bytes at the measured {measured} GB/s" if ceilings else "",
        f"{counted(above, 'row')} above 1: wrong bytes or a warm cache" if above else "",
    )
    return finish(fig, title(figures, "share of the floor reached"), caption(figures, drawn, *notes))


def left_out(figures: FigureSet, drawn: Iterable[Row]) -> str:
    """How many variants another figure shows, in words."""
    shown = {row.variant for row in drawn}
    left = [v for v in figures.lines if v not in shown and any(r.stage == "total" for r in figures.lines[v])]
    return f"{counted(len(left), 'further variant')} in the figure `methods`" if left else ""


def _speedups(figures: FigureSet, groups: Groups, what: str) -> Figure:
    drawn = [row for by_batch in groups.values() for lines in by_batch.values() for line in lines for row in line.rows]
    if not drawn:
        raise NotDrawn(f"no sparse row has {SPEEDUP}: was a dense method measured in the same cases?")
    groups = {
        name: {n: [*lines, _flat(figures, 1.0, "best dense")] for n, lines in by_batch.items() if _rows(lines)}
        for name, by_batch in groups.items()
    }
    fig, axes, drawn = _grid(figures, groups, "speed-up, log scale")
    log_axis(axes[0], "x")
    heading = title(figures, f"{what} over the best dense kernel")
    return finish(fig, heading, caption(figures, drawn, full_names(drawn), best_dense_of(drawn)))


def _grid(figures: FigureSet, groups: Groups, quantity: str) -> tuple[Figure, list[Axes], list[Row]]:
    """A row of panels a group, a column a batch, all on one scale; the axes that hold lines, and the rows drawn."""
    groups = {name: {n: lines for n, lines in by_batch.items() if _points(lines)} for name, by_batch in groups.items()}
    groups = {name: by_batch for name, by_batch in groups.items() if by_batch}
    batches = sorted({batch for by_batch in groups.values() for batch in by_batch})
    columns = min(len(batches), 3)
    cells = [(name, batch) for name in groups for batch in _filled(batches, columns)]
    fig, axes, left = panels(len(cells), 2.2, columns=columns)
    drawn: list[Row] = []
    used: list[Axes] = []
    for ax, (name, batch) in zip(axes, cells, strict=True):
        lines = groups[name].get(batch or 0, [])
        if not lines:
            ax.set_visible(False)
            continue
        drawn += draw_curves(ax, lines)
        used.append(ax)
        ax.set_title(f"batch {batch}{', ' if name else ''}{name}")
        ax.set_xlabel("context, tokens")
        context_axis(ax, sorted({int(x) for group in groups.values() for own in group.values() for x in _points(own)}))
    for ax in left:
        ax.set_ylabel(quantity)
    return fig, used, drawn


def _filled(batches: Sequence[int], columns: int) -> list[int | None]:
    """The batches, and empty cells after the last, so that each group starts on the left."""
    return [*batches, *[None] * (-len(batches) % columns)]


def _points(lines: Sequence[Curve]) -> list[float]:
    return [x for line in lines if line.rows for x in line.xs]


def _rows(lines: Sequence[Curve]) -> list[Row]:
    return [row for line in lines for row in line.rows]


def _setting(figures: FigureSet, variant: Variant) -> str:
    """What tells a variant from others of its method."""
    rows = [row for rows in figures.lines.values() for row in rows if row.method == variant.method]
    return short_names(rows)[variant].removeprefix(name_of(variant)).strip()


def _timed(figures: FigureSet, variant: Variant, batch: int) -> Curve:
    rows = points(figures.lines[variant], "total", batch, "median_us")
    curve = column_curve(rows, "median_us", figures.looks[variant], name_of(variant))
    if not all(row.q20_us and row.q80_us for row in rows):
        return curve
    return replace(curve, band=([row.q20_us or 0.0 for row in rows], [row.q80_us or 0.0 for row in rows]))


def _ratios(figures: FigureSet, variant: Variant, batch: int, stage: str, label: str = "") -> Curve:
    rows = points(figures.lines[variant], stage, batch, SPEEDUP)
    return column_curve(rows, SPEEDUP, figures.looks[variant], label or name_of(variant))


def _limit(figures: FigureSet, batch: int) -> Curve:
    """What the floors of ReSA's usual setting allow."""
    variant = next(iter(figures.resa()), None)
    rows = points(figures.lines[variant], "total", batch, "floor_speedup") if variant else []
    return column_curve(rows, "floor_speedup", RESA_FLOOR)


def _flat(figures: FigureSet, y: float, label: str) -> Curve:
    contexts = figures.contexts()
    return Curve(label, Look(BLACK, ""), [contexts[0], contexts[-1]], [y, y])


def _any(figures: FigureSet, variant: Variant, stage: str) -> bool:
    return any(row.stage == stage and row.speedup_vs_best_dense for row in figures.lines[variant])


def _best_dense(figures: FigureSet, batch: int) -> list[Row]:
    """The fastest dense step at each context."""
    rivals = (best_dense(figures, batch, context) for context in figures.contexts())
    return [rival[1] for rival in rivals if rival]


def _longest(figures: FigureSet, variant: Variant) -> tuple[int, float]:
    """Sorts by the time at the longest context, of variants that have it first."""
    last = max(
        (r for r in figures.lines[variant] if r.stage == "total"), key=lambda r: (r.context, -r.batch), default=None
    )
    return (-last.context, last.median_us or 0.0) if last else (0, 0.0)
