"""The attention figure of ReSA's paper, repeated: a whole model's attention in one step, theirs beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..suites.core.looks import BLUE, GREY, SKY, VERMILLION, shade
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .caption import caption, title
from .data import FigureSet, NotDrawn
from .decode_data import Setting, often_timed, own_rival, parts, settings, steps
from .registry import figure
from .style import SMALL_PT, bar_axis, finish, names_of, panels, stack, starred, tokens

K = 1024
BATCH = 8
PARTS = {  # of ReSA's attention, and the stages of each; a fused one counts where its last part does
    "estimation": ("score", "select"),
    "attention": ("append", "attend", "merge"),
    "rectification": ("rectify",),
}
ATTEND = ("attend", "merge")
COLOURS = {"dense": GREY, "estimation": SKY, "attention": BLUE, "rectification": VERMILLION}


@dataclass(frozen=True, slots=True)
class Pair:
    """Attention of a whole model in one step, in milliseconds."""

    dense_ms: float
    resa_ms: dict[str, float]  # by part

    @property
    def speedup(self) -> float:
        """Dense over ReSA."""
        return self.dense_ms / sum(self.resa_ms.values())


# arXiv 2506.04108, read off the figure: Qwen2.5-7B, batch 8, one K/V cache for all layers, A100-80G, kernel time.
PAPER_MODEL = "qwen2.5-7b"
PAPER = {
    16 * K: Pair(12.0, {"estimation": 2.07, "attention": 1.74, "rectification": 0.57}),
    64 * K: Pair(25.1, {"estimation": 3.70, "attention": 2.62, "rectification": 2.67}),
    256 * K: Pair(77.2, {"estimation": 7.67, "attention": 9.75, "rectification": 8.47}),
}


@figure("decode-attention", suite="decode")
def decode_attention(figures: FigureSet) -> Figure:
    """Dense attention against ReSA's three parts at batch 8 with one shared cache, a panel a context.

    Dense is the best dense method of ReSA's own run, and so the ratio. Of the paper's model only the paper's contexts
    are drawn, where there are any.
    """
    where, variant = _chosen(figures)
    pairs = _pairs(figures, where, variant)
    if not pairs:
        raise NotDrawn(f"the steps with {where} have no stages of both dense attention and ReSA in one run")
    paper = PAPER if figures.model.lower().startswith(PAPER_MODEL) else {}
    if pairs.keys() & paper.keys():
        pairs = {context: pair for context, pair in pairs.items() if context in paper}
    fig, axes, left = panels(len(pairs), 2.2, share_y=False, columns=3)
    for ax, (context, (rival, step)) in zip(axes, pairs.items(), strict=True):
        dense_ms = _part_ms(figures, rival, PARTS["attention"])
        resa_ms = {part: _part_ms(figures, step, stages) for part, stages in PARTS.items()}
        names = (starred("dense", [rival]), starred("ReSA", [step]))
        _draw(ax, names, Pair(dense_ms, resa_ms), paper.get(context))
        ax.set_title(f"{tokens(context)} tokens")
    for ax in left:
        ax.set_ylabel("attention a step, ms")
    with_paper = any(context in paper for context in pairs)
    legend = [Patch(facecolor=colour, label=part) for part, colour in COLOURS.items()]
    drawn = [row for pair in pairs.values() for row in pair]
    notes = (
        str(where),
        f"dense: {', '.join(sorted({rival.method for rival, _ in pairs.values()}))}, of the same run",
        names_of([pair[1] for pair in pairs.values()]).of(variant),
        "kernel times from a trace" if figures.launch == "graph" else "",
        "each panel has its own scale" if len(pairs) > 1 else "",
        "estimation: score and select, and an append fused with them",
        "attention: append, attend and merge",
        "paper: arXiv 2506.04108, A100-80G, FlashAttention, read off its figure" if with_paper else "",
    )
    heading = title(figures, "attention of the whole model in a decode step, ReSA's rectification amortised")
    return finish(fig, heading, caption(figures, drawn, *notes), legend)


def _chosen(figures: FigureSet) -> tuple[Setting, Variant]:
    """The setting like the paper's with the most contexts, 16-bit weights first; of ReSA's variants one with stages."""
    able = [
        (where, variant)
        for where in settings(figures)
        if where.shared_kv and where.batch == BATCH
        for variant in often_timed(figures, figures.resa())
        if steps(figures, variant, where, "speedup_vs_best_dense")
    ]
    if not able:
        raise NotDrawn(f"no steps of ReSA and a dense method at batch {BATCH} with one K/V cache shared by all layers")
    return max(able, key=lambda pair: (_shows_stages(figures, pair[1]), len(steps(figures, pair[1], pair[0]))))


def _shows_stages(figures: FigureSet, variant: Variant) -> bool:
    """Whether estimation is timed apart, as in the chain; one kernel a step shows no stages."""
    return any(row.stage in PARTS["estimation"] for row in figures.lines[variant])


def _pairs(figures: FigureSet, where: Setting, variant: Variant) -> dict[int, tuple[Row, Row]]:
    """The best dense step and ReSA's, of one run and both with stages, by context."""
    rivals = [(own_rival(figures, step), step) for step in steps(figures, variant, where)]
    return {s.context: (r, s) for r, s in rivals if r and _part_ms(figures, r, ATTEND) and _part_ms(figures, s, ATTEND)}


def _part_ms(figures: FigureSet, step: Row, stages: tuple[str, ...]) -> float:
    """Milliseconds of these stages, and of fused ones that end in one of them (an append is small beside the rest)."""
    timed = parts(figures, step).items()
    return sum((row.mean_us or 0.0) for stage, row in timed if stage.split("+")[-1] in stages) / 1e3


def _draw(ax: Axes, names: tuple[str, str], measured: Pair, paper: Pair | None) -> None:
    """Two bars, and those of the paper beside them."""
    top = 0.0
    bars = [(0.0, measured, False)] + ([(2.5, paper, True)] if paper else [])
    for x, pair, published in bars:
        ax.bar(x, pair.dense_ms, 0.84, **_fill(COLOURS["dense"], published))
        parts_ms = [(height, _fill(COLOURS[part], published)) for part, height in pair.resa_ms.items()]
        resa_ms = stack(ax, x + 1, parts_ms, 0.84)
        for at, top_ms in ((x, pair.dense_ms), (x + 1, resa_ms)):
            ax.text(at, top_ms, f"{top_ms:.{2 if top_ms < 10 else 1}f}", ha="center", va="bottom", fontsize=SMALL_PT)
        ax.annotate(
            f"{pair.speedup:.2f}x", (x + 1, resa_ms), (0, 9), textcoords="offset points", ha="center", va="bottom",
            fontsize=SMALL_PT + 0.5, fontweight="bold",
        )  # fmt: skip
        top = max(top, pair.dense_ms, resa_ms)
        ax.annotate(
            "paper, A100" if published else "measured" if paper else "", (x + 0.5, 0), (0, -14), ha="center", va="top",
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=SMALL_PT + 0.5,
            fontweight="normal" if published else "bold",
        )  # fmt: skip
    ax.set_ylim(0, 1.12 * top)
    bar_axis(ax, [x + i for x, _, _ in bars for i in (0, 1)], [*names, *(["dense", "ReSA"] if paper else [])])


def _fill(colour: str, published: bool) -> dict[str, Any]:
    """A solid fill for what was measured; pale and hatched for what the paper says."""
    if not published:
        return {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3}
    return {"facecolor": shade(colour, 0.72), "edgecolor": colour, "hatch": "////", "linewidth": 0.4}
