"""How figures look: sizes, axes, bars, marks of throttled rows, what stands below; looks are suites/core/looks.py's."""

from __future__ import annotations

import bisect
import math
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from .. import baselines  # noqa: F401  (a rival's own defaults are left out of its name)
from ..suites.core.looks import TITLES
from ..suites.core.report import counted
from ..suites.core.rows import Row
from ..suites.core.spec import Names
from .data import NotDrawn

WIDTHS_IN = {1: 4.4, 2: 7.4, 3: 9.9}  # of a figure, by panels side by side
SMALL_PT = 7.0  # the smallest type in any figure
DPI = 200
TICK_IN = 0.32  # inches between the named ticks of a context axis, at least
PLAIN_IN = 1.3  # inches of a panel's width that its names and ticks take

LIMIT_DASHES = (0, (6, 2))  # what a floor allows
RING = "_throttled"  # label of the rings around points that were measured under throttling
END_LABEL = "end-label"  # gid of the texts at the ends of lines, which `finish` moves apart
MARK: Any = {"color": "black", "marker": "D", "markersize": 3.2, "linestyle": ""}  # what was measured, beside a stack
STAR = "*"  # after the name of a bar that was measured under throttling

_RC: Any = {
    "font.size": SMALL_PT,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 9,
    "legend.fontsize": SMALL_PT,
    "xtick.labelsize": SMALL_PT,
    "ytick.labelsize": SMALL_PT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "hatch.linewidth": 1.6,
    "font.family": "DejaVu Sans",  # matplotlib brings it: no file depends on the fonts of a machine
    "svg.hashsalt": "resa-bench",  # the same rows give the same file
    "text.parse_math": False,  # a reason may hold dollar signs
}


def paper() -> AbstractContextManager[None]:
    """Matplotlib settings of all figures, for a `with` block around drawing and saving."""
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    return matplotlib.rc_context({**defaults, **_RC})


def tokens(context: int) -> str:
    """A context length as people write it: 262144 is 256K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if context >= unit:
            return f"{context / unit:.4g}{name}"
    return str(context)


def names_of(rows: Iterable[Row]) -> Names:
    """Names of the variants side by side in a figure."""
    return Names(rows, TITLES)


# Axes


def context_axis(ax: Axes, contexts: Sequence[int]) -> None:
    """A log2 axis of contexts, each a tick; the longest is named, then what has room to its left."""
    ax.set_xscale("log", base=2)
    low, high = contexts[0] / 1.2, contexts[-1] * 1.2
    spec = ax.get_subplotspec()
    width_in = ax.figure.bbox.width / ax.figure.dpi / (spec.get_gridspec().ncols if spec else 1) - PLAIN_IN
    names: list[str] = []
    last = float("inf")
    for context in reversed(contexts):
        at = math.log(context / low) / math.log(high / low) * width_in  # inches from the left
        names.append(tokens(context) if last - at >= TICK_IN else "")
        last = at if names[-1] else last
    ax.xaxis.set_major_locator(FixedLocator(list(contexts)))
    ax.xaxis.set_major_formatter(FixedFormatter(names[::-1]))
    ax.xaxis.set_minor_locator(NullLocator())
    if len(contexts) > 1:
        ax.set_xlim(low, high)


def log_axis(ax: Axes, unit: str = "", *, horizontal: bool = False) -> None:
    """A logarithmic y axis, or x axis, whose ticks are plain numbers."""
    axis = ax.xaxis if horizontal else ax.yaxis
    (ax.set_xscale if horizontal else ax.set_yscale)("log")
    low, high = ax.get_xlim() if horizontal else ax.get_ylim()
    axis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7) if high / low < 12 else (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))


def bar_axis(ax: Axes, places: Sequence[float], names: Sequence[str], rotation: int = 0) -> None:
    """Names under bars, few lines across them."""
    ax.set_xticks(places, names, rotation=rotation)
    ax.tick_params(axis="x", length=0, pad=2)
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_locator(MaxNLocator(5))


def stack(ax: Axes, x: float, parts: Iterable[tuple[float, dict[str, Any]]], width: float) -> float:
    """Bars of these heights and fills, one upon the other; where they end."""
    top = 0.0
    for height, fill in parts:
        ax.bar(x, height, width, top, **fill)
        top += height
    return top


# Rows measured under throttling


def ring(ax: Axes, x: float, y: float) -> None:
    """A mark around a point that was measured under throttling; the point keeps its colour and marker."""
    ax.plot([x], [y], "o", markersize=8.5, markerfacecolor="none", markeredgecolor="black", mew=0.7, label=RING)


def starred(name: str, rows: Iterable[Row]) -> str:
    """The name of a stack of bars, with a star where any of its rows was measured under throttling."""
    return name + STAR if any(row.status == "throttled" for row in rows) else name


def throttled(fig: Figure) -> str:
    """What the caption says of what is ringed or starred; empty where nothing is."""
    shown = [ax for ax in fig.axes if ax.get_visible()]
    points = sum(line.get_label() == RING for ax in shown for line in ax.lines)
    names = (name for ax in shown for name in (*ax.get_xticklabels(), *ax.get_yticklabels()))
    stars = sum(name.get_text().endswith(STAR) for name in names)
    counts = (("ringed", points, "point"), (STAR, stars, "bar"))
    marks = [f"{mark} ({counted(count, what)})" for mark, count, what in counts if count]
    return f"{' and '.join(marks)}: measured under throttling" if marks else ""


# Whole figures


def panels(
    count: int, height_in: float = 2.1, *, share_y: bool = True, columns: int | None = None
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure of `count` panels, `columns` (3 at most) side by side.

    Args:
        count: of panels.
        height_in: of each.
        share_y: one scale for all, or for each its own.
        columns: as many as the figure's width has room for, if not given.

    Returns:
        The figure, its panels, and those of them that stand leftmost.

    Raises:
        NotDrawn: no panels.
    """
    if not count:
        raise NotDrawn("no measured row of the methods that it shows")
    columns = min(count, columns or (2 if count in (2, 4) else 3))
    rows = -(-count // columns)
    fig = Figure(figsize=(WIDTHS_IN[columns], height_in * rows), layout="constrained")
    axes = list(fig.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    return fig, axes[:count], axes[:count:columns]


def finish(fig: Figure, title: str, caption: str, legend: Sequence[Artist] = ()) -> Figure:
    """Put the title above, the legend and then the caption below, grow the figure by that, and part its end labels.

    The caption ends with what is drawn as measured under throttling.
    """
    caption = "\u00a0· ".join(part for part in (caption, throttled(fig)) if part)
    width, height = fig.get_size_inches()
    pad = 0.05  # inches
    room = width - 2 * pad
    _fit(fig, fig.suptitle(title), title, room)
    text = fig.text(0, 0, caption, fontsize=SMALL_PT, color="#444444", va="bottom", ha="left")
    _fit(fig, text, caption, room)
    text_in = _size_in(fig, text)[1]
    below = text_in + 2 * pad
    box = _legend(fig, legend, room) if legend else None
    if box is not None:
        below += _size_in(fig, box)[1] + pad
    total = height + below
    fig.set_size_inches(width, total)
    text.set_position((pad / width, pad / total))
    if box is not None:
        box.set_bbox_to_anchor((0.5, (text_in + 2 * pad) / total))
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, below / total, 1, 1 - below / total))  # type: ignore[call-arg]
    part_labels(fig)
    return fig


def part_labels(fig: Figure) -> None:
    """Lay the figure out for good, and move the labels at lines' ends apart, so that none covers another."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)  # the heights of panels are known after it
    fig.set_layout_engine("none")
    for ax in fig.axes:
        labels = [text for text in ax.texts if isinstance(text, Annotation) and text.get_gid() == END_LABEL]
        if labels:
            wanted = [ax.transAxes.inverted().transform(ax.transData.transform(text.xy))[1] for text in labels]
            gap = 1.08 * max(Text.get_window_extent(text).height for text in labels) / ax.bbox.height
            for text, y in zip(labels, spread(wanted, gap), strict=True):
                text.set_y(y)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places within 0 to 1 in the order of those wanted, `gap` apart at least, that move them least (in squares)."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # means of wanted - rank * gap, and how many labels each holds
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, others = blocks.pop()
            mean, count = (before * others + mean * count) / (others + count), others + count
        blocks.append((mean, count))
    top = 1.0 - (len(wanted) - 1) * gap
    least = [min(max(mean, 0.0), max(top, 0.0)) for mean, count in blocks for _ in range(count)]
    by_index = {i: low + rank * gap for rank, (i, low) in enumerate(zip(order, least, strict=True))}
    return [by_index[i] for i in range(len(wanted))]


def _size_in(fig: Figure, artist: Artist) -> tuple[float, float]:
    """Width and height in inches."""
    extent = artist.get_window_extent()
    return extent.width / fig.dpi, extent.height / fig.dpi


def _fit(fig: Figure, text: Text, words: str, width_in: float) -> None:
    """Wrap to as few lines as fit the width."""

    def fits(chars: int) -> bool:
        text.set_text("\n".join(textwrap.wrap(words, chars, break_on_hyphens=False)))
        return _size_in(fig, text)[0] <= width_in

    fits(10 + bisect.bisect(range(11, int(width_in * 24)), False, key=lambda chars: not fits(chars)))


def _legend(fig: Figure, handles: Sequence[Artist], width_in: float) -> Legend:
    """Below everything, in as many columns as fit the width."""
    for columns in range(len(handles), 0, -1):
        box = fig.legend(handles=list(handles), loc="lower center", ncols=columns, frameon=False, borderpad=0.2)
        if columns == 1 or _size_in(fig, box)[0] <= width_in:
            break
        box.remove()
    return box


def save(fig: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg, without dates or versions: the same rows give the same bytes.

    Other versions of matplotlib or FreeType may draw text and curves a little otherwise, and so change the bytes.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    _settle(fig)
    written = []
    for ending, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        path = stem.with_name(stem.name + ending)  # a stem may hold a dot: qwen2.5-7b
        fig.savefig(path, dpi=DPI, metadata=metadata)
        written.append(path)
    return written


def _settle(fig: Figure) -> None:
    """Lay out, and round where axes stand: a run's last digits differ, and would name the SVG's clip paths."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:
        ax.set_position(Bbox.from_extents(*(round(place, 6) for place in ax.get_position().extents)))
