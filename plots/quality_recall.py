"""How much of the attention the selected blocks hold, layer by layer: recall of each selector, the oracle's above."""

from __future__ import annotations

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..suites.core.rows import Row
from .caption import circumstances
from .data import NotDrawn
from .quality_data import USUAL_PERIOD, QualitySet, looks, selection
from .style import DOUBLE_IN, VERMILLION, finish, legend_line

BAND = "#F7D9C8"  # a pale vermillion


def quality_recall(figures: QualitySet) -> Figure:
    """A line a selector: means over query heads and steps; for ReSA's the range of its heads, too.

    Variants that select alike (ReSA at several periods) differ by what they attended to before, hardly in recall: the
    one with the usual period stands for them.
    """
    lines = figures.lines
    styles = looks(lines)
    chosen: dict[tuple[object, ...], str] = {}
    for name, mine in lines.items():
        if not any(row.metric == "recall" for row in mine):
            continue
        key = selection(mine[0])
        if key not in chosen or mine[0].rectify_every == USUAL_PERIOD:
            chosen[key] = name
    if not chosen:
        raise NotDrawn("no row has the metric recall (step by step it is not measured)")
    fig = Figure(figsize=(DOUBLE_IN, 2.8), layout="constrained")
    ax = fig.subplots()
    legend: list[Artist] = []
    banded = next((name for name in chosen.values() if lines[name][0].rectify_every), None)
    for name in sorted(chosen.values(), key=lambda name: name == banded):
        by_layer = _by_layer(lines[name])
        layers = sorted(by_layer)
        means = [sum(by_layer[i]) / len(by_layer[i]) for i in layers]
        look = styles[name]
        colour = VERMILLION if name == banded else look.colour
        if name == banded:
            ax.fill_between(
                layers, [min(by_layer[i]) for i in layers], [max(by_layer[i]) for i in layers], color=BAND, linewidth=0
            )
        ax.plot(layers, means, color=colour, marker=look.marker, ls=look.linestyle, markersize=3)
        legend.append(legend_line(type(look)(colour, look.marker, look.linestyle), name))
    if banded:
        legend.append(Patch(facecolor=BAND, label=f"query heads of {banded}, least to most"))
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
    found: dict[int, list[float]] = {}
    for row in rows:
        if row.metric == "recall" and row.layer is not None and row.value is not None:
            found.setdefault(row.layer, []).append(row.value)
    return found
