"""Sink + window (StreamingLLM, arXiv 2309.17453): the first blocks and the newest ones. The floor of any selector."""

from __future__ import annotations

from ..kernels import register
from ..kernels.pipeline import SparseMethod


@register("sink-window")
class SinkWindow(SparseMethod):
    """A constant list of the size the others select; nothing is scored (kernels/selectors/window.py)."""

    uses = ("block_size", "active_ratio", "min_blocks", "budget_tokens")
    ranks_by = "window"
    joins = ("micro",)
