"""Lines over an axis, five a panel at most, each with its name at its end; panels of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.looks import BLACK, GREY, SOLID, TITLES, VERMILLION, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .style import END_LABEL, LIMIT_DASHES, SMALL_PT, context_axis, names_of, panels, ring

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
    every: int = 1


def column_curve(rows: Sequence[Row], column: str, look: Look, label: str = "") -> Curve:
    """A column of rows over their contexts."""
    rows = [row for row in rows if getattr(row, column) is not None]
    ys = [getattr(row, column) for row in rows]
    return Curve(label or look.title, look, [row.context for row in rows], ys, rows if look.marker else ())


def level_line(label: str, y: float, xs: Iterable[float]) -> Curve:
    """A black reference at one height, over the range of `xs`."""
    ends = sorted(xs)
    return Curve(label, Look(BLACK, ""), [ends[0], ends[-1]], [y, y])


def grid(
    cells: Sequence[tuple[str, Sequence[Curve]]], quantity: str, *, columns: int, height_in: float = 2.2, **panel: Any
) -> tuple[Figure, list[Axes], list[Row]]:
    """Panels of curves over contexts, by title; a panel without a measured point is left empty.

    Args:
        cells: titles and curves.
        quantity: what the y axis shows.
        columns: panels side by side.
        height_in: of a panel.
        panel: `share_y` as `panels` takes it; where all share a scale, they share the contexts, too.

    Returns:
        The figure, the panels with curves, and the rows drawn.
    """
    fig, axes, left = panels(len(cells), height_in, columns=columns, **panel)
    measured = [[row for curve in curves for row in curve.rows] for _, curves in cells]
    drawn = [row for rows in measured for row in rows]
    for ax, (title, curves), rows in zip(axes, cells, measured, strict=True):
        ax.set_visible(bool(rows))
        if rows:
            draw_curves(ax, curves)
            ax.set_title(title)
            ax.set_xlabel("context, tokens")
            context_axis(ax, sorted({row.context for row in (rows if panel else drawn)}))
    for ax in left:
        ax.set_ylabel(quantity)
    return fig, [ax for ax in axes if ax.get_visible()], drawn


def draw_curves(ax: Axes, curves: Sequence[Curve]) -> None:
    """Draw the lines that have points, and their names at their ends. Raises ValueError for more than MOST lines."""
    curves = [curve for curve in curves if len(curve.xs)]
    if len(curves) > MOST:
        raise ValueError(f"{len(curves)} lines in a panel ({', '.join(c.label for c in curves)}); {MOST} at most")
    for curve in curves:
        look = curve.look
        if curve.band is not None:
            ax.fill_between(curve.xs, *curve.band, color=look.colour, alpha=0.13, linewidth=0)
        width = (1.5 if look.linestyle == SOLID else 1.2) if look.marker else 0.9
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.linestyle}
        ax.plot(curve.xs, curve.ys, **style, linewidth=width, markevery=curve.every, label=curve.label or "_")
        for row, x, y in zip(curve.rows, curve.xs, curve.ys, strict=bool(curve.rows)):
            if row.status == "throttled":
                ring(ax, x, y)
        if curve.label:
            label_end(ax, curve)


def label_end(ax: Axes, curve: Curve) -> None:
    """The name of a line right of its panel, and a hair between the two; `finish` moves the names apart."""
    hair = {
        "arrowstyle": "-", "color": curve.look.colour, "linewidth": 0.4, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5),
    }  # fmt: skip
    ax.annotate(
        curve.label, (curve.xs[-1], curve.ys[-1]), xytext=(1.03, 0.5), textcoords="axes fraction", va="center",
        color=curve.look.colour, fontsize=SMALL_PT, annotation_clip=False, gid=END_LABEL, arrowprops=hair,
    )  # fmt: skip


def name_of(variant: Variant) -> str:
    """The method's name alone: of a line that stands for all its variants."""
    return TITLES.get(variant.method, variant.method)


def short_names(rows: Iterable[Row]) -> dict[Variant, str]:
    """Names for lines' ends: the method's alone where the rows have one variant of it."""
    rows = list(rows)
    names, methods = names_of(rows), [variant.method for variant in dict.fromkeys(row.variant for row in rows)]
    return {v: name_of(v) if methods.count(v.method) == 1 else names.of(v) for v in (row.variant for row in rows)}


def full_names(rows: Iterable[Row]) -> str:
    """For captions: the variants that are not dense, with their settings."""
    rows = [row for row in rows if not row.variant.is_dense]
    names = names_of(rows)
    return ", ".join(dict.fromkeys(names[row] for row in rows))
