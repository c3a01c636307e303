"""Times that grow with work: least squares without negative terms, and rates interpolated between measured sizes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import exp, log

import numpy as np


def fit_nonnegative(features: Sequence[Sequence[float]], times: Sequence[float]) -> tuple[float, ...]:
    """Coefficients of `time = sum of coefficient * feature`, none below 0, that leave the least *relative* error.

    Every subset of the features is solved, so there should be few of them.

    Raises:
        ValueError: no times, or times that are not above 0.
    """
    if not times or min(times) <= 0:
        raise ValueError(f"times: got {len(times)}, expected at least one, all above 0")
    scaled = np.asarray(features, dtype=float) / np.asarray(times, dtype=float)[:, None]
    ones = np.ones(len(times))
    count = scaled.shape[1]
    best, least = np.zeros(count), float(ones @ ones)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            part = scaled[:, chosen]
            solution, *_ = np.linalg.lstsq(part, ones, rcond=None)
            error = float(np.sum((part @ solution - ones) ** 2))
            if (solution >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(count), error
                best[list(chosen)] = solution
    return tuple(best.tolist())


class Curve:
    """A positive quantity over a positive size: log-log between measured sizes, held beyond them.

    Of several values at one size the geometric mean counts.
    """

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """`points`: (size, value). Raises ValueError for none, and for a value that is not above 0."""
        values: dict[float, list[float]] = {}
        for size, value in points:
            if value <= 0:
                raise ValueError(f"points: got {value} at {size}, expected a value above 0")
            values.setdefault(size, []).append(log(value))
        if not values:
            raise ValueError("points: got none, expected at least one")
        self.sizes = sorted(values)
        self._logs = [sum(values[size]) / len(values[size]) for size in self.sizes]

    def __call__(self, size: float) -> float:
        sizes, logs = self.sizes, self._logs
        if size <= sizes[0]:
            return exp(logs[0])
        if size >= sizes[-1]:
            return exp(logs[-1])
        i = bisect_right(sizes, size)
        share = log(size / sizes[i - 1]) / log(sizes[i] / sizes[i - 1])
        return exp(logs[i - 1] + share * (logs[i] - logs[i - 1]))
