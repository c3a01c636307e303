"""Speed-ups of whole steps against the best dense method of the same run: the only yardstick of this project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .rows import Row, digits
from .spec import is_dense


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
    rivals = [row for row in rows if row.stage == rival_stage and time_us(row) and is_dense(row.method)]
    filled = []
    for row in rows:
        own = time_us(row)
        same = [rival for rival in rivals if (rival.cache_state, rival.launch) == (row.cache_state, row.launch)]
        if own and same and row.stage in stages:
            best = min(same, key=lambda rival: time_us(rival) or 0.0)
            limit = best.floor_us / row.floor_us if best.floor_us and row.floor_us else None
            row = replace(
                row,
                speedup_vs_best_dense=digits((time_us(best) or 0.0) / own),
                best_dense=best.method,
                floor_speedup=digits(limit) if limit else None,
            )
        filled.append(row)
    return filled
