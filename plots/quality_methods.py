"""All variants of a quality run side by side: KL to dense decoding, and the attention mass in the blocks read."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..suites.core.rows import Row
from ..suites.quality.cases import LEVEL
from ..suites.quality.table import mean, recall
from .caption import circumstances
from .data import NotDrawn
from .quality_data import QualitySet, main
from .style import BLUE, DOUBLE_IN, GREY, VERMILLION, finish

LEAST = 3  # variants that make a comparison


def quality_methods(figures: QualitySet) -> Figure:
    """A bar a variant, the best on top: mean KL over all steps; beside it its recall where that was measured.

    ReSA and sparse steps with the selection of ReSA's first variant are in vermillion, its f = 1 in grey.
    """
    lines = figures.lines
    if len(lines) < LEAST:
        raise NotDrawn(f"{len(lines)} variants are compared in the table as well")
    values = {name: mean(mine, "kl") or 0.0 for name, mine in lines.items()}
    names = sorted(values, key=lambda name: -values[name])  # the first bar lies lowest
    strong = main(lines)
    fig = Figure(figsize=(DOUBLE_IN, 0.9 + 0.19 * len(names)), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(names))
    left.barh(places, [values[n] for n in names], color=[_colour(n, lines[n][0], strong) for n in names], height=0.7)
    for place, name in zip(places, names, strict=True):
        left.annotate(f" {values[name]:.3f}", (values[name], place), va="center", fontsize=6.5)
        share = recall(lines[name])
        if share is not None:
            right.plot(share, place, marker="o", ms=4, color=_colour(name, lines[name][0], strong), ls="")
    left.set_yticks(places, names, fontsize=7)
    left.set_ylim(-0.6, len(names) - 0.4)
    left.set_xlim(0, 1.12 * max(values.values()))
    left.set_xlabel("KL(dense || method), nats a token")
    right.set_xlabel("attention mass in the blocks read")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.grid(visible=False, axis="y")
    note = "vermillion: ReSA and sparse steps with its selection; grey: ReSA at f = 1, a sparse step's own error"
    heading = f"{figures.model}: what each way of choosing and rectifying costs"
    return finish(fig, heading, [], circumstances(figures.rows, figures.about, note))


def _colour(name: str, row: Row, strong: list[str]) -> str:
    if name not in strong:
        return BLUE
    return GREY if row.rectify_every == LEVEL else VERMILLION
