"""Quality against speed: KL on a real model over tokens per second of a large shape, a point a method and setting.

The two come from different models and different rows: random weights of the large shape say nothing about quality, and
the small real model's speed says nothing about long contexts. Methods are paired by their settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ..suites.core.analysis import LEVEL, mean_of
from ..suites.core.looks import GREY, LIGHT_GREY, looks
from ..suites.core.rows import Row
from ..suites.core.spec import steps_of
from .caption import circumstances, of_commits
from .data import FigureSet, NotDrawn, order
from .decode_data import Setting, decode_sets, setting
from .quality_data import QualitySet, quality_sets
from .registry import figure, figure_sets
from .style import LIMIT_DASHES, SINGLE_IN, draw_point, finish, legend_line, names_of, tokens

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
    kl: dict[tuple[Any, ...], float | None] = {}
    for rows in quality.lines.values():
        if _by_ratio(rows[0]):
            kl.setdefault(_key(rows[0]), mean_of(rows, "kl"))
    timed = (*decode.rows, *decode.alike)
    steps = [row for row in timed if row.stage == "total" and row.tokens_per_s and _by_ratio(row)]
    by_place: dict[tuple[Setting, int], list[Point]] = {}
    for row in steps:
        value = kl.get(_key(row))
        if value is not None and row.tokens_per_s:
            by_place.setdefault((setting(row), row.context), []).append(Point(row.tokens_per_s, value, row))
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


def _key(row: Row) -> tuple[Any, ...]:
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


@figure("quality-speed", suite="quality, decode")
def quality_speed(figures: SpeedSet) -> Figure:
    """One point a method and setting measured in both suites; the Pareto front is the line."""
    quality, decode = figures.quality, figures.decode
    where, context, points = pair(quality, decode)
    rows = [point.row for point in points]
    names, styles = names_of(rows), looks(sorted({row.variant for row in rows}, key=order))
    fig = Figure(figsize=(1.5 * SINGLE_IN, 2.9), layout="constrained")
    ax = fig.subplots()
    line = [(p.tokens_per_s, p.kl) for p in front(points)]
    ax.plot(*zip(*line, strict=True), color=LIGHT_GREY, linewidth=1.0, zorder=1)
    levels = [mean_of(own, "kl") for own in quality.lines.values() if own[0].rectify_every == LEVEL]
    if levels:
        ax.axhline(levels[0] or 0.0, color=GREY, linewidth=0.8, linestyle=LIMIT_DASHES, zorder=0)
    legend = []
    for point in points:
        look = styles[point.row.variant]
        draw_point(ax, point.tokens_per_s, point.kl, look, point.row, size=5)
        legend.append(legend_line(look, names[point.row], line=False))
    ax.set_xlabel(f"tokens/s, {decode.model} shape at {tokens(context)} ({where})")
    ax.set_ylabel(f"KL(dense || method) on\n{quality.model}, nats a token")
    ax.set_ylim(bottom=-0.004)
    ax.margins(x=0.08)
    notes = (
        quality.about,
        "line: Pareto front",
        "dashes: ReSA at f = 1, a sparse step's own error" if levels else "",
        f"tokens/s: {decode.device}, random weights, {of_commits(rows)}",
    )
    heading = f"Quality on {quality.model} against speed of {decode.model}'s shape"
    return finish(fig, heading, legend, circumstances(quality.rows, *notes))
