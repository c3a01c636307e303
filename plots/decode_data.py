"""From rows of the decode suite to what its figures draw: one set per model and device, settings within it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..suites.core.rows import Row, identity
from .data import FigureSet, NotDrawn, Variant, order, variants

USUAL_PERIOD = 32  # tokens; a variant with another says so


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What a panel stands for: the same model decoding under the same circumstances, over contexts."""

    shared_kv: bool
    weights: str
    batch: int
    prompt: str
    sampled: bool

    def __str__(self) -> str:
        parts = [f"{self.weights} weights, batch {self.batch}"]
        parts += ["shared K/V"] if self.shared_kv else []
        parts += ["text prompt"] if self.prompt == "text" else []
        parts += ["sampled"] if self.sampled else []
        return ", ".join(parts)


def setting(row: Row) -> Setting:
    return Setting(
        bool(row.shared_kv),
        row.weight_dtype or "",
        row.batch,
        row.selection_pattern or "",
        row.case.endswith("-sampled"),
    )


def decode_sets(rows: Sequence[Row]) -> tuple[list[FigureSet], list[str]]:
    """The sets of the decode figures, and notes on what they leave out.

    A set holds whole steps with their tokens per second and the stages of those steps, launched as a graph (eager
    where a set has no graph rows). A measurement that is there twice is drawn as last measured.
    """
    decode = [row for row in rows if row.suite == "decode"]
    latest: dict[tuple[Any, ...], Row] = {}
    for row in sorted(decode, key=lambda row: row.started_at or ""):
        latest[row.device, *identity(row)] = row
    notes = []
    if len(latest) < len(decode):
        notes.append(f"{len(decode) - len(latest)} decode rows were measured again later: the latest is drawn")

    by_set: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in latest.values():
        by_set[row.model, row.device or "", row.dtype or ""].append(row)
    sets = []
    for (model, device, dtype), found in sorted(by_set.items()):
        timed = [row for row in found if row.timed and (row.stage != "total" or row.tokens_per_s)]
        steps = [row for row in timed if row.stage == "total"]
        if not steps:
            continue
        launch = "graph" if any(row.launch == "graph" for row in steps) else "eager"
        lost = {r.method for r in steps} - {r.method for r in steps if r.launch == launch}
        notes += [f"{model}: {name} ran eagerly only and is left out" for name in sorted(lost)]
        kept, alike = drawn_and_alike([row for row in timed if row.launch == launch])
        untimed = [row for row in found if not row.timed and row.status != "ok"]
        sets.append(FigureSet(model, device, dtype or None, launch, decode_variants(kept), untimed, alike))
    return sets, notes


def drawn_and_alike(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows apart by whether another selection of the same method stands for them.

    Pinned blocks and mean/std summaries change what is read, not how much, and summaries in fp8 are measured in one
    case alone; where min/max in the keys' dtype was timed, it is drawn.
    """
    plain = {row.method for row in rows if usual_selection(row)}
    drawn = [row for row in rows if usual_selection(row) or row.method not in plain]
    return drawn, [row for row in rows if not usual_selection(row) and row.method in plain]


def usual_selection(row: Row) -> bool:
    return row.summary_kind != "meanstd" and not row.summary_dtype and not row.pinned_blocks


def decode_variants(rows: Iterable[Row]) -> dict[Variant, list[Row]]:
    """Rows by variant, over all settings; a period other than the usual one is a variant of its own."""
    by_period: dict[int | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_period[None if row.rectify_every == USUAL_PERIOD else row.rectify_every].append(row)
    lines: dict[Variant, list[Row]] = {}
    for every, found in by_period.items():
        for variant, mine in variants(found, lambda row: (setting(row), row.stage, row.context)).items():
            tie = () if every is None else (("rectify_every", every),)
            lines[replace(variant, ties=variant.ties + tie)] = mine
    return dict(sorted(lines.items(), key=lambda item: (*order(replace(item[0], ties=())), period_of(item[0]))))


def period_of(variant: Variant) -> int:
    """The tokens between rectifications that a variant names; 0 for the usual one, and where there is none."""
    return int(dict(variant.ties).get("rectify_every") or 0)


def steps_only(figures: FigureSet) -> FigureSet:
    """The same set, whose captions count only methods without a whole step."""
    return replace(figures, untimed=[row for row in figures.untimed if row.stage == "total"])


def steps(figures: FigureSet, variant: Variant, where: Setting, column: str = "tokens_per_s") -> list[Row]:
    """Whole steps of one line that have `column`, by context."""
    rows = [r for r in figures.lines[variant] if r.stage == "total" and setting(r) == where]
    return sorted((r for r in rows if getattr(r, column) is not None), key=lambda row: row.context)


def settings(figures: FigureSet) -> list[Setting]:
    return sorted({setting(row) for row in figures.rows})


def curves(figures: FigureSet, column: str = "tokens_per_s") -> dict[Setting, list[Variant]]:
    """Settings with the variants that have at least two contexts there. Raises NotDrawn if none has."""
    if not any(steps(figures, v, where, column) for v in figures.lines for where in settings(figures)):
        raise NotDrawn(f"no whole step has {column}")
    found = {w: [v for v in figures.lines if len(steps(figures, v, w, column)) > 1] for w in settings(figures)}
    found = {where: able for where, able in found.items() if able}
    if not found:
        raise NotDrawn("a single context makes no curve")
    return found


def left_out(figures: FigureSet, found: dict[Setting, list[Variant]]) -> list[Variant]:
    """Variants without a curve anywhere, although they were timed."""
    drawn = {variant for able in found.values() for variant in able}
    return [v for v in figures.lines if v not in drawn and any(r.stage == "total" for r in figures.lines[v])]


def fastest_dense(figures: FigureSet, where: Setting) -> dict[int, Row]:
    """At each context the step of the dense method with the most tokens per second."""
    best: dict[int, Row] = {}
    for variant in figures.lines:
        for row in steps(figures, variant, where) if variant.dense else ():
            if row.context not in best or (row.tokens_per_s or 0.0) > (best[row.context].tokens_per_s or 0.0):
                best[row.context] = row
    return dict(sorted(best.items()))


def usual(figures: FigureSet, methods: Iterable[str]) -> list[Variant]:
    """The variants of these methods that were timed in most cases; a study's, timed in one of many, are left out."""
    cases = {
        variant: len({row.case for row in rows if row.stage == "total"})
        for variant, rows in figures.lines.items()
        if variant.method in methods
    }
    most = max(cases.values(), default=0)
    return [variant for variant, count in cases.items() if 2 * count > most]


def parts(figures: FigureSet, step: Row) -> dict[str, Row]:
    """The stages of a whole step, by name."""
    for rows in figures.lines.values():
        if step in rows:
            mine = [r for r in rows if r.stage != "total" and r.mean_us is not None]
            return {r.stage: r for r in mine if setting(r) == setting(step) and r.context == step.context}
    return {}
