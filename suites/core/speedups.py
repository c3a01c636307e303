"""Speed-ups of whole steps against the best dense method of the same run: the only yardstick of this project."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...kernels import get_method
from .rows import Row, digits


def with_speedups(
    rows: Sequence[Row],
    time_us: Callable[[Row], float | None],
    stages: Sequence[str] = ("total",),
    rival_stage: str = "total",
) -> list[Row]:
    """Fill `speedup_vs_best_dense`, `best_dense` and `floor_speedup`.

    Args:
        rows: of one case. A row's rivals are the dense methods' `rival_stage` of the same cache state and launch.
        time_us: what is compared; None for rows that have no time.
        stages: whose rows are filled.
    """
    rivals = [r for r in rows if r.stage == rival_stage and time_us(r) and get_method(r.method).is_dense]
    out = []
    for row in rows:
        mine = time_us(row)
        same = [r for r in rivals if (r.cache_state, r.launch) == (row.cache_state, row.launch)]
        if mine and same and row.stage in stages:
            best = min(same, key=lambda r: time_us(r) or 0.0)
            limit = best.floor_us / row.floor_us if best.floor_us and row.floor_us else None
            row = replace(
                row,
                speedup_vs_best_dense=digits((time_us(best) or 0.0) / mine),
                best_dense=best.method,
                floor_speedup=digits(limit) if limit else None,
            )
        out.append(row)
    return out


def crossing(points: Sequence[tuple[int, float]]) -> float | None:
    """The context from which a speed-up stays above 1, from (context, speed-up) pairs.

    Log-linear between the neighbouring contexts; the shortest one if it wins throughout; None if it never does.
    """
    points = sorted(points)
    wins = [i for i in range(len(points)) if all(s > 1 for _, s in points[i:])]
    if not wins:
        return None
    i = wins[0]
    if i == 0:
        return float(points[0][0])
    (c0, s0), (c1, s1) = points[i - 1], points[i]
    return math.exp(math.log(c0) + (1 - s0) / (s1 - s0) * (math.log(c1) - math.log(c0)))
