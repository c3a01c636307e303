"""Quality over steps and over layers: drift from dense decoding, and how much of the attention selected blocks hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import stdev

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..suites.core.analysis import LEVEL, level_rows
from ..suites.core.looks import Look
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import circumstances
from .curves import MOST, Curve, draw_curves, full_names, short_names
from .data import NotDrawn, ranked
from .quality_data import LEVEL_LOOK, USUAL_PERIOD, Lines, QualitySet, first_selection, plain, selection
from .registry import figure
from .style import WIDTHS_IN, finish, log_axis, panels

PANELS = {
    "kl": "KL(dense || method), nats",
    "excess": "KL over that of f = 1, nats",
    "extra_loss": "loss over dense's, nats",
    "kv_error": "error of new K and V",
}
POINTS = 8  # of a line at most: short stretches differ by what the text says there
WIDE = 12.0  # times from the least to the most KL: more than that asks for a logarithmic axis


@figure("quality-drift", suite="quality")
def quality_drift(figures: QualitySet) -> Figure:
    """A panel a metric, a line a method: means of stretches of steps, all sequences together; band: a standard error.

    The usual variant of each method; the others are left to `quality-methods`. ReSA at f = 1 is the error of one sparse
    step on exact keys and values, which no rectification removes: grey, and the zero of the second panel.
    """
    lines = plain(figures.lines)
    if not any(len({row.step for row in rows if row.metric == "kl"}) > 1 for rows in lines.values()):
        raise NotDrawn("a single stretch of steps makes no curve")
    chosen = {metric: _chosen(figures, lines, metric) for metric in PANELS}
    shown = {metric: curves for metric, curves in chosen.items() if curves}
    fig, axes, _ = panels(len(shown), 2.2, share_y=False, columns=2)
    for ax, (metric, curves) in zip(axes, shown.items(), strict=True):
        draw_curves(ax, curves)
        ax.set_title(PANELS[metric])
        ax.set_xlabel("steps since prefill")
        ax.set_xlim(0, max(row.step or 0 for row in figures.rows))
        values = [y for curve in curves for y in curve.ys]
        if metric == "kl" and 0 < WIDE * min(values) < max(values):
            log_axis(ax)
        elif metric not in ("extra_loss", "excess"):
            ax.set_ylim(0)
    used = [row for v in (*ranked(lines)[: MOST - 1], *first_selection(lines)) for row in lines[v]]
    notes = (
        figures.about,
        full_names(used),
        "grey: ReSA at f = 1, a sparse step's own error, which no rectification removes",
    )
    over = "texts" if any(row.value_error is not None for row in used) else "stretches of steps"
    band = f"band: one standard error over {over}" if any(c.band for cs in shown.values() for c in cs) else ""
    return finish(fig, f"{figures.model}: drift from dense decoding", circumstances(used, *notes, band))


@figure("quality-recall", suite="quality")
def quality_recall(figures: QualitySet) -> Figure:
    """A line a selector, the oracle's above: means over query heads and steps; for ReSA's the range of its heads, too.

    Variants that select alike (ReSA at several periods) differ by what they attended to before, hardly in recall: the
    one with the usual period stands for them.
    """
    lines = figures.lines
    chosen: dict[tuple[object, ...], Variant] = {}
    for variant, rows in lines.items():
        key = selection(rows[0])
        stands = key not in chosen or variant.get("rectify_every") == USUAL_PERIOD
        if stands and any(row.metric == "recall" for row in rows):
            chosen[key] = variant
    if not chosen:
        raise NotDrawn("no row has the metric recall (step by step it is not measured)")
    firsts = ranked(chosen.values())
    names = short_names(row for variant in firsts for row in lines[variant])
    banded = next((variant for variant in firsts if variant.get("rectify_every")), None)
    curves = []
    for variant in firsts[:MOST]:
        by_layer = _by_layer(lines[variant])
        means = [sum(values) / len(values) for values in by_layer.values()]
        band = [min(v) for v in by_layer.values()], [max(v) for v in by_layer.values()]
        look = figures.looks[variant]
        curves.append(Curve(names[variant], look, list(by_layer), means, (), band if variant == banded else None))
    fig = Figure(figsize=(WIDTHS_IN[2], 2.8), layout="constrained")
    ax = fig.subplots()
    draw_curves(ax, curves)
    ax.set_xlabel("layer")
    ax.set_ylabel("attention mass in the blocks read")
    ax.set_ylim(None, 1.0)
    ax.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    notes = [figures.about, full_names(row for variant in firsts[:MOST] for row in lines[variant])]
    notes += ["share of the exact softmax over all keys, mean over steps and query heads"]
    notes += [f"band: query heads of {names[banded]}, least to most"] if banded else []
    rows = [row for variant in firsts[:MOST] for row in lines[variant] if row.metric == "recall"]
    return finish(fig, f"{figures.model}: recall of attention by selected blocks", circumstances(rows, *notes))


def _by_layer(rows: Sequence[Row]) -> dict[int, list[float]]:
    """The recall of each query head, by layer."""
    shares: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.layer or 0):
        if row.metric == "recall" and row.layer is not None and row.value is not None:
            shares.setdefault(row.layer, []).append(row.value)
    return shares


def _chosen(figures: QualitySet, lines: Lines, metric: str) -> list[Curve]:
    """The curves of a panel: a method each; of the excess those that select as ReSA's first variant does."""
    alike = first_selection(lines)
    level = next((v for v in alike if v.get("rectify_every") == LEVEL), None)
    others = [v for v in lines if v.get("rectify_every") != LEVEL]
    chosen = [v for v in alike if v in others] if metric == "excess" else ranked(others)
    names = short_names(row for v in chosen for row in lines[v])
    curves = []
    for variant in chosen:
        values = _values(lines[variant], "kl" if metric == "excess" else metric)
        errors = {} if metric == "excess" else _errors(lines[variant], metric)
        if metric == "excess":
            least = _values(level_rows(figures.rows, lines[variant][0]), "kl")
            values = (
                {step: value - least[step] for step, value in values.items()} if least.keys() == values.keys() else {}
            )
        curves.append(_curve(names[variant], figures.looks[variant], values, errors))
    curves = [curve for curve in curves if curve.xs][: MOST - 1]
    if curves and level is not None:
        read = "kl" if metric == "excess" else metric
        own = _curve("ReSA, f = 1", LEVEL_LOOK, _values(lines[level], read), _errors(lines[level], read))
        curves.append(replace(own, ys=[0.0] * len(own.xs), band=None) if metric == "excess" else own)
    return curves


def _values(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """A metric of whole stretches, by the step they end at."""
    able = [row for row in rows if row.metric == metric and row.layer is None and row.value is not None]
    return {row.step or 0: row.value or 0.0 for row in sorted(able, key=lambda row: row.step or 0)}


def _errors(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """Standard errors of `_values` over stretches of text, where rows have them."""
    able = [row for row in rows if row.metric == metric and row.layer is None and row.value_error is not None]
    return {row.step or 0: row.value_error or 0.0 for row in able}


def _curve(label: str, look: Look, values: dict[int, float], over_texts: dict[int, float]) -> Curve:
    """At most POINTS means of neighbouring stretches of steps at their middles; the band is a standard error of each.

    It is that over texts where it is known: neighbours share their texts, so the error of their mean is at most
    the mean of theirs. Otherwise it is that over the stretches of steps.
    """
    ends, heights = list(values), list(values.values())
    together = -(-len(ends) // POINTS) or 1
    parts = [heights[i : i + together] for i in range(0, len(ends), together)]
    bounds = [0, *(ends[min(i + together, len(ends)) - 1] for i in range(0, len(ends), together))]
    means = [sum(part) / len(part) for part in parts]
    if over_texts.keys() >= values.keys():
        known = [over_texts[end] for end in ends]
        errors = [sum(known[i : i + together]) / len(parts[i // together]) for i in range(0, len(ends), together)]
    else:
        errors = [stdev(part) / len(part) ** 0.5 for part in parts if len(part) > 1]
    lows_highs = zip(means, errors, strict=True) if len(errors) == len(means) else ()
    band = [(mean - error, mean + error) for mean, error in lows_highs]
    middles = [(a + b) / 2 for a, b in pairwise(bounds)]
    return Curve(label, look, middles, means, (), ([b[0] for b in band], [b[1] for b in band]) if band else None)
