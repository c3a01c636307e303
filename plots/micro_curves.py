"""The micro suite over context: time, speed-up over the best dense kernel, share of the floor. A panel a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.report import counted
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from ..suites.core.stages import AMORTISED
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
    short_names,
)  # fmt: skip
from .data import FigureSet, NotDrawn, best_dense, points, ranked
from .registry import figure
from .style import finish, log_axis

SPEEDUP = "speedup_vs_best_dense"
ALONE_DASHES = (0, (1, 1.2))
PARTS = {"attend": "attention alone", "total": "whole step"}

Lines = Callable[[int], list[Curve]]
"""The curves of a batch."""


@figure("latency", suite="micro")
def latency(figures: FigureSet) -> Figure:
    """Median microseconds of a step, log-log, band q20 to q80: the main methods, and below them the dense kernels."""
    figures = figures.curved()
    rivals = {
        n: [best[1] for c in figures.contexts() if (best := best_dense(figures, n, c))] for n in figures.batches()
    }
    floors = {n: column_curve(rows, "floor_us", DENSE_FLOOR) for n, rows in rivals.items()}
    dense = sorted((v for v in figures.lines if v.is_dense), key=lambda v: _at_longest(figures, v))[: MOST - 1]

    def timed(variant: Variant, batch: int) -> Curve:
        rows = points(figures.lines[variant], "total", batch, "median_us")
        curve = column_curve(rows, "median_us", figures.looks[variant], name_of(variant))
        able = all(row.q20_us and row.q80_us for row in rows)
        return replace(curve, band=([r.q20_us or 0.0 for r in rows], [r.q80_us or 0.0 for r in rows]) if able else None)

    def of_all(n: int) -> list[Curve]:
        sparse = [timed(variant, n) for variant in ranked(figures.lines)[: MOST - 2]]
        return [*sparse, column_curve(rivals[n], "median_us", BEST_DENSE), floors[n]]

    groups: dict[str, Lines] = {"": of_all}
    if len(dense) > 1:
        groups["dense kernels"] = lambda n: [*(timed(variant, n) for variant in dense), floors[n]]
    fig, axes, drawn = _batches(figures, groups, "decode step, µs")
    log_axis(axes[0])
    left = {row.variant for row in figures.rows if row.stage == "total"} - {row.variant for row in drawn}
    notes = (full_names(drawn), "median, band q20 to q80", best_dense_of(drawn))
    more = f"{counted(len(left), 'further variant')} in the figure `methods`" if left else ""
    return finish(fig, title(figures, "attention time of a decode step"), caption(figures, drawn, *notes, more))


@figure("speedup", suite="micro")
def speedup(figures: FigureSet) -> Figure:
    """One decode step (`total`) over the best dense one: the main sparse methods and ReSA's floor, then the others."""
    figures = figures.curved()
    able, room = ranked(figures.lines), MOST - 2
    resa = next(iter(figures.resa()), None)

    def floor(n: int) -> Curve:
        return column_curve(
            points(figures.lines[resa], "total", n, "floor_speedup") if resa else [], "floor_speedup", RESA_FLOOR
        )

    groups: dict[str, Lines] = {
        "": lambda n: [*(_ratios(figures, v, n, "total") for v in able[:room]), floor(n)],
        "other methods": lambda n: [_ratios(figures, v, n, "total") for v in able[room : room + MOST - 1]],
    }
    return _speedups(figures, groups, "speed-up of a decode step")


@figure("speedup-amortised", suite="micro")
def speedup_amortised(figures: FigureSet) -> Figure:
    """ReSA with its rectification paid for (`total_amortised`).

    First the usual setting of each form beside the step alone (dotted), then for each form all its settings.
    """
    figures = figures.curved(AMORTISED)
    stage = AMORTISED
    forms = list(figures.forms().values())

    def first_settings(n: int) -> list[Curve]:
        alone = [_ratios(figures, own[0], n, "total", "step alone") for own in forms[:2]]
        dotted = [replace(curve, look=replace(curve.look, linestyle=ALONE_DASHES)) for curve in alone]
        paid = [_ratios(figures, own[0], n, stage) for own in forms[:2]]
        return [curve for pair in zip(paid, dotted, strict=True) for curve in pair]

    groups: dict[str, Lines] = {"": first_settings}
    for own in forms:
        names = short_names(row for variant in own for row in figures.lines[variant])
        words = {variant: names[variant].removeprefix(name_of(variant)).strip() for variant in own[: MOST - 1]}
        if len(own) > 1:
            groups[name_of(own[0])] = lambda n, words=words: [
                _ratios(figures, v, n, stage, w) for v, w in words.items()
            ]  # type: ignore[misc]
    return _speedups(figures, groups, "speed-up with rectification")


@figure("floors", suite="micro")
def floors(figures: FigureSet) -> Figure:
    """`floor_fraction` of attention alone and of the whole step; 1 is what the measured ceilings allow.

    A cold row above 1 has wrong bytes or a warm cache. It is drawn where it is, and the caption counts it.
    """
    figures = figures.curved()

    def reached(stage: str, n: int) -> list[Curve]:
        stages = sorted({row.stage for row in figures.rows if stage in row.stage.split("+")})
        rival = best_dense(figures, n, max(row.context for row in figures.rows if row.batch == n))
        curves = []
        for variant in [*([rival[0]] if rival else []), *ranked(figures.lines)][: MOST - 1]:
            rows = [r for name in stages for r in points(figures.lines[variant], name, n, "floor_fraction")]
            rows.sort(key=lambda row: row.context)
            curves.append(column_curve(rows, "floor_fraction", figures.looks[variant], name_of(variant)))
        return [*curves, level_line("floor", 1.0, figures.contexts())]

    groups: dict[str, Lines] = {words: lambda n, s=stage: reached(s, n) for stage, words in PARTS.items()}  # type: ignore[misc]
    if not any(row.floor_fraction is not None for row in figures.rows):
        raise NotDrawn("no row has floor_fraction")
    fig, axes, drawn = _batches(figures, groups, "floor / median")
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


def _batches(figures: FigureSet, groups: dict[str, Lines], quantity: str) -> tuple[Figure, list[Axes], list[Row]]:
    """A row of panels a group, a column a batch, all on one scale."""
    batches = figures.batches()
    columns = min(len(batches), 3)
    cells: list[tuple[str, list[Curve]]] = []
    for name, lines in groups.items():
        own = [(f"batch {n}{', ' if name else ''}{name}", lines(n)) for n in batches]
        if any(curve.rows for _, curves in own for curve in curves):
            cells += [*own, *[("", [])] * (-len(own) % columns)]
    return grid(cells, quantity, columns=columns)


def _speedups(figures: FigureSet, groups: dict[str, Lines], what: str) -> Figure:
    even = level_line("best dense", 1.0, figures.contexts())
    groups = {name: lambda n, own=own: [*own(n), even] for name, own in groups.items()}  # type: ignore[misc]
    if not any(row.speedup_vs_best_dense for row in figures.rows):
        raise NotDrawn(f"no sparse row has {SPEEDUP}: was a dense method measured in the same cases?")
    fig, axes, drawn = _batches(figures, groups, "speed-up, log scale")
    log_axis(axes[0], "x")
    heading = title(figures, f"{what} over the best dense kernel")
    return finish(fig, heading, caption(figures, drawn, full_names(drawn), best_dense_of(drawn)))


def _ratios(figures: FigureSet, variant: Variant, batch: int, stage: str, label: str = "") -> Curve:
    rows = points(figures.lines[variant], stage, batch, SPEEDUP)
    return column_curve(rows, SPEEDUP, figures.looks[variant], label or name_of(variant))


def _at_longest(figures: FigureSet, variant: Variant) -> tuple[int, float]:
    """Sorts by the time at the longest context, variants that have it first."""
    steps = [row for row in figures.lines[variant] if row.stage == "total"]
    last = max(steps, key=lambda row: (row.context, -row.batch), default=None)
    return (-last.context, last.median_us or 0.0) if last else (0, 0.0)
