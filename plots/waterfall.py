"""From the kernel's speed-up to the model's: attention alone, then what each part of the step takes off it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..suites.core.looks import GREY, VERMILLION
from ..suites.core.spec import steps_of
from ..suites.core.waterfall import PARTS, Waterfall, waterfall
from .caption import caption, title
from .data import FigureSet, NotDrawn
from .decode_data import Setting, often_timed, own_rival, parts, settings, steps
from .registry import figure
from .stage_style import fill
from .style import SMALL_PT, bar_axis, finish, names_of, panels, starred, tokens

MOST_PANELS = 6
WIDTH = 0.72
LEAST = 0.005  # of a change that has a number
NAMES = {
    "projections, norms, rope": "projections",
    "sampling, other": "other",
    "rectify: linear layers": "rectify: linear",
}


@figure("decode-waterfall", suite="decode")
def decode_waterfall(figures: FigureSet) -> Figure:
    """The speed-up of attention alone, then of it with each further part, down to the whole step's; a panel a setting.

    Of each setting the longest context counts, and of ReSA's forms the fastest. Dense is the best dense step of the
    same run.
    """
    falls = dict(sorted(_falls(figures), key=lambda pair: pair[0])[:MOST_PANELS])
    if not falls:
        raise NotDrawn("no step of ReSA has stages beside those of the best dense step of its run")
    longest = max(len(NAMES.get(part.name, part.name)) for fall in falls.values() for part in fall.parts)
    fig, axes, left = panels(len(falls), 1.75 + 0.052 * longest)
    names = names_of([fall.sparse for fall in falls.values()])
    for ax, (where, fall) in zip(axes, falls.items(), strict=True):
        _draw(ax, fall)
        ax.set_title(f"{where}, {tokens(fall.sparse.context)}\n{names[fall.sparse]}")
    for ax in axes:
        ax.set_ylim(0, 1.12 * max(part.so_far for fall in falls.values() for part in fall.parts))
    for ax in left:
        ax.set_ylabel("speed-up over dense")
    drawn = [row for fall in falls.values() for row in (fall.dense, fall.sparse)]
    rivals = ", ".join(sorted({fall.dense.method for fall in falls.values()}))
    bars = "each bar: what its part, in both steps, takes off the speed-up, or adds"
    notes = (f"dense: {rivals}, of the same run", bars)
    return finish(fig, title(figures, "from the kernel's speed-up to the model's"), caption(figures, drawn, *notes))


def _falls(figures: FigureSet) -> Iterator[tuple[Setting, Waterfall]]:
    """By setting: the longest context at which a form of ReSA has its stages, and the fastest such form."""
    able = [variant for own in figures.forms().values() for variant in often_timed(figures, own)]
    for where in settings(figures):
        best: Waterfall | None = None
        for variant in able:
            for step in steps(figures, variant, where, "speedup_vs_best_dense"):
                rival = own_rival(figures, step)
                stages = [{n: r.mean_us or 0.0 for n, r in parts(figures, s).items()} for s in (rival, step) if s]
                if rival is None or not all(stages) or steps_of(rival.method) == steps_of(step.method):
                    continue
                fall = waterfall(rival, step, *stages)
                if best is None or _rank(fall) > _rank(best):
                    best = fall
        if best is not None:
            yield where, best


def _rank(fall: Waterfall) -> tuple[int, float]:
    return fall.sparse.context, fall.speedup


def _draw(ax: Axes, fall: Waterfall) -> None:
    """A bar from zero for attention and for the whole step; between them what each part takes off, or adds."""
    before = 0.0
    for x, part in enumerate(fall.parts):
        low, high = sorted((before, part.so_far))
        ax.bar(x, high - low if x else part.so_far, WIDTH, low if x else 0.0, **_fill(part.name))
        if x:
            ax.plot([x - 1 + WIDTH / 2, x - WIDTH / 2], [before, before], color=GREY, linewidth=0.6)
            change = part.so_far - before
            words = f"{change:+.2f}".replace("-", "\u2212") if abs(change) >= LEAST else ""
            ax.annotate(
                words, (x, low), (0, -1.5), textcoords="offset points", ha="center", va="top", fontsize=SMALL_PT
            )  # fmt: skip
        before = part.so_far
    end = len(fall.parts)
    ax.bar(end, before, WIDTH, facecolor=VERMILLION)
    for x, value in ((0, fall.parts[0].so_far), (end, before)):
        ax.annotate(
            f"{value:.2f}x", (x, value), (0, 1.5), textcoords="offset points", ha="center", va="bottom",
            fontsize=SMALL_PT + 0.5, fontweight="bold",
        )  # fmt: skip
    ax.axhline(1.0, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)))
    names = [NAMES.get(part.name, part.name) for part in fall.parts]
    bar_axis(ax, range(end + 1), [*names, starred("the model", [fall.dense, fall.sparse])], rotation=90)
    ax.set_xlim(-0.6, end + 0.6)


def _fill(name: str) -> dict[str, Any]:
    """As bars of stages are filled: a part like its first stage, attention like `attend`."""
    stage = "attend" if name == "attention" else PARTS.get(name, ("other",))[0]
    return fill(stage)
