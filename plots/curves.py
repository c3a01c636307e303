"""Lines over an axis, five a panel at most, each with its name at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes

from ..suites.core.looks import BLACK, GREY, SOLID, TITLES, VERMILLION, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .style import END_LABEL, LIMIT_DASHES, SMALL_PT, names_of, ring

MOST = 5  # lines in a panel
BEST_DENSE = Look(BLACK, "s", SOLID, "best dense")
DENSE_FLOOR = Look(GREY, "", LIMIT_DASHES, "dense floor")
RESA_FLOOR = Look(VERMILLION, "", LIMIT_DASHES, "ReSA's floor")


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a panel.

    Attributes:
        label: what stands at its end; empty for none.
        look: colour, marker, dashes. A look without a marker is a limit or a reference: a thin line.
        xs, ys: its points, by x.
        rows: what the points were measured as, if rows: those under throttling are ringed.
        band: (lows, highs), shaded; or None.
        every: of how many points one gets a marker.
    """

    label: str
    look: Look
    xs: Sequence[float]
    ys: Sequence[float]
    rows: Sequence[Row] = ()
    band: tuple[Sequence[float], Sequence[float]] | None = None
    every: int = field(default=1, kw_only=True)


def column_curve(rows: Sequence[Row], column: str, look: Look, label: str = "") -> Curve:
    """A column of rows over their contexts."""
    rows = [row for row in rows if getattr(row, column) is not None]
    own = rows if look.marker else ()
    return Curve(label or look.title, look, [r.context for r in rows], [getattr(r, column) for r in rows], own)


def draw_curves(ax: Axes, curves: Sequence[Curve]) -> list[Row]:
    """Draw the lines that have points, and their names at their ends; the rows drawn.

    Raises:
        ValueError: there are more than MOST lines.
    """
    curves = [curve for curve in curves if len(curve.xs)]
    if len(curves) > MOST:
        raise ValueError(f"{len(curves)} lines in a panel ({', '.join(c.label for c in curves)}); {MOST} at most")
    for curve in curves:
        look = curve.look
        width = (1.5 if look.linestyle == SOLID else 1.2) if look.marker else 0.9
        if curve.band is not None:
            ax.fill_between(curve.xs, *curve.band, color=look.colour, alpha=0.13, linewidth=0)
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.linestyle}
        ax.plot(curve.xs, curve.ys, **style, linewidth=width, markevery=curve.every, label=curve.label or "_")
        for row, x, y in zip(curve.rows, curve.xs, curve.ys, strict=bool(curve.rows)):
            if row.status == "throttled":
                ring(ax, x, y)
        if curve.label:
            label_end(ax, curve)
    return [row for curve in curves for row in curve.rows]


def label_end(ax: Axes, curve: Curve) -> None:
    """The name of a line right of its panel, and a hair between the two; `finish` moves the names apart."""
    ax.annotate(
        curve.label, (curve.xs[-1], curve.ys[-1]), xytext=(1.03, 0.5), textcoords="axes fraction", va="center",
        color=curve.look.colour, fontsize=SMALL_PT, fontweight="normal", annotation_clip=False, gid=END_LABEL,
        arrowprops={"arrowstyle": "-", "color": curve.look.colour, "linewidth": 0.4, "shrinkA": 1, "shrinkB": 3},
    )  # fmt: skip


def name_of(variant: Variant) -> str:
    """The method's name alone: of a line that stands for all its variants."""
    return TITLES.get(variant.method, variant.method)


def short_names(rows: Iterable[Row]) -> dict[Variant, str]:
    """Names for lines' ends: the method's alone where the rows have one variant of it."""
    rows = list(rows)
    names, variants = names_of(rows), list(dict.fromkeys(row.variant for row in rows))
    alone = {v for v in variants if sum(other.method == v.method for other in variants) == 1}
    return {v: name_of(v) if v in alone else names.of(v) for v in variants}


def full_names(rows: Iterable[Row]) -> str:
    """For captions: the variants that are not dense, with their settings."""
    rows = [row for row in rows if not row.variant.is_dense]
    names = names_of(rows)
    return ", ".join(dict.fromkeys(names[row] for row in rows))
