"""Where the time of a step goes: each stage's own graph stacked, the whole step's graph marked beside them."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..suites.core.looks import TITLES
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from ..suites.core.stages import place
from .caption import caption, title
from .data import FigureSet, NotDrawn, best_dense, points
from .registry import figure
from .stage_style import fill, step_parts
from .style import MARK, SINGLE_IN, bar_axis, finish, names_of, stack, starred, tokens


@figure("stages", suite="micro")
def stages(figures: FigureSet) -> Figure:
    """Microseconds by stage: ReSA's variants and the best dense, a row of panels a batch, a panel a context.

    Each panel has its own scale from 0. The stages are timed apart, so their sum is not the measured `total`.
    """
    forms = figures.forms().values()
    staged = [v for variants in forms for v in variants if any(step_parts(row.stage) for row in figures.lines[v])]
    if not staged:
        raise NotDrawn("no ReSA row of a single stage")
    measured = {(row.batch, row.context) for v in staged for row in figures.lines[v] if step_parts(row.stage)}
    batches, contexts = sorted({b for b, _ in measured}), sorted({c for _, c in measured})
    names = names_of(row for variant in staged for row in figures.lines[variant])
    words = TITLES.get(staged[0].method, "")  # which the title gives: `b16 fp8` is left of the first form
    short = {v: names.of(v).removeprefix(f"{words} " if v.method == staged[0].method else "") for v in staged}
    panel_in = 0.42 + 0.15 * (len(staged) + 1)
    width_in = max(SINGLE_IN, panel_in * len(contexts))
    fig = Figure(figsize=(width_in, 1.7 * len(batches)), layout="constrained")
    grid = fig.subplots(len(batches), len(contexts), squeeze=False)
    drawn: list[Row] = []
    for i, batch in enumerate(batches):
        first = min(context for n, context in measured if n == batch)
        for j, context in enumerate(contexts):
            ax = grid[i, j]
            if (batch, context) not in measured:
                ax.set_visible(False)
                continue
            dense = best_dense(figures, batch, context)
            bars = [("dense", _at(figures, dense[0], batch, context))] if dense else []
            sparse = [(short[v], _at(figures, v, batch, context)) for v in staged]
            bars += [(name, rows) for name, rows in sparse if rows]
            for x, (_, rows) in enumerate(bars):
                stack(ax, x, [(row.median_us or 0.0, fill(row.stage)) for row in rows if row.stage != "total"], 0.76)
                totals = [row.median_us or 0.0 for row in rows if row.stage == "total"]
                ax.plot([x] * len(totals), totals, **MARK)
                drawn += rows
            bar_axis(ax, range(len(bars)), [starred(name, rows) for name, rows in bars], rotation=90)
            ax.set_xlim(-0.6, len(bars) - 0.4)
            ax.set_title(f"{tokens(context)} tokens")
            ax.tick_params(axis="y", length=0, pad=2)
            ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            ax.set_ylabel(f"batch {batch}\nµs" if context == first else "")
    rivals = sorted({row.method for row in drawn if row.method not in {v.method for v in staged}})
    note = f"dense: {', '.join(rivals)}" if rivals else ""
    words = caption(figures, drawn, note, "stages timed apart: each contains a launch that the step overlaps")
    return finish(fig, title(figures, "time of a step by stage"), _legend(drawn), words)


def _at(figures: FigureSet, variant: Variant, batch: int, context: int) -> list[Row]:
    """Rows of one bar: its stages in order, then `total`. Where a part is there fused and single, fused counts."""
    rows = [r for r in figures.lines[variant] if r.batch == batch and r.context == context and r.median_us is not None]
    kept: list[Row] = []
    covered: set[str] = set()
    for row in sorted((r for r in rows if step_parts(r.stage)), key=lambda r: -len(step_parts(r.stage))):
        if covered.isdisjoint(step_parts(row.stage)):
            kept.append(row)
            covered.update(step_parts(row.stage))
    kept.sort(key=lambda row: place(row.stage))
    return kept + points(rows, "total", batch, "median_us")


def _legend(drawn: list[Row]) -> list[Line2D | Patch]:
    present = {row.stage for row in drawn} - {"total"}
    legend: list[Line2D | Patch] = [Patch(label=stage, **fill(stage)) for stage in sorted(present, key=place)]
    if any(row.stage == "total" for row in drawn):
        legend.append(Line2D([], [], label="measured total", **MARK))
    return legend
