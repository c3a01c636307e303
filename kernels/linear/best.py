"""Which product is the best of each size, as measured rows say.

`resa-bench linear --choose FILE` writes `best.json` beside this file: of a device the commit and libraries of
its rows, and of each kind of weight "NxK" -> rows of x -> product.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("best.json")
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Best:
    """Products of one weight, each with a number of rows that it was the best at."""

    measured: tuple[tuple[int, str], ...]

    def product(self, rows: int) -> str:
        """Between two measured numbers of rows that which was the best at both, else ours; beyond the largest, ours."""
        above = min((entry for entry in self.measured if entry[0] >= rows), default=(0, OURS))
        below = max((entry for entry in self.measured if entry[0] <= rows), default=above)
        return above[1] if above[1] == below[1] else OURS


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
