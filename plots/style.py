"""How figures look: sizes of a two-column paper, colours that colour-blind readers tell apart, one look a variant.

Dense methods are black and grey, sparse ones coloured. A variant looks the same in every figure, whatever is beside it.
"""

from __future__ import annotations

import textwrap
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from ..suites.core.rows import Row
from .data import FUSED, RESA, Variant

SINGLE_IN = 3.4  # inches, one column
DOUBLE_IN = 7.0  # inches, both columns
SMALL_PT = 7.0  # the smallest type in any figure
DPI = 220

# Okabe and Ito's palette.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT_GREY = "#777777", "#BBBBBB"

STAGE_COLOURS = {"append": LIGHT_GREY, "score": SKY, "select": ORANGE, "attend": BLUE, "merge": GREEN}

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


@dataclass(frozen=True, slots=True)
class Look:
    colour: str
    marker: str
    linestyle: Any = "-"


_SOLID, _DASHED, _DASHDOT, _DOTTED = "-", (0, (4, 1.5)), (0, (5, 1.2, 1, 1.2)), (0, (1, 1.2))

_METHODS = {
    "resa": Look(VERMILLION, "o"),
    "resa-torch": Look(VERMILLION, "o"),
    "resa-fused": Look(VERMILLION, "*", _DASHED),
    "resa-authors": Look(PURPLE, "*", _DASHED),
    "resa-lossless": Look(GREEN, "h", _DASHDOT),
    "sparse": Look(VERMILLION, "x", _DASHED),
    "quest": Look(BLUE, "v", _DASHED),
    "retro": Look(PURPLE, "p", _DASHDOT),
    "retro-cached": Look(PURPLE, "h", _DOTTED),
    "sink-window": Look(SKY, "X", _DASHDOT),
    "oracle": Look(GREEN, "P", _DASHDOT),
    "sdpa-cudnn": Look(BLACK, "o"),
    "flash-attn-3": Look("#444444", "s", _DASHED),
    "flash-attn-2": Look(GREY, "^", _DASHED),
    "flashinfer": Look("#444444", "D", _DASHDOT),
    "sdpa-flash": Look(GREY, "v", _DASHDOT),
    "triton-dense": Look("#999999", "P", _DOTTED),
    "torch-dense": Look(GREY, "x", _DOTTED),
}
_BLOCKS = {16: (VERMILLION, "o"), 32: (ORANGE, "s"), 64: (PURPLE, "^"), 128: (GREEN, "D")}
_POLICIES = {
    "per-head": ("v", _DASHED),
    "group-sum": ("D", _DASHDOT),
    "group-mean": ("<", _DOTTED),
    "all-heads": (">", _SOLID),
}
_SPARE_MARKERS = "dHp8"
_FALLBACK = (BLUE, GREEN, PURPLE, ORANGE, SKY, VERMILLION)
_NAMES = {
    "resa": "ReSA",
    "resa-torch": "ReSA (torch)",
    "resa-fused": "ReSA (one kernel)",
    "resa-authors": "ReSA (authors)",
    "resa-lossless": "ReSA lossless",
    "sparse": "sparse only",
    "quest": "Quest",
    "retro": "RetroAttention",
    "retro-cached": "RetroAttention (cached query)",
    "sink-window": "sink + window",
    "oracle": "oracle top-k",
    "sdpa-cudnn": "cuDNN (SDPA)",
    "sdpa-flash": "SDPA flash",
    "flash-attn-2": "FlashAttention 2",
    "flash-attn-3": "FlashAttention 3",
    "flashinfer": "FlashInfer",
    "triton-dense": "Triton dense",
    "torch-dense": "torch dense",
}
_ALWAYS_NAMED = {
    "resa": "block_size",
    "resa-torch": "block_size",
    "resa-fused": "block_size",
    "sparse": "block_size",
    "quest": "gqa_policy",
    "retro": "window",
    "retro-cached": "window",
}
_SHORT = {
    "block_size": "b={}",
    "active_ratio": "r={:g}",
    "budget_tokens": "{} tokens",
    "gqa_policy": "{}",
    "summary_kind": "{}",
    "summary_dtype": "summaries in {}",
    "spread_weight": "c={:g}",
    "pinned_blocks": "first {} read",
    "window": "w={}",
    "rectify_every": "f={}",
}


def look(variant: Variant) -> Look:
    """Colour, marker and line of a variant; of a method not known here, fixed by its name."""
    known = _METHODS.get(variant.method)
    if known is None:
        number = zlib.crc32(variant.method.encode())
        known = Look(_FALLBACK[number % len(_FALLBACK)], _SPARE_MARKERS[number % 4], _DASHED)
    if variant.method in (*RESA, FUSED, "sparse") and variant.block_size in _BLOCKS:
        colour, marker = _BLOCKS[variant.block_size]
        own = variant.method in (FUSED, "sparse")
        return Look(colour, known.marker if own else marker, known.linestyle)
    if variant.method == "quest" and variant.gqa_policy in _POLICIES:
        return Look(known.colour, *_POLICIES[variant.gqa_policy])
    return known


def looks(variants: Iterable[Variant]) -> dict[Variant, Look]:
    """A look for each; where two would look alike (an active ratio apart), the later is paler with another marker.

    In one kernel ReSA keeps its star, which tells it apart where lines cannot.
    """
    chosen: dict[Variant, Look] = {}
    seen: Counter[Look] = Counter()
    for variant in variants:
        own = look(variant)
        again = seen[own]
        seen[own] += 1
        if again:
            pale = 1 - 0.65**again  # share of white
            red, green, blue = (channel + (1 - channel) * pale for channel in to_rgb(own.colour))
            marker = own.marker if variant.method == FUSED else _SPARE_MARKERS[(again - 1) % len(_SPARE_MARKERS)]
            chosen[variant] = Look(to_hex((red, green, blue)), marker, own.linestyle)
        else:
            chosen[variant] = own
    return chosen


def labels(variants: Iterable[Variant]) -> dict[Variant, str]:
    """A short name for each variant; parameters that differ are added where names would be the same."""
    same: dict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        always = _ALWAYS_NAMED.get(variant.method)
        same[_join(_NAMES.get(variant.method, variant.method), _parameter(variant, always))].append(variant)
    names = {}
    for name, group in same.items():
        fields = list(dict.fromkeys(field for variant in group for field in _values(variant)))
        differing = [field for field in fields if len({_values(variant).get(field) for variant in group}) > 1]
        for variant in group:
            names[variant] = _join(name, *(_parameter(variant, field) for field in differing))
    return names


def _values(variant: Variant) -> dict[str, Any]:
    fields = ("block_size", "active_ratio", "budget_tokens", "gqa_policy", "summary_kind", "window")
    return {field: getattr(variant, field) for field in fields} | dict(variant.ties)


def _parameter(variant: Variant, field: str | None) -> str:
    value = _values(variant).get(field) if field else None
    return "" if value is None else _SHORT.get(field or "", f"{field}={{}}").format(value)


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def tokens(context: int) -> str:
    """A context length as people write it: 262144 is 256K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if context >= unit:
            return f"{context / unit:.4g}{name}"
    return str(context)


def context_axis(ax: Axes, contexts: Sequence[int]) -> None:
    """A log2 axis of context lengths, each measured one a tick; every other one is named where they are many."""
    ax.set_xscale("log", base=2)
    every = 1 if len(contexts) <= 5 else 2
    shown = [tokens(c) if (len(contexts) - 1 - i) % every == 0 else "" for i, c in enumerate(contexts)]
    ax.xaxis.set_major_locator(FixedLocator(list(contexts)))
    ax.xaxis.set_major_formatter(FixedFormatter(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    if len(contexts) > 1:
        ax.set_xlim(contexts[0] / 1.2, contexts[-1] * 1.2)


def draw_line(ax: Axes, rows: Sequence[Row], column: str, look: Look, *, marker: bool = True) -> None:
    """`column` over context; rows measured under throttling get a hollow marker, twice the size."""
    xs, ys = [row.context for row in rows], [getattr(row, column) for row in rows]
    steady = [i for i, row in enumerate(rows) if row.status != "throttled"]
    ax.plot(xs, ys, color=look.colour, marker=look.marker if marker else "", ls=look.linestyle, markevery=steady)
    for row, x, y in zip(rows, xs, ys, strict=True):
        if row.status == "throttled" and marker:
            ax.plot([x], [y], "o", markersize=6, markeredgecolor=look.colour, markerfacecolor="white")


def legend_line(look: Look, label: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.linestyle, label=label)


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
    """Put the title above, the legend and then the caption below, and grow the figure by what they take."""
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
