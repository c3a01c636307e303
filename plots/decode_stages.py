"""Where the time of a decode step of the whole model goes: the best dense method, and the sparse ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..suites.core.looks import TITLES
from ..suites.core.rows import Row
from .caption import caption, title
from .data import FigureSet, NotDrawn
from .decode_data import Setting, fastest_dense, parts, settings, steps, usual
from .registry import figure
from .stage_style import REST, bar_place, fill, stage_patch
from .style import DOUBLE_IN, MARK, SMALL_PT, bar_axis, finish, names_of, panels, stack, starred, tokens

BAR, SPACE = 0.86, 0.7  # widths in bars, of a bar and between contexts
NAME_IN = 0.12  # inches that a name under a bar needs


@dataclass(frozen=True, slots=True)
class Bar:
    """One method at one context."""

    name: str
    step: Row
    heights: dict[str, float]  # milliseconds by stage, in drawing order
    gap_us: float  # as measured, which may be below 0


@figure("decode-stages", suite="decode")
def decode_stages(figures: FigureSet) -> Figure:
    """Milliseconds a token by stage, a panel a setting, a group of bars a context.

    The stages sum to the mean step: what they leave is the gap. Where tracing made them longer than the step, the gap
    would be below 0: it is drawn as 0, and a diamond marks the step.
    """
    groups = {where: _groups(figures, where) for where in settings(figures)}
    groups = {where: by_context for where, by_context in groups.items() if by_context}
    bars = [bar for by_context in groups.values() for group in by_context.values() for bar in group]
    if not bars:
        raise NotDrawn("no whole step has stages: was it measured with --no-breakdown?")
    longest = max(len(bar.name) for bar in bars)
    widest = max(_width(by_context) for by_context in groups.values())
    columns = 3 if len(groups) > 4 and widest * NAME_IN < DOUBLE_IN / 3 - 0.5 else 2
    fig, axes, left = panels(len(groups), 1.75 + 0.055 * longest, share_y=False, columns=columns)
    for ax, (where, by_context) in zip(axes, groups.items(), strict=True):
        _draw(ax, by_context, widest, 4 + 3.9 * longest)
        ax.set_title(str(where))
    for ax in left:
        ax.set_ylabel("a step, ms")
    return finish(fig, title(figures, "time of a decode step by stage"), _legend(bars), _caption(figures, bars))


def _groups(figures: FigureSet, where: Setting) -> dict[int, list[Bar]]:
    """Bars by context, of steps with stages: the fastest dense method's, then the sparse variants'."""
    sparse = usual(figures, [variant for variant in figures.lines if not variant.is_dense])
    names = names_of(row for variant in sparse for row in figures.lines[variant])
    groups: dict[int, list[Bar]] = {}
    for context, row in fastest_dense(figures, where).items():
        groups.setdefault(context, []).append(_bar(figures, "dense", row))
    for variant in sparse:
        alone = sum(other.method == variant.method for other in sparse) == 1
        name = TITLES.get(variant.method, variant.method) if alone else names.of(variant)
        for row in steps(figures, variant, where):
            groups.setdefault(row.context, []).append(_bar(figures, name, row))
    groups = {context: [bar for bar in bars if bar.heights] for context, bars in sorted(groups.items())}
    return {context: bars for context, bars in groups.items() if bars}


def _bar(figures: FigureSet, name: str, step: Row) -> Bar:
    stages = parts(figures, step)
    heights: dict[str, float] = {}
    for stage in sorted(stages, key=bar_place):
        shown = REST[-1] if stage in REST else stage
        heights[shown] = heights.get(shown, 0.0) + max(stages[stage].mean_us or 0.0, 0.0) / 1e3
    gap_us = (stages["gap"].mean_us or 0.0) if "gap" in stages else 0.0
    return Bar(starred(name, [step]), step, heights, gap_us)


def _width(groups: dict[int, list[Bar]]) -> float:
    return sum(map(len, groups.values())) + SPACE * (len(groups) - 1)


def _draw(ax: Axes, groups: dict[int, list[Bar]], width: float, below_pt: float) -> None:
    """Groups side by side, from the left of a panel with room for `width` bars; contexts stand below their names."""
    x = 0.0
    at: list[float] = []
    for context, bars in groups.items():
        middle = x + (len(bars) - 1) / 2
        for bar in bars:
            stack(ax, x, [(height, fill(stage)) for stage, height in bar.heights.items() if height], BAR)
            if bar.gap_us < 0:
                ax.plot([x], [(bar.step.mean_us or 0.0) / 1e3], **MARK)
            at.append(x)
            x += 1
        ax.annotate(
            tokens(context), (middle, 0), (0, -below_pt), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top", fontsize=SMALL_PT + 0.5, fontweight="bold",
        )  # fmt: skip
        x += SPACE
    bar_axis(ax, at, [bar.name for bars in groups.values() for bar in bars], rotation=90)
    ax.set_xlim(-0.8, max(width, 4.0) - 0.2)


def _legend(bars: Sequence[Bar]) -> list[Artist]:
    present = {stage for bar in bars for stage, height in bar.heights.items() if height > 0}
    legend: list[Artist] = [stage_patch(stage) for stage in sorted(present, key=bar_place)]
    below = any(bar.gap_us < 0 for bar in bars)
    return [*legend, Line2D([], [], label="measured step", **MARK)] if below else legend


def _caption(figures: FigureSet, bars: Sequence[Bar]) -> str:
    rivals = sorted({bar.step.method for bar in bars if bar.step.variant.is_dense})
    below = [bar for bar in bars if bar.gap_us < 0]
    most = max((-bar.gap_us / (bar.step.mean_us or 1.0) for bar in below), default=0.0)
    notes = [f"dense: {', '.join(rivals)}" if rivals else "", "gap: what the stages leave of the mean step"]
    if below:
        notes.append(f"{len(below)} of {len(bars)} gaps below 0 (tracing takes time, {most:.0%} at most): drawn as 0")
    return caption(figures, [bar.step for bar in bars], *notes)
