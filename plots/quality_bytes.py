"""Quality against bytes: KL on a real model over what a step's attention reads, a point a method and setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import cos, hypot, pi, sin

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..suites.core.looks import GREY, LIGHT_GREY, look_of
from ..suites.core.spec import steps_of
from .caption import circumstances
from .data import NotDrawn
from .quality_data import QualitySet, error_words
from .quality_front import ReadPoint, least_read, read_points
from .registry import figure
from .style import SMALL_PT, WIDTHS_IN, finish, log_axis, names_of, tokens

LEAST_POINTS = 3
NAMED = ("resa", "resa-plus", "oracle", "quest")
"""Methods whose first variant is named beside its point, as those on the front are."""
ROOM = 10.0  # pixels-of-72 between a point and the nearest place for its name
LIST_LINES = 16  # lines of the list that the figure has room for at least


@figure("quality-bytes", suite="quality")
def quality_bytes(figures: QualitySet) -> Figure:
    """Lower is nearer to dense, further left reads less; the Pareto front is a staircase.

    The front, and the first variant of each of NAMED, carry names; the others are small, and numbered in a list.

    Raises:
        NotDrawn: fewer than three methods say what they read.
    """
    points = read_points(figures)
    if len(points) < LEAST_POINTS:
        raise NotDrawn(f"{len(points)} of its methods say how much they read (metric read_share)")
    best, names = least_read(points), names_of(row for point in points for row in point.rows)
    firsts = {steps_of(v.method): v for v in reversed(figures.lines) if steps_of(v.method) in NAMED}
    named = [p for p in points if p in best or p.variant in firsts.values()]
    others = sorted((p for p in points if p not in named), key=lambda p: -p.kl)
    fig = Figure(figsize=(WIDTHS_IN[2], 3.6), layout="constrained")
    ax = fig.subplots()
    right = max(100 * point.share for point in points) * 1.25
    xs, ys = [*(100 * p.share for p in best), right], [*(p.kl for p in best), best[-1].kl]
    ax.plot(xs, ys, color=LIGHT_GREY, linewidth=1.2, zorder=1, drawstyle="steps-post", label="front")
    for point in points:
        look, big = look_of(point.variant.method), point in named
        ax.errorbar(
            [100 * point.share], [point.kl], _bars(point), color=look.colour, marker=look.marker, ms=5.5 if big else 3,
            mec="white", mew=0.4, elinewidth=0.7, alpha=1.0 if big else 0.6, zorder=3 if big else 2,
        )  # fmt: skip
    log_axis(ax)
    log_axis(ax, "%", horizontal=True)
    ax.set_xlim(right=right)
    first = figures.rows[0]
    steps = max(row.step or 0 for row in figures.rows)
    dense = 2 * 2 * first.kv_heads * first.head_dim * (first.layers or 1) * (first.context - steps // 2)
    ax.set_xlabel(f"bytes that a step's attention reads, of dense attention's {dense / 1e6:.1f} MB (16-bit cache)")
    ax.set_ylabel("KL(dense || method), nats a token")
    labels = [(names.of(p.variant), p, False) for p in named] + [(str(i), p, True) for i, p in enumerate(others, 1)]
    for i, point in enumerate(others, 1):
        place = 1.0 - (i - 0.5) / max(len(others), LIST_LINES)
        ax.text(1.03, place, f"{i}  {names.of(point.variant)}", transform=ax.transAxes, color=GREY,
                fontsize=SMALL_PT, va="center")  # fmt: skip
    _write(ax, points, labels, list(zip(xs, ys, strict=True)))
    notes = (
        figures.about,
        f"bars: {error_words(figures.rows)}",
        "staircase: Pareto front",
        "bytes: K, V, what ranks blocks, and the step's part of rectification",
    )
    heading = f"{figures.model}: quality against bytes read, prompt of {tokens(first.context - steps)} tokens"
    return finish(fig, heading, circumstances([row for p in points for row in p.rows], *notes))


def _bars(point: ReadPoint) -> list[list[float]]:
    """How far a bar reaches down and up: not to zero, which a logarithmic axis has not."""
    return [[min(point.kl_error, 0.9 * point.kl)], [point.kl_error]]


def _bar_boxes(ax: Axes, points: Sequence[ReadPoint]) -> list[Bbox]:
    """Where the error bars are, in pixels."""
    boxes = []
    for point in points:
        (down,), (up,) = _bars(point)
        ends = [(100 * point.share, point.kl + end) for end in (-down, up)]
        boxes.append(Bbox(ax.transData.transform(ends)).padded(1.0))
    return boxes


def _stairs(ax: Axes, front: Sequence[tuple[float, float]]) -> list[Bbox]:
    """Where the staircase through these corners is, in pixels."""
    steps = [((x, y), (next_x, y), (next_x, next_y)) for (x, y), (next_x, next_y) in pairwise(front)]
    corners = [corner for step in steps for corner in step]
    return [Bbox(ax.transData.transform(ends)).padded(1.0) for ends in pairwise(corners)]


def _leader(start: tuple[float, float], end: tuple[float, float], dot: float) -> list[Bbox]:
    """Where a thin line is, in pixels, as small squares along it."""
    count = max(int(hypot(end[0] - start[0], end[1] - start[1]) / (2 * dot)), 1)
    along = [i / count for i in range(count + 1)]
    middles = [(start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in along]
    return [Bbox.from_bounds(x - dot / 2, y - dot / 2, dot, dot) for x, y in middles]


def _write(
    ax: Axes,
    points: Sequence[ReadPoint],
    labels: Sequence[tuple[str, ReadPoint, bool]],
    front: Sequence[tuple[float, float]],
) -> None:
    """Names, then numbers, each at the nearest place around its point that covers the least of all that is drawn.

    The thin line to its point counts, too: that it covers no name, and no name it.
    """
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays out: places are pixels after it
    dot = ax.figure.dpi / 72
    at = {id(point): ax.transData.transform((100 * point.share, point.kl)) for point in points}
    taken = [Bbox.from_bounds(x - 3 * dot, y - 3 * dot, 6 * dot, 6 * dot) for x, y in at.values()]
    taken += [*_bar_boxes(ax, points), *_stairs(ax, front)]
    written: list[Bbox] = []
    for words, point, is_number in labels:
        x, y = at[id(point)]
        colour = GREY if is_number else look_of(point.variant.method).colour
        text = ax.annotate(
            words, (100 * point.share, point.kl), (0, 0), textcoords="offset points", ha="center", va="center",
            color=colour, fontsize=SMALL_PT,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        size = text.get_window_extent()
        width, height = size.width, size.height
        tries = []
        for r, a in product((1.0, 1.8, 2.8, 4.0), range(16)):
            dx, dy = cos(a * pi / 8), sin(a * pi / 8)
            centre = (x + dx * (r * ROOM * dot + width / 2), y + dy * (r * ROOM * dot + height / 4))
            box = Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
            outside = not (
                ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            )
            line = _leader((x, y), centre, dot)
            crossed = sum(any(part.overlaps(other) for part in line) for other in written)
            tries.append((outside + crossed + sum(box.overlaps(other) for other in taken), r, box, centre, line))
        _, _, box, centre, line = min(tries, key=lambda entry: entry[:2])
        taken += [box, *(part for part in line if not part.overlaps(box))]
        written.append(box)
        text.set_position(((centre[0] - x) / dot, (centre[1] - y) / dot))
