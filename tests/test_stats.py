"""Statistics of samples: quantiles, the median's interval and how often it holds the truth, edges."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from resa_bench.profiling.stats import half_width, mean_interval, median_interval, quantile, summarize

times = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=60)


@given(times, st.floats(0, 1))
def test_quantile_is_numpys_linear_one(samples: list[float], q: float) -> None:
    assert quantile(sorted(samples), q) == pytest.approx(np.quantile(samples, q), rel=1e-9)


@pytest.mark.parametrize(
    ("q", "expected"),
    [pytest.param(0, 10, id="least"), pytest.param(0.5, 25, id="between-two"), pytest.param(1, 40, id="most")],
)
def test_quantile_of_four(q: float, expected: float) -> None:
    assert quantile([10, 20, 30, 40], q) == expected


@pytest.mark.parametrize(
    "function",
    [summarize, half_width, median_interval, lambda samples: quantile(samples, 0.5)],
    ids=["summarize", "half_width", "median_interval", "quantile"],
)
def test_no_samples_is_an_error(function) -> None:
    with pytest.raises(ValueError, match="got none, need at least one"):
        function([])


def test_one_sample_is_every_statistic() -> None:
    single = summarize([7.0])
    assert single.n_samples == 1
    fields = ("median_us", "ci_low_us", "ci_high_us", "q20_us", "q80_us", "min_us", "mean_us", "p50_us", "p99_us")
    assert {getattr(single, name) for name in fields} == {7.0}
    assert half_width([7.0]) == 0


def test_summary_of_known_samples() -> None:
    """0 to 100 in no order: every quantile is its own percentage."""
    samples = [float(v) for v in np.random.default_rng(0).permutation(101)]
    summary = summarize(samples)
    assert (summary.n_samples, summary.median_us, summary.p50_us, summary.mean_us) == (101, 50, 50, 50)
    assert (summary.min_us, summary.q20_us, summary.q80_us, summary.p99_us) == (0, 20, 80, 99)
    # n / 2 -+ 1.96 sqrt(n) / 2 = 40.65 and 60.35, taken outwards
    assert (summary.ci_low_us, summary.ci_high_us) == (40, 61)


def test_summary_leaves_the_samples_in_order() -> None:
    samples = [3.0, 1.0, 2.0]
    summarize(samples)
    half_width(samples)
    assert samples == [3.0, 1.0, 2.0]


@given(times)
def test_statistics_are_ordered(samples: list[float]) -> None:
    s = summarize(samples)
    assert s.min_us <= s.q20_us <= s.median_us <= s.q80_us <= s.p99_us <= max(samples)
    assert s.min_us <= s.ci_low_us <= s.median_us <= s.ci_high_us <= max(samples)


@given(times, st.floats(0.1, 100))
def test_half_width_is_relative(samples: list[float], factor: float) -> None:
    assert half_width([factor * s for s in samples]) == pytest.approx(half_width(samples), rel=1e-6, abs=1e-12)


def test_half_width_of_known_samples() -> None:
    """Five samples: the interval is their whole range."""
    assert half_width([90.0, 100.0, 95.0, 110.0, 105.0]) == pytest.approx(0.1)
    assert half_width([0.0, 0.0, 0.0]) == 0


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_samples_give_their_whole_range(n: int) -> None:
    """No ranks of so few samples hold the median with 95 %."""
    ordered = [float(i) for i in range(n)]
    assert median_interval(ordered) == (0, n - 1)


@pytest.mark.parametrize("n", [6, 7, 10, 20, 25, 50, 100, 300])
def test_interval_ranks_hold_the_median_95_percent_of_the_time(n: int) -> None:
    """Exactly: the chance that a binomial count of samples below the median falls between the two ranks."""
    low, high = (int(v) for v in median_interval([float(i) for i in range(n)]))
    coverage = sum(math.comb(n, k) for k in range(low + 1, high + 1)) / 2**n
    assert 0.945 <= coverage <= 0.99


@pytest.mark.parametrize("n", [20, 75])
def test_interval_covers_the_true_median(n: int) -> None:
    """Simulated on skewed times, as a GPU's are: 10 us and an exponential tail of median 1 us."""
    trials = 4000
    draws = 10 + np.random.default_rng(1).exponential(1 / math.log(2), (trials, n))
    draws.sort(axis=1)
    intervals = [median_interval(list(row)) for row in draws]
    coverage = sum(low <= 11 <= high for low, high in intervals) / trials
    assert 0.94 <= coverage <= 0.985


def test_mean_interval_is_students() -> None:
    """Ten values with mean 10 and deviation 1: t(9) = 2.262; covers the true mean in about 95 % of draws."""
    assert mean_interval([1.0]) is None
    assert mean_interval([9.0, 11.0]) == pytest.approx((10 - 12.706, 10 + 12.706))
    random = Random(1)
    hits = 0
    for _ in range(2000):
        low, high = mean_interval([random.gauss(5, 2) for _ in range(6)]) or (0.0, 0.0)
        hits += low <= 5 <= high
    assert 0.935 < hits / 2000 < 0.965
