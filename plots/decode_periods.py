"""What ReSA's rectification period and block size do to tokens per second, at the case measured with several."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..suites.core.looks import BLACK, LOOKS, Look
from ..suites.core.rows import Row
from ..suites.core.settings import SETTINGS
from ..suites.core.spec import Variant
from .caption import caption, title
from .curves import Curve, draw_curves
from .data import FigureSet, NotDrawn
from .decode_data import fastest_dense, parts, setting
from .registry import figure
from .style import SMALL_PT, bar_axis, finish, panels, starred, tokens

AXES = {"rectify_every": "tokens between rectifications, f", "block_size": "block size b, tokens"}
_OUTLINE: dict[str, Any] = {"facecolor": "white", "linewidth": 0.8, "linestyle": (0, (2, 1))}
RECTIFICATION = ("rectify", "rectify+project+ffn", "rectify+all-reduce")


@figure("decode-periods", suite="decode")
def decode_periods(figures: FigureSet) -> Figure:
    """Tokens per second over f, and over the block size: a bar each, what rectification costs outlined above it."""
    studies = {column: _study(figures, column) for column in AXES}
    studies = {column: rows for column, rows in studies.items() if rows}
    if not studies:
        raise NotDrawn("no case was measured with several rectification periods or block sizes of ReSA")
    fig, axes, left = panels(len(studies), 2.2, columns=2)
    drawn: list[Row] = []
    rivals: set[str] = set()
    shared = False
    for ax, (column, rows) in zip(axes, studies.items(), strict=True):
        rival = fastest_dense(figures, setting(rows[0])).get(rows[0].context)
        if rival is not None:
            high = rival.tokens_per_s or 0.0
            draw_curves(ax, [Curve("best dense", Look(BLACK, ""), [-0.7, max(len(rows), 3) - 0.3], [high, high])])
            rivals.add(rival.method)
        for x, row in enumerate(rows):
            shared |= _bar(ax, x, row, _share(figures, row))
        other = "block_size" if column == "rectify_every" else "rectify_every"
        fixed = SETTINGS[other].word.format(getattr(rows[0], other))
        ax.set_title(f"{setting(rows[0])}, {tokens(rows[0].context)}, {fixed}")
        bar_axis(ax, range(len(rows)), [starred(str(getattr(row, column)), [row]) for row in rows])
        ax.set_xlabel(AXES[column])
        ax.set_xlim(-0.7, max(len(rows), 3) - 0.3)
        drawn += rows
    axes[0].set_ylim(top=axes[0].get_ylim()[1] * 1.06)
    for ax in left:
        ax.set_ylabel("tokens/s")
    looks = {LOOKS[row.method].title: LOOKS[row.method].colour for row in drawn}
    legend: list[Artist] = [Patch(facecolor=colour, label=name) for name, colour in looks.items()]
    if shared:
        edge = LOOKS[drawn[0].method].colour
        legend.append(Patch(**_OUTLINE, edgecolor=edge, label="if rectification were free (its share of the time)"))
    note = f"best dense: {', '.join(sorted(rivals))}" if rivals else ""
    heading = title(figures, "rectification period and block size of ReSA")
    return finish(fig, heading, caption(figures, drawn, note), legend)


def _study(figures: FigureSet, column: str) -> list[Row]:
    """The steps of one case that differ in `column` alone: most values, then the longest context."""
    groups: dict[object, dict[int, Row]] = defaultdict(dict)
    for variant in figures.resa():
        same = Variant(variant.method, tuple(pair for pair in variant.settings if pair[0] != column))
        for row in figures.lines[variant]:
            if row.stage == "total" and getattr(row, column) is not None:
                groups[same, setting(row), row.context][getattr(row, column)] = row
    best = max(groups.values(), key=lambda rows: (len(rows), next(iter(rows.values())).context), default={})
    return [best[value] for value in sorted(best)] if len(best) > 1 else []


def _share(figures: FigureSet, step: Row) -> float | None:
    """Rectification's share of a step's time."""
    stages = parts(figures, step)
    times = [stages[stage].mean_us or 0.0 for stage in RECTIFICATION if stage in stages]
    return sum(times) / step.mean_us if times and step.mean_us else None


def _bar(ax: Axes, x: int, row: Row, share: float | None) -> bool:
    height, colour = row.tokens_per_s or 0.0, LOOKS[row.method].colour
    if share is not None and share < 1:
        top, words = height / (1 - share), f"{share:.{0 if share >= 0.095 else 1}%}"
        ax.bar(x, top, 0.68, **_OUTLINE, edgecolor=colour)
        ax.text(x, top, words, ha="center", va="bottom", fontsize=SMALL_PT)
    ax.bar(x, height, 0.68, facecolor=colour, edgecolor=colour, linewidth=0.8)
    ax.text(x, height, f"{height:.4g}", ha="center", va="top", fontsize=SMALL_PT, color="white")
    return share is not None
