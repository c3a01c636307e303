"""Where the time of a step goes: bars of stages, a group a context; of one layer's attention and of a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from ..suites.core.stages import place
from .caption import caption, title
from .curves import full_names, short_names
from .data import FigureSet, NotDrawn, best_dense, points
from .decode_data import Setting, fastest_dense, often_timed, parts, settings, steps
from .registry import figure
from .stage_style import REST, bar_place, fill, fused_first, stage_patch, step_parts
from .style import MARK, SMALL_PT, WIDTHS_IN, bar_axis, finish, panels, stack, starred, tokens

BAR, SPACE = 0.86, 0.7  # widths in bars, of a bar and between contexts
NAME_IN = 0.13  # inches that a name under a bar needs
SPAN = 4.0  # times from a panel's shortest dense step to its longest, at most: more would flatten the short ones


@dataclass(frozen=True, slots=True)
class Bar:
    """One method at one context."""

    name: str
    step: Row
    heights: dict[str, float]  # by stage, in drawing order
    measured: float | None = None  # where the step itself is marked, beside its stages


Groups = dict[int, list[Bar]]
"""Bars by context."""


@figure("stages", suite="micro")
def stages(figures: FigureSet) -> Figure:
    """Microseconds by stage: the best dense method of several kernels and ReSA's variants; a diamond is the step.

    The stages are timed apart, so their sum is not the measured `total`. Contexts that differ little share a panel.
    """
    staged = [v for own in figures.forms().values() for v in own if any(step_parts(r.stage) for r in figures.lines[v])]
    if not staged:
        raise NotDrawn("no ReSA row of a single stage")
    names = short_names(row for variant in staged for row in figures.lines[variant])
    groups: dict[str, Groups] = {}
    for batch in sorted({row.batch for v in staged for row in figures.lines[v] if step_parts(row.stage)}):
        shown: Groups = {}
        for context in sorted({r.context for v in staged for r in figures.lines[v] if r.batch == batch}):
            bars = [_apart(figures, names[v], v, batch, context) for v in staged]
            rival = best_dense(staged_dense(figures), batch, context)
            dense = [_apart(figures, "dense", rival[0], batch, context)] if rival else []
            if any(bars):
                shown[context] = [bar for bar in [*dense, *bars] if bar]
        groups |= {f"batch {batch}, {words}": part for words, part in _alike(shown).items()}
    notes = ["stages timed apart: each contains a launch that the step overlaps"]
    notes += ["dense: the fastest of several kernels" if any(v.is_dense for v in figures.lines) else ""]
    return _draw_figure(figures, groups, "a step, µs", "time of a step by stage", notes, {})


def staged_dense(figures: FigureSet) -> FigureSet:
    """Without the methods whose step is one kernel: they have no stages to show."""
    lines = {v: rows for v, rows in figures.lines.items() if any(step_parts(row.stage) for row in rows)}
    return replace(figures, lines=lines)


@figure("decode-stages", suite="decode")
def decode_stages(figures: FigureSet) -> Figure:
    """Milliseconds a token by stage of the best dense method and the sparse ones, a panel a setting.

    The stages sum to the mean step: what they leave is the gap. Where tracing made them longer than the step, the gap
    would be below 0: it is drawn as 0, and a diamond marks the step.
    """
    groups = {str(where): _whole(figures, where) for where in settings(figures)}
    groups = {where: by_context for where, by_context in groups.items() if by_context}
    bars = [bar for by_context in groups.values() for group in by_context.values() for bar in group]
    if not bars:
        raise NotDrawn("no whole step has stages: was it measured with --no-breakdown?")
    below = [bar for bar in bars if bar.measured is not None]
    notes = ["gap: what the stages leave of the mean step"]
    if below:
        most = max(sum(bar.heights.values()) / (bar.measured or 1.0) - 1 for bar in below)
        notes.append(f"{len(below)} of {len(bars)} gaps below 0 (tracing takes time, {most:.1%} at most): drawn as 0")
    scales = {str(where): (where.batch, where.shared_kv) for where in settings(figures)}
    return _draw_figure(figures, groups, "a step, ms", "time of a decode step by stage", notes, scales)


def _apart(figures: FigureSet, name: str, variant: Variant, batch: int, context: int) -> Bar | None:
    """Stages that were timed apart, and the step. Where a part is there fused and single, fused counts."""
    rows = [r for r in figures.lines[variant] if r.batch == batch and r.context == context and r.median_us is not None]
    kept = sorted(fused_first(rows), key=lambda row: place(row.stage))
    total = points(rows, "total", batch, "median_us")
    if not kept:
        return None
    heights = {row.stage: row.median_us or 0.0 for row in kept}
    return Bar(starred(name, [*kept, *total]), (total or kept)[0], heights, total[0].median_us if total else None)


def _alike(groups: Groups) -> dict[str, Groups]:
    """Neighbouring contexts whose highest bars are within SPAN of each other, by a name for each such panel."""
    close: list[Groups] = []
    lowest = 0.0
    for context, bars in groups.items():
        height = max(sum(bar.heights.values()) for bar in bars)
        if not close or height > SPAN * lowest:
            close.append({})
            lowest = height
        close[-1][context] = bars
    return {" to ".join(dict.fromkeys((tokens(min(part)), tokens(max(part))))): part for part in close}


def _whole(figures: FigureSet, where: Setting) -> Groups:
    """Steps with stages: the fastest dense method's, then the sparse variants'."""
    sparse = often_timed(figures, [variant for variant in figures.lines if not variant.is_dense])
    names = short_names(row for variant in sparse for row in figures.lines[variant])
    groups: Groups = {}
    for context, row in fastest_dense(figures, where).items():
        groups.setdefault(context, []).append(_bar(figures, "dense", row))
    for variant in sparse:
        for row in steps(figures, variant, where):
            groups.setdefault(row.context, []).append(_bar(figures, names[variant], row))
    groups = {context: [bar for bar in bars if bar.heights] for context, bars in sorted(groups.items())}
    return {context: bars for context, bars in groups.items() if bars}


def _bar(figures: FigureSet, name: str, step: Row) -> Bar:
    timed = parts(figures, step)
    heights: dict[str, float] = {}
    for stage in sorted(timed, key=bar_place):
        shown = REST[-1] if stage in REST else stage
        heights[shown] = heights.get(shown, 0.0) + max(timed[stage].mean_us or 0.0, 0.0) / 1e3
    below = "gap" in timed and (timed["gap"].mean_us or 0.0) < 0
    return Bar(starred(name, [step]), step, heights, (step.mean_us or 0.0) / 1e3 if below else None)


def _draw_figure(
    figures: FigureSet,
    groups: dict[str, Groups],
    quantity: str,
    what: str,
    notes: Sequence[str],
    scales: Mapping[str, Any],
) -> Figure:
    """A panel a group, bars as wide in all; those of one key in `scales` share a scale."""
    bars = [bar for by_context in groups.values() for group in by_context.values() for bar in group]
    longest = max(len(bar.name) for bar in bars)
    widest = max(sum(map(len, by_context.values())) + SPACE * (len(by_context) - 1) for by_context in groups.values())
    columns = 3 if len(groups) > 2 and widest * NAME_IN < WIDTHS_IN[3] / 3 - 0.6 else 2
    fig, axes, left = panels(len(groups), 1.9 + 0.052 * longest, share_y=False, columns=columns)
    alike: dict[Any, list[Axes]] = {}
    for ax, (name, by_context) in zip(axes, groups.items(), strict=True):
        _draw(ax, by_context, widest, 6 + 4.1 * longest)
        ax.set_title(name)
        ax.set_ylabel(quantity if ax in left else "")
        alike.setdefault(scales.get(name, name), []).append(ax)
    for own in alike.values():
        top = max(ax.get_ylim()[1] for ax in own)
        for ax in own:
            ax.set_ylim(0, top)
    drawn = [bar.step for bar in bars]
    rivals = sorted({row.method for row in drawn if row.variant.is_dense})
    dense = f"dense: {', '.join(rivals)}" if rivals else ""
    own_scale = (
        f"{'panels' if len(alike) == len(groups) else 'batches'} have their own scales" if len(alike) > 1 else ""
    )
    words = caption(figures, drawn, dense, full_names(drawn), *notes, own_scale)
    return finish(fig, title(figures, what), words, _legend(bars))


def _draw(ax: Axes, groups: Groups, width: float, below_pt: float) -> None:
    """Groups side by side, in a panel with room for `width` bars; contexts stand below their names."""
    x = 0.0
    at: list[float] = []
    for context, bars in groups.items():
        middle = x + (len(bars) - 1) / 2
        for bar in bars:
            stack(ax, x, [(height, fill(stage)) for stage, height in bar.heights.items() if height], BAR)
            if bar.measured is not None:
                ax.plot([x], [bar.measured], **MARK)
            at.append(x)
            x += 1
        ax.annotate(
            tokens(context), (middle, 0), (0, -below_pt), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top", fontsize=SMALL_PT + 0.5, fontweight="bold",
        )  # fmt: skip
        x += SPACE
    bar_axis(ax, at, [bar.name for bars in groups.values() for bar in bars], rotation=90)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.set_xlim(-0.8, max(width, 4.0) - 0.2)


def _legend(bars: Sequence[Bar]) -> list[Artist]:
    present = {stage for bar in bars for stage, height in bar.heights.items() if height > 0}
    marked = [Line2D([], [], label="measured step", **MARK)] if any(bar.measured is not None for bar in bars) else []
    return [*(stage_patch(stage) for stage in sorted(present, key=bar_place)), *marked]
