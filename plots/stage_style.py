"""How the stages of a step look in bars and lanes: fills, names, their order from below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Patch

from ..suites.core.looks import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, SKY, VERMILLION
from ..suites.core.rows import Row
from ..suites.core.stages import ATTENTION, FUSED, place

TAN, PALE_TAN, BROWN = "#D9C9A3", "#EEE5CF", "#A38B5D"  # linear layers: one family, told apart by lightness
PURPLE, PALE_PURPLE = "#8C6BB1", "#CBBBE0"  # what ranks exchange
STAGE_COLOURS = {
    **dict(zip(ATTENTION, (LIGHT_GREY, SKY, ORANGE, BLUE, GREEN), strict=True)), "rectify": VERMILLION,
    "project": PALE_TAN, "ffn": TAN, "head": BROWN, "sample": "#DDDDDD", "other": "#DDDDDD", "gap": "white",
    "all-reduce": PURPLE, "all-gather": PALE_PURPLE,
}  # fmt: skip
ALIKE = ("project", "ffn", "all-reduce", "head", "all-gather", "sample", "other")
"""The same for every method: at the bottom of bars, to be compared."""
REST = ("sample", "other")  # too small to tell apart: one part of a bar
NAMES = {
    "project": "projections", "ffn": "feed-forward", "head": "LM head", "rectify": "rectify: attention",
    "rectify+project+ffn": "rectify: linear layers", "rectify+all-reduce": "rectify: all-reduce",
    "other": "sampling, other", FUSED: "sparse step in one kernel",
}  # fmt: skip


def step_parts(stage: str) -> tuple[str, ...]:
    """The parts of a stage of attention, fused or not; of anything else (`total`, `rectify`), none."""
    parts = tuple(stage.split("+"))
    return parts if all(part in ATTENTION for part in parts) else ()


def bar_place(stage: str) -> tuple[bool, int, int]:
    """Where a stage stands in a bar, from below: what all methods have first, then in the order of a step."""
    return (stage not in ALIKE, *place(stage))


def fill(stage: str) -> dict[str, Any]:
    """The fill of a stage; of several together, the first one's colour hatched with the second's; the gap hatched.

    Of the whole sparse step, attention's hatched with scoring's.
    """
    first, *rest = ("attend", "score") if stage == FUSED else stage.split("+")
    colour = STAGE_COLOURS.get(first, LIGHT_GREY)
    if stage == "gap":
        return {"facecolor": colour, "edgecolor": GREY, "hatch": "/////", "linewidth": 0.5}
    edge = STAGE_COLOURS.get(rest[0], GREY) if rest else "white"
    return {"facecolor": colour, "edgecolor": edge, "hatch": "/////" if rest else None, "linewidth": 0.3}


def stage_patch(stage: str) -> Patch:
    """A stage in a legend."""
    return Patch(label=NAMES.get(stage, stage), **fill(stage))


def fused_first(rows: Sequence[Row]) -> list[Row]:
    """Rows of stages that cover a step once: where a part is there fused and single, fused counts."""
    kept: list[Row] = []
    covered: set[str] = set()
    for row in sorted((r for r in rows if step_parts(r.stage)), key=lambda r: -len(step_parts(r.stage))):
        if covered.isdisjoint(step_parts(row.stage)):
            kept.append(row)
            covered.update(step_parts(row.stage))
    return kept
