"""How the decode figures look beyond what all figures share: names of lines, fills of stages, ticks of contexts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter

from .data import FUSED_STAGE, Variant
from .decode_data import period_of
from .style import GREY, LIGHT_GREY, STAGE_COLOURS, VERMILLION, context_axis, labels, tokens

TAN, PALE_TAN, BROWN = "#D9C9A3", "#EEE5CF", "#A38B5D"  # linear layers: one family, told apart by lightness
AREA = "#ECECEC"  # below the best dense method
LIMIT_DASHES = (0, (5, 2))  # what a floor allows
TICK_IN = 0.30  # inches between the named ticks of a context axis, at least

# From the bottom of a bar to its top: what is the same for every method first.
_COLOURS = {
    "project": PALE_TAN, "ffn": TAN, "head": BROWN, "sample": "#DDDDDD", "other": "#DDDDDD", **STAGE_COLOURS,
    "rectify": VERMILLION, "gap": "white",
}  # fmt: skip
ORDER = tuple(_COLOURS)
REST = ("sample", "other")  # too small to tell apart: one part of a bar
_NAMES = {
    "project": "projections", "ffn": "feed-forward", "head": "LM head", "rectify": "rectify: attention",
    "rectify+project+ffn": "rectify: linear layers", "gap": "gap", "other": "sampling, other",
    FUSED_STAGE: "sparse step in one kernel",
}  # fmt: skip


def names(lines: Iterable[Variant]) -> dict[Variant, str]:
    """A short name for each variant, which names its period unless that is the usual one."""
    named = labels(lines)
    for variant, name in named.items():
        period = f"f={period_of(variant)}"
        if period_of(variant) and period not in name.split():
            named[variant] = f"{name} {period}"
    return named


def fill(stage: str) -> dict[str, Any]:
    """The fill of a stage; of several together, the first one's colour hatched with the second's; the gap hatched.

    Of the whole sparse step, attention's hatched with scoring's.
    """
    first, *rest = ("attend", "score") if stage == FUSED_STAGE else stage.split("+")
    colour = _COLOURS.get(first, LIGHT_GREY)
    if stage == "gap":
        return {"facecolor": colour, "edgecolor": GREY, "hatch": "/////", "linewidth": 0.5}
    edge = _COLOURS.get(rest[0], GREY) if rest else "white"
    return {"facecolor": colour, "edgecolor": edge, "hatch": "/////" if rest else None, "linewidth": 0.3}


def rank(stage: str) -> tuple[int, int]:
    """Where a stage stands in a bar, counted from below; the whole sparse step where its parts end."""
    first = "merge" if stage == FUSED_STAGE else stage.split("+")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), len(stage))


def rank_in_step(stage: str) -> int:
    """Where a stage stands in a layer, the projections first."""
    order = ("other", "project", "append", "score", "select", "attend", "merge", "rectify", "ffn", "head", "sample")
    first = stage.split("+")[-1]
    return order.index(first) if first in order else len(order)


def stage_patch(stage: str) -> Patch:
    return Patch(label=_NAMES.get(stage, stage), **fill(stage))


def context_ticks(ax: Axes, contexts: Sequence[int], width_in: float) -> None:
    """A log2 axis of contexts whose names keep apart: the longest is named, then what has room to its left."""
    context_axis(ax, contexts)
    low, high = ax.get_xlim()
    shown: list[str] = []
    last = float("inf")
    for context in reversed(contexts):
        at = math.log(context / low) / math.log(high / low) * width_in  # inches from the left
        shown.append(tokens(context) if last - at >= TICK_IN else "")
        last = at if shown[-1] else last
    ax.xaxis.set_major_formatter(FixedFormatter(shown[::-1]))
