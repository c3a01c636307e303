"""From rows to what figures draw: one set per model, device and dtype, one line per method variant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..suites.core.looks import Look, looks
from ..suites.core.rows import Row, identity
from ..suites.core.settings import SETTINGS
from ..suites.core.spec import PINNED, Variant, default_settings, steps_of
from .registry import figure_sets, slugs

VARIED = ("summary_kind", "summary_dtype", *PINNED)
"""Settings of a selection that change what is read, hardly how much: studied for quality, in few cases."""
USUAL_LAYOUT = "head-major"
FAST = {"quest": {"gqa_policy": "group-sum"}}
"""Settings that stand for a method where they were timed. Quest's lists of each query head would make a weak rival."""
RIVALS = ("quest", "retro", "sparse", "sink-window", "retro-cached", "oracle")
"""In which order rivals come where a panel has no room for all; methods that are not named here come before them."""


class NotDrawn(Exception):
    """The rows do not allow this figure; the message is the reason."""


@dataclass(frozen=True, slots=True)
class FigureSet:
    """The rows of one model on one device in one dtype and kind of cache, ready to draw."""

    model: str
    device: str
    dtype: str | None
    launch: str  # "graph", or "eager" where no row ran as a graph
    lines: dict[Variant, list[Row]]  # timed rows, every stage
    untimed: list[Row]  # skipped, failed and out-of-memory rows
    alike: tuple[Row, ...] = ()  # timed, another selection of a drawn method: for quality alone
    storage: str = ""  # how the cache lies, where that is not the usual way
    slug: str = ""
    notes: tuple[str, ...] = ()  # on what is left out of all figures
    undrawn: str = ""  # what a figure leaves out, for its caption

    @property
    def rows(self) -> list[Row]:
        """All rows that may be drawn."""
        return [row for rows in self.lines.values() for row in rows]

    @property
    def looks(self) -> dict[Variant, Look]:
        """How each line looks, in every figure of this set."""
        return looks(self.lines)

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU was measured."""
        return "cpu" in self.device.lower()

    def batches(self, stage: str = "total") -> list[int]:
        """Batches that a stage was timed at."""
        return sorted({row.batch for row in self.rows if row.stage == stage})

    def contexts(self, stage: str = "total") -> list[int]:
        """Contexts that a stage was timed at, in tokens."""
        return sorted({row.context for row in self.rows if row.stage == stage})

    def forms(self) -> dict[str, list[Variant]]:
        """ReSA's variants by the method that computes its steps; the kernels' chain first where it was timed."""
        forms: dict[str, list[Variant]] = {}
        for variant in self.lines:
            if steps_of(variant.method) == "resa":
                forms.setdefault(variant.method, []).append(variant)
        return forms

    def resa(self) -> list[Variant]:
        """The variants of ReSA's first form."""
        return next(iter(self.forms().values()), [])

    def curved(self, stage: str = "total") -> FigureSet:
        """Without the batches that have a single context. Raises `NotDrawn` where no batch has two."""
        contexts: dict[int, set[int]] = defaultdict(set)
        for row in self.rows:
            if row.stage == stage:
                contexts[row.batch].add(row.context)
        if not contexts:
            raise NotDrawn(f"no timed row of stage {stage!r}")
        if max(map(len, contexts.values())) < 2:
            raise NotDrawn("a single context makes no curve")
        lone = sorted(batch for batch, own in contexts.items() if len(own) < 2)
        lines = {v: [row for row in rows if row.batch not in lone] for v, rows in self.lines.items()}
        undrawn = f"batch {', '.join(map(str, lone))}: a single context, not drawn" if lone else ""
        return replace(self, lines=lines, undrawn=undrawn)


def points(rows: Iterable[Row], stage: str, batch: int, column: str) -> list[Row]:
    """Rows of one line that have `column`, by context."""
    able = [r for r in rows if r.stage == stage and r.batch == batch and getattr(r, column) is not None]
    return sorted(able, key=lambda row: row.context)


def best_dense(figures: FigureSet, batch: int, context: int) -> tuple[Variant, Row] | None:
    """The dense variant with the lowest median `total`, of those measured here."""
    rivals = [
        (variant, row)
        for variant, rows in figures.lines.items()
        if variant.is_dense
        for row in points(rows, "total", batch, "median_us")
        if row.context == context
    ]
    return min(rivals, key=lambda pair: pair[1].median_us or 0.0, default=None)


@figure_sets("micro", needs="timed rows of suite 'micro' with cache_state 'cold' and a random selection")
def micro_sets(rows: Sequence[Row]) -> list[FigureSet]:
    """Rows of the micro suite with a cold cache, on random selections."""
    cold = (r for r in rows if not r.timed or (r.cache_state == "cold" and r.selection_pattern in (None, "random")))
    return sets_of(cold, "micro", lambda row: (row.stage, row.batch, row.context))


def sets_of(rows: Iterable[Row], suite: str, place: Callable[[Row], Hashable]) -> list[FigureSet]:
    """The sets of a suite's rows: launched as a graph, eager where a set has no graph rows.

    Args:
        rows: of any suites.
        place: where a row falls: rows of one line differ in it. The last measured is drawn.
    """
    own = sorted((row for row in rows if row.suite == suite), key=lambda row: row.started_at or "")
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in own:
        if row.timed:
            groups[row.model, row.device or "unknown device", row.dtype or "unknown dtype", _storage(row)].append(row)
    sets = []
    for (key, timed), name in zip(sorted(groups.items()), slugs(sorted(groups)), strict=True):
        model, device, storage, dtype = key[0], timed[0].device or "", key[3], timed[0].dtype
        latest = list({identity(row): row for row in timed}.values())
        launch = "graph" if any(row.launch == "graph" for row in latest) else "eager"
        kept = [row for row in latest if row.launch == launch]
        again = len(timed) - len(latest)
        notes = [f"{name}: {again} {suite} rows were measured again later: the latest is drawn"] if again else []
        lost = {row.method for row in latest} - {row.method for row in kept}
        notes += [f"{name}: {method} ran eagerly only and is left out" for method in sorted(lost)]
        untimed = {identity(r): r for r in own if (r.model, r.device or "") == (model, device)}.values()
        missed = [r for r in untimed if not r.timed and r.status != "ok" and r.dtype in (None, dtype)]
        lines = lines_of(kept, place)
        sets.append(FigureSet(model, device, dtype, launch, lines, missed, (), storage, name, tuple(notes)))
    return sets


def _storage(row: Row) -> str:
    layout = row.kv_layout if row.kv_layout != USUAL_LAYOUT else None
    fp8 = f"{row.kv_dtype} K/V" if row.kv_dtype else ""
    return ", ".join(word for word in ("paged K/V" if row.paged else "", fp8, layout or "") if word)


def lines_of(rows: Iterable[Row], place: Callable[[Row], Hashable]) -> dict[Variant, list[Row]]:
    """Rows by variant, in reading order; of several at one place the last one."""
    latest = {(row.variant, place(row)): row for row in rows}
    lines: dict[Variant, list[Row]] = defaultdict(list)
    for row in latest.values():
        lines[row.variant].append(row)
    return dict(sorted(lines.items(), key=lambda item: order(item[0])))


def order(variant: Variant) -> tuple[Any, ...]:
    """Sorts variants: dense first, then ReSA, then by method; of each FAST or the usual settings come first."""
    steps = steps_of(variant.method)
    defaults = {**default_settings(variant.method), **FAST.get(steps, {})}
    ranks = []
    for name, entry in SETTINGS.items():
        value = variant.get(name)
        number = value if isinstance(value, (int, float)) else 0
        ranks.append((value not in (None, defaults.get(name, entry.default)), number, str(value or "")))
    return (not variant.is_dense, steps != "resa", steps, variant.method != steps, variant.method, ranks)


def ranked(variants: Iterable[Variant]) -> list[Variant]:
    """The first variant of each method that is not dense: ReSA's forms, the fused one first, then its rivals."""
    firsts: dict[str, Variant] = {}
    for variant in variants:
        if not variant.is_dense:
            firsts.setdefault(variant.method, variant)

    def rank(variant: Variant) -> tuple[bool, bool, int]:
        place = RIVALS.index(variant.method) + 1 if variant.method in RIVALS else 0
        return (steps_of(variant.method) != "resa", variant.method != "resa-fused", place)

    return sorted(firsts.values(), key=rank)


def is_varied(variant: Variant) -> bool:
    """Whether a setting of VARIED is not the usual one."""
    return any(variant.get(name) not in (None, SETTINGS[name].default) for name in VARIED)


def without_varied(figures: FigureSet) -> FigureSet:
    """Varied selections set aside (`alike`) where the same method's usual one was timed."""
    plain = {variant.method for variant in figures.lines if not is_varied(variant)}
    aside = [variant for variant in figures.lines if is_varied(variant) and variant.method in plain]
    kept = {variant: rows for variant, rows in figures.lines.items() if variant not in aside}
    return replace(figures, lines=kept, alike=tuple(row for variant in aside for row in figures.lines[variant]))
