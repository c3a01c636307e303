"""All variants of a quality run side by side: KL to dense decoding, and the attention mass in the blocks read."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..suites.core.analysis import mean_of, recall_of
from ..suites.core.looks import look_of
from .caption import circumstances
from .data import NotDrawn
from .quality_data import LEVEL_LOOK, QualitySet
from .registry import figure
from .style import DOUBLE_IN, SMALL_PT, finish, names_of

LEAST = 3  # variants that make a comparison


@figure("quality-methods", suite="quality")
def quality_methods(figures: QualitySet) -> Figure:
    """A bar a variant, the best on top: mean KL over all steps; beside it its recall where that was measured.

    Each in its method's colour; ReSA at f = 1 with the selection of ReSA's first variant is grey.
    """
    lines = figures.lines
    if len(lines) < LEAST:
        raise NotDrawn(f"{len(lines)} variants are compared in the table as well")
    values = {variant: mean_of(rows, "kl") or 0.0 for variant, rows in lines.items()}
    variants = sorted(values, key=lambda variant: -values[variant])  # the first bar lies lowest
    names = names_of(row for rows in lines.values() for row in rows)
    colours = {v: look_of(v.method).colour if figures.looks[v] != LEVEL_LOOK else LEVEL_LOOK.colour for v in variants}
    fig = Figure(figsize=(DOUBLE_IN, 0.9 + 0.19 * len(variants)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(variants))
    left.barh(places, [values[v] for v in variants], color=[colours[v] for v in variants], height=0.7)
    for place, variant in zip(places, variants, strict=True):
        left.annotate(f" {values[variant]:.3f}", (values[variant], place), va="center", fontsize=SMALL_PT)
        share = recall_of(lines[variant])
        if share is not None:
            right.plot(share, place, marker="o", ms=4, color=colours[variant], ls="")
    left.set_yticks(places, [names.of(variant) for variant in variants], fontsize=SMALL_PT)
    left.set_ylim(-0.6, len(variants) - 0.4)
    left.set_xlim(0, 1.12 * max(values.values()))
    left.set_xlabel("KL(dense || method), nats a token")
    right.set_xlabel("attention mass in the blocks read")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.grid(visible=False, axis="y")
    note = "grey: ReSA at f = 1, a sparse step's own error" if LEVEL_LOOK in figures.looks.values() else ""
    heading = f"{figures.model}: what each way of choosing and rectifying costs"
    return finish(fig, heading, [], circumstances(figures.rows, figures.about, note))
