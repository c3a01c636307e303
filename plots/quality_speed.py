"""Quality against speed: KL on a real model over tokens per second of a large shape, a point a method and setting.

The two come from different models and different rows: random weights of the large shape say nothing about quality, and
the small real model's speed says nothing about long contexts. Methods are paired by their settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.rows import Row
from ..suites.quality.table import mean
from .caption import circumstances, of_commits, throttled
from .data import FUSED, FigureSet, NotDrawn
from .decode_data import Setting, setting
from .quality_data import QualitySet, looks
from .style import GREY, SINGLE_IN, Look, finish, legend_line, tokens

PAIRED = (
    "block_size", "active_ratio", "budget_tokens", "rectify_every", "gqa_policy", "summary_kind", "summary_dtype",
    "spread_weight", "pinned_blocks", "window",
)  # fmt: skip
SAME_STEP = {"resa-torch": "resa", FUSED: "resa"}  # methods that compute the same, and so have the same quality
LEAST_POINTS = 2
MORE = 1.25  # times the tokens that the ratio asks for: where the least number of blocks is more, ratios do not compare


@dataclass(frozen=True, slots=True)
class Point:
    """One method and setting."""

    name: str  # of its quality rows; "dense"
    tokens_per_s: float
    kl: float
    row: Row  # that was timed


def pair(quality: QualitySet, decode: FigureSet) -> tuple[Setting, int, list[Point]]:
    """The setting and context of the decode rows that most methods of the quality rows were timed in, and the points.

    Of several with as many, the longest context counts, then the smallest batch. Dense is the fastest dense method.

    Raises:
        NotDrawn: fewer than two methods were measured in both.
    """
    kl: dict[tuple[Any, ...], tuple[str, float | None]] = {}
    for name, mine in quality.lines.items():
        if _by_ratio(mine[0]):
            kl.setdefault(_key(mine[0]), (name, mean(mine, "kl")))
    timed = (*decode.rows, *decode.alike)
    steps = [row for row in timed if row.stage == "total" and row.tokens_per_s and _by_ratio(row)]
    found: dict[tuple[Setting, int], list[Point]] = {}
    for row in steps:
        name, value = kl.get(_key(row), ("", None))
        if value is not None and row.tokens_per_s:
            found.setdefault((setting(row), row.context), []).append(Point(name, row.tokens_per_s, value, row))
    most = max((len(points) for points in found.values()), default=0)
    if most < LEAST_POINTS:
        raise NotDrawn(f"{most} of its methods and settings were timed in {decode.model}'s decode rows")
    (where, context) = max(found, key=lambda key: (len(found[key]), key[1], -key[0].batch))
    points = sorted(found[where, context], key=lambda point: point.tokens_per_s)
    rivals = [r for r in steps if setting(r) == where and r.context == context and r.block_size is None]
    if rivals:
        best = max(rivals, key=lambda row: row.tokens_per_s or 0.0)
        points.insert(0, Point("dense", best.tokens_per_s or 0.0, 0.0, best))
    return where, context, points


def _key(row: Row) -> tuple[Any, ...]:
    settings = (getattr(row, name) for name in PAIRED)
    return SAME_STEP.get(row.method, row.method), row.dense_layers or 0, *settings


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


def quality_speed(quality: QualitySet, decode: FigureSet) -> Figure:
    """One point a method and setting measured in both suites; the Pareto front is the line."""
    where, context, points = pair(quality, decode)
    styles = looks(quality.lines)
    fig = Figure(figsize=(1.5 * SINGLE_IN, 2.9), layout="constrained")
    ax = fig.subplots()
    line = [(p.tokens_per_s, p.kl) for p in front(points)]
    ax.plot(*zip(*line, strict=True), color="#BBBBBB", linewidth=1.0, zorder=1)
    level = next((mean(mine, "kl") for mine in quality.lines.values() if mine[0].rectify_every == 1), None)
    if level is not None:
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    legend = []
    for point in points:
        look = styles.get(point.name, Look("black", "o"))
        look = Look(look.colour, "*" if point.row.method == FUSED else look.marker or "o", "")
        (drawn,) = ax.plot(
            [point.tokens_per_s], [point.kl], ls="", marker=look.marker, color=look.colour, markersize=5, clip_on=False
        )
        if point.row.status == "throttled":
            drawn.set_markerfacecolor("white")
        legend.append(legend_line(look, _named(point)))
    _axes(ax, quality, decode, where, context)
    device = f"tokens/s: {decode.device}, random weights, {of_commits(point.row for point in points)}"
    rest = (
        quality.about,
        "line: Pareto front",
        "dashes: ReSA at f = 1, a sparse step's own error" if level is not None else "",
        device,
        throttled(point.row for point in points),
    )
    caption = circumstances(quality.rows, *(part for part in rest if part))
    return finish(fig, f"Quality on {quality.model} against speed of {decode.model}'s shape", legend, caption)


def _named(point: Point) -> str:
    """Its settings as the quality rows name them; how it was timed where they do not say it."""
    method = point.row.method
    told = point.name != "dense" and (method != FUSED or point.name.startswith(method))
    return point.name if told else f"{point.name} ({method})"


def _axes(ax: Axes, quality: QualitySet, decode: FigureSet, where: Setting, context: int) -> None:
    ax.set_xlabel(f"tokens/s, {decode.model} shape at {tokens(context)} ({where})")
    ax.set_ylabel(f"KL(dense || method) on\n{quality.model}, nats a token")
    ax.set_ylim(bottom=-0.004)
    ax.margins(x=0.08)
