"""From rows of the quality suite to what its figures draw: one set per case and device, a line per method variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from ..suites.core.rows import Row, identity
from ..suites.quality.cases import LEVEL
from ..suites.quality.table import RESA, SELECTION, label
from .data import FUSED
from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look

USUAL_PERIOD = 32  # tokens; of ReSA where one period stands for all
_DASHED, _DOTTED, _DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))
_PERIODS = ((VERMILLION, "o"), (ORANGE, "s"), (PURPLE, "^"), (GREEN, "D"), (BLUE, "v"))
_COLOURS, _MARKERS = (BLUE, SKY, GREEN, PURPLE, ORANGE, VERMILLION), "v<P>hpX"  # no pair twice within 42


@dataclass(frozen=True, slots=True)
class QualitySet:
    """The rows of one case of the quality suite on one device."""

    model: str
    case: str
    device: str
    rows: list[Row]

    @property
    def lines(self) -> dict[str, list[Row]]:
        """Rows by the name of their variant, in the order measured; dense rows, which have no KL, are left out."""
        several = len({row.active_ratio for row in self.rows if row.active_ratio is not None}) > 1
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(label(row, ratios=several), []).append(row)
        return {name: mine for name, mine in found.items() if any(row.metric == "kl" for row in mine)}

    @property
    def about(self) -> str:
        """What was fed, for a caption."""
        first = self.rows[0]
        fed = "text" if first.selection_pattern == "text" else "the dense model's own continuation"
        steps = max(row.step or 0 for row in self.rows)
        return f"{first.batch} x {first.context - steps} tokens of text, then {steps} of {fed}, the same to all"


def quality_sets(rows: Sequence[Row]) -> list[QualitySet]:
    """What is there twice counts as last measured."""
    latest: dict[tuple[Any, ...], Row] = {}
    for row in sorted(
        (r for r in rows if r.suite == "quality" and r.value is not None), key=lambda r: r.started_at or ""
    ):
        latest[row.device, *identity(row)] = row
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in latest.values():
        found.setdefault((row.model, row.case, row.device or "device unknown"), []).append(row)
    return [QualitySet(*key, mine) for key, mine in found.items()]


def selection(row: Row) -> tuple[Any, ...]:
    """What tells the selections of two methods apart; ReSA's steps select as sparse steps alone do."""
    step = "resa" if row.method in (*RESA, "sparse") else row.method
    return step, row.dense_layers, *(getattr(row, name) for name in SELECTION)


def main(lines: dict[str, list[Row]]) -> list[str]:
    """ReSA and sparse steps alone, as far as they select as the first variant of ReSA does."""
    usual = next((selection(mine[0]) for mine in lines.values() if mine[0].rectify_every), None)
    return [name for name, mine in lines.items() if selection(mine[0]) == usual]


def usual(lines: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Without variants of how ReSA's blocks are summarised, sized and pinned: those of its first variant stay.

    What remains differs by method and period. All lines where nothing rectifies.
    """
    first = next((mine[0] for mine in lines.values() if mine[0].rectify_every), None)
    if first is None:
        return lines
    told = ("block_size", "summary_kind", "summary_dtype", "pinned_blocks")
    return {
        name: mine
        for name, mine in lines.items()
        if all(getattr(mine[0], n) in (None, getattr(first, n)) for n in told)
    }


def looks(lines: dict[str, list[Row]]) -> dict[str, Look]:
    """ReSA solid, a colour a period and f = 1 in grey; sparse steps alone dashed, the oracle black; others dotted.

    That is ReSA with the selection of its first variant; its other block sizes and ratios count as others. In one
    kernel it is dashed, with a star.
    """
    first = {name: mine[0] for name, mine in lines.items()}
    mine = main(lines)
    periods = sorted({row.rectify_every for row in first.values() if row.rectify_every and row.rectify_every > LEVEL})
    others = iter(zip(cycle(_COLOURS), cycle(_MARKERS), strict=False))
    found: dict[str, Look] = {}
    for name, row in first.items():
        if name in mine and row.rectify_every == LEVEL:
            found[name] = Look(GREY, "", "-")
        elif name in mine and row.rectify_every:
            found[name] = Look(*_PERIODS[periods.index(row.rectify_every) % len(_PERIODS)])
        elif name in mine:
            found[name] = Look("black", "x", _DASHED)
        elif row.method == "oracle" and Look("black", "*", _DOTTED) not in found.values():
            found[name] = Look("black", "*", _DOTTED)
        else:
            found[name] = Look(*next(others), _DASHDOT if row.method in ("quest", *RESA) else _DOTTED)
        if row.method == FUSED and name in mine:  # the same steps beside themselves
            found[name] = Look(found[name].colour, "*", _DASHED)
    return found
