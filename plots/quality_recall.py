"""How much of the attention the selected blocks hold, layer by layer: recall of each selector, the oracle's above."""

from __future__ import annotations

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..suites.core.looks import looks, shade
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import circumstances
from .data import NotDrawn
from .quality_data import USUAL_PERIOD, QualitySet, selection
from .registry import figure
from .style import DOUBLE_IN, finish, legend_line, names_of


@figure("quality-recall", suite="quality")
def quality_recall(figures: QualitySet) -> Figure:
    """A line a selector: means over query heads and steps; for ReSA's the range of its heads, too.

    Variants that select alike (ReSA at several periods) differ by what they attended to before, hardly in recall: the
    one with the usual period stands for them.
    """
    lines = figures.lines
    chosen: dict[tuple[object, ...], Variant] = {}
    for variant, rows in lines.items():
        if not any(row.metric == "recall" for row in rows):
            continue
        key = selection(rows[0])
        if key not in chosen or variant.get("rectify_every") == USUAL_PERIOD:
            chosen[key] = variant
    if not chosen:
        raise NotDrawn("no row has the metric recall (step by step it is not measured)")
    fig = Figure(figsize=(DOUBLE_IN, 2.8), layout="constrained")
    ax = fig.subplots()
    legend: list[Artist] = []
    styles = looks(chosen.values())
    names = names_of(row for variant in chosen.values() for row in lines[variant])
    banded = next((variant for variant in chosen.values() if variant.get("rectify_every")), None)
    for variant in sorted(chosen.values(), key=lambda variant: variant == banded):
        by_layer = _by_layer(lines[variant])
        layers = sorted(by_layer)
        means = [sum(by_layer[i]) / len(by_layer[i]) for i in layers]
        look = styles[variant]
        if variant == banded:
            ends = [min(by_layer[i]) for i in layers], [max(by_layer[i]) for i in layers]
            ax.fill_between(layers, *ends, color=shade(look.colour, 0.8), linewidth=0)
            label = f"query heads of {names.of(variant)}, least to most"
            band = Patch(facecolor=shade(look.colour, 0.8), label=label)
        ax.plot(layers, means, color=look.colour, marker=look.marker, ls=look.linestyle, markersize=3)
        legend.append(legend_line(look, names.of(variant)))
    if banded:
        legend.append(band)
    ax.set_xlabel("layer")
    ax.set_ylabel("attention mass in the blocks read")
    ax.set_ylim(None, 1.0)
    ax.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    note = "share of the exact softmax over all keys, mean over steps and query heads"
    heading = f"{figures.model}: recall of attention by selected blocks"
    rows = [row for row in figures.rows if row.metric == "recall"]
    return finish(fig, heading, legend, circumstances(rows, figures.about, note))


def _by_layer(rows: list[Row]) -> dict[int, list[float]]:
    """The recall of each query head, by layer."""
    shares: dict[int, list[float]] = {}
    for row in rows:
        if row.metric == "recall" and row.layer is not None and row.value is not None:
            shares.setdefault(row.layer, []).append(row.value)
    return shares
