"""Statistics of timing samples: pure functions, nothing dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Summary:
    """What a list of samples says. All times in microseconds.

    Attributes:
        ci_low_us, ci_high_us: 95 % interval of the median.
        q20_us, q80_us, p50_us, p99_us: quantiles at 20, 80, 50 and 99 %.
    """

    n_samples: int
    median_us: float
    ci_low_us: float
    ci_high_us: float
    q20_us: float
    q80_us: float
    min_us: float
    mean_us: float
    p50_us: float
    p99_us: float


def quantile(ordered: Sequence[float], q: float) -> float:
    """The quantile at `q` (0 to 1) of an ascending list, linear between order statistics.

    Raises:
        ValueError: the list is empty.
    """
    if not ordered:
        raise ValueError("samples: got none, need at least one")
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the median by order statistics (normal approximation of the binomial ranks).

    Args:
        ordered: ascending.

    Raises:
        ValueError: it is empty.
    """
    n = len(ordered)
    if not n:
        raise ValueError("samples: got none, need at least one")
    reach = Z_95 * math.sqrt(n) / 2
    low = max(0, math.floor(n / 2 - reach))
    high = min(n - 1, math.ceil(n / 2 + reach))
    return ordered[low], ordered[high]


def half_width(samples: Sequence[float]) -> float:
    """Half the width of the median's interval, relative to the median; 0 where that is 0.

    Raises:
        ValueError: there are no samples.
    """
    ordered = sorted(samples)
    low, high = median_interval(ordered)
    middle = quantile(ordered, 0.5)
    return (high - low) / 2 / middle if middle > 0 else 0.0


def summarize(samples_us: Sequence[float]) -> Summary:
    """Median with its interval, quantiles, extremes. Raises ValueError without samples."""
    ordered = sorted(samples_us)
    low, high = median_interval(ordered)
    median = quantile(ordered, 0.5)
    return Summary(
        n_samples=len(ordered),
        median_us=median,
        ci_low_us=low,
        ci_high_us=high,
        q20_us=quantile(ordered, 0.2),
        q80_us=quantile(ordered, 0.8),
        min_us=ordered[0],
        mean_us=sum(ordered) / len(ordered),
        p50_us=median,
        p99_us=quantile(ordered, 0.99),
    )


T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Quantiles of Student's t at 97.5 %, for 1 to 15 degrees of freedom; the last one is a little wide for more."""


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values by Student's t; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = T_975[min(n - 1, len(T_975)) - 1] * deviation / math.sqrt(n)
    return mean - half, mean + half
