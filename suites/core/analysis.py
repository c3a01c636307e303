"""What values of many rows say together, for tables and figures alike: means, levels, shares and their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import stdev

from .rows import Row
from .settings import SELECTION
from .spec import steps_of

LEVEL = 1
"""f of ReSA that shows the error of a single sparse step, which no rectification removes."""


def mean_of(rows: Iterable[Row], metric: str, after: int = 0) -> float | None:
    """The mean of a metric over the steps after `after`, stretches weighted by their samples; None without any.

    Of a metric that was read by layer or head alone, the mean over these.
    """
    rows = [row for row in rows if row.metric == metric and (row.step or 0) > after and row.value is not None]
    whole = [row for row in rows if row.layer is None] or rows
    values = [(row.value or 0.0, row.n_samples or 1) for row in whole]
    weights = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / weights if values else None


BY_TEXT = "_of_text"
"""Ends a metric's name in rows of one stretch of text each, over all steps."""


def error_of_mean(values: Sequence[float]) -> float:
    """The standard error of the mean of independent values, two at least."""
    return stdev(values) / math.sqrt(len(values))


def error_over_texts(rows: Iterable[Row], metric: str) -> float | None:
    """The standard error of a metric's mean over all steps, stretches of text being independent; None for one."""
    values = [row.value for row in rows if row.metric == f"{metric}{BY_TEXT}" and row.value is not None]
    return error_of_mean(values) if len(values) > 1 else None


def recall_of(rows: Iterable[Row]) -> float | None:
    """The share of attention mass in the blocks read, mean over layers and heads; None where it was not measured."""
    return mean_of(rows, "recall")


def selection_of(row: Row) -> tuple[object, ...]:
    """Values of the settings that say how blocks are chosen."""
    return tuple(getattr(row, name) for name in SELECTION)


def level_rows(rows: Sequence[Row], row: Row) -> list[Row]:
    """Rows of ReSA at f = 1 with the selection of `row`: a sparse step's own error, which no rectification removes.

    Where several forms of ReSA have it, the row's own.
    """
    alike = [
        other
        for other in rows
        if other.rectify_every == LEVEL
        and steps_of(other.method) == "resa"
        and selection_of(other) == selection_of(row)
    ]
    methods = list(dict.fromkeys(other.method for other in alike))
    method = row.method if row.method in methods else next(iter(methods), None)
    return [other for other in alike if other.method == method]


def excess_of(rows: Sequence[Row], method_rows: Sequence[Row], after: int) -> float | None:
    """KL over that of ReSA at f = 1 with the same selection; None where that was not measured."""
    own, level = mean_of(method_rows, "kl", after), mean_of(level_rows(rows, method_rows[0]), "kl", after)
    return None if own is None or level is None else own - level


def share_error(share: float, count: int) -> float:
    """Half the width of Wilson's 68 % interval of a share of `count` samples; never 0, unlike sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)
