"""From rows of the quality suite to what its figures draw: one set per case and device, a line per method variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from ..suites.core.analysis import LEVEL, error_over_texts, selection_of
from ..suites.core.looks import GREY, Look, looks
from ..suites.core.rows import Row, identity
from ..suites.core.settings import SETTINGS
from ..suites.core.spec import Variant, steps_of
from .data import VARIED, order
from .registry import figure_sets, slugs

USUAL_PERIOD = SETTINGS["rectify_every"].default  # tokens; of ReSA where one period stands for all
LEVEL_LOOK = Look(GREY, "")
Lines = dict[Variant, list[Row]]


@dataclass(frozen=True, slots=True)
class QualitySet:
    """The rows of one case of the quality suite on one device."""

    model: str
    case: str
    device: str
    rows: list[Row]
    slug: str = ""

    @property
    def lines(self) -> Lines:
        """Rows by variant, in reading order, of those with a KL: dense decoding has one on caches in fp8 alone."""
        lines: Lines = {}
        for row in self.rows:
            lines.setdefault(row.variant, []).append(row)
        able = {variant: rows for variant, rows in lines.items() if any(row.metric == "kl" for row in rows)}
        return dict(sorted(able.items(), key=lambda line: order(line[0])))

    @property
    def looks(self) -> dict[Variant, Look]:
        """Each method's own; ReSA at f = 1 with the selection of its first variant, the level, is a grey line."""
        lines = self.lines
        levels = [variant for variant in first_selection(lines) if variant.get("rectify_every") == LEVEL]
        return looks(variant for variant in lines if variant not in levels) | dict.fromkeys(levels, LEVEL_LOOK)

    @property
    def about(self) -> str:
        """What was fed, for a caption."""
        first = self.rows[0]
        fed = "text" if first.selection_pattern == "text" else "the dense model's own continuation"
        steps = max(row.step or 0 for row in self.rows)
        return f"{first.batch} x {first.context - steps} tokens of text, then {steps} of {fed}, the same to all"


@figure_sets("quality", needs="values of suite 'quality'")
def quality_sets(rows: Sequence[Row]) -> list[QualitySet]:
    """A set a case and device; what is there twice counts as last measured."""
    valued = sorted((r for r in rows if r.suite == "quality" and r.value is not None), key=lambda r: r.started_at or "")
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in {(row.device, *identity(row)): row for row in valued}.values():
        groups.setdefault((row.model, row.case, row.device or "device unknown"), []).append(row)
    named = slugs([(case.removeprefix("quality-"), device) for _, case, device in groups])
    return [QualitySet(*key, group, name) for (key, group), name in zip(groups.items(), named, strict=True)]


def selection(row: Row) -> tuple[Any, ...]:
    """What tells the selections of two methods apart; ReSA's steps select as sparse steps alone do."""
    steps = steps_of(row.method)
    return "resa" if steps == "sparse" else steps, row.dense_layers, *selection_of(row)


def first_selection(lines: Lines) -> list[Variant]:
    """ReSA and sparse steps alone, as far as they select as the first variant of ReSA does."""
    first = next((selection(rows[0]) for rows in lines.values() if rows[0].rectify_every), None)
    return [variant for variant, rows in lines.items() if selection(rows[0]) == first]


def kl_error(rows: Sequence[Row]) -> float:
    """The standard error of the mean KL over stretches of text; where there is one, over stretches of steps; else 0."""
    over_texts = error_over_texts(rows, "kl")
    if over_texts is not None:
        return over_texts
    values = [row.value or 0.0 for row in rows if row.metric == "kl" and row.layer is None]
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def error_words(rows: Sequence[Row]) -> str:
    """What `kl_error` is, in a caption."""
    texts = any(row.value_error is not None for row in rows)
    return f"KL's standard error over {'texts' if texts else 'stretches of steps'}"


def plain(lines: Lines) -> Lines:
    """Without variants of how ReSA's blocks are sized, summarised and pinned: those of its first variant stay.

    What remains differs by method and period. All lines where nothing rectifies.
    """
    first = next((variant for variant in lines if variant.get("rectify_every")), None)
    if first is None:
        return lines
    fixed = {name: (None, first.get(name)) for name in ("block_size", *VARIED)}
    return {v: rows for v, rows in lines.items() if all(v.get(name) in values for name, values in fixed.items())}
