"""Quality against memory: KL on a real model over the largest batch that a device's memory holds of a large shape.

What is evicted needs no memory, what is only left unread does. Pairs and their limits are those of `quality-speed`.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from ..suites.core.looks import look_of
from .caption import circumstances, of_commits
from .data import NotDrawn
from .quality_data import error_words
from .quality_speed import LEAST_POINTS, SpeedSet, pair
from .registry import figure
from .style import SMALL_PT, WIDTHS_IN, finish, log_axis, names_of, tokens

EVERY_LINE = 12  # lines of the list that the figure has room for at least


@figure("quality-memory", suite="quality, decode")
def quality_memory(figures: SpeedSet) -> Figure:
    """One point a method and setting measured in both suites; lower is nearer to dense, further right is less memory.

    Raises:
        NotDrawn: as `quality-speed`, and where fewer than two rows say how many sequences fit.
    """
    quality, decode = figures.quality, figures.decode
    where, context, points = pair(quality, decode)
    points = [point for point in points if point.row.largest_batch]
    if len(points) < LEAST_POINTS:
        raise NotDrawn(f"{len(points)} of its decode rows say how large a batch fits (`largest_batch`)")
    rows = [point.row for point in points]
    names = names_of(rows)
    fig = Figure(figsize=(WIDTHS_IN[2], 3.2), layout="constrained")
    ax = fig.subplots()
    ordered = sorted(points, key=lambda point: -point.kl)
    for number, point in enumerate(ordered, 1):
        look, most = look_of(point.row.method), point.row.largest_batch or 0
        ax.errorbar([most], [point.kl], point.kl_error, color=look.colour, marker=look.marker, ms=5, elinewidth=0.7)
        place = 1.0 - (number - 0.5) / max(len(points), EVERY_LINE)
        words = f"{names[point.row]}: {most}"
        ax.text(1.03, place, words, transform=ax.transAxes, color=look.colour, fontsize=SMALL_PT, va="center")
    log_axis(ax, horizontal=True)
    ax.set_xlabel(f"sequences of {tokens(context)} tokens that fit, {decode.model} shape ({where.weights} weights)")
    ax.set_ylabel(f"KL(dense || method) on {quality.model},\nnats a token")
    ax.set_ylim(bottom=-0.004)
    notes = (
        quality.about,
        f"bars: {error_words(quality.rows)}",
        "batch by the memory model: weights, work space, K and V kept, summaries",
        f"{decode.device}, {of_commits(rows)}",
    )
    heading = f"Quality on {quality.model} against memory of {decode.model}'s shape"
    return finish(fig, heading, circumstances(quality.rows, *notes))
