"""Timed rows as columns, with what the page asks of each: is it a whole step, a part of a bar, of the usual launch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...suites.core.report import main_launch
from ...suites.core.rows import WHOLE_MODELS, Row, digits
from ...suites.core.stages import AMORTISED, WHOLE_STEPS
from ..data import USUAL_LAYOUT
from ..decode_data import setting as decode_setting
from ..stage_style import fused_first
from .lists import Listed, Variants, packed

ALONE = "total"
OWN_RUN = 1e-3  # of a row's ratio: times that give it back are those it was computed from
ROW_COLUMNS = {
    "context": "context", "batch": "batch", "low": "ci_low_us", "high": "ci_high_us", "floor": "floor_us",
    "share": "floor_fraction", "ratio": "speedup_vs_best_dense", "allows": "floor_speedup", "rate": "tokens_per_s",
    "joules": "joules_per_token", "memory": "peak_memory_bytes", "samples": "n_samples",
}  # fmt: skip
"""The page's columns that are a row's own, by the page's name."""


@dataclass(frozen=True, slots=True)
class Places:
    """The lists that rows and values point into."""

    variants: Variants
    suites: Listed[str]
    cases: Listed[str]
    stages: Listed[str]
    settings: Listed[tuple[str, str]]  # model, and in words what else tells two panels apart
    ways: Listed[str]  # launch and cache
    reshaped: frozenset[str]  # models that rows have in several shapes

    def columns(self, row: Row) -> dict[str, int]:
        """Where a row belongs."""
        return {
            "suite": self.suites.number(row.suite),
            "case": self.cases.number(row.case),
            "variant": self.variants.number(row),
            "stage": self.stages.number(row.stage),
            "setting": self.settings.number((row.model, setting_of(row, row.model in self.reshaped))),
        }


def reshaped(rows: Iterable[Row]) -> frozenset[str]:
    """Models that rows have in several shapes of heads."""
    shapes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        shapes[row.model].add(_heads(row))
    return frozenset(model for model, heads in shapes.items() if len(heads) > 1)


def _heads(row: Row) -> str:
    return f"{row.q_heads}/{row.kv_heads} heads of {row.head_dim}"


def setting_of(row: Row, with_heads: bool = True) -> str:
    """What a panel of rows has in common beside model and batch, in words.

    Everything that makes two rows of a method at a context different cases; ranks are in the model's name.
    """
    weights = f"{row.weight_dtype} weights" if row.weight_dtype else row.dtype or ""
    dtype = row.dtype if row.weight_dtype and row.dtype not in (row.weight_dtype, "bf16") else None
    heads = _heads(row) if with_heads else ""
    layout = row.kv_layout if row.kv_layout != USUAL_LAYOUT else None
    sampling = decode_setting(row).sampling if row.suite in WHOLE_MODELS else ""
    prompt = row.selection_pattern if row.selection_pattern not in ("random", "synthetic") else None
    kv = f"{row.kv_dtype} K/V" if row.kv_dtype else ""
    cache = ("paged K/V" if row.paged else "", kv, layout, "shared K/V" if row.shared_kv else "")
    software = (f"{row.products} products" if row.products else "", f"inside {row.client}" if row.client else "")
    words = (weights, dtype, heads, *cache, prompt, *software, sampling)
    return ", ".join(word for word in words if word)


def timed_columns(runs: Sequence[Sequence[Row]], places: Places) -> tuple[dict[str, str], dict[int, int]]:
    """The timed rows of all runs, and their numbers by `id()` of the row.

    Columns beside ROW_COLUMNS and the lists': `run`; `way` (launch and cache); `usual` (1 for what tables show: the
    graph's launch, a cold cache); `time` (microseconds: the median, of whole models' steps the mean); `whole` (2: the
    step with all that it costs, 1: without rectification, 0: a matrix product, which is no step and has no context);
    `bar` (1: a part of the step that no other part contains); `least` and `most` (the interval of `ratio`); `rival`
    (the variant of the best dense method); `throttled`, `others` (who else ran).
    """
    table: dict[str, list[Any]] = defaultdict(list)
    numbers: dict[int, int] = {}
    for run, rows in enumerate(runs):
        timed = [row for row in rows if row.timed]
        launches = {suite: main_launch(r for r in timed if r.suite == suite) for suite in {r.suite for r in timed}}
        by_step: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        rivals: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in timed:
            by_step[_step(row)].append(row)
            if row.variant.is_dense and row.stage == ALONE:
                rivals[_circumstances(row), row.method].append(row)
        parts = {id(part) for step in by_step.values() for part in bar_parts(step)}
        for row in timed:
            numbers[id(row)] = len(table["run"])
            rival = own_rival(row, rivals[_circumstances(row), row.best_dense])
            least, most = ratio_interval(row, rival)
            is_usual = row.launch in (None, launches[row.suite]) and row.cache_state in (None, "cold")
            cache = None if row.suite in WHOLE_MODELS else row.cache_state  # whole models: nothing is flushed
            words = " ".join(word for word in (row.launch, cache) if word)
            columns = {
                "run": run, **places.columns(row), "way": places.ways.number(words), "usual": int(is_usual),
                "time": row.time_us, "whole": _whole(row, by_step[_step(row)]), "bar": int(id(row) in parts) or None,
                "least": least, "most": most, "rival": places.variants.number(rival) if rival else None,
                "throttled": int(row.status == "throttled") or None, "others": int(bool(row.contention)) or None,
                **{name: getattr(row, column) for name, column in ROW_COLUMNS.items()},
            }  # fmt: skip
            for name, value in columns.items():
                table[name].append(value)
    return {name: packed(values) for name, values in table.items()}, numbers


def _circumstances(row: Row) -> tuple[Any, ...]:
    """What rows share that are compared with one dense step."""
    return row.suite, row.model, row.case, row.context, row.batch, row.cache_state, row.launch


def _step(row: Row) -> tuple[Any, ...]:
    """What the rows of one step share."""
    return (*_circumstances(row), row.variant, setting_of(row))


def _whole(row: Row, step: Sequence[Row]) -> int | None:
    """2: the step with all that it costs; 1: a step whose rectification another row adds; 0: no step; None: a part."""
    if row.stage not in WHOLE_STEPS:
        return None
    if not row.context:
        return 0
    return 1 if row.stage == ALONE and any(other.stage == AMORTISED for other in step) else 2


def bar_parts(step: Sequence[Row]) -> list[Row]:
    """The stages that make a step; where a part is there fused and single, fused counts.

    A rectification counts where it is a share of each step, as in a whole model.
    """
    whole_model = any(row.stage == "gap" for row in step)
    if whole_model:
        return [row for row in step if row.stage not in WHOLE_STEPS]
    return fused_first(step)


def own_rival(row: Row, rivals: Sequence[Row]) -> Row | None:
    """The dense step that the row's ratio was computed from; None where a later run's stands in its place."""
    time_us = (row.time_us or 0.0) * (row.speedup_vs_best_dense or 0.0)
    return next((r for r in rivals if math.isclose(r.time_us or 0.0, time_us, rel_tol=OWN_RUN)), None)


def ratio_interval(row: Row, rival: Row | None) -> tuple[float | None, float | None]:
    """What the 95 % intervals of both times leave of their ratio: the widest it may be."""
    if rival is None or not all((row.ci_low_us, row.ci_high_us, rival.ci_low_us, rival.ci_high_us)):
        return None, None
    return digits(rival.ci_low_us / row.ci_high_us, 4), digits(rival.ci_high_us / row.ci_low_us, 4)  # type: ignore[operator]
