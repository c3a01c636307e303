"""From rows of the decode suite to what its figures draw: one set per model and device, settings within it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .data import FigureSet, NotDrawn, sets_of, without_varied
from .registry import figure_sets

_SAMPLING = re.compile(r"-t([0-9.e+-]+?)-p([0-9.e+-]+)$")  # the end of a case's name (suites/engine/sampling.py)
OWN_RUN = 1e-3  # of a row's ratio: times that give it back are those it was computed from


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What a panel stands for: the same model decoding under the same circumstances, over contexts."""

    shared_kv: bool
    weights: str
    batch: int
    prompt: str
    sampling: str  # empty for greedy decoding

    def __str__(self) -> str:
        parts = [f"{self.weights} weights, batch {self.batch}"]
        parts += ["shared K/V"] if self.shared_kv else []
        parts += ["ragged"] if self.prompt == "ragged" else []
        parts += ["text prompt"] if self.prompt == "text" else []
        parts += [f"sampled ({self.sampling})"] if self.sampling else []
        return ", ".join(parts)


def setting(row: Row) -> Setting:
    """The panel that a row belongs to."""
    sampling = _SAMPLING.search(row.case)
    words = f"t {sampling[1]}, p {sampling[2]}" if sampling else ""
    return Setting(bool(row.shared_kv), row.weight_dtype or "", row.batch, row.selection_pattern or "", words)


@figure_sets("decode", needs="whole steps of suite 'decode' with tokens_per_s")
def decode_sets(rows: Sequence[Row]) -> list[FigureSet]:
    """Whole steps with their tokens per second, and the stages of those steps; usual selections drawn."""
    own = [row for row in rows if not (row.client or row.products)]  # steps of others' software are no line of ours
    able = [row for row in own if not row.timed or row.stage != "total" or row.tokens_per_s]
    sets = sets_of(able, "decode", lambda row: (setting(row), row.stage, row.context))
    return [without_varied(figures) for figures in sets if any(row.stage == "total" for row in figures.rows)]


def steps_only(figures: FigureSet) -> FigureSet:
    """The same set, whose captions count only methods without a whole step."""
    return replace(figures, untimed=[row for row in figures.untimed if row.stage == "total"])


def steps(figures: FigureSet, variant: Variant, where: Setting, column: str = "tokens_per_s") -> list[Row]:
    """Whole steps of one line that have `column`, by context."""
    rows = [r for r in figures.lines[variant] if r.stage == "total" and setting(r) == where]
    return sorted((r for r in rows if getattr(r, column) is not None), key=lambda row: row.context)


def settings(figures: FigureSet) -> list[Setting]:
    """The panels that the rows of a set make."""
    return sorted({setting(row) for row in figures.rows})


def curves(figures: FigureSet, column: str = "tokens_per_s") -> dict[Setting, list[Variant]]:
    """Settings with the variants that have at least two contexts there. Raises NotDrawn if none has."""
    if not any(steps(figures, v, where, column) for v in figures.lines for where in settings(figures)):
        raise NotDrawn(f"no whole step has {column}")
    able = {w: [v for v in figures.lines if len(steps(figures, v, w, column)) > 1] for w in settings(figures)}
    able = {where: variants for where, variants in able.items() if variants}
    if not able:
        raise NotDrawn("a single context makes no curve")
    return able


def fastest_dense(figures: FigureSet, where: Setting) -> dict[int, Row]:
    """At each context the step of the dense method with the most tokens per second."""
    best: dict[int, Row] = {}
    for variant in figures.lines:
        for row in steps(figures, variant, where) if variant.is_dense else ():
            if row.context not in best or (row.tokens_per_s or 0.0) > (best[row.context].tokens_per_s or 0.0):
                best[row.context] = row
    return dict(sorted(best.items()))


def own_rival(figures: FigureSet, step: Row) -> Row | None:
    """The best dense step that a step was compared with in its own run; None where another run's stands here now."""
    time_us = (step.time_us or 0.0) * (step.speedup_vs_best_dense or 0.0)
    for row in figures.rows:
        same = (row.method, row.stage, row.case) == (step.best_dense, "total", step.case)
        if same and math.isclose(row.time_us or 0.0, time_us, rel_tol=OWN_RUN):
            return row
    return None


def often_timed(figures: FigureSet, variants: Iterable[Variant]) -> list[Variant]:
    """Those of the variants that were timed in most cases; a study's, timed in one of many, are left out."""
    cases = {v: len({row.case for row in figures.lines[v] if row.stage == "total"}) for v in variants}
    most = max(cases.values(), default=0)
    return [variant for variant, count in cases.items() if 2 * count > most]


def parts(figures: FigureSet, step: Row) -> dict[str, Row]:
    """The stages of a whole step, by name."""
    stages = [r for r in figures.lines[step.variant] if r.stage != "total" and r.mean_us is not None]
    return {r.stage: r for r in stages if setting(r) == setting(step) and r.context == step.context}
