"""Values of metrics: a mean for each method and case, and the curve over steps or depths where there is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ...suites.core.metrics import metrics
from ...suites.core.rows import Row, digits
from .timed import Places

AVERAGED = ("quality",)
"""Suites whose metrics are means over steps; elsewhere a value of a step stands for itself."""


def value_entries(runs: Sequence[Sequence[Row]], places: Places) -> list[dict[str, Any]]:
    """An entry for each run, case, method, stage and metric.

    `mean` is over steps weighted by samples (over layers and heads, where a metric was read by these alone); None where
    only a curve says it. `curve` holds (step or depth, value) pairs.
    """
    entries = []
    for run, rows in enumerate(runs):
        groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in rows:
            if row.metric and row.value is not None:
                groups[row.suite, row.case, row.variant, row.stage, row.context, row.metric].append(row)
        for group in groups.values():
            first = group[0]
            entry = {
                "run": run, **places.columns(first), "context": first.context, "batch": first.batch,
                "metric": first.metric, **summary(group),
            }  # fmt: skip
            entries.append({name: value for name, value in entry.items() if value not in (None, [])})
    return entries


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean, samples and curve of one metric's rows."""
    whole = [row for row in rows if row.layer is None] or list(rows)
    by_step = _curve(whole, "step")
    by_depth = _curve(whole, "depth")
    plain = [row for row in whole if row.depth is None] or whole
    is_mean = len(by_step) <= 1 or rows[0].suite in AVERAGED
    weights = sum(row.n_samples or 1 for row in plain)
    mean = sum((row.value or 0.0) * (row.n_samples or 1) for row in plain) / weights
    curve, axis = (by_step, "step") if len(by_step) > 1 else (by_depth, "depth")
    return {
        "mean": digits(mean, 5) if is_mean else None,
        "samples": sum({row.step: row.n_samples or 0 for row in plain}.values()) or None,
        "curve": curve if len(curve) > 1 else [],
        "over": axis if len(curve) > 1 else None,
    }


def _curve(rows: Sequence[Row], axis: str) -> list[list[float]]:
    """(place, mean value) pairs of the rows that have a place."""
    at: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        if getattr(row, axis) is not None:
            at[getattr(row, axis)].append(row)
    means = {place: sum(row.value or 0.0 for row in group) / len(group) for place, group in at.items()}
    return [[place, digits(float(mean), 4)] for place, mean in sorted(means.items())]


def metric_entries() -> dict[str, dict[str, Any]]:
    """How tables show each registered metric."""
    shown = {metric.name: metric for metric in metrics() if metric.heading}
    return {
        name: {
            "heading": metric.heading,
            "percent": metric.form.endswith("%"),
            "exponent": metric.name == "loss",
            "unit": metric.unit,
        }
        for name, metric in shown.items()
    }
