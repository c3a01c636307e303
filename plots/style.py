"""How figures look: sizes of a two-column paper, axes, lines, what stands below; looks are suites/core/looks.py's."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from ..suites.core.looks import TITLES, Look
from ..suites.core.rows import Row
from ..suites.core.spec import Names, Variant

SINGLE_IN = 3.4  # inches, one column
DOUBLE_IN = 7.0  # inches, both columns
SMALL_PT = 7.0  # the smallest type in any figure
DPI = 220
TICK_IN = 0.30  # inches between the named ticks of a context axis, at least

LIMIT_DASHES = (0, (6, 2))  # what a floor or the best dense method allows
HOLLOW = "_throttled"  # label of artists drawn hollow, which legends leave out
MARK: Any = {"color": "black", "marker": "D", "markersize": 3.2, "linestyle": ""}  # what was measured, beside a stack
STAR = "*"  # after the name of a bar that was measured under throttling

_RC: Any = {
    "font.size": SMALL_PT,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8.5,
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
    "lines.markersize": 3.8,
    "hatch.linewidth": 1.6,
    "svg.hashsalt": "resa-bench",  # the same rows give the same file
    "text.parse_math": False,  # a reason may hold dollar signs
}


def paper() -> AbstractContextManager[None]:
    """Matplotlib settings of all figures, for a `with` block around drawing and saving."""
    return matplotlib.rc_context(_RC)


def tokens(context: int) -> str:
    """A context length as people write it: 262144 is 256K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if context >= unit:
            return f"{context / unit:.4g}{name}"
    return str(context)


def context_axis(ax: Axes, contexts: Sequence[int]) -> None:
    """A log2 axis of contexts, each a tick; the longest is named, then what has room to its left."""
    ax.set_xscale("log", base=2)
    low, high = contexts[0] / 1.2, contexts[-1] * 1.2
    spec = ax.get_subplotspec()
    width_in = ax.figure.bbox.width / ax.figure.dpi / (spec.get_gridspec().ncols if spec else 1) - 0.6
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


def draw_line(ax: Axes, rows: Sequence[Row], column: str, look: Look) -> None:
    """`column` over context; rows measured under throttling get the same marker, hollow and larger.

    A look without a marker is a limit: a thin line, whatever its rows were measured under.
    """
    xs, ys = [row.context for row in rows], [getattr(row, column) for row in rows]
    steady = [i for i, row in enumerate(rows) if row.status != "throttled"] if look.marker else None
    width = None if look.marker else 0.8
    ax.plot(xs, ys, color=look.colour, marker=look.marker, ls=look.linestyle, lw=width, markevery=steady)
    for row, x, y in zip(rows, xs, ys, strict=True):
        if row.status == "throttled" and look.marker:
            draw_point(ax, x, y, look, row, size=5.5)


def draw_point(ax: Axes, x: float, y: float, look: Look, row: Row, size: float) -> None:
    """The marker of a row alone: hollow where it was measured under throttling."""
    (point,) = ax.plot([x], [y], look.marker or "o", color=look.colour, markersize=size, clip_on=False)
    if row.status == "throttled":
        point.set_markerfacecolor("white")
        point.set_label(HOLLOW)


def starred(name: str, rows: Iterable[Row]) -> str:
    """The name of a stack of bars, with a star where any of its rows was measured under throttling."""
    return name + STAR if any(row.status == "throttled" for row in rows) else name


def throttled(fig: Figure) -> str:
    """What the caption says of what is drawn hollow or starred; empty where nothing is."""
    shown = [ax for ax in fig.axes if ax.get_visible()]
    points = sum(line.get_label() == HOLLOW for ax in shown for line in ax.lines)
    bars = sum(patch.get_label() == HOLLOW for ax in shown for patch in ax.patches)
    stars = sum(tick.get_text().endswith(STAR) for ax in shown for tick in ax.get_xticklabels())
    counts = (("hollow", points, "point"), ("hollow", bars, "bar"), (STAR, stars, "bar"))
    marks = [f"{mark} ({count} {what}{'' if count == 1 else 's'})" for mark, count, what in counts if count]
    return f"{' and '.join(marks)}: measured under throttling" if marks else ""


def legend_line(look: Look, label: str, *, line: bool = True) -> Line2D:
    """A look in a legend; its marker alone where points stand for themselves."""
    dashes: Any = look.linestyle if line else ""
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=dashes, label=label)


def names_of(rows: Iterable[Row]) -> Names:
    """Names of the variants side by side in a figure."""
    return Names(rows, TITLES)


def legend_lines(looks: Mapping[Variant, Look], rows: Iterable[Row]) -> list[Line2D]:
    """A line in the legend for each variant of the rows drawn, in the order of the looks."""
    rows = list(rows)
    names, drawn = names_of(rows), {row.variant for row in rows}
    return [legend_line(look, names.of(variant)) for variant, look in looks.items() if variant in drawn]


def stack(ax: Axes, x: float, parts: Iterable[tuple[float, dict[str, Any]]], width: float) -> float:
    """Bars of these heights and fills, one upon the other; where they end."""
    top = 0.0
    for height, fill in parts:
        ax.bar(x, height, width, top, **fill)
        top += height
    return top


def bar_axis(ax: Axes, places: Sequence[float], names: Sequence[str], rotation: int = 0) -> None:
    """Names under bars, few lines across them."""
    ax.set_xticks(places, names, rotation=rotation)
    ax.tick_params(axis="x", length=0, pad=2)
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_locator(MaxNLocator(5))


def panels(
    count: int, height_in: float = 2.1, *, share_y: bool = True, columns: int | None = None
) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure of `count` panels, `columns` side by side: one column of the paper for one, both for more.

    Returns:
        The figure, its panels, and those of them that stand leftmost.
    """
    columns = min(count, columns or (2 if count in (2, 4) else 3))
    rows = -(-count // columns)
    fig = Figure(figsize=(SINGLE_IN if count == 1 else DOUBLE_IN, height_in * rows), layout="constrained")
    axes = list(fig.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    return fig, axes[:count], axes[:count:columns]


def finish(fig: Figure, title: str, legend: Sequence[Artist], caption: str) -> Figure:
    """Put the title above, the legend and then the caption below, and grow the figure by what they take.

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
    return fig


def _size_in(fig: Figure, artist: Artist) -> tuple[float, float]:
    """Width and height in inches."""
    extent = artist.get_window_extent()
    return extent.width / fig.dpi, extent.height / fig.dpi


def _fit(fig: Figure, text: Text, words: str, width_in: float) -> None:
    """Wrap to as few lines as fit the width."""
    for chars in range(int(width_in * 24), 10, -1):
        text.set_text("\n".join(textwrap.wrap(words, chars, break_on_hyphens=False)))
        if _size_in(fig, text)[0] <= width_in:
            return


def _legend(fig: Figure, handles: Sequence[Artist], width_in: float) -> Legend:
    """Below everything, in as many columns (four at most) as fit the width."""
    for columns in range(min(len(handles), 4), 0, -1):
        box = fig.legend(handles=list(handles), loc="lower center", ncols=columns, frameon=False, borderpad=0.2)
        if columns == 1 or _size_in(fig, box)[0] <= width_in:
            break
        box.remove()
    return box


def save(fig: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for ending in (".png", ".svg"):
        path = stem.with_name(stem.name + ending)  # a stem may hold a dot: qwen2.5-7b
        fig.savefig(path, dpi=DPI, metadata={"Date": None} if ending == ".svg" else None)
        written.append(path)
    return written


def curve_panels(
    titles: Sequence[str], contexts: Sequence[int], quantity: str, height_in: float = 2.1
) -> tuple[Figure, list[Axes]]:
    """Panels with these titles, of curves of a quantity over contexts."""
    fig, axes, left = panels(len(titles), height_in)
    for ax, words in zip(axes, titles, strict=True):
        ax.set_title(words)
        ax.set_xlabel("context, tokens")
        context_axis(ax, contexts)
    for ax in left:
        ax.set_ylabel(quantity)
    return fig, axes
