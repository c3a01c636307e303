"""The attention figure of ReSA's paper, repeated: a whole model's attention in one step, theirs beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..suites.core.rows import Row
from .caption import caption, title
from .data import FigureSet, NotDrawn, Variant
from .decode_data import Setting, fastest_dense, parts, settings, steps, usual
from .style import BLUE, GREY, SKY, SMALL_PT, VERMILLION, finish, panels, tokens

K = 1024
BATCH = 8
PARTS = {  # of ReSA's attention, and the stages of each; a fused one counts where its last part does
    "estimation": ("score", "select"),
    "attention": ("append", "attend", "merge"),
    "rectification": ("rectify",),
}
COLOURS = {"dense": GREY, "estimation": SKY, "attention": BLUE, "rectification": VERMILLION}


@dataclass(frozen=True, slots=True)
class Pair:
    """Attention of a whole model in one step, in milliseconds."""

    dense_ms: float
    resa_ms: dict[str, float]  # by part

    @property
    def speedup(self) -> float:
        return self.dense_ms / sum(self.resa_ms.values())


# arXiv 2506.04108, read off the figure: Qwen2.5-7B, batch 8, one K/V cache for all layers, A100-80G, kernel time.
PAPER_MODEL = "qwen2.5-7b"
PAPER = {
    16 * K: Pair(12.0, {"estimation": 2.07, "attention": 1.74, "rectification": 0.57}),
    64 * K: Pair(25.1, {"estimation": 3.70, "attention": 2.62, "rectification": 2.67}),
    256 * K: Pair(77.2, {"estimation": 7.67, "attention": 9.75, "rectification": 8.47}),
}


def decode_attention(figures: FigureSet) -> Figure:
    """Dense attention against ReSA's three parts at batch 8 with one shared cache, a panel a context.

    Of the paper's model only the paper's contexts are drawn, where there are any.
    """
    where, variant = _chosen(figures)
    ours = _pairs(figures, where, variant)
    if not ours:
        raise NotDrawn(f"the steps with {where} have no stages of both dense attention and ReSA")
    paper = PAPER if figures.model.lower().startswith(PAPER_MODEL) else {}
    if ours.keys() & paper.keys():
        ours = {context: found for context, found in ours.items() if context in paper}
    fig, axes, left = panels(len(ours), 2.0, share_y=False, columns=3)
    drawn: list[Row] = []
    for ax, (context, (pair, rows)) in zip(axes, ours.items(), strict=True):
        _draw(ax, pair, paper.get(context))
        ax.set_title(f"{tokens(context)} tokens")
        drawn += rows
    for ax in left:
        ax.set_ylabel("attention a step, ms")
    with_paper = any(context in paper for context in ours)
    legend: list[Artist] = [Patch(facecolor=colour, label=part) for part, colour in COLOURS.items()]
    notes = (
        str(where),
        f"dense: {', '.join(sorted({row.method for row in drawn if row.block_size is None}))}",
        f"b = {variant.block_size}",
        "kernel times from a trace" if figures.launch == "graph" else "",
        "estimation: score and select, and an append fused with them",
        "attention: append, attend and merge",
        "paper: arXiv 2506.04108, A100-80G, FlashAttention, read off its figure" if with_paper else "",
    )
    heading = title(figures, "attention of the whole model in a decode step, ReSA's rectification amortised")
    return finish(fig, heading, legend, caption(figures, drawn, *notes))


def _chosen(figures: FigureSet) -> tuple[Setting, Variant]:
    """The setting like the paper's with the most contexts, 16-bit weights first, and ReSA's first variant there."""
    able = [
        (where, variant)
        for where in settings(figures)
        if where.shared_kv and where.batch == BATCH and fastest_dense(figures, where)
        for variant in figures.resa()
        if variant in usual(figures, (variant.method,)) and steps(figures, variant, where)
    ]
    if not able:
        raise NotDrawn(f"no steps of ReSA and a dense method at batch {BATCH} with one K/V cache shared by all layers")
    return max(able, key=lambda pair: len(steps(figures, pair[1], pair[0])))


def _pairs(figures: FigureSet, where: Setting, variant: Variant) -> dict[int, tuple[Pair, list[Row]]]:
    found = {}
    dense = fastest_dense(figures, where)
    for row in steps(figures, variant, where):
        rival = dense.get(row.context)
        if rival is None or not (_attends(figures, rival) and _attends(figures, row)):
            continue
        dense_ms = _part_ms(figures, rival, PARTS["attention"])
        resa_ms = {part: _part_ms(figures, row, stages) for part, stages in PARTS.items()}
        found[row.context] = Pair(dense_ms, resa_ms), [rival, row]
    return found


def _attends(figures: FigureSet, step: Row) -> bool:
    return any("attend" in stage.split("+") for stage in parts(figures, step))


def _part_ms(figures: FigureSet, step: Row, stages: tuple[str, ...]) -> float:
    """Milliseconds of these stages, and of fused ones that end in one of them (an append is small beside the rest)."""
    found = parts(figures, step).items()
    return sum((row.mean_us or 0.0) for stage, row in found if stage.split("+")[-1] in stages) / 1e3


def _draw(ax: Axes, ours: Pair, paper: Pair | None) -> None:
    top = 0.0
    bars = [(0.0, ours, False)] + ([(2.5, paper, True)] if paper else [])
    for x, pair, theirs in bars:
        ax.bar(x, pair.dense_ms, 0.84, **_fill(COLOURS["dense"], theirs))
        bottom = 0.0
        for part, height in pair.resa_ms.items():
            ax.bar(x + 1, height, 0.84, bottom, **_fill(COLOURS[part], theirs))
            bottom += height
        for at, top_ms in ((x, pair.dense_ms), (x + 1, bottom)):
            ax.text(at, top_ms, _ms(top_ms), ha="center", va="bottom", fontsize=SMALL_PT)
        ax.annotate(
            f"{pair.speedup:.2f}x", (x + 1, bottom), (0, 9), textcoords="offset points", ha="center", va="bottom",
            fontsize=SMALL_PT + 0.5, fontweight="bold",
        )  # fmt: skip
        top = max(top, pair.dense_ms, bottom)
    ax.set_ylim(0, 1.12 * top)
    ax.set_xticks([x + i for x, _, _ in bars for i in (0, 1)], ["dense", "ReSA"] * len(bars))
    for x, _, theirs in bars if paper else []:
        ax.annotate(
            "paper, A100" if theirs else "measured", (x + 0.5, 0), (0, -14), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="top", fontsize=SMALL_PT + 0.5,
            fontweight="normal" if theirs else "bold",
        )  # fmt: skip
    ax.tick_params(axis="x", length=0, pad=2)
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _fill(colour: str, theirs: bool) -> dict[str, Any]:
    """A solid fill for what was measured; pale and hatched for what the paper says."""
    if not theirs:
        return {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3}
    red, green, blue = (channel + (1 - channel) * 0.72 for channel in to_rgb(colour))
    pale = to_hex((red, green, blue))
    return {"facecolor": pale, "edgecolor": colour, "hatch": "////", "linewidth": 0.4}
