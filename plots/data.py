"""From rows to what figures draw: one set per model and device, one line per method variant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..suites.core.rows import Row, identity

RESA = ("resa", "resa-torch")  # the method this suite is about: Triton, and the portable torch path
FUSED = "resa-fused"  # its steps as one kernel: the same selection, all in one stage
FUSED_STAGE = "append+score+select+attend+merge"
FAILING = ("failed", "oom")

# Columns that split a variant only where two rows would otherwise fall on the same point of a line.
TIE_BREAKERS = (
    "budget_tokens", "summary_dtype", "spread_weight", "pinned_blocks", "window", "rectify_every", "draft_length",
    "dense_layers", "weight_dtype", "kv_layout", "paged", "shared_kv",
)  # fmt: skip


class NotDrawn(Exception):
    """The rows do not allow this figure; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What one line (or bar) of a figure stands for."""

    method: str
    block_size: int | None = None  # tokens
    active_ratio: float | None = None
    budget_tokens: int | None = None
    gqa_policy: str | None = None
    summary_kind: str | None = None
    window: int | None = None  # tokens
    ties: tuple[tuple[str, Any], ...] = ()  # tie-breaking columns and their values

    @property
    def dense(self) -> bool:
        """True of a method without blocks: it read everything."""
        return self.block_size is None


@dataclass(frozen=True, slots=True)
class FigureSet:
    """The rows of one model on one device in one dtype, ready to draw."""

    model: str
    device: str
    dtype: str | None
    launch: str  # "graph", or "eager" where no row ran as a graph
    lines: dict[Variant, list[Row]]  # timed rows, every stage
    untimed: list[Row]  # skipped, failed and out-of-memory rows
    alike: list[Row] = field(default_factory=list)  # timed, another selection of a drawn method: for quality alone

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.lines.values() for row in rows]

    @property
    def on_cpu(self) -> bool:
        methods = {variant.method for variant in self.lines}
        return "cpu" in self.device.lower() or ("resa-torch" in methods and "resa" not in methods)

    def batches(self, stage: str = "total") -> list[int]:
        return sorted({row.batch for row in self.rows if row.stage == stage})

    def contexts(self, stage: str = "total") -> list[int]:
        return sorted({row.context for row in self.rows if row.stage == stage})

    def resa(self) -> list[Variant]:
        """ReSA's variants: the kernels' own where there are any, else the portable path's."""
        for method in RESA:
            found = [variant for variant in self.lines if variant.method == method]
            if found:
                return found
        return []

    def fused(self) -> list[Variant]:
        """ReSA's variants in one kernel."""
        return [variant for variant in self.lines if variant.method == FUSED]

    def need_curve(self, stage: str = "total") -> None:
        """Raise `NotDrawn` unless some batch has at least two contexts."""
        contexts = defaultdict(set)
        for row in self.rows:
            if row.stage == stage:
                contexts[row.batch].add(row.context)
        if not contexts:
            raise NotDrawn(f"no timed row of stage {stage!r}")
        if max(map(len, contexts.values())) < 2:
            raise NotDrawn("a single context makes no curve")


def points(rows: Iterable[Row], stage: str, batch: int, column: str) -> list[Row]:
    """Rows of one line that have `column`, by context."""
    found = [r for r in rows if r.stage == stage and r.batch == batch and getattr(r, column) is not None]
    return sorted(found, key=lambda row: row.context)


def best_dense(figures: FigureSet, batch: int, context: int) -> tuple[Variant, Row] | None:
    """The dense variant with the lowest median `total`, of those measured here."""
    found = [
        (variant, row)
        for variant, rows in figures.lines.items()
        if variant.dense
        for row in points(rows, "total", batch, "median_us")
        if row.context == context
    ]
    return min(found, key=lambda pair: pair[1].median_us or 0.0, default=None)


def figure_sets(rows: Sequence[Row]) -> tuple[list[FigureSet], list[str]]:
    """The sets of the main figures, and notes on what they leave out.

    Main are rows of the micro suite, with a cold cache, launched as a graph (eager where a set has no graph rows),
    on random selections. A measurement that is there twice is drawn as last measured.
    """
    latest: dict[tuple[Any, ...], Row] = {}
    micro = [row for row in rows if row.suite == "micro"]
    for row in sorted(micro, key=lambda row: row.started_at or ""):
        latest[row.device, *identity(row)] = row
    notes = []
    if len(latest) < len(micro):
        notes.append(f"{len(micro) - len(latest)} rows were measured again later: the latest is drawn")

    main: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    untimed: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in latest.values():
        if not row.timed:
            untimed[row.model, row.device or ""].append(row)
        elif row.cache_state == "cold" and row.selection_pattern in (None, "random"):
            main[row.model, row.device or "", row.dtype or ""].append(row)

    sets = []
    for (model, device, dtype), found in sorted(main.items()):
        launch = "graph" if any(row.launch == "graph" for row in found) else "eager"
        kept = [row for row in found if row.launch == launch]
        if kept:
            missed = [r for r in untimed[model, device] if r.status != "ok" and (r.dtype or dtype) == dtype]
            sets.append(FigureSet(model, device, dtype or None, launch, variants(kept), missed))
    return sets, notes


def place(row: Row) -> tuple[Any, ...]:
    """Where a row falls in the micro figures: rows of one line differ in it."""
    return row.stage, row.batch, row.context


def variants(rows: Iterable[Row], point: Callable[[Row], tuple[Any, ...]] = place) -> dict[Variant, list[Row]]:
    """Rows by variant: dense first, then by method and parameters.

    Args:
        rows: of one set.
        point: where a row falls. Variants that meet there are told apart by `TIE_BREAKERS`.
    """
    by_core: dict[Variant, list[Row]] = defaultdict(list)
    for row in rows:
        by_core[_core(row)].append(row)
    lines: dict[Variant, list[Row]] = defaultdict(list)
    for core, found in by_core.items():
        names = _ties(found, point)
        for row in found:
            ties = tuple((name, getattr(row, name)) for name in names)
            key = (core.method, core.block_size, core.active_ratio, core.budget_tokens, core.gqa_policy)
            lines[Variant(*key, core.summary_kind, core.window, ties)].append(row)
    return dict(sorted(lines.items(), key=lambda item: order(item[0])))


def _core(row: Row) -> Variant:
    # Under an active ratio the token budget, and the window of sink + window, follow from the context.
    by_ratio = row.active_ratio is not None
    return Variant(
        row.method,
        row.block_size,
        row.active_ratio,
        None if by_ratio else row.budget_tokens,
        row.gqa_policy,
        row.summary_kind,
        None if by_ratio and row.method == "sink-window" else row.window,
    )


def _ties(rows: list[Row], point: Callable[[Row], tuple[Any, ...]]) -> list[str]:
    """Tie-breaking columns that tell rows at the same point apart."""
    same_point: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        same_point[point(row)].append(row)
    return [n for n in TIE_BREAKERS if any(len({getattr(r, n) for r in group}) > 1 for group in same_point.values())]


def order(variant: Variant) -> tuple[Any, ...]:
    """Sorts variants: dense first, then ReSA, then by method and parameters."""
    leading = (*RESA, FUSED, "resa-authors", "sparse")
    rank = leading.index(variant.method) if variant.method in leading else len(leading)
    numbers = (variant.block_size, variant.active_ratio, variant.budget_tokens, variant.window)
    words = (variant.gqa_policy or "", variant.summary_kind or "", *(str(v or "") for _, v in variant.ties))
    return (not variant.dense, rank, variant.method, *(n or 0 for n in numbers), *words)
