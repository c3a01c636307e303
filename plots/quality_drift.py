"""How sparse decoding drifts from dense over steps since prefill, and what of it a rectification could remove."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..suites.core.analysis import LEVEL, level_rows
from ..suites.core.looks import GREY, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import circumstances
from .data import NotDrawn
from .quality_data import Lines, QualitySet, first_selection, plain
from .registry import figure
from .style import finish, legend_lines, panels

PANELS = {
    "kl": "KL(dense || method), nats",
    "excess": "KL over that of f = 1, nats",
    "extra_loss": "loss over dense's, nats",
    "kv_error": "error of new K and V",
}
POINTS = 16  # of a line at most: short stretches differ by what the text says there
WIDE = 12.0  # times from the least to the most KL: more than that asks for a logarithmic axis


@figure("quality-drift", suite="quality")
def quality_drift(figures: QualitySet) -> Figure:
    """A panel a metric, a line a method: means of stretches of steps, all sequences together.

    Other block sizes, summaries and pinned blocks are left to the figure of all methods. ReSA and sparse steps alone
    are drawn strong. ReSA at f = 1 is the error of one sparse step on exact keys and values, which no rectification
    removes: grey, and the zero of the second panel, which has the methods that select as it does.
    """
    lines = plain(figures.lines)
    styles, strong = figures.looks, first_selection(lines)
    if not any(len({row.step for row in rows if row.metric == "kl"}) > 1 for rows in lines.values()):
        raise NotDrawn("a single stretch of steps makes no curve")
    curves = {metric: _curves(figures.rows, lines, metric) for metric in PANELS}
    shown = {metric: words for metric, words in PANELS.items() if curves[metric]}
    fig, axes, _ = panels(len(shown), height_in=2.2, share_y=False)
    for ax, (metric, words) in zip(axes, shown.items(), strict=True):
        for variant, points in curves[metric].items():
            _line(ax, points, styles[variant], 1.3 if variant in strong else 0.7)
        ax.set_title(words)
        ax.set_xlabel("steps since prefill")
        ax.set_xlim(0, max(row.step or 0 for row in figures.rows))
        _scale(ax, metric, [y for points in curves[metric].values() for _, y in points])
    legend = legend_lines(styles, (row for rows in lines.values() for row in rows))
    note = "grey: ReSA at f = 1, a sparse step's own error, which no rectification removes"
    heading = f"{figures.model}: drift from dense decoding"
    return finish(fig, heading, legend, circumstances(figures.rows, figures.about, note))


def _curves(rows: Sequence[Row], lines: Lines, metric: str) -> dict[Variant, list[tuple[float, float]]]:
    """Middles of stretches and means there, by line; of the excess only lines whose level was measured."""
    curves = {}
    for variant, own in lines.items():
        points = _points([r for r in own if r.metric == ("kl" if metric == "excess" else metric) and r.layer is None])
        if metric == "excess":
            level = _points([r for r in level_rows(rows, own[0]) if r.metric == "kl"])
            if variant.get("rectify_every") == LEVEL or [x for x, _ in level] != [x for x, _ in points]:
                continue
            points = [(x, y - low) for (x, y), (_, low) in zip(points, level, strict=True)]
        if points:
            curves[variant] = points
    return curves


def _points(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """At most `POINTS` stretches, neighbours taken together, weighted by their samples."""
    rows = sorted(rows, key=lambda row: row.step or 0)
    together = -(-len(rows) // POINTS)
    points, begin = [], 0
    for i in range(0, len(rows), together or 1):
        part = rows[i : i + together]
        weights = [row.n_samples or 1 for row in part]
        mean = sum(w * (row.value or 0.0) for w, row in zip(weights, part, strict=True)) / sum(weights)
        end = part[-1].step or 0
        points.append(((begin + end) / 2, mean))
        begin = end
    return points


def _line(ax: Axes, points: Sequence[tuple[float, float]], look: Look, width: float) -> None:
    xs, ys = zip(*points, strict=True)
    ax.plot(xs, ys, color=look.colour, marker=look.marker, ls=look.linestyle, lw=width, ms=2.5 + width, markevery=3)


def _scale(ax: Axes, metric: str, values: Sequence[float]) -> None:
    if metric == "excess":
        ax.axhline(0.0, color=GREY, linewidth=1.2)
    elif metric == "kl" and min(values) > 0 and max(values) > WIDE * min(values):
        ax.set_yscale("log")
        for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
    elif metric != "extra_loss":
        ax.set_ylim(0)
