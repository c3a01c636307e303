"""Two runs side by side: every pair of runs that timed the same measurements, with the verdict of `compare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ...suites.core.rows import digits
from ...suites.core.verdict import TOLERANCE, VERDICTS, Comparison, compare
from .runs import Run

MOST = 12  # pairs of runs on a page


def comparisons(runs: Sequence[Run], numbers: Mapping[int, int]) -> list[dict[str, Any]]:
    """The run given first as A, the other as B; those with the most rows in common first.

    Args:
        numbers: places of timed rows in the page's columns, by `id()`.
    """
    made = []
    for a, b in combinations(range(len(runs)), 2):
        comparison = compare(runs[a].rows, runs[b].rows, TOLERANCE)
        if comparison.pairs or comparison.newly_failed:
            made.append(_entry(a, b, comparison, numbers))
    return sorted(made, key=lambda entry: -len(entry["pairs"]))[:MOST]


def _entry(a: int, b: int, comparison: Comparison, numbers: Mapping[int, int]) -> dict[str, Any]:
    pairs = [
        [numbers[id(p.a)], numbers[id(p.b)], VERDICTS.index(p.verdict), digits(p.ratio, 5)] for p in comparison.pairs
    ]
    failed = Counter((row.case, row.method, row.stage, row.reason or row.status) for row in comparison.newly_failed)
    return {
        "a": a,
        "b": b,
        "tolerance": comparison.tolerance,
        "pairs": pairs,
        "deciding": [numbers[id(pair.a)] for pair in comparison.deciding],
        "failed": [[*what, count] for what, count in failed.items()],
        "only_a": sum(row.timed for row in comparison.only_a),
        "only_b": sum(row.timed for row in comparison.only_b),
        "same_device": comparison.devices_a == comparison.devices_b,
        "exit_code": comparison.exit_code,
    }
