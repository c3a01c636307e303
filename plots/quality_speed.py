"""Quality against speed: KL on a real model over tokens per second of a large shape, a point a method and setting.

The two come from different models and different rows: random weights of the large shape say nothing about quality, and
the small real model's speed says nothing about long contexts. Methods are paired by their settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, dist, pi, sin
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.analysis import LEVEL, mean_of
from ..suites.core.looks import GREY, LIGHT_GREY, look_of
from ..suites.core.rows import Row
from ..suites.core.spec import steps_of
from .caption import circumstances, of_commits
from .data import FigureSet, NotDrawn
from .decode_data import Setting, decode_sets, setting
from .quality_data import QualitySet, error_words, kl_error, quality_sets
from .registry import figure, figure_sets
from .style import LIMIT_DASHES, SMALL_PT, WIDTHS_IN, finish, names_of, ring, tokens

LEAST_POINTS = 2
MORE = 1.25  # times the tokens that the ratio asks for: where the least number of blocks is more, ratios do not compare


@dataclass(frozen=True, slots=True)
class SpeedSet:
    """A case of the quality suite, and a model of the decode suite that its methods were timed in."""

    quality: QualitySet
    decode: FigureSet

    @property
    def slug(self) -> str:
        """Of both."""
        return f"{self.quality.slug}-on-{self.decode.slug}"


@dataclass(frozen=True, slots=True)
class Point:
    """One method and setting."""

    tokens_per_s: float
    kl: float
    row: Row  # that was timed
    kl_error: float = 0.0


@figure_sets("quality, decode", needs="rows of both for quality against speed")
def speed_sets(rows: Sequence[Row]) -> list[SpeedSet]:
    """Each case of quality with each decoding model."""
    decode = decode_sets(rows)
    return [SpeedSet(quality, figures) for quality in quality_sets(rows) for figures in decode]


def pair(quality: QualitySet, decode: FigureSet) -> tuple[Setting, int, list[Point]]:
    """The setting and context of the decode rows that most methods of the quality rows were timed in, and the points.

    Of several with as many, the longest context counts, then the smallest batch. Dense is the fastest dense method.

    Raises:
        NotDrawn: fewer than two methods were measured in both.
    """
    kl: dict[tuple[Any, ...], tuple[float | None, float]] = {}
    for rows in quality.lines.values():
        if _by_ratio(rows[0]):
            kl.setdefault(key_of(rows[0]), (mean_of(rows, "kl"), kl_error(rows)))
    timed = (*decode.rows, *decode.alike)
    steps = [row for row in timed if row.stage == "total" and row.tokens_per_s and _by_ratio(row)]
    by_place: dict[tuple[Setting, int], list[Point]] = {}
    for row in steps:
        value, error = kl.get(key_of(row), (None, 0.0))
        if value is not None and row.tokens_per_s:
            by_place.setdefault((setting(row), row.context), []).append(Point(row.tokens_per_s, value, row, error))
    most = max((len(points) for points in by_place.values()), default=0)
    if most < LEAST_POINTS:
        raise NotDrawn(f"{most} of its methods and settings were timed in {decode.model}'s decode rows")
    (where, context) = max(by_place, key=lambda key: (len(by_place[key]), key[1], -key[0].batch))
    points = sorted(by_place[where, context], key=lambda point: point.tokens_per_s)
    rivals = [r for r in steps if setting(r) == where and r.context == context and r.variant.is_dense]
    if rivals:
        best = max(rivals, key=lambda row: row.tokens_per_s or 0.0)
        points.insert(0, Point(best.tokens_per_s or 0.0, 0.0, best))
    return where, context, points


def key_of(row: Row) -> tuple[Any, ...]:
    """What two rows of the same steps share: the least number of blocks aside, which `_by_ratio` judges."""
    settings = [(n, v) for n, v in row.variant.settings if n != "min_blocks" and (n, v) != ("dense_layers", 0)]
    return steps_of(row.method), *settings


def _by_ratio(row: Row) -> bool:
    """Whether the active ratio decides how much is read, and not the least number of blocks; true without a ratio."""
    if row.active_ratio is None or row.budget_tokens is not None:
        return True
    return (row.min_blocks or 0) * (row.block_size or 0) <= MORE * row.active_ratio * row.context


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other is at once as fast and as near to dense as, by speed."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.tokens_per_s, p.kl)):
        if not kept or point.kl < kept[-1].kl:
            kept.append(point)
    return kept[::-1]


def speed_errors(row: Row) -> tuple[float, float]:
    """How far a step's tokens per second may lie lower and higher: its mean's 95 % interval."""
    if not row.mean_us or not row.tokens_per_s or not row.ci_low_us or not row.ci_high_us:
        return 0.0, 0.0
    ends = [row.tokens_per_s * row.mean_us / us for us in (row.ci_high_us, row.ci_low_us)]
    return row.tokens_per_s - ends[0], ends[1] - row.tokens_per_s


@figure("quality-speed", suite="quality, decode")
def quality_speed(figures: SpeedSet) -> Figure:
    """One point a method and setting measured in both suites, with error bars; the Pareto front is a staircase.

    A point on the front is named beside it, any other by the number that the list on the right gives it.
    """
    quality, decode = figures.quality, figures.decode
    where, context, points = pair(quality, decode)
    rows = [point.row for point in points]
    names = names_of(rows)
    best = front(points)
    fig = Figure(figsize=(WIDTHS_IN[2], 3.6), layout="constrained")
    ax = fig.subplots()
    low, high = min(p.tokens_per_s for p in points), max(p.tokens_per_s for p in points)
    xs, ys = [low, *(p.tokens_per_s for p in best)], [best[0].kl, *(p.kl for p in best)]
    ax.plot(xs, ys, color=LIGHT_GREY, linewidth=1.2, zorder=1, drawstyle="steps-pre", label="front")
    levels = [mean_of(own, "kl") for own in quality.lines.values() if own[0].rectify_every == LEVEL]
    if levels:
        ax.axhline(levels[0] or 0.0, color=GREY, linewidth=0.9, linestyle=LIMIT_DASHES, zorder=0)
        ax.annotate(
            "a sparse step's own error", (low, levels[0] or 0.0), (0, 3), textcoords="offset points", color=GREY
        )
    by_height = sorted(points, key=lambda point: -point.kl)
    for number, point in enumerate(by_height, 1):
        look, x, y = look_of(point.row.method), point.tokens_per_s, point.kl
        bars = [[end] for end in speed_errors(point.row)]
        ax.errorbar(
            [x],
            [y],
            point.kl_error,
            bars,
            color=look.colour,
            marker=look.marker,
            ms=5,
            mec="white",
            mew=0.4,
            elinewidth=0.7,
        )
        if point.row.status == "throttled":
            ring(ax, x, y)
        words = f"{number}  {names[point.row]}{' (on the front)' if point in best else ''}"
        place = 1.0 - (number - 0.5) / max(len(points), 12)
        ax.text(1.03, place, words, transform=ax.transAxes, color=look.colour, fontsize=SMALL_PT, va="center")
    ax.set_xlabel(f"tokens/s, {decode.model} shape at {tokens(context)} ({where})")
    ax.set_ylabel(f"KL(dense || method) on {quality.model},\nnats a token")
    ax.set_ylim(bottom=-0.004)
    ax.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    _number(ax, by_height)
    weights = "" if any(row.model_fingerprint or where.prompt == "text" for row in rows) else "random weights, "
    notes = (
        quality.about,
        f"bars: {error_words(quality.rows)}, 95 % interval of tokens/s",
        "staircase: Pareto front",
        "dashes: ReSA at f = 1" if levels else "",
        f"tokens/s: {decode.device}, {weights}{of_commits(rows)}",
    )
    heading = f"Quality on {quality.model} against speed of {decode.model}'s shape"
    return finish(fig, heading, circumstances(quality.rows, *notes))


def _number(ax: Axes, points: Sequence[Point]) -> None:
    """Numbers from 1, each beside its point: in the direction and at the distance where the least is covered."""
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays out: places are pixels after it
    taken = [tuple(ax.transData.transform((point.tokens_per_s, point.kl))) for point in points]
    dot = ax.figure.dpi / 72
    for number, (point, (x, y)) in enumerate(zip(points, list(taken), strict=True), 1):
        tries = [(x + r * dot * cos(a * pi / 8), y + r * dot * sin(a * pi / 8)) for r in (8, 14, 21) for a in range(16)]
        best = max(tries, key=lambda at: min(8 * dot, *(dist(at, other) for other in taken if other != (x, y))))
        taken.append(best)
        offset = ((best[0] - x) / dot, (best[1] - y) / dot)
        arrow = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            str(number), (point.tokens_per_s, point.kl), offset, textcoords="offset points", ha="center", va="center",
            color=look_of(point.row.method).colour, arrowprops=arrow if dist(best, (x, y)) > 10 * dot else None,
        )  # fmt: skip
