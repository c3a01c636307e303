"""The vocabulary of stages: what rows, ranges, tables and figures call the parts of a step, and their order."""

from __future__ import annotations

from ...kernels.fused import method as fused

ATTENTION = ("append", "score", "select", "attend", "merge")
ORDER = ("project", *ATTENTION, "rectify", "ffn", "all-reduce", "head", "all-gather", "sample", "other", "gap")
"""Stages in the order of a step."""
FUSED = fused.STAGE
"""The whole sparse step in one kernel: named by its parts."""
HEADINGS = {FUSED: "one kernel"}
"""Of stages with a long name."""
AMORTISED = "total_amortised"
"""A sparse step with its share of rectification."""
WHOLE_STEPS = ("total", AMORTISED)


def place(stage: str) -> tuple[int, int]:
    """Where a stage stands in a step, for sorting: a fused one where its last part does; unknown ones last."""
    last = stage.split("+")[-1] if not stage.startswith("rectify") else "rectify"
    return (ORDER.index(last) if last in ORDER else len(ORDER), len(stage))


def heading(stage: str) -> str:
    """What a table's column calls a stage."""
    return HEADINGS.get(stage, stage)
