"""Which product is the best of each size, as measured rows say.

`resa-bench linear --choose FILE` writes `best.json` beside this file: of a device the commit and libraries of
its rows, and of each kind of weight "NxK" -> rows of x -> product.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("best.json")
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Best:
    """Products of one weight, each with a number of rows that it was the best at."""

    measured: tuple[tuple[int, str], ...]

    def product(self, rows: int) -> str:
        """That of the measured number nearest by ratio, the larger of two; beyond the largest, ours."""
        if rows > max(count for count, _ in self.measured):
            return OURS
        return min(self.measured, key=lambda entry: (abs(log(entry[0] / rows)), -entry[0]))[1]


def best_of(device: str, kind: str, columns: int, depth: int) -> Best | None:
    """What was measured on a device of a kind of weight `[columns, depth]`; None: nothing.

    Args:
        device: its name, as rows have it.
        kind: of `product.KINDS`.
    """
    entry: Mapping[str, str] = table().get(device, {}).get("best", {}).get(kind, {}).get(f"{columns}x{depth}", {})
    return Best(tuple((int(rows), name) for rows, name in entry.items())) if entry else None


@cache
def table() -> Mapping[str, Any]:
    """The file's content."""
    return json.loads(FILE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
