"""Speed-ups of whole steps against the best dense method of the same run: the only yardstick of this project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..kernels import get_method
from .rows import Row, digits


def with_speedups(
    rows: Sequence[Row], time_us: Callable[[Row], float | None], stages: Sequence[str] = ("total",)
) -> list[Row]:
    """Fill `speedup_vs_best_dense`, `best_dense` and `floor_speedup`.

    Args:
        rows: of one case. A row's rivals are the dense methods' `total` of the same cache state and launch.
        time_us: what is compared; None for rows that have no time.
        stages: whose rows are filled.
    """
    rivals = [r for r in rows if r.stage == "total" and time_us(r) and get_method(r.method).is_dense]
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
