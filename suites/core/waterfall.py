"""From the kernel's speed-up to the model's: what each part of a step adds to the dense step and to the sparse one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .rows import Row
from .stages import ATTENTION

REMAINDER = "remainder"
"""What no stage of the rows holds."""
PARTS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "rectify: attention": ("rectify",),
    "rectify: linear layers": ("rectify+project+ffn",),
    "projections, norms, rope": ("project",),
    "feed-forward": ("ffn",),
    "LM head": ("head",),
    "ranks' exchange": ("all-reduce", "all-gather", "rectify+all-reduce"),
    "sampling, other": ("sample", "other"),
    "gaps": ("gap",),
}
"""Stages by part, in the order in which a waterfall adds them: what differs between methods first."""


@dataclass(frozen=True, slots=True)
class Part:
    """Of a step of both methods, in microseconds.

    Attributes:
        so_far: the speed-up of this part and those before it together; of the last part, the model's.
        without: what the model's speed-up would be if this part took neither of them any time; None of the only part,
            and of one that is all of the sparse step.
    """

    name: str
    dense_us: float
    sparse_us: float
    so_far: float
    without: float | None


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Of a sparse step beside the best dense step of its run. Two parts at least, unless nothing was broken down."""

    dense: Row
    sparse: Row
    parts: tuple[Part, ...]

    @property
    def attention(self) -> Part | None:
        """What the kernels compute; None where the rows have no stages."""
        return self.parts[0] if self.parts[0].name == "attention" else None

    @property
    def speedup(self) -> float:
        """Of whole steps."""
        return self.parts[-1].so_far

    @property
    def heaviest(self) -> Part:
        """The part whose absence would help most."""
        return max(self.parts, key=lambda part: part.without or 0.0)


def waterfall(
    dense: Row, sparse: Row, dense_stages_us: Mapping[str, float], sparse_stages_us: Mapping[str, float]
) -> Waterfall:
    """Lead from attention's speed-up to that of whole steps.

    Args:
        dense, sparse: whole steps of one run, timed.
        dense_stages_us, sparse_stages_us: their stages by name; where either is empty all is remainder.

    Raises:
        ValueError: a step without a time.
    """
    if dense.mean_us is None or sparse.mean_us is None:
        raise ValueError(f"case {dense.case}: a step carries no time, expected two timed ones")
    whole = (dense.mean_us, sparse.mean_us)
    pairs: list[tuple[str, float, float]] = []
    if dense_stages_us and sparse_stages_us:
        for name, stages in PARTS.items():
            dense_us, sparse_us = (_sum(held, stages) for held in (dense_stages_us, sparse_stages_us))
            if dense_us or sparse_us:
                pairs.append((name, dense_us, sparse_us))
    if pairs and pairs[0][2] <= 0:
        pairs = []  # stages of the sparse step that took no time: no ratio can be led from them
    dense_us, sparse_us = whole[0] - sum(pair[1] for pair in pairs), whole[1] - sum(pair[2] for pair in pairs)
    if not pairs or max(abs(dense_us), abs(sparse_us)) > 1e-3 * min(whole):
        pairs.append((REMAINDER, dense_us, sparse_us))
    parts, so_far = [], (0.0, 0.0)
    for name, dense_us, sparse_us in pairs:
        so_far = so_far[0] + dense_us, so_far[1] + sparse_us
        rest = whole[0] - dense_us, whole[1] - sparse_us
        without = rest[0] / rest[1] if len(pairs) > 1 and rest[1] > 0 else None
        parts.append(Part(name, dense_us, sparse_us, so_far[0] / so_far[1], without))
    return Waterfall(dense, sparse, tuple(parts))


def _sum(times: Mapping[str, float], stages: tuple[str, ...]) -> float:
    """Of stages by name, and of fused ones of attention, whose parts are all among them."""
    return sum(us for name, us in times.items() if name in stages or all(part in stages for part in name.split("+")))
